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
from smart_runtime.bundle.signatures import PublicKey, needing_cryptography, read_key_file
from smart_runtime.errors import SignatureError

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


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Return the Ed25519 private key in the PEM file ``path``.

    Raises:
        SignatureError: No such file, or it holds something else or is encrypted.
        MissingExtraError: cryptography is not installed.
        OSError: The system cannot read it.
    """
    with needing_cryptography():
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # optional: imported at use
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415
    data = read_key_file(path)
    name = repr(os.fspath(path))
    if b"PUBLIC KEY-----" in data:
        raise SignatureError(f"{name} holds a public key, not a private one; sign with the file without .pub")
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:  # what cryptography raises for an encrypted key without a password
        raise SignatureError(
            f"the private key in {name} is encrypted; `openssl pkey -in KEY -out NEW` decrypts it into a file of its "
            "own"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{name} holds no private key as PEM; `smart-export keygen` makes one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(
            f"{name} holds a private key of another kind than Ed25519; `smart-export keygen` makes one"
        )
    return key


def public_half(key: Ed25519PrivateKey) -> PublicKey:
    """Return what checks the signatures that ``key`` makes."""
    return PublicKey(raw=key.public_key().public_bytes_raw())


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
