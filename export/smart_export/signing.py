"""Make Ed25519 keys and sign bundles with them; `smart_runtime.bundle.signatures` checks.

Keys are PEM files as openssl makes and reads them: PKCS#8 (RFC 8410, section 7) for the private one,
SubjectPublicKeyInfo (section 4) for the public one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smart_common.outputs import Output, check_outputs
from smart_export.errors import ExportError
from smart_runtime.bundle.bundle import CHECKSUMS, MAX_CHECKSUMS_BYTES, SIGNATURE
from smart_runtime.bundle.files import read_bounded
from smart_runtime.bundle.signatures import needing_cryptography, public_half

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """Where a new pair of keys lies."""

    private: Path
    public: Path
    fingerprint: str


def write_key_pair(path: Path) -> KeyPair:
    """Write a new private key to ``path``, for its owner alone to read, and its public half beside it, as ``.pub``.

    Raises:
        ExportError: One of the two files exists, and is left as it is; or their folder does not exist.
        OutputError: They would lie inside of a bundle.
        MissingExtraError: cryptography is not installed.
        OSError: The system cannot write them; then neither is left behind.
    """
    with needing_cryptography():
        from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415  # optional: imported at use
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    if path.name in {"", ".."}:
        raise ExportError(f"{path} is a folder, and a key is a file; name one in it")
    public = path.with_name(f"{path.name}.pub")
    if not path.parent.is_dir():
        raise ExportError(f"no folder {path.parent} for {path.name}; create it first")
    for place in (public, path):
        if os.path.lexists(place):
            raise _exists(place)
    check_outputs([Output("the key", path), Output("the key", public)], inputs=[])
    key = Ed25519PrivateKey.generate()
    private_bytes = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public_bytes = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    _write_new(path, private_bytes, mode=0o600)
    try:
        _write_new(public, public_bytes, mode=0o644)
    except BaseException:
        path.unlink(missing_ok=True)  # ours: it was not there before
        raise
    return KeyPair(private=path, public=public, fingerprint=public_half(key).fingerprint)


def sign_bundle_(folder: Path, key: Ed25519PrivateKey) -> None:
    """Write ``SHA256SUMS.sig`` into the bundle in ``folder``: the 64 bytes of the signature over ``SHA256SUMS``.

    Raises:
        BundleError: There are no checksums.
        OSError: The system cannot read or write a file.
    """
    checksums = read_bounded(folder, CHECKSUMS, max_bytes=MAX_CHECKSUMS_BYTES)
    (folder / SIGNATURE).write_bytes(key.sign(checksums))


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except FileExistsError as error:
        raise _exists(path) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _exists(path: Path) -> ExportError:
    return ExportError(f"{path} exists already, and a key is never overwritten; use another name")
