from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from smart_train import ConfigError, Structure
from smart_train.cli import main
from smart_train.masking.n_of_m import NOfM
from smart_train.masking.pattern import Unstructured
from smart_train.masking.structure import Pattern, parse_structure
from smart_train.training.cli import _structure


@pytest.mark.parametrize(
    ("name", "pattern", "density"),
    [
        ("channel", Pattern(channels=True), 0.5),
        ("2:4", Pattern(channels=False, weights=NOfM(2, 4)), 0.5),
        ("1:4", Pattern(channels=False, weights=NOfM(1, 4)), 0.25),
        ("15:16", Pattern(channels=False, weights=NOfM(15, 16)), 15 / 16),
        ("channel+2:4", Pattern(channels=True, weights=NOfM(2, 4)), 0.5),
        ("channel+1:2", Pattern(channels=True, weights=NOfM(1, 2)), 0.5),
        ("unstructured", Pattern(channels=False, weights=Unstructured()), 0.5),
    ],
)
def test_a_name_is_read_into_what_it_removes(name: str, pattern: Pattern, density: float) -> None:
    assert parse_structure(name) == Structure(name=name, density=density).pattern == pattern
    assert pattern.default_density == density
    assert (pattern.weights is not None) == (name != "channel")


@pytest.mark.parametrize(
    "name",
    [
        *("", "4:2", "2:2", "0:4", "02:4", "2:17", "2:4:8", "2:", "+2:4", "2:4\n", "٢:٤"),
        *("channel+", "channel2:4", "2:4+channel", "CHANNEL", "unstructured+2:4", "block"),
    ],
)
def test_other_names_are_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^unknown structure .*; there are channel, N:M \(2:4\), unstructured or .* M up to 16$"
    ):
        Structure(name=name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"name": "2:4", "density": 0.25},
            "density 0.25 and 2:4, which keeps 0.5, cannot be combined; leave the density out",
        ),
        ({"name": "1:4"}, "density 0.5 and 1:4, which keeps 0.25, cannot be combined"),
        ({"name": "channel+2:4", "align": 6}, "multiple of 4 for channel.2:4, got 6; 12 leaves whole blocks"),
        ({"min_channels": 0}, "min_channels of 1 or more"),
    ],
)
def test_what_does_not_fit_the_name_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Structure(**options)  # type: ignore[arg-type]  # a test's own choice


def test_channels_stay_whole_where_only_weights_are_masked() -> None:
    assert Structure(name="2:4").kept(48) == Structure(name="unstructured", density=0.1).kept(48) == 48
    assert Structure(name="channel+2:4").kept(48) == 24


@given(
    count=st.integers(1, 10**6), density=st.fractions(Fraction(1, 1000), 1, max_denominator=1000), m=st.integers(2, 16)
)
def test_kept_weights_are_exact(count: int, density: Fraction, m: int) -> None:
    kept = Structure(name="unstructured", density=float(density)).kept_weights((count, 1))
    assert kept == max(1, -(-(density * count).numerator // (density * count).denominator))
    name = f"{m - 1}:{m}"
    assert Structure(name=name, density=(m - 1) / m).kept_weights((count, m)) == count * (m - 1)


def chosen(name: str, *, target: str | None = None, align: int | None = None) -> tuple[int, int]:
    found = _structure(name, density=None, scope="block", target=target, align=align, min_channels=None)
    return found.align, found.min_channels


def test_the_command_line_keeps_whole_blocks_and_asks_the_target() -> None:
    assert chosen("channel") == chosen("channel+2:4") == (8, 1)
    assert chosen("channel+2:5") == (40, 1)
    assert chosen("channel", target="jetson-orin") == (8, 1)
    assert chosen("channel+2:4", target="jetson-orin") == (16, 256), "its alignment for sparse fp16"
    assert chosen("channel+2:4", target="cpu") == (4, 1), "no layer gains, however wide"
    assert chosen("channel+2:4", align=4) == (4, 1)
    with pytest.raises(ConfigError, match="multiple of 5"):
        chosen("channel+2:5", align=8)


MISSING = ["--data", "npz:missing.npz"]  # what comes after the options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--structure", "2:4", "--density", "0.25"], "density 0.25 and 2:4, which keeps 0.5, cannot be combined"),
        (["--structure", "4:2"], "unknown structure '4:2'; there are channel, N:M (2:4)"),
        (["--structure", "channel+2:4", "--align", "2"], "expected align that is a multiple of 4"),
        (["--structure", "2:4", "--min-channels", "0"], "expected min_channels of 1 or more"),
        (["--structure", "2:4", "--target", "x86-cpu"], "note: x86-cpu has no sparse tensor cores"),
    ],
)
def test_smart_train_says_what_does_not_fit(tmp_path: Path, options: list[str], words: str) -> None:
    done = CliRunner().invoke(main, [*options, *MISSING, "-o", str(tmp_path / "ckpt.pt")])
    assert done.exit_code == 1
    assert words in done.stderr


def test_a_recipes_density_gives_way_to_a_structure_with_one_of_its_own(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("density = 0.25\n")
    arguments = ["--recipe", str(recipe), "--structure", "2:4", *MISSING, "-o", str(tmp_path / "ckpt.pt")]
    done = CliRunner().invoke(main, arguments)
    assert "missing.npz" in done.stderr
    assert "density" not in done.stderr
