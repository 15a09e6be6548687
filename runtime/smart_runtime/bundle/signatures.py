"""Ed25519 keys and what they have signed (RFC 8032); ``cryptography`` is imported where it is used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smart_common.errors import MissingExtraError
from smart_runtime.errors import SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_BYTES = 64
"""RFC 8032, section 5.1.6."""

MAX_KEY_BYTES = 64 * 1024
"""Of a key's file: one of Ed25519 has about 120, one of RSA with 16,384 bits 13,000."""

_REMEDY = "`smart-export keygen` makes a pair of keys"


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """An Ed25519 public key: ``raw`` is its 32 bytes."""

    raw: bytes

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the raw key, in lower-case hex."""
        return hashlib.sha256(self.raw).hexdigest()

    def check(self, signature: bytes, data: bytes, *, name: str) -> None:
        """Check that ``signature``, which lies in the file ``name``, is this key's over ``data``.

        Raises:
            SignatureError: It is not.
            MissingExtraError: cryptography is not installed.
        """
        if len(signature) != SIGNATURE_BYTES:
            got = "more" if len(signature) > SIGNATURE_BYTES else f"{len(signature)}"
            raise SignatureError(
                f"expected a signature of {SIGNATURE_BYTES} bytes in {name}, got {got}; get the signed bundle again"
            )
        if not self.has_signed(signature, data):
            raise SignatureError(
                f"expected in {name} the signature by the key {short_fingerprint(self.fingerprint)} over this bundle's "
                "checksums, got another; the bundle was changed or signed with another key, get it from its maker again"
            )

    def has_signed(self, signature: bytes, data: bytes) -> bool:
        """Say whether ``signature`` is this key's over ``data``; MissingExtraError if cryptography is not installed."""
        with needing_cryptography():
            from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # optional: imported at use
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except InvalidSignature:
            return False
        return True


def load_public_key(path: str | os.PathLike[str]) -> PublicKey:
    """Return the Ed25519 public key in the PEM file ``path`` (SubjectPublicKeyInfo, RFC 8410).

    Raises:
        SignatureError: No such file, or it holds something else.
        MissingExtraError: cryptography is not installed.
        OSError: The system cannot read it.
    """
    data = read_key_file(path)
    if b"PRIVATE KEY-----" in data:
        raise SignatureError(
            f"expected a public key in {os.fspath(path)!r}, got a private one; give its .pub file, and keep this to "
            "yourself"
        )
    with needing_cryptography():
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # optional: imported at use
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(
            f"expected an Ed25519 public key as PEM in {os.fspath(path)!r}, got something else; {_REMEDY}"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(
            f"expected an Ed25519 public key in {os.fspath(path)!r}, got a public key of another kind; {_REMEDY}"
        )
    return PublicKey(raw=key.public_bytes_raw())


def public_key(trust: str | os.PathLike[str] | PublicKey | None) -> PublicKey | None:
    """Return the key itself where ``trust`` is its file; raises as `load_public_key`.

    Who opens more than one bundle calls it once: a name can stand for another file by the next time.
    """
    return load_public_key(trust) if isinstance(trust, str | os.PathLike) else trust


def private_key(key: str | os.PathLike[str] | Ed25519PrivateKey) -> Ed25519PrivateKey:
    """Return ``key``, or the one in the PEM file that it names: see `load_private_key`."""
    if isinstance(key, str | os.PathLike):
        return load_private_key(key)
    with needing_cryptography():
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"expected an Ed25519 private key or the name of its file, got {key!r:.60}")
    return key


def load_private_key(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
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


def read_key_file(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file with a key.

    Raises:
        SignatureError: No such file, or one larger than `MAX_KEY_BYTES`.
        OSError: The system cannot read it.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:  # noqa: PTH123  # a path of the user's own, in whatever form
            data = file.read(MAX_KEY_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise SignatureError(f"no key at {name!r}: {error.strerror}; {_REMEDY}") from error
    if len(data) > MAX_KEY_BYTES:
        raise SignatureError(f"expected a key of at most {MAX_KEY_BYTES} bytes in {name!r}, got more; {_REMEDY}")
    return data


def short_fingerprint(fingerprint: str) -> str:
    """Return the beginning of a fingerprint, for people."""
    return f"{fingerprint[:16]}..."


@contextmanager
def needing_cryptography() -> Iterator[None]:
    """Say how to install cryptography where an import of it fails.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"the library cryptography, which checks signatures, cannot be imported: {error}; "
            "pip install 'smart-edge[sign]'"
        ) from error
