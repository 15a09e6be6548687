"""``smart-bench --compare``: what changed between two saved results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from reference.intervals import speed_up_change
from runtime.bundles import write_bundle
from smart_runtime.bench import change
from smart_runtime.bench.change import Change, compare_saved
from smart_runtime.bench.cli import main
from smart_runtime.bench.saved import MAX_BYTES, read_saved
from smart_runtime.errors import InputError

Document = dict[str, Any]


def row(name: str, medians: list[float], *, bundle: str | None = "b", reference: list[float]) -> Document:
    speed_up = float(np.median(reference) / np.median(medians))
    figures = {"speedup": speed_up, "speedup_low": 0.9 * speed_up, "speedup_high": 1.1 * speed_up}
    return {"name": name, "bundle": bundle, "macs": 7, "block_medians_ms": medians, **figures}


def document(rows: dict[tuple[str | None, str], list[float]]) -> Document:
    """A saved result, as far as it is read; speed-ups are against the first of ``rows``."""
    (bundle, name), reference = next(iter(rows.items()))
    return {
        "bundles": [
            {"bundle": path, "digest": 64 * "0", "precision": "fp32"}
            for path in dict.fromkeys(path for path, _ in rows if path is not None)
        ],
        "baseline": None,
        "reference": {"bundle": bundle, "name": name},
        "engine": "onnxruntime-cpu",
        "batch": 1,
        "threads": 1,
        "rows": [row(name, medians, bundle=path, reference=reference) for (path, name), medians in rows.items()],
        "environment": {
            "cpu": "Abacus 7",
            "machine": "x86_64",
            "usable_cores": 2,
            "governor": "performance",
            "versions": {"numpy": "2.0"},
        },
    }


def simple(factor: float = 2.0, *, bundle: str = "b", rounds: int = 12, seed: int = 0) -> Document:
    """One path that is ``factor`` times as fast as dense, with some noise."""
    rng = np.random.default_rng(seed)
    dense, clean = rng.lognormal(0, 0.02, (2, rounds))
    return document({(bundle, "dense"): dense.tolist(), (bundle, "clean"): (clean / factor).tolist()})


def saved(tmp_path: Path, a: Document, b: Document) -> tuple[Path, Path]:
    files = tmp_path / "a.json", tmp_path / "b.json"
    for file, content in zip(files, (a, b), strict=True):
        file.write_text(json.dumps(content))
    return files


def compared(tmp_path: Path, a: Document, b: Document, *, seed: int = 0) -> Change:
    one, other = saved(tmp_path, a, b)
    return compare_saved(read_saved(one), read_saved(other), seed=seed)


MEDIANS = st.integers(2, 6).flatmap(
    lambda rounds: st.lists(st.lists(st.floats(0.01, 100), min_size=rounds, max_size=rounds), min_size=2, max_size=2)
)


@given(MEDIANS, MEDIANS, st.integers(0, 9))
def test_the_interval_is_that_of_a_bootstrap_written_out(
    tmp_path_factory: pytest.TempPathFactory, a: list[list[float]], b: list[list[float]], seed: int
) -> None:
    runs = [document({("b", "dense"): run[0], ("b", "clean"): run[1]}) for run in (a, b)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(change, "RESAMPLES", 50)
        (found,) = compared(tmp_path_factory.mktemp("saved"), *runs, seed=seed).rows
    rng = np.random.default_rng(seed)
    draws_a, draws_b = (rng.integers(0, len(run[0]), (50, len(run[0]))) for run in (a, b))
    oracle = speed_up_change(a, b, list(zip(draws_a, draws_b, strict=True)))
    assert (found.change.value, found.change.low, found.change.high) == pytest.approx(oracle)


@pytest.mark.parametrize(
    ("factor", "verdict"), [(2.0, "no difference shown"), (2.4, "faster"), (1.7, "slower")], ids=str
)
def test_verdicts(tmp_path: Path, factor: float, verdict: str) -> None:
    (found,) = compared(tmp_path, simple(2.0, seed=1), simple(factor, seed=2)).rows
    assert found.verdict == verdict
    assert found.change.value == pytest.approx(factor / 2, rel=0.05)


def test_a_result_against_itself_shows_no_difference(tmp_path: Path) -> None:
    (found,) = compared(tmp_path, simple(), simple()).rows
    assert found.change.value == 1
    assert found.change.low < 1 < found.change.high
    assert found.verdict == "no difference shown"


def test_a_machine_twice_as_fast_is_no_change(tmp_path: Path) -> None:
    """Milliseconds are not compared: all of B is twice as fast, every speed-up the same."""
    a, b = simple(), simple()
    for entry in b["rows"]:
        entry["block_medians_ms"] = [value / 2 for value in entry["block_medians_ms"]]
    (found,) = compared(tmp_path, a, b).rows
    assert found.change.value == 1


def test_the_interval_covers_the_truth_about_as_often_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change, "RESAMPLES", 200)
    hits = 0
    for seed in range(60):
        (found,) = compared(tmp_path, simple(2.0, rounds=30, seed=seed), simple(2.2, rounds=30, seed=100 + seed)).rows
        hits += found.change.low <= 1.1 <= found.change.high
    assert hits >= 50  # of 60 at 95%: below 50 has a chance of 1 in 2,000; seeded anyway


def two(first: str, second: str, *, names: tuple[str, ...] = ("dense", "clean")) -> Document:
    return document({(path, name): [1.0, 1.1, 1.2] for path in (first, second) for name in names})


def test_bundles_match_by_name_then_by_order(tmp_path: Path) -> None:
    found = compared(tmp_path, two("x", "old"), two("x", "new"))
    assert [(one.bundle_a, one.bundle_b, one.name) for one in found.rows] == [
        ("x", "x", "clean"),
        ("old", "new", "dense"),
        ("old", "new", "clean"),
    ]
    assert found.by_order == (("old", "new"),)
    assert (found.only_a, found.only_b) == ((), ())


def test_rows_without_a_partner_are_named(tmp_path: Path) -> None:
    a, b = two("x", "y", names=("dense", "clean", "robust")), two("x", "y", names=("dense", "clean", "fast"))
    b["rows"], b["bundles"] = b["rows"][:3], b["bundles"][:1]
    found = compared(tmp_path, a, b)
    assert [one.name for one in found.rows] == ["clean"]
    assert [(one.bundle, one.name) for one in found.only_a] == [
        ("x", "robust"),
        ("y", "dense"),
        ("y", "clean"),
        ("y", "robust"),
    ]
    assert [(one.bundle, one.name) for one in found.only_b] == [("x", "fast")]


def test_a_baseline_is_matched_too(tmp_path: Path) -> None:
    runs = [document({(None, "baseline"): [2.0, 2.1], (path, "clean"): [1.0, 1.0]}) for path in ("old", "new")]
    sums = ["0" * 64, "0" * 63 + "1"]
    runs[0]["baseline"], runs[1]["baseline"] = ({"sha256": one} for one in sums)
    found = compared(tmp_path, *runs)
    assert [one.name for one in found.rows] == ["clean"]
    assert [(one.what, one.a, one.b) for one in found.differences] == [("baseline's SHA-256", *sums)]


def test_bundles_that_differ_are_said(tmp_path: Path) -> None:
    old = f"a-{'long-' * 30}name"  # no line may be cut for it
    a, b = two("x", old), two("x", "new")
    b["bundles"][0]["precision"] = "int8"
    b["bundles"][1]["digest"] = 64 * "1"
    found = compared(tmp_path, a, b).differences
    assert [(one.what, one.a, one.b) for one in found] == [
        ("precision of x", "fp32", "int8"),
        (f"digest of {old}", 64 * "0", 64 * "1"),
    ]
    result = CliRunner().invoke(main, ["--compare", *map(str, saved(tmp_path, a, b))])
    assert result.exit_code == 0, result.output
    assert "  precision of x: fp32 in A, int8 in B\n" in result.output
    assert f"  digest of {old}: {64 * '0'} in A, {64 * '1'} in B\n" in result.output


def test_conditions_that_differ_are_said(tmp_path: Path) -> None:
    a, b = simple(), simple()
    b["batch"], b["threads"], b["engine"] = 4, 2, "abacus"
    b["environment"] |= {
        "governor": None,
        "power_mode": "MAXN",
        "cpu": "Abacus 8",
        "versions": {"numpy": "2.1", "torch": "3"},
    }
    found = compared(tmp_path, a, b).differences
    assert {difference.what: (difference.a, difference.b) for difference in found} == {
        "CPU": ("Abacus 7", "Abacus 8"),
        "governor": ("performance", "unknown"),
        "power mode": ("unknown", "MAXN"),  # A is of a smart-bench that did not record it
        "engine": ("onnxruntime-cpu", "abacus"),
        "batch": ("1", "4"),
        "threads": ("1", "2"),
        "numpy version": ("2.0", "2.1"),
        "torch version": ("none", "3"),
    }
    result = CliRunner().invoke(main, ["--compare", *map(str, saved(tmp_path, a, b))])
    assert result.exit_code == 0, result.output
    assert "under different conditions" in result.output
    assert "Abacus 8" in result.output
    same = CliRunner().invoke(main, ["--compare", *map(str, saved(tmp_path, a, a))])
    assert "bundles, baseline, environment, batch, threads and engine are the same" in same.output


@pytest.mark.slow
def test_a_round_trip_through_real_processes(bundle: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other")
    command = [sys.executable, "-m", "smart_runtime.bench.cli"]
    files = []
    for path in (bundle, other):
        files.append(tmp_path / f"{path.name}.json")
        with files[-1].open("wb") as file:
            subprocess.run([*command, str(path), "--blocks", "3", "--json"], stdout=file, check=True)
    said = subprocess.run([*command, "--compare", *map(str, files)], capture_output=True, text=True, check=True)
    for words in ("speed-ups against dense", "clean", "robust", "taken for each other", "within each run only"):
        assert words in said.stdout
    done = subprocess.run(
        [*command, "--compare", *map(str, files), "--json"], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    a = json.loads(files[0].read_text())
    assert [found["name"] for found in result["rows"]] == ["clean", "robust"]
    for found, measured in zip(result["rows"], a["rows"][1:], strict=True):
        assert [found[f"speedup_a{end}"] for end in ("", "_low", "_high")] == [
            measured[f"speedup{end}"] for end in ("", "_low", "_high")
        ]
        assert found["change_low"] <= found["change_high"]
        assert found["verdict"] in {"faster", "slower", "no difference shown"}
    assert result["bundles_matched_by_order"] == [{"a": str(bundle), "b": str(other)}]
    assert (result["differences"], result["only_a"], result["only_b"]) == ([], [], [])


def without(*keys: Any) -> Callable[[Document], None]:
    def change_it(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change_it


def rows_with(**values: Any) -> Callable[[Document], None]:
    return lambda content: content["rows"][1].update(values)


DAMAGED: dict[str, tuple[Callable[[Document], object], str]] = {
    "no rows": (without("rows"), "expected the rows of a comparison at rows, got nothing"),
    "older": (
        lambda c: [r.pop("block_medians_ms") for r in c["rows"]] and None,
        "it is a result of an older smart-bench",
    ),
    "no speed-ups": (lambda c: c.update(reference=None), "it is a comparison without a dense graph"),
    "no reference": (without("reference"), "expected an object at reference"),
    "other reference": (lambda c: c.update(reference={"bundle": "b", "name": "x"}), "expected one of the rows"),
    "no environment": (without("environment"), "expected an object at environment"),
    "no cpu": (without("environment", "cpu"), r"at environment\.cpu, got nothing"),
    "rows of text": (lambda c: c.update(rows=["x"]), r"expected an object at rows\[0\]"),
    "name of a number": (rows_with(name=7), r"at rows\[1\]\.name, got 7"),
    "name that redraws": (rows_with(name="\x1b[2J"), r"a printable text at rows\[1\]\.name"),
    "unknown bundle": (rows_with(bundle="c"), r"expected one of the bundles at rows\[1\]\.bundle"),
    "zero": (rows_with(block_medians_ms=[0] * 12), "a list of numbers above 0"),
    "absurd": (rows_with(block_medians_ms=[1e300] * 12), "latencies in ms"),
    "one round": (lambda c: c.update(rows=[entry | {"block_medians_ms": [1.0]} for entry in c["rows"]]), "2 or more"),
    "other rounds": (rows_with(block_medians_ms=[1.0] * 11), "as many block_medians_ms in every row"),
    "no speed-up": (rows_with(speedup=None), r"a number above 0 at rows\[1\]\.speedup"),
    "a bool": (rows_with(speedup=True), "a number above 0"),
    "interval upside down": (rows_with(speedup_low=9, speedup_high=1), "the lower end"),
    "a row twice": (rows_with(name="dense"), "expected every bundle and every row once"),
    "version of a number": (lambda c: c["environment"].update(versions={"numpy": 2}), r"versions\.numpy, got 2"),
    "package that redraws": (
        lambda c: c["environment"].update(versions={"\x1b[2J": "2.0"}),
        r"expected printable keys at environment\.versions, got \"\\u001b\[2J\"",
    ),
    "no digest": (lambda c: c["bundles"][0].pop("digest"), r"a printable text at bundles\[0\]\.digest, got nothing"),
    "a bundle twice": (lambda c: c.update(bundles=2 * c["bundles"]), "expected every bundle and every row once"),
    "a comparison of two": (lambda c: c.update(rows=[{"name": "clean", "change": 1}]), "older smart-bench"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_result_is_refused_in_one_sentence(
    tmp_path: Path, damage: Callable[[Document], object], said: str
) -> None:
    content = simple()
    damage(content)
    one, other = saved(tmp_path, simple(), content)
    with pytest.raises(InputError, match=said) as caught:
        read_saved(other)
    result = CliRunner().invoke(main, ["--compare", str(one), str(other)])
    assert result.exit_code == 1
    assert result.output == f"error: {caught.value}\n"
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected JSON in UTF-8"),
        (b"\x89PNG", "expected JSON in UTF-8"),
        (b"[]", "expected an object at the document"),
        (b"[" * 100_000, "expected JSON in UTF-8"),
        (b'{"rows": NaN}', "NaN"),
        (b" " * (MAX_BYTES + 1), f"larger than any result of smart-bench --json, which has at most {MAX_BYTES} bytes"),
    ],
    ids=["empty", "picture", "list", "deep", "NaN", "large"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_saved(file)


def test_no_file(tmp_path: Path) -> None:
    for path, what in ((tmp_path, "Is a directory"), (tmp_path / "none.json", "No such file or directory")):
        with pytest.raises(InputError, match=f"no result of smart-bench --json at {path}: {what}; check the path"):
            read_saved(path)


def test_results_of_different_kinds_are_refused(tmp_path: Path) -> None:
    baseline = document({(None, "baseline"): [2.0, 2.1], ("b", "dense"): [1.0, 1.0], ("b", "clean"): [1.0, 1.0]})
    with pytest.raises(InputError, match=r"speed-ups against the same row, got 'b: dense' in .* and 'baseline' in"):
        compared(tmp_path, simple(), baseline)
    other = document({("b", "dense"): [1.0, 1.0], ("b", "fast"): [1.0, 1.0]})
    with pytest.raises(InputError, match=r"have no row in common beside 'b: dense'"):
        compared(tmp_path, simple(), other)


@pytest.mark.parametrize(
    "arguments", [["bundle"], ["--plot", "x.png"], ["--batch", "1"], ["--baseline", "x.onnx"]], ids=" ".join
)
def test_it_measures_nothing(tmp_path: Path, arguments: list[str]) -> None:
    files = map(str, saved(tmp_path, simple(), simple()))
    result = CliRunner().invoke(main, ["--compare", *files, *arguments])
    assert result.exit_code == 2
    assert "measures nothing, so it takes no" in result.output


def test_it_takes_two_files() -> None:
    assert CliRunner().invoke(main, ["--compare", "a.json"]).exit_code == 2
