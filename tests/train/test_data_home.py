from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smart_train.data.load import load_data
from smart_train.data.source import expanded
from smart_train.errors import DataError
from train.data_files import arrays, as_npz, differences, write_folder, write_npz

NOBODY = "~nouser999/x"
UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "folder": (f"folder:{NOBODY}", {}),
    "npz": (f"npz:{NOBODY}", {}),
    "data_dir": ("cifar10", {"data_dir": Path(NOBODY)}),
    "cache_dir": ("folder:~/pictures", {"cache_dir": Path(NOBODY)}),
}


@pytest.mark.parametrize(("spec", "places"), UNKNOWN.values(), ids=UNKNOWN)
def test_the_home_of_nobody_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, places: dict[str, Any]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "pictures", arrays())
    with pytest.raises(DataError) as caught:
        load_data(spec, **places)
    assert str(caught.value) == ("no home directory for the ~ of ~nouser999/x; write the path out in full")


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_npz(tmp_path / "a.npz", arrays())
    assert differences(load_data("npz:~/a.npz"), as_npz(tmp_path, arrays())) == []
    assert (expanded("~"), expanded("a/~")) == (tmp_path, Path("a/~"))
