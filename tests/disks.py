"""A small disk of its own for a shell script: in a mount namespace only the script and its children see it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_MOUNT = 'mount -t tmpfs -o "size=${2}k" none "$1" || exit 77; shift 2\n'


def run_on_small_disk(script: str, *arguments: str, disk: Path, kilobytes: int) -> subprocess.CompletedProcess[str]:
    """Run ``script`` with sh and ``arguments`` while ``disk``, an empty folder, is a disk of so many KiB.

    Skips the test, with the system's words, where a user may not mount in a namespace.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare (util-linux)")
    command = [unshare, "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT + script, "sh", str(disk)]
    done = subprocess.run(
        [*command, str(kilobytes), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip(f"needs a mount namespace, which this system refuses: {done.stderr.strip()}")
    return done
