"""A disk that is full while a checkpoint is written: the old one stays whole, and the command says so in a sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from disks import run_on_small_disk
from smart_train import load_checkpoint
from smart_train.checkpoint.reader import save_atomically

LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from smart_train.checkpoint.reader import save_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit fails, as on a full disk
path = Path(sys.argv[1])
for max_file_bytes in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
    try:
        save_atomically({"a": torch.ones(1000), "b": torch.ones(1000)}, path)
    except OSError as error:
        print(error.errno, error.filename == str(path))
"""


def test_an_old_file_outlives_one_that_cannot_be_written(tmp_path: Path) -> None:
    """At some of these lengths torch reports its own confusion and not the system's refusal."""
    path = tmp_path / "ckpt.pt"
    save_atomically({"a": torch.zeros(3)}, path)
    lengths = ["0", "100", "2000", "5000", "8900", "9500"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), *lengths], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["27 True"] * len(lengths), "EFBIG, with the file's name"
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.zeros(3))
    assert [file.name for file in tmp_path.iterdir()] == ["ckpt.pt"]


# There is room for one epoch's files, and not for the next one's beside them.
FULL_DISK = """
disk=$1; shift
"$@" -o "$disk/ckpt.pt"; echo "status $?"
ls -A "$disk"
cp "$disk/ckpt.pt" "$disk/../full.pt"
mount -o remount,size=4m "$disk"
"$@" -o "$disk/ckpt.pt" --resume >/dev/null || exit
echo "epochs $(grep -c '^[0-9]' "$disk/ckpt.history.csv")"
"""


@pytest.mark.slow
def test_a_training_goes_on_once_a_full_disk_has_room_again(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, "-m", "smart_train.cli", "--data", "digits", "--no-cache", "--model-arg", "width=8"]
    options = ["--align", "2", "--train-images", "300", "--test-images", "50", "--epochs", "3", "--steps", "1"]
    done = run_on_small_disk(FULL_DISK, str(disk), *command, *options, disk=disk, kilobytes=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["status", "1", "ckpt.history.csv", "ckpt.last.pt", "ckpt.pt", "epochs", "3"]
    refusals = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(refusals) == 1, done.stderr
    assert refusals[0].startswith(f"error: the system refused: No space left on device ({disk}/ckpt.")
    assert "Traceback" not in done.stderr
    assert len(load_checkpoint(tmp_path / "full.pt").training["history"]) in {1, 2}, "an epoch's before the last"
