"""The robust path held 8% under attack, and no command said so; the page even had a green mark above it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from eval.reports import Parsed, model, report
from runtime.bundles import ours, write_bundle
from smart_common.robustness import UnderAttack, robustness_warnings, warnings_of_metrics
from smart_common.roles import Role
from smart_eval.cli import main as smart_eval
from smart_eval.page.page import render
from smart_export.cli import main as smart_export
from smart_runtime.cli import main as smart_run
from smart_train.cli import main as smart_train

Interval = tuple[float, float]


def warned(*, clean: Interval | None, robust: Interval, role: Role = Role.ATTACKED) -> list[str]:
    """What is said of intervals around their middles; the names say nothing, the roles do."""
    paths = {"b": UnderAttack(role, sum(robust) / 2, robust)}
    if clean is not None:
        paths["a"] = UnderAttack(Role.CLEAN, sum(clean) / 2, clean)
    found = robustness_warnings(paths, attack="pgd20x1")
    assert set(found) <= {"b"}
    return list(found.get("b", ()))


def test_a_path_is_robust_only_above_the_other_interval() -> None:
    assert warned(clean=(0.1, 0.2), robust=(0.3, 0.4)) == []
    (one,) = warned(clean=(0.1, 0.3), robust=(0.2, 0.4))
    assert one.startswith("the path 'b' is not clearly more robust than 'a': 0.300 [0.200, 0.400] against 0.200")
    (two,) = warned(clean=(0.3, 0.5), robust=(0.2, 0.4))
    assert two.startswith("the path 'b' is no more robust than 'a'")
    assert two.endswith("under pgd20x1")


def test_a_path_that_holds_a_tenth_or_less_holds_nothing() -> None:
    (one,) = warned(clean=(0.0, 0.02), robust=(0.07, 0.09))
    assert one.startswith("the path 'b' holds 8.0% under pgd20x1, the strongest attack measured")
    assert len(warned(clean=(0.0, 0.0), robust=(0.0, 0.0))) == 2
    assert warned(clean=None, robust=(0.4, 0.5), role=Role.BOTH) == []
    assert len(warned(clean=None, robust=(0.0, 0.1), role=Role.BOTH)) == 1
    assert warned(clean=None, robust=(0.0, 0.1), role=Role.CLEAN) == [], "nobody relies on that one under attack"


@pytest.mark.parametrize("value", ["0.1", None, True, -1, [0.1], {}, float("nan")])
def test_what_is_no_figure_says_nothing(value: Any) -> None:
    roles = {"a": Role.CLEAN, "b": Role.ATTACKED}
    metrics = {"a": {"robust_accuracy": 0.5}, "b": {"robust_accuracy": value, "robust_interval": [value]}}
    assert warnings_of_metrics(roles, metrics) == ()
    metrics["b"] = {"robust_accuracy": 0.0, "robust_interval": [value, value], "attack": "\x1b[2Jpgd"}
    assert len(warnings_of_metrics(roles, metrics)) == 2
    assert "\x1b" not in "".join(warnings_of_metrics(roles, metrics))


def invoke(command: Any, *arguments: str) -> Result:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return result


def said(result: Result) -> list[str]:
    """The warnings on standard error, which are those of the JSON."""
    lines = [line.split("warning: ", 1)[1] for line in result.stderr.splitlines() if "warning: " in line]
    found = json.loads(result.stdout)
    assert lines == found.get("warnings", found.get("models", [{}])[0].get("warnings"))
    return lines


def test_every_command_says_so(tmp_path: Path) -> None:
    """Trained for no time against the largest eps: nothing can be robust."""
    checkpoint, bundle, page = (str(tmp_path / name) for name in ("ckpt.pt", "bundle", "page.html"))
    small = ["--model-arg", "width=4", "--align", "1", "--train-images", "128", "--test-images", "60"]
    trained = said(
        invoke(
            smart_train,
            *small,
            "--epochs",
            "1",
            "--steps",
            "1",
            "--eps",
            "1",
            "--device",
            "cpu",
            "--json",
            "-o",
            checkpoint,
        )
    )
    assert any("the path 'robust' holds " in sentence for sentence in trained)
    assert any("more robust than 'clean'" in sentence for sentence in trained)
    assert (
        said(invoke(smart_export, checkpoint, "--target", "cpu", "--baseline", "none", "-o", bundle, "--json"))[-2:]
        == trained
    )
    assert said(invoke(smart_run, "info", bundle, "--json")) == trained
    assert said(invoke(smart_export, "info", checkpoint, "--json")) == trained
    measured = [checkpoint, "--attack", "pgd2x1", "--examples", "40", "--no-threats", "--device", "cpu"]
    assert said(invoke(smart_eval, *measured, "--checks", "--json", "--report", page))
    shown = Path(page).read_text(encoding="utf-8")
    assert shown.index('id="warnings" class="verdict bad"') < shown.index('id="answer"')
    assert 'class="verdict good"' not in shown
    table = invoke(smart_eval, *measured, "--no-checks").stdout
    assert "robust (!)" in table
    assert "clean (!)" not in table


def test_the_page_has_no_green_above_a_path_that_holds_nothing() -> None:
    passed = {"name": "noise", "path": "clean", "passed": True, "figures": {}, "sentence": "It held."}
    sentence = "the path '<b>robust' holds 8.0% under pgd20x1"
    page = render(report(model(checks=[passed], suspect=False, warnings=[sentence])))
    assert 'class="verdict good"' not in page
    assert f"{sentence}." in Parsed(page).text
    assert 'id="warnings"' not in render(report(model(checks=[passed], suspect=False, warnings=[])))


def test_roles_decide_and_not_names(tmp_path: Path) -> None:
    def swapped(document: dict[str, Any]) -> None:
        for name, role in (("clean", "attacked"), ("robust", "clean")):
            ours(document)["paths"][name]["role"] = role

    found = json.loads(invoke(smart_run, "info", str(write_bundle(tmp_path / "b", change=swapped)), "--json").stdout)
    assert len(found["warnings"]) == 2
    assert all("the path 'clean'" in sentence for sentence in found["warnings"])
    usual = json.loads(invoke(smart_run, "info", str(write_bundle(tmp_path / "c")), "--json").stdout)
    assert usual["warnings"] == []
