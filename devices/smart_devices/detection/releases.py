"""Which L4T release, JetPack, CUDA and TensorRT a machine has installed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from smart_common.documents import parse_document
from smart_common.errors import SmartError
from smart_devices.jetpack import JetPackVersion, jetpack_of
from smart_devices.sysfs import Files

_RELEASE = "/etc/nv_tegra_release"
_PACKAGES = "/var/lib/dpkg/status"
_PACKAGES_LIMIT = 64 << 20  # bytes: a desktop's list has 5 to 10 MB
_L4T = re.compile(r"^#\s*R(\d{1,3})\s*\(release\),\s*REVISION:\s*(\d{1,3})(?:\.(\d{1,3}))?\b", re.MULTILINE)
_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,5}")
_CUDART = re.compile(r"libcudart\.so\.(\d+\.\d+\.\d+)")
_CUDA_LIBRARIES = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib")
_PYTHON = re.compile(r"python(3\.\d+)")
# The Python module's package first: it is what a program imports.
_TENSORRT = ("python3-libnvinfer", "libnvinfer10", "libnvinfer8")
WANTED = ("nvidia-jetpack", "nvidia-l4t-core", *_TENSORRT)
"""The packages that tell something."""


@dataclass(frozen=True)
class Software:
    """What the system's packages installed, of what engines need.

    Attributes:
        cuda: Version of the CUDA toolkit, None when none is found.
        tensorrt: Version of TensorRT, None when none is found.
        tensorrt_modules: Where TensorRT's Python module is: a path for each Python that has it.
        python: Minor version of the system's Python, for which those are made; None while unknown.
    """

    cuda: str | None
    tensorrt: str | None
    tensorrt_modules: tuple[str, ...]
    python: str | None


def read_software(files: Files, packages: Mapping[str, str]) -> Software:
    """Return what the system's packages installed."""
    return Software(
        cuda=_cuda(files),
        tensorrt=next((version for name in _TENSORRT if (version := _upstream(packages.get(name)))), None),
        tensorrt_modules=_tensorrt_modules(files),
        python=_system_python(files),
    )


def parse_release(text: str) -> str | None:
    """Return the L4T release in ``/etc/nv_tegra_release``, as in ``36.4.7``; None when it is written otherwise.

    The line's BOARD is not the board, and its date has changed its form; neither is looked at.
    """
    match = _L4T.search(text)
    return None if match is None else f"{match[1]}.{match[2]}.{match[3] or 0}"


def parse_packages(data: bytes, wanted: Collection[str] = WANTED) -> dict[str, str]:
    """Return the versions of the ``wanted`` packages that dpkg's status file says are installed.

    One that was removed, or that could be installed, has an entry too: only ``... installed`` counts.
    """
    found: dict[str, str] = {}
    for paragraph in data.split(b"\n\n"):
        name = paragraph.lstrip(b"\n").partition(b"\n")[0].removeprefix(b"Package:").strip().decode("utf-8", "replace")
        if name not in wanted:
            continue
        fields = {}
        for line in paragraph.decode("utf-8", "replace").splitlines():
            key, colon, value = line.partition(":")
            if colon and not key.startswith((" ", "\t")):  # else it goes on with the line before
                fields[key] = value.strip()
        if fields.get("Status", "").split()[-1:] == ["installed"] and fields.get("Version"):
            found[name] = fields["Version"]
    return found


def read_packages(files: Files) -> dict[str, str]:
    """Return the versions of the packages that tell something; none where dpkg is not used."""
    return parse_packages(files.read(_PACKAGES, limit=_PACKAGES_LIMIT) or b"")


def read_l4t(files: Files, packages: Mapping[str, str]) -> str | None:
    """Return the L4T release: the release file's, else its package's."""
    release = parse_release(files.text(_RELEASE) or "")
    if release is not None:
        return release
    parts = _upstream(packages.get("nvidia-l4t-core"))
    return parts if parts is not None and parts.count(".") == 2 else None


def jetpack_version(l4t: str | None, packages: Mapping[str, str]) -> JetPackVersion | None:
    """Return the JetPack release: the installed package's, else the one that the L4T release belongs to."""
    installed = _upstream(packages.get("nvidia-jetpack"))
    if installed is not None:
        return JetPackVersion(version=installed, source="dpkg")
    return None if l4t is None else jetpack_of(l4t)


def parse_cuda(text: str) -> str | None:
    """Return the toolkit's version in its ``version.json``, None when it is written otherwise."""
    try:
        version = parse_document(text.encode(), damaged=SmartError).object("cuda").string("version")
    except SmartError:
        return None
    return version if _VERSION.fullmatch(version) else None


def _cuda(files: Files) -> str | None:
    """Return the toolkit's version, as in ``12.6.68``: what its own files say, else the library's name."""
    version = parse_cuda(files.text("/usr/local/cuda/version.json") or "")
    if version is not None:
        return version
    names = (name for folder in _CUDA_LIBRARIES for name in files.names(folder))
    return next((match[1] for match in map(_CUDART.fullmatch, names) if match), None)


def _tensorrt_modules(files: Files) -> tuple[str, ...]:
    folders = (f"/usr/lib/{name}/dist-packages/tensorrt" for name in files.names("/usr/lib") if _PYTHON.fullmatch(name))
    return tuple(folder for folder in folders if files.exists(folder))


def _system_python(files: Files) -> str | None:
    match = _PYTHON.fullmatch((files.link("/usr/bin/python3") or "").rpartition("/")[2])
    return None if match is None else match[1]


def _upstream(version: str | None) -> str | None:
    """Return a package's version without what the packagers added: ``6.2.1`` of ``6.2.1+b38``."""
    match = _VERSION.match(version or "")
    return None if match is None else match[0]
