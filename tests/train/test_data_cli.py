from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from smart_common.console import cli as house
from smart_train.data.cli import DataPlaces, data_options
from train.data_files import RELEASES, arrays, write_folder


@click.command(cls=house.Command)
@click.option("--data", default="digits")
@data_options
@house.json_option
def command(*, data: str, places: DataPlaces, as_json: bool) -> None:
    images = places.load(data)
    house.print_json({"kind": images.kind, "data_dir": str(places.data_dir), "cache_dir": str(places.cache_dir)})


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(command, arguments, env={"SMART_EDGE_DATA": None, **environment})


def test_the_options_say_where_data_is_read_and_kept(tmp_path: Path) -> None:
    RELEASES["svhn"].write(tmp_path)
    result = run("--data", "svhn", "--data-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"))
    assert result.exit_code == 0, result.output
    assert f'"data_dir": "{tmp_path}"' in result.output
    assert len(list(tmp_path.glob("cache/data/svhn-*/*/set.json"))) == 1


def test_without_options_the_cache_is_the_default_one(tmp_path: Path) -> None:
    RELEASES["svhn"].write(tmp_path)
    result = run("--data", "svhn", SMART_EDGE_DATA=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("xdg/smart-edge/data/svhn-*/*/set.json"))) == 1


def test_no_cache_keeps_nothing(tmp_path: Path) -> None:
    spec = write_folder(tmp_path / "pictures", arrays())
    result = run("--data", spec, "--no-cache", XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert result.exit_code == 0, result.output
    assert '"cache_dir": "None"' in result.output
    assert not (tmp_path / "xdg").exists()


def test_a_user_without_a_home_has_no_default_cache(tmp_path: Path) -> None:
    RELEASES["svhn"].write(tmp_path)
    result = run("--data", "svhn", "--data-dir", str(tmp_path), HOME="~", XDG_CACHE_HOME="")
    assert result.exit_code == 0, result.output
    assert '"cache_dir": "None"' in result.output


def test_cache_dir_and_no_cache_are_refused_together(tmp_path: Path) -> None:
    result = run("--no-cache", "--cache-dir", str(tmp_path))
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "error: --cache-dir and --no-cache cannot be combined" in result.output


def test_help_shows_the_defaults_and_the_environment_variable() -> None:
    words = " ".join(run("--help").output.split()).replace("- ", "-")  # lines are broken at hyphens too
    for part in ("--data-dir", "SMART_EDGE_DATA", "default: data", "--cache-dir", "~/.cache/smart-edge", "--no-cache"):
        assert part in words, words
    assert words.index("--data-dir") < words.index("--cache-dir") < words.index("--no-cache") < words.index("--json")


def test_a_missing_set_is_one_line_and_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--data", "cifar10", "--no-cache")
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "error: no cifar-10-batches-py or cifar-10-python.tar.gz in data; get " in result.output
