"""The key to trust is what its file held when the model was loaded, wherever the process is and whatever is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.bundles import write_bundle
from runtime.test_signatures import key_of, public_pem, sign
from smart_runtime import SmartModel
from smart_runtime.bundle.signatures import load_public_key
from smart_runtime.errors import SignatureError


def bundle_of(folder: Path, *, seed: int) -> Path:
    """Write a bundle and the key it is signed with, ``release.pub``, into ``folder``."""
    folder.mkdir()
    (folder / "release.pub").write_bytes(public_pem(key_of(seed)))
    bundle = write_bundle(folder / "bundle")
    sign(bundle, seed=seed)
    return bundle


def test_another_key_of_that_name_is_not_trusted_by_a_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = bundle_of(tmp_path / "ours", seed=1), bundle_of(tmp_path / "theirs", seed=2)
    monkeypatch.chdir(ours.parent)
    with SmartModel.load(ours, trust="release.pub") as model:
        monkeypatch.chdir(theirs.parent)
        with pytest.raises(SignatureError, match="the signature by the key"):
            model.reload(theirs)
        model.reload(ours)
        (ours.parent / "release.pub").unlink()
        model.reload(ours)


def test_a_key_itself_can_be_trusted(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "ours", seed=1)
    key = load_public_key(bundle.parent / "release.pub")
    with SmartModel.load(bundle, trust=key) as model:
        assert model.bundle.signer == key.fingerprint
