"""Signed bundles: what ``trust`` opens, and all that it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime.bundles import as_float, expected_scores, ours, random_images, write_bundle
from smart_runtime import Bundle, SignatureError, SmartModel
from smart_runtime.bench.contenders import open_bundles
from smart_runtime.bundle.bundle import parse_checksums, write_checksums
from smart_runtime.bundle.signatures import MAX_KEY_BYTES, PublicKey, load_public_key
from smart_runtime.errors import BundleError

# The first 12 bytes of every Ed25519 SubjectPublicKeyInfo (RFC 8410, section 4); the raw key follows.
SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
OPENSSL = shutil.which("openssl")


def key_of(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """The public half as RFC 8410 and RFC 7468 lay it down, written without the library that reads it."""
    text = base64.b64encode(SPKI_PREFIX + key.public_key().public_bytes_raw())
    return b"-----BEGIN PUBLIC KEY-----\n" + text + b"\n-----END PUBLIC KEY-----\n"


def sign(bundle: Path, *, seed: int = 1) -> None:
    (bundle / "SHA256SUMS.sig").write_bytes(key_of(seed).sign((bundle / "SHA256SUMS").read_bytes()))


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "release.pub"
    file.write_bytes(public_pem(key_of(1)))
    return file


@pytest.fixture
def signed(own_bundle: Path) -> Path:
    sign(own_bundle)
    return own_bundle


def test_a_signed_bundle_opens_and_answers(signed: Path, trusted: Path) -> None:
    fingerprint = hashlib.sha256(key_of(1).public_key().public_bytes_raw()).hexdigest()
    opened = Bundle.open(signed, trust=trusted)
    opened.verify()
    assert (opened.signed, opened.signer) == (True, fingerprint)
    assert Bundle.open(signed, trust=str(trusted)).signer == fingerprint
    assert Bundle.open(signed, trust=load_public_key(trusted)).signer == fingerprint
    assert [bundle.signer for bundle in open_bundles([str(signed)], trust=trusted).values()] == [fingerprint]
    images = random_images(3)
    with SmartModel.load(signed, path="robust", trust=trusted) as model:
        np.testing.assert_allclose(model(images), expected_scores("robust", as_float(images)), atol=1e-5)


def test_without_a_key_a_signature_is_not_looked_at(signed: Path) -> None:
    assert (Bundle.open(signed).signed, Bundle.open(signed).signer) == (True, None)
    with (signed / "SHA256SUMS.sig").open("wb") as file:
        file.truncate(2**33)  # of any size, and never read
    Bundle.open(signed).verify()
    SmartModel.load(signed).close()
    (signed / "SHA256SUMS.sig").unlink()
    assert Bundle.open(signed).signed is False


def test_the_known_answer_of_the_standard() -> None:
    """RFC 8032, section 7.1, test 3: the signature of two bytes."""
    key = PublicKey(raw=bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"))
    signature = bytes.fromhex(
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )
    key.check(signature, bytes.fromhex("af82"), name="SHA256SUMS.sig")
    with pytest.raises(SignatureError):
        key.check(signature, bytes.fromhex("af83"), name="SHA256SUMS.sig")


@pytest.mark.parametrize("what", ["none", "empty", "short", "long", "huge", "hex", "other key", "other bundle", "link"])
def test_anything_else_than_the_signature_is_refused(what: str, signed: Path, trusted: Path, tmp_path: Path) -> None:
    place = signed / "SHA256SUMS.sig"
    right = place.read_bytes()
    said = "expected a signature of 64 bytes in SHA256SUMS.sig, got {}; get the signed bundle again"
    if what == "none":
        place.unlink()
        said = "no signature in SHA256SUMS.sig, though a key to trust was given"
    elif what == "huge":
        with place.open("wb") as file:
            file.truncate(2**33)
        said = said.format("more")
    elif what in {"empty", "short", "long", "hex"}:
        wrong = {"empty": b"", "short": right[:-1], "long": right + b"\n", "hex": right.hex().encode()}[what]
        place.write_bytes(wrong)
        said = said.format("more" if len(wrong) > 64 else len(wrong))
    elif what == "link":
        place.rename(tmp_path / "sig")
        place.symlink_to(tmp_path / "sig")
        said = "got 'SHA256SUMS.sig', a link"
    else:
        said = r"expected in SHA256SUMS.sig the signature by the key [0-9a-f]{16}\.\.\. over this bundle's checksums"
        if what == "other key":
            sign(signed, seed=2)
        else:
            other = write_bundle(tmp_path / "other", baseline=False)
            sign(other)
            place.write_bytes((other / "SHA256SUMS.sig").read_bytes())
    with pytest.raises(BundleError, match=said) as caught:
        Bundle.open(signed, trust=trusted)
    assert isinstance(caught.value, SignatureError) or what == "link"
    with pytest.raises(BundleError, match=said):
        SmartModel.load(signed, trust=trusted)
    if what != "link":
        Bundle.open(signed).verify()  # a bundle that is not asked for its signature is as good as before


def test_nothing_of_a_bundle_is_parsed_before_its_signature_is_known(signed: Path, trusted: Path) -> None:
    (signed / "SHA256SUMS").write_bytes(b"no checksums at all")
    (signed / "manifest.json").write_bytes(b"[" * 1000)
    with pytest.raises(SignatureError, match="the signature by the key"):
        Bundle.open(signed, trust=trusted)
    sign(signed)
    with pytest.raises(BundleError, match="SHA256SUMS is damaged"):
        Bundle.open(signed, trust=trusted)


def pass_clean_off_as_robust(bundle: Path) -> None:
    shutil.rmtree(bundle / "robust")
    shutil.copytree(bundle / "clean", bundle / "robust")
    write_checksums(bundle)


def swap_labels(bundle: Path) -> None:
    document: dict[str, Any] = json.loads((bundle / "manifest.json").read_bytes())
    for labels in (ours(document)["paths"], document["components"]):
        labels["clean"], labels["robust"] = labels["robust"], labels["clean"]
    (bundle / "manifest.json").write_text(json.dumps(document))
    write_checksums(bundle)


def swap_checksums(bundle: Path) -> None:
    """The folders change places; the checksums are edited by hand instead of made anew."""
    (bundle / "clean").rename(bundle / "aside")
    (bundle / "robust").rename(bundle / "clean")
    (bundle / "aside").rename(bundle / "robust")
    sums = parse_checksums((bundle / "SHA256SUMS").read_bytes())
    swapped = {"clean": "robust", "robust": "clean"}
    lines = []
    for name in sums:
        folder, _, file = name.rpartition("/")
        lines.append(f"{sums[f'{swapped[folder]}/{file}' if folder in swapped else name]}  {name}\n")
    (bundle / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize("change", [pass_clean_off_as_robust, swap_labels, swap_checksums])
def test_a_graph_cannot_be_passed_off_as_another_path(change: Any, signed: Path, trusted: Path) -> None:
    change(signed)
    with pytest.raises(SignatureError):
        SmartModel.load(signed, trust=trusted)
    images = random_images(2)
    if change is pass_clean_off_as_robust:  # a copy shows without a key too
        with pytest.raises(BundleError, match=r"is a copy of 'clean/model.onnx' of the path 'clean'"):
            SmartModel.load(signed, path="robust")
        return
    # By design: checksums made anew are right, so without a key to trust a bundle is what its last author says.
    with SmartModel.load(signed, path="robust") as model:
        np.testing.assert_allclose(model(images), expected_scores("clean", as_float(images)), atol=1e-5)


def wrong_key(what: str, folder: Path) -> Path:
    file = folder / "key"
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    spki = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    contents = {
        "private": key_of(1).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        "RSA": other.public_key().public_bytes(*spki),
        "garbage": bytes(range(256)),
        "raw": key_of(1).public_key().public_bytes_raw(),
        "damaged": public_pem(key_of(1)).replace(b"MCow", b"MCox"),
        "empty": b"",
        "large": public_pem(key_of(1)) + b"\n" * MAX_KEY_BYTES,
    }
    if what in contents:
        file.write_bytes(contents[what])
    elif what == "directory":
        file.mkdir()
    return file


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "no key at .*: No such file or directory; `smart-export keygen` makes a pair of keys"),
        ("directory", "no key at .*: Is a directory"),
        ("private", "expected a public key in .*, got a private one; give its .pub file, and keep this to yourself"),
        ("RSA", "expected an Ed25519 public key in .*, got a public key of another kind"),
        ("garbage", "expected an Ed25519 public key as PEM in .*, got something else"),
        ("raw", "expected an Ed25519 public key as PEM in .*, got something else"),
        ("damaged", "expected an Ed25519 public key as PEM in .*, got something else"),
        ("empty", "expected an Ed25519 public key as PEM in .*, got something else"),
        ("large", f"expected a key of at most {MAX_KEY_BYTES} bytes in .*, got more"),
    ],
)
def test_what_is_no_public_key_is_refused(what: str, said: str, signed: Path, tmp_path: Path) -> None:
    file = wrong_key(what, tmp_path)
    with pytest.raises(SignatureError, match=said) as caught:
        Bundle.open(signed, trust=file)
    assert str(caught.value).isprintable()
    assert b"PRIVATE" not in str(caught.value).encode()


@pytest.mark.skipif(OPENSSL is None, reason="needs the openssl command")
def test_openssl_checks_what_we_sign_and_signs_what_we_check(signed: Path, trusted: Path, tmp_path: Path) -> None:
    def openssl(*arguments: str) -> str:
        assert OPENSSL is not None
        done = subprocess.run([OPENSSL, *arguments], cwd=signed, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ours_checked = ["-verify", "-pubin", "-inkey", str(trusted), "-sigfile", "SHA256SUMS.sig"]
    said = openssl("pkeyutl", *ours_checked, "-rawin", "-in", "SHA256SUMS")
    assert "Verified Successfully" in said
    private, public = str(tmp_path / "private"), str(tmp_path / "public")
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    theirs = ["-sign", "-inkey", private, "-rawin", "-in", "SHA256SUMS", "-out", "SHA256SUMS.sig"]
    openssl("pkeyutl", *theirs)
    Bundle.open(signed, trust=public).verify()
    with pytest.raises(SignatureError):
        Bundle.open(signed, trust=trusted)


def smart_run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smart_runtime.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_info_says_whether_and_by_whom(signed: Path, trusted: Path) -> None:
    fingerprint = load_public_key(trusted).fingerprint
    assert "signed, but not checked: --trust KEY.pub checks it" in smart_run("info", signed).stdout
    said = smart_run("info", signed, "--trust", trusted).stdout
    assert f"signed with the key of {trusted} ({fingerprint[:16]}...)" in said
    answer = json.loads(smart_run("info", signed, "--json").stdout)
    assert (answer["signed"], answer["signed_by"]) == (True, None)
    answer = json.loads(smart_run("info", signed, "--json", "--trust", trusted).stdout)
    assert (answer["signed"], answer["signed_by"]) == (True, fingerprint)
    (signed / "SHA256SUMS.sig").unlink()
    assert "\nnot signed\n" in smart_run("info", signed).stdout
    refused = smart_run("info", signed, "--trust", trusted, code=1)
    assert refused.stdout == ""
    assert refused.stderr.startswith("error: no signature in SHA256SUMS.sig")
    assert len(refused.stderr.splitlines()) == 1


def test_infer_and_bench_take_a_key(signed: Path, trusted: Path, tmp_path: Path) -> None:
    from PIL import Image  # noqa: PLC0415  # the other tests of this module need no pictures

    picture = tmp_path / "frame.png"
    Image.fromarray(random_images(1)[0]).save(picture)
    fingerprint = load_public_key(trusted).fingerprint
    answer = json.loads(smart_run("infer", signed, picture, "--trust", trusted, "--json").stdout)
    assert answer["signed_by"] == fingerprint
    bench = [sys.executable, "-m", "smart_runtime.bench.cli", str(signed), "--trust", str(trusted), "--blocks", "2"]
    done = subprocess.run([*bench, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [bundle["signed_by"] for bundle in json.loads(done.stdout)["bundles"]] == [fingerprint]
    sign(signed, seed=2)
    assert "got another" in smart_run("infer", signed, picture, "--trust", trusted, code=1).stderr
    done = subprocess.run(bench, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: expected in SHA256SUMS.sig the signature by the key")


def test_without_the_library_the_pip_command_is_named(signed: Path, trusted: Path) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from smart_runtime.cli import main; main(['info', *sys.argv[1:]])"
    )
    without = subprocess.run([sys.executable, "-c", code, str(signed)], capture_output=True, text=True, check=False)
    assert without.returncode == 0, without.stderr
    command = [sys.executable, "-c", code, str(signed), "--trust", str(trusted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the library cryptography, which checks signatures, cannot be imported: ")
    assert "pip install 'smart-edge[sign]'" in done.stderr
