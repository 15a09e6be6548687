"""Keys and signed bundles, as smart-export makes them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from export.command import pass_clean_off_as_robust, smart_export
from export.test_cli import refused
from smart_devices import resolve_target
from smart_export import ExportError, build_bundle
from smart_export.check import check_bundle
from smart_export.signing import sign_bundle_, write_key_pair
from smart_runtime import Bundle, SignatureError
from smart_runtime.bundle.signatures import load_private_key, load_public_key, public_half
from smart_runtime.errors import BundleError
from smart_train import Checkpoint

OPENSSL = shutil.which("openssl")


def test_a_pair_of_keys_is_what_the_standards_say(tmp_path: Path) -> None:
    pair = write_key_pair(tmp_path / "release")
    assert (pair.private, pair.public) == (tmp_path / "release", tmp_path / "release.pub")
    lines = pair.public.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----")
    spki = base64.b64decode("".join(lines[1:-1]))
    assert spki[:12] == bytes.fromhex("302a300506032b6570032100")  # RFC 8410, section 4
    assert pair.fingerprint == hashlib.sha256(spki[12:]).hexdigest()
    assert pair.private.read_text().startswith("-----BEGIN PRIVATE KEY-----\n")
    assert load_public_key(pair.public) == public_half(load_private_key(pair.private))
    assert write_key_pair(tmp_path / "other").fingerprint != pair.fingerprint


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_private_key_is_its_owners_alone(umask: int, tmp_path: Path) -> None:
    done = smart_export("keygen", tmp_path / "release", "--json", umask=umask)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {
        "key": str(tmp_path / "release"),
        "public": str(tmp_path / "release.pub"),
        "fingerprint": load_public_key(tmp_path / "release.pub").fingerprint,
    }
    assert stat.S_IMODE((tmp_path / "release").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "release.pub").stat().st_mode) == 0o644 & ~umask
    again = refused(smart_export("keygen", tmp_path / "release"))
    assert again.startswith(f"error: {tmp_path / 'release.pub'} exists already, and a key is never overwritten")


def test_a_private_key_is_never_readable_by_others(tmp_path: Path) -> None:
    """Not for a moment: the file's mode is looked at each time that it is opened or changed."""
    code = (
        "import os, stat, sys\n"
        "os.umask(0)\n"
        "def watch(event, args):\n"
        "    if event == 'open' and str(args[0]).endswith('release'):\n"
        "        print('opened with', args[2] & os.O_EXCL != 0, args[2] & os.O_CREAT != 0)\n"
        "    if event in ('os.chmod', 'os.rename', 'os.link'):\n"
        "        print('changed')\n"
        "from smart_export.signing import *\n"
        "from cryptography.hazmat.primitives.asymmetric import ed25519\n"
        "sys.addaudithook(watch)\n"
        "from pathlib import Path\n"
        "pair = write_key_pair(Path(sys.argv[1]))\n"
        "print(oct(stat.S_IMODE(os.stat(pair.private).st_mode)))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "release")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:-1] == ["opened with True True", "0o600"], done.stdout + done.stderr


@pytest.mark.parametrize("there", ["release", "release.pub", "a link"])
def test_no_key_is_ever_overwritten(there: str, tmp_path: Path) -> None:
    file = tmp_path / ("release" if there == "a link" else there)
    if there == "a link":
        file.symlink_to(tmp_path / "elsewhere")
    else:
        file.write_text("precious")
    before = sorted(os.listdir(tmp_path))  # noqa: PTH208  # names alone
    with pytest.raises(ExportError, match=f"{file} exists already"):
        write_key_pair(tmp_path / "release")
    assert sorted(os.listdir(tmp_path)) == before  # noqa: PTH208  # as above
    if there != "a link":
        assert file.read_text() == "precious"


def test_a_key_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^no folder .* create it first"):
        write_key_pair(tmp_path / "no/release")


def key_file(what: str, folder: Path) -> Path:
    key, other = Ed25519PrivateKey.generate(), rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file = folder / "key"
    contents = {
        "public": key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
        "encrypted": key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"secret")),
        "RSA": other.private_bytes(pem, pkcs8, serialization.NoEncryption()),
        "garbage": b"\0\1\2",
        "large": b"-" * 100_000,
    }
    if what in contents:
        file.write_bytes(contents[what])
    return file


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "no key at .*: No such file or directory; `smart-export keygen` makes"),
        ("public", ".* holds a public key, not a private one; sign with the file without .pub"),
        ("encrypted", "the private key in .* is encrypted; `openssl pkey -in KEY -out NEW` decrypts"),
        ("RSA", ".* holds a private key of another kind than Ed25519"),
        ("garbage", ".* holds no private key as PEM"),
        ("large", "expected a key of at most 65536 bytes in .*, got more"),
    ],
)
def test_what_is_no_private_key_is_refused(what: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match=said):
        load_private_key(key_file(what, tmp_path))


def test_an_encrypted_key_signs_once_openssl_has_decrypted_it(tmp_path: Path) -> None:
    if OPENSSL is None:
        pytest.skip("needs the openssl command")
    file = key_file("encrypted", tmp_path)
    command = [OPENSSL, "pkey", "-in", str(file), "-passin", "pass:secret", "-out", str(tmp_path / "plain")]
    subprocess.run(command, check=True, capture_output=True)
    load_private_key(tmp_path / "plain")


def test_the_commands_sign_and_check(checkpoint_file: Path, tmp_path: Path) -> None:
    assert smart_export("keygen", tmp_path / "release").returncode == 0
    write_key_pair(tmp_path / "other")
    bundle, public = tmp_path / "bundle", tmp_path / "release.pub"
    arguments: list[str | Path] = [checkpoint_file, "--target", "cpu", "-o", bundle, "--baseline", "none"]
    done = smart_export(*arguments, "--sign", tmp_path / "release", "--json")
    assert done.returncode == 0, done.stderr
    fingerprint = load_public_key(public).fingerprint
    assert json.loads(done.stdout)["signed_by"] == fingerprint
    assert (bundle / "SHA256SUMS.sig").stat().st_size == 64
    done = smart_export("check", bundle, "--trust", public, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["signed"], found["signed_by"]) == (True, fingerprint)
    assert {"check": "signature", "detail": f"by the key {fingerprint[:16]}..."} in found["checks"]
    assert "the signature by the key" in refused(smart_export("check", bundle, "--trust", tmp_path / "other.pub"))
    if OPENSSL is not None:
        verify = ["pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin", "-in", "SHA256SUMS"]
        subprocess.run([OPENSSL, *verify, "-sigfile", "SHA256SUMS.sig"], cwd=bundle, check=True, capture_output=True)
    pass_clean_off_as_robust(bundle)  # the attack that a signature is there for
    unasked = smart_export("check", bundle, "--json")
    assert unasked.returncode == 0, "checksums made anew are right by design"
    assert (json.loads(unasked.stdout)["signed"], json.loads(unasked.stdout)["signed_by"]) == (True, None)
    refused(smart_export("check", bundle, "--trust", public))


def test_a_bad_key_stops_a_build_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_bytes(b"would be refused next")
    build: list[str | Path] = ["build", tmp_path / "ckpt.pt", "--target", "cpu", "--sign", tmp_path / "none"]
    assert "no key at" in refused(smart_export(*build))
    assert [file.name for file in tmp_path.iterdir()] == ["ckpt.pt"]


@pytest.mark.slow
def test_building_again_gives_the_same_signature(checkpoint: Checkpoint, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    target = resolve_target("cpu")
    for name in ("a", "b"):
        built = build_bundle(checkpoint, output=tmp_path / name, target=target, baseline=False, sign=key)
        assert built.signer == public_half(key).fingerprint
    assert (tmp_path / "a/SHA256SUMS.sig").read_bytes() == (tmp_path / "b/SHA256SUMS.sig").read_bytes()
    Bundle.open(tmp_path / "a", trust=public_half(key)).verify()
    unsigned = build_bundle(checkpoint, output=tmp_path / "a", target=target, baseline=False, force=True)
    assert unsigned.signer is None
    assert Bundle.open(tmp_path / "a").signed is False, "an old signature is not left beside new checksums"


def test_a_bundle_may_be_signed_later(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    pair = write_key_pair(tmp_path / "release")
    sign_bundle_(copy, load_private_key(pair.private))
    opened = Bundle.open(copy, trust=pair.public)
    assert (opened.signer, opened.digest) == (pair.fingerprint, Bundle.open(bundle).digest)


def test_check_takes_no_bytes_but_those_it_checked(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that is exchanged between the checksums and onnx.checker, which opens files by their names."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    opened = Bundle.open(copy)
    right, seen = onnx.checker.check_model, []

    def watched(model: str, **options: bool) -> None:
        for name in ("model.onnx", "weights.bin"):
            (copy / "robust" / name).write_bytes(b"exchanged")
        seen.append((Path(model).read_bytes(), stat.S_IMODE(Path(model).parent.stat().st_mode)))
        right(model, **options)

    monkeypatch.setattr(onnx.checker, "check_model", watched)
    with pytest.raises(BundleError, match=r"'robust/model\.onnx' as it was exported"):
        check_bundle(opened)
    assert [content for content, _ in seen] == [(bundle / "clean/model.onnx").read_bytes()]
    assert seen[0][1] == 0o700
