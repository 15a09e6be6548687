"""The report page: what stands in it, and that nothing from a file becomes markup."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from eval.reports import (
    THREATS,
    VOID,
    Parsed,
    check,
    corruption_rows,
    curve,
    figure,
    marks,
    model,
    path_record,
    report,
    some_pictures,
)
from eval.results import bench_result, export_result
from smart_eval.attacks.autoattack import AutoAttackParts
from smart_eval.attacks.base import NamedAttack, Transferred
from smart_eval.attacks.pgd import Pgd
from smart_eval.cli import main as smart_eval
from smart_eval.page.figures import latency, percent, points, radius, span
from smart_eval.page.included import Drop, Included, Switch, read_included
from smart_eval.page.page import ENVIRONMENT, render
from smart_train import Attack, ConfigError

ALLOWED = {
    *("html", "head", "title", "style", "body", "header", "main", "section", "div", "article", "figure", "figcaption"),
    *("h1", "h2", "h3", "h4", "p", "span", "strong", "b", "small", "bdi", "pre", "code", "ul", "li", "dl", "dt", "dd"),
    *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "svg", "g", "path", "rect", "circle", "text"),
    "a",
    *VOID,
}


def include(folder: Path, **files: Mapping[str, Any]) -> Included:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return read_included([folder / name for name in files])


def test_the_page_says_what_was_found() -> None:
    page = Parsed(render(report(pictures=[some_pictures()])))
    for words in ("90.0%", "85.0 to 90.0", "10.0%", "pgd20x1", "autoattack", "eps 8/255", "White-box & friends."):
        assert words in page.text
    assert "gains 40.0 points of accuracy under attack, costs 10.0 points on clean images" in page.text
    assert "Perturbations are scaled 15.9 times" in page.text
    assert "smart-eval ckpt.pt" in page.text
    assert "ab" * 32 in page.text


MASKS: dict[str, Any] = {
    "mode": "gradual",
    "origin": "ours & nobody's",
    "budget": "uniform",
    "union_density": 0.4,
    "overlap": {
        "counted": "channels",
        "overlap": 0.36,
        "chance": 0.07,
        "groups": [
            {"name": "<i>conv1", "size": 8, "kept": {}, "both": 2, "either": 6, "overlap": 1 / 3, "chance": 0.25}
        ],
    },
    "paths": {
        "clean": {"density": 0.5, "parameter_density": 0.52},
        "robust": {"density": None, "parameter_density": None},
    },
}


def test_the_page_says_what_the_paths_keep_and_share() -> None:
    page = Parsed(render(report(model(masks=MASKS))))
    for words in ("50.0%", "52.0%", "40.0%", "36.0%", "7.0%", "33.3%", "<i>conv1", "gradual: ours & nobody's"):
        assert words in page.text
    assert {name for name, _ in page.elements} <= ALLOWED
    assert "What the paths keep" not in Parsed(render(report())).text


def test_the_page_needs_nothing_else() -> None:
    page = Parsed(render(report(pictures=[some_pictures()])))
    assert {name for name, _ in page.elements} <= ALLOWED, "no script, no link, no frame"
    for name, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in {"srcset", "style"}], name
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    policies = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none'")
    style = render(report()).partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|@font-face", style)


def test_equal_reports_are_equal_pages(tmp_path: Path) -> None:
    first, second = (
        render(report(pictures=[some_pictures()], included=include(tmp_path, bench=bench_result()))) for _ in range(2)
    )
    assert first == second


HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'&amp;\x00\u202e</style></title>"


@given(name=st.one_of(st.just(HOSTILE), st.text(st.characters(), min_size=1)))
def test_no_name_becomes_markup(name: str) -> None:
    def page(name: str, other: str) -> Parsed:
        changed = model(name, (name, other), threat_model=name)
        changed["paths"] = {name: changed["paths"]["clean"], other: changed["paths"]["robust"]}
        changed["classes"] = [{**row, "paths": changed["paths"]} for row in changed["classes"]]
        shown = some_pictures((name, other))
        return Parsed(render(report(changed, pictures=[shown], command=name, environment={name: name})))

    found, plain = page(name, name + "other"), page("x", "xother")
    assert {tag for tag, _ in found.elements} <= ALLOWED
    assert [shape for shape in found.shape if shape[0] != "br"] == [shape for shape in plain.shape if shape[0] != "br"]
    render(report(model(name))).encode("utf-8")


@given(st.text(st.characters()))
def test_text_comes_back_from_a_parser_as_it_was(value: str) -> None:
    template = ENVIRONMENT.from_string('<p title="{{ value }}">{{ value }}</p>')
    page = Parsed(template.render(value=value))
    shown = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    assert page.text == shown
    assert page.elements[0][1]["title"] == shown


def test_markup_is_kept_and_only_that() -> None:
    source = "{% macro bold(value) %}<b>{{ value }}</b>{% endmacro %}<p>{{ value }}{{ bold(value) }}</p>"
    assert ENVIRONMENT.from_string(source).render(value="<&") == "<p>&lt;&amp;<b>&lt;&amp;</b></p>"
    with pytest.raises(UndefinedError):
        ENVIRONMENT.from_string("{{ misspelt }}").render()


def test_no_template_marks_anything_as_safe() -> None:
    templates = list(resources.files("smart_eval.page").joinpath("templates").iterdir())
    assert "page.html" in {file.name for file in templates}
    for file in templates:
        assert not re.search(r"\|\s*safe|autoescape", file.read_text("utf-8")), file.name


def test_a_model_is_called_by_as_little_as_tells_it_from_others() -> None:
    def names(*files: str) -> list[str]:
        found = report(*(model(file) for file in files))
        return [found.name(one) for one in found.models]

    assert names("x/y/ckpt.pt") == ["ckpt.pt"]
    assert names("x/a/one.pt", "x/b/one.pt", "x/b/two.pt") == ["a/one.pt", "b/one.pt", "two.pt"]
    assert names("a/b/one.pt", "a/b/one.pt") == ["a/b/one.pt"] * 2


def test_numbers_are_written_for_people() -> None:
    assert (percent(0.9716), points(-0.542), span((0.95, 0.9849))) == ("97.2%", "54.2 points", "95.0 to 98.5")
    times = {0.0333: "33.3 µs", 0.99951: "1 ms", 4.123: "4.12 ms", 999.4: "999 ms", 999.6: "1 s", 12345.0: "12.3 s"}
    assert {ms: latency(ms) for ms in times} == times
    radii = {8 / 255: "8/255", 1 / 255: "1/255", 0.3: "0.3", 0.0: "0", 1.0: "1", 0.0123456: "0.01235"}
    assert {eps: radius(eps) for eps in radii} == radii


def test_latencies_are_those_of_the_checkpoint_that_was_exported(tmp_path: Path) -> None:
    one, other = model("a/one.pt"), model("b/one.pt", digest="cd" * 32)
    included = include(
        tmp_path, bench=bench_result(digest="11" * 32), export=export_result(checkpoint="cd" * 32, bundle="11" * 32)
    )
    found = report(one, other, included=included, pictures=[None, None])
    assert found.speeds(one) == ({}, False)
    rows, assumed = found.speeds(other)
    assert set(rows) == {"dense", "clean", "robust"}
    assert not assumed
    assert rows["clean"].median_ms == 0.033
    page = Parsed(render(found)).text
    for words in ("2.50x the speed of dense", "dense's MACs ÷ 4.00", "4 kB", "2.40x the speed of dense"):
        assert words in page
    for words in ("a/one.pt", "b/one.pt", "33 µs", "2.50x (2.40 to 2.60)", "On the device", "What the export made"):
        assert words in page
    assert "the area of a mark is in proportion to the latency" in page
    shown = titles(render(found))
    assert shown[2] == "b/one.pt, clean: 90.0% clean, 10.0% under attack, 33 µs a callB 33 µs"
    assert shown[0] == "a/one.pt, clean: 90.0% clean, 10.0% under attackA"
    assert "the area of a mark" not in Parsed(render(report())).text
    assert "b/one.pt: Latencies and sizes are those of graphs made of the checkpoint (fp32)." in page
    alone = report(one, included=include(tmp_path, bench=bench_result(digest="11" * 32)))
    assert alone.speeds(one)[1], "one model and one bundle"
    assert "taken for each other" in Parsed(render(alone)).text
    of_other = report(one, included=included)
    assert of_other.speeds(one) == ({}, False), "the export says whose bundle it is"
    bundle = model("bundle", digest="11" * 32, kind="bundle", precision="fp32", engine="e")
    assert not report(bundle, included=included).speeds(bundle)[1]
    other = {**bundle, "digest": "22" * 32}
    bench = include(tmp_path, bench=bench_result(digest="11" * 32))
    assert report(other, included=bench).speeds(other) == ({}, False), "a bundle of another digest is another one"


@pytest.mark.parametrize("order", [("int8", "fp32"), ("fp32", "int8"), ("int8",)])
def test_a_checkpoint_has_the_latencies_of_its_fp32_graphs_where_there_are_some(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    files: dict[str, Any] = {}
    for precision, digest in (("int8", "22" * 32), ("fp32", "33" * 32)):
        bench = bench_result(digest=digest)
        bench["rows"] = [{**row, "precision": precision} for row in bench["rows"]]
        files |= {f"{precision} bench": bench, f"{precision} export": export_result(bundle=digest)}
    shown = [f"{precision} {kind}" for precision in order for kind in ("bench", "export")]
    found = report(included=include(tmp_path, **{name: files[name] for name in shown}))
    speeds, assumed = found.speeds(found.models[0])
    assert {speed.precision for speed in speeds.values()} == {"fp32" if "fp32" in order else "int8"}
    assert not assumed
    assert f"graphs made of the checkpoint ({speeds['clean'].precision})" in Parsed(render(found)).text


def test_on_the_device_a_graph_has_the_accuracies_of_its_own_bundle(tmp_path: Path) -> None:
    source, bundle = model("one.pt"), model("bundle", kind="bundle", precision="fp32", engine="e", digest="11" * 32)
    bundle["paths"] = {path: {**row, **path_record(7, 4)} for path, row in bundle["paths"].items()}
    result = bench_result()
    result["rows"][2].update(solo_agrees=False, energy_mj=None)
    included = include(tmp_path, bench=result, export=export_result())
    for models in ([source, bundle], [bundle, source]):
        words = Parsed(render(report(*models, included=included))).text
        words = words[words.index("On the device") :]
        assert "cleanfp3270.0%40.0%33 µs33.3 µs2.50x (2.40 to 2.60)÷ 4.004 kB1.25 mJ3.5 W" in words
        assert "robustfp3270.0%40.0%34 µs (!)34.3 µs2.40x (2.30 to 2.50)÷ 4.004 kB-3.5 W" in words
        assert "densefp32not trainednot trained82.5 µs83.3 µs1.00x÷ 1.004 kB1.25 mJ3.5 W" in words
    assert "(!): alone in a fresh process it took another time" in words
    assert "one.pt: Latencies and sizes are those" in Parsed(render(report(*models, included=included))).text
    assert "Switching paths took 0.8 µs; the first result of the new path came after 40 µs, against 4 ms" in words
    assert "engine onnxruntime-cpu; batch 1; threads 1; usable cores 2; governor unknown" in words
    assert "energy by rapl. Speed-ups, with 95% intervals, and MACs are against dense." in words
    assert "clean50.0%1 k (÷ 4.00)1 k4 kB1.0 (-1.0 to 3.0)1.0 (-1.0 to 3.0)" in words
    assert "robust50.0%1 k (÷ 4.00)1 k4 kB--" in words, "the gate has no word on it"
    assert "denseall4 k (÷ 1.00)1 k4 kB--" in words


def test_saved_results_are_read_whole(tmp_path: Path) -> None:
    found = include(tmp_path, bench=bench_result(), export=export_result())
    (bench,), (export,) = found.benches, found.exports
    assert bench.switch == Switch(median_ms=0.0008, first_result_ms=0.04, cold_load_ms=4.0)
    assert (bench.device, bench.against) == ("A processor, x86_64", "dense")
    row = bench.rows[1]
    assert (row.graph, row.digest, row.median_ms, row.speedup, row.mac_ratio) == ("clean", "11" * 32, 0.033, 2.5, 4.0)
    assert (export.checkpoint_digest, export.bundle_digest) == ("ab" * 32, "11" * 32)
    assert export.graphs[0].clean_drop == Drop(value=0.01, low=-0.01, high=0.03)
    assert [graph.name for graph in export.graphs] == ["clean", "robust", "dense"]
    plain = {**bench_result(), "switch": None, "energy": None, "reference": None}
    (least,) = include(tmp_path, plain=plain).benches
    assert (least.switch, least.against) == (None, None)
    assert "energy" not in least.conditions


def test_what_attackers_of_other_paths_do_is_a_matrix() -> None:
    figures = {"clean": figure(2), "robust": figure(7)}
    threats = {
        "attack": {"name": "pgd20x1", "eps": 0.3},
        "transfer": {"threat_model": "Transfer!", "paths": {"clean": figures, "robust": figures}},
        "unknown_path": {
            "threat_model": "Unknown!",
            "paths": figures,
            "expected": figure(4),
            "expected_worst": figure(3),
        },
        "worst": {"threat_model": "Worst!", "paths": figures},
        "chosen_path": {"threat_model": "Chosen!", **figure(1)},
    }
    page = Parsed(render(report(model(threats=threats)))).text
    for words in ("Transfer!", "Unknown!", "Worst!", "Chosen!", "made on robust", "one at random", "40.0%", "30.0%"):
        assert words in page
    row = page[page.index("clean20.0%") : page.index("Made on a path")]
    assert row.startswith("clean20.0%10.0 to 30.070.0%60.0 to 80.020.0%10.0 to 30.020.0%10.0 to 30.0robust")
    assert row.endswith("one at random40.0%30.0 to 50.030.0%20.0 to 40.0the attacker's choice10.0%0.0 to 20.0")
    assert "Images by pgd20x1 within eps 0.3" in page
    assert "made on robust" not in Parsed(render(report())).text


def text_of(page: str, element: str, class_: str) -> list[str]:
    """The text of each element of a class that has none of its name within."""
    return [Parsed(found).text for found in re.findall(rf'<{element} class="{class_}">.*?</{element}>', page)]


def titles(page: str) -> list[str]:
    """What the marks of drawings are called."""
    return [Parsed(found).text for found in re.findall("<g class.*?</g>", page)]


def test_the_figure_put_forward_is_the_lowest_that_was_found(tmp_path: Path) -> None:
    included = include(tmp_path, bench=bench_result())
    page = render(report(model(threats=THREATS), included=included))
    (lead,) = text_of(page, "p", "lead")
    assert "gains 30.0 points of accuracy under attack, costs 10.0 points" in lead
    words = Parsed(page).text
    assert "30.0%95%: 20.0 to 40.0attacks on this path alone: 50.0% (50.0 to 55.0)" in words
    assert "withstands all that was tried on the path" in words
    table = words[words.index("Every attack") : words.index("Accuracy with its 95% interval")]
    assert "worst of theseall that was tried" in table
    assert table.endswith("50.0%50.0 to 55.030.0%20.0 to 40.0")
    assert any("80.0% clean, 30.0% under attack" in title for title in titles(page))
    device = words[words.index("On the device") :]
    assert "80.0%30.0%" in device, "accuracies beside latencies"
    doubted = model(threats=THREATS, checks=[{**check("square", passed=False), "path": "robust"}])
    words = Parsed(render(report(doubted, included=included))).text
    device = words[words.index("On the device") :]
    assert "90.0%0.0%" in device
    assert "80.0%30.0% suspect" in device
    without = Parsed(render(report())).text
    assert "gains 40.0 points" in without
    assert "attacks on this path alone" not in without
    assert "withstands every attack listed. Images made on the other paths were not tried." in without


@pytest.mark.parametrize(
    ("robust_ms", "words"),
    [
        (0.035, "on clean images, in about the same time."),
        (0.0825, "on clean images, and takes 2.50 times as long."),
        (0.0165, "on clean images, and takes 0.50 times as long."),
        (None, "on clean images."),
    ],
)
def test_what_a_choice_costs_in_time_is_told_where_it_is_known(
    robust_ms: float | None, words: str, tmp_path: Path
) -> None:
    bench = bench_result()
    if robust_ms is None:
        bench["rows"].pop()
    else:
        bench["rows"][2]["median_ms"] = robust_ms
    page = render(report(included=include(tmp_path, bench=bench, export=export_result())))
    (lead,) = text_of(page, "p", "lead")
    assert lead.endswith(words)


def test_a_path_that_is_best_in_both_costs_nothing() -> None:
    found = model()
    found["paths"] = {**found["paths"], "robust": {**found["paths"]["robust"], **path_record(10, 5)}}
    (lead,) = text_of(render(report(found)), "p", "lead")
    assert lead == "robust is at least as accurate as any other path, both on clean images and under attack."
    alone = model()
    alone["paths"] = {"dense": alone["paths"]["robust"]}
    alone["classes"] = [{**row, "paths": {"dense": row["paths"]["robust"]}} for row in alone["classes"]]
    page = render(report(alone))
    assert text_of(page, "p", "lead") == []
    assert "other paths" not in Parsed(page).text


def test_what_was_never_checked_is_told_so() -> None:
    words = "Nothing checked whether the attacks failed"
    checked = model("good.pt", checks=[check("square", passed=True)], suspect=False)
    assert words in Parsed(render(report())).text
    assert words not in Parsed(render(report(checked))).text
    assert words not in Parsed(render(report(model(attacks=[])))).text
    assert f"ckpt.pt: {words}" in Parsed(render(report(model(), checked))).text


def test_a_suspect_result_is_told_before_all_figures() -> None:
    checks = [check("no-bound", passed=True), check("square", passed=None), check("zero-gradients", passed=False)]
    page = Parsed(render(report(model(checks=checks, suspect=True)))).text
    assert page.index("These figures are suspect") < page.index("What each path gives")
    assert "1 of 2 passed. 1 could not be judged. Accuracies under attack may be too high" in page
    assert all(f"Of {name}: so & so." in page for name in ("no-bound", "square", "zero-gradients"))
    shown = render(report(model(checks=checks, suspect=True)))
    cards = shown.split('<div class="card c')[1:]
    assert ["suspect</a>" in card.partition("</dl>")[0] for card in cards] == [True, False], "of the clean path only"
    assert "Checks failed: accuracies under attack may be too high." in text_of(shown, "p", "lead")[1]
    assert "clean suspect" in page[page.index("Every attack") :]
    shown_marks = [title for title in titles(shown) if "under attack" in title]
    assert ["(suspect)" in mark for mark in shown_marks] == [True, False]
    assert "a hollow mark is suspect" in page
    assert '<section id="checks" class="verdict bad">' in shown
    assert '<section id="checks" class="verdict good">' in render(report(model(checks=checks[:2], suspect=False)))
    fine = Parsed(render(report(model(checks=checks[:2], suspect=False)))).text
    assert "suspect" not in fine
    assert "1 of 1 passed. 1 could not be judged.Every check" in fine
    assert "2 of 2 passed.Every check" in Parsed(render(report(model(checks=checks[:1] * 2, suspect=False)))).text
    assert "Checks" not in Parsed(render(report())).text


def test_accuracy_over_eps_has_a_line_a_path() -> None:
    page = Parsed(render(report(model(eps_curve=curve()))))
    assert "Under pgd50x1 on 10 images" in page.text
    assert "12.5%" in page.text
    bands = [attributes["d"] for _, attributes in page.elements if attributes.get("class") == "band"]
    assert len(bands) == 2
    assert all(band is not None and band.count("L") == 5 for band in bands), "there and back"
    assert "Accuracy over eps" not in Parsed(render(report())).text


def test_without_an_attack_there_is_a_page_of_clean_figures(tmp_path: Path) -> None:
    plain = model(attacks=[])
    plain["paths"] = {path: {**row, "attacks": {}} for path, row in plain["paths"].items()}
    page = render(report(plain, included=include(tmp_path, bench=bench_result())))
    words = Parsed(page).text
    assert "no attack" in words
    assert "Accuracy of ckpt.pt" in words
    assert "80.0%" in words
    for other in ("robustness", "under attack", "eps", "White-box", "Hollow", "worst", "Every attack", "50.0%"):
        assert other not in words, other
    assert "hollow" not in page.partition("</style>")[2]


def test_figures_of_different_attackers_are_not_to_be_compared() -> None:
    page = Parsed(render(report(model("one.pt"), model("bundle", threat_model="Black-box, that is.")))).text
    assert page.count("Not all models face the same attacker") == 2
    assert "bundle: Black-box, that is." in page
    assert "Not all models" not in Parsed(render(report(model("one.pt"), model("two.pt")))).text
    alone = model("alone.pt", threats=THREATS)
    alone["paths"] = {"clean": alone["paths"]["clean"]}
    alone["classes"] = []
    both = report({**alone, "threats": {}}, model("two.pt", threats=THREATS))
    assert "Not all models" not in Parsed(render(both)).text, "of one path there is nothing more to try"
    some = render(report(model("one.pt"), model("two.pt", threats=THREATS)))
    assert "Not all models" in Parsed(some).text, "more was tried on one"


def test_each_attack_is_told_with_its_strength() -> None:
    made: list[NamedAttack] = [AutoAttackParts("square", 0.3), Transferred(Pgd(Attack(eps=0.3, steps=20, restarts=5)))]
    square, pgd = ({**attack.record(), "description": attack.description} for attack in made)
    words = Parsed(render(report(model(attacks=[square]), model("bundle", attacks=[{**square, **pgd}, square])))).text
    words = words[words.index("Who the attacker is") : words.index("How this page was made")]
    assert words.endswith(
        "squareof AutoAttack: square, Square with up to 5,000 queries an image; within eps 0.3 of each pixel"
        "pgd20x5projected gradient descent, 20 steps of 0.0375 from each of 5 random start(s), made on the checkpoint "
        "that the bundle was exported from; within eps 0.3 of each pixel"
    )
    part = Transferred(AutoAttackParts("apgd-t", 8 / 255))
    words = Parsed(render(report(model(attacks=[{**part.record(), "description": part.description}])))).text
    assert (
        "apgd-tof AutoAttack: apgd-t, made on the checkpoint that the bundle was exported from; within eps 8/255"
        in words
    )


def test_headings_leave_no_level_out() -> None:
    checks = [check("square", passed=False)]
    shown = [some_pictures(), some_pictures()]
    for models in ([model(checks=checks, threats=THREATS)], [model("a.pt", checks=checks), model("b.pt")]):
        page = Parsed(render(report(*models, pictures=shown[: len(models)])))
        levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
        assert max(levels) == 2 + len(models)


def test_of_several_models_what_is_long_opens_on_a_click() -> None:
    one, two = model("a.pt"), model("b.pt")
    page = Parsed(render(report(one, two, pictures=[some_pictures(), some_pictures()])))
    folded = [attributes for name, attributes in page.elements if name == "details" and "class" in attributes]
    assert ["open" in attributes for attributes in folded] == [True, False] * 2, "classes, pictures"
    assert page.text.count("no outcome of an attack chose them") == 1, "what holds of all is said once"
    alone = Parsed(render(report(one, pictures=[some_pictures()])))
    assert not [1 for name, attributes in alone.elements if name == "details" and "class" in attributes]


def test_each_of_several_models_has_a_letter_in_the_drawing() -> None:
    files = [f"{i}.pt" for i in range(28)]
    page = Parsed(render(report(*map(model, files))))
    for label, file in (("A", "0.pt"), ("Z", "25.pt"), ("27", "26.pt"), ("28", "27.pt")):
        assert f"{label}: {file}" in page.text
        assert page.words.count(label) == 2, "a mark for each path"
    assert "A: ckpt.pt" not in Parsed(render(report())).text


def test_the_table_has_what_tells_its_rows_apart() -> None:
    def table(*models: dict[str, Any]) -> str:
        words = Parsed(render(report(*models))).text
        return words[words.index("Every attackpath") : words.index("before and after it") + 80]

    first = model()["attacks"][:1]
    one = {**model("a.pt", attacks=first), "examples": 10}
    alone, of_two = table(one), table(model())
    assert alone.startswith("Every attackpathclean imagespgd20x1clean90.0%")
    assert "worst of these" not in alone
    assert of_two.startswith("Every attackpathclean imagespgd20x1autoattackworst of theseclean90.0%")
    assert "before and after it; under the worst of these, if it withstands every one." in of_two
    equal, unequal = table(one, {**one, "model": "b.pt"}), table(one, {**one, "model": "b.pt", "examples": 20})
    assert "cleana.pt90.0%" in equal
    assert unequal.startswith("Every attackpathimagesclean imagespgd20x1")
    assert "cleana.pt1090.0%" in unequal
    assert "cleanb.pt2090.0%" in unequal


def test_many_models_are_counted_in_the_heading() -> None:
    heads = [Parsed(render(report(*(model(f"{i}.pt") for i in range(count))))).text for count in (3, 4)]
    assert "robustness of 0.pt, 1.pt, 2.pt" in heads[0]
    assert "robustness of 4 models" in heads[1]
    assert all(f"{i}.pt" in heads[1] for i in range(4))


def test_many_classes_are_drawn_in_part_and_listed_whole() -> None:
    names = tuple(f"class {i}" for i in range(60))
    page = Parsed(render(report(model(classes=names)))).text
    assert "Of 60 classes, the 20 hit most." in page
    assert "hit most" not in Parsed(render(report(model(classes=names[:20])))).text
    assert all(name in page for name in names)


def test_corruptions_are_drawn_by_kind_from_the_clean_image_on() -> None:
    page = Parsed(render(report(model(corruptions=corruption_rows()))))
    for words in ("our own set", "gaussian noise", "jpeg: how much", "0.125", "80.0%"):
        assert words in page.text
    assert [one["d"] for one in marks(page, "line") if "L" in (one["d"] or "")] == [
        "M54 35.2L200 56.4L346 77.6",
        "M54 56.4L200 77.6L346 98.8",
        "M54 35.2L200 77.6L346 98.8",
        "M54 56.4L200 98.8L346 120",
    ], "by kind and path, from the clean image on"
    two = [model("a.pt", corruptions=corruption_rows()), model("b.pt", corruptions=corruption_rows())]
    assert render(report(*two)).count('<details class="model">') == 2, "the second one's classes and corruptions"
    assert "corruptions" not in Parsed(render(report())).text


def test_a_bundle_shows_what_it_makes_of_its_checkpoints_samples() -> None:
    both = {"clean": figure(9), "adversarial": figure(4)}
    replay = {"source": both, "graph": both, "same_class": 0.985, "max_rel_diff": 0.0123}
    found = model("int8", kind="bundle", precision="int8", engine="onnxruntime-cpu", replay={"clean": replay})
    page = Parsed(render(report(found, model()))).text
    for words in ("cleanint8 (int8, onnxruntime-cpu)", "robustckpt.pt", "The checkpoint and its graphs"):
        assert words in page
    assert "cleanint8 (int8)90.0%90.0%40.0%40.0%98.5%1.2e-02" in page


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected JSON"),
        (b"[1]", "expected an object"),
        (b"{}", "is something else"),
        (b'{"models": []}', "one of smart-eval"),
        (json.dumps({**bench_result(), "rows": []}).encode(), "the rows of a comparison"),
        (json.dumps({**bench_result(), "batch": "1"}).encode(), "a whole number"),
        (json.dumps({**export_result(), "target": 1}).encode(), "a printable text"),
        (b'{"rows": 1, "engine": NaN, "environment": 1}', "NaN"),
    ],
)
def test_something_else_is_not_included(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_included([file])
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(smart_eval, arguments)


def test_the_command_writes_the_page_and_says_how(trained: Path, data: str, tmp_path: Path) -> None:
    page, saved = tmp_path / "report.html", tmp_path / "bench.json"
    saved.write_text(json.dumps(bench_result()))
    options = [str(trained), "--data", data, "--attack", "pgd2x1", "--report", str(page), "--include", str(saved)]
    options += ["--no-checks"]
    done = run(*options, "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    (only,) = answer["models"]
    assert sum(row["examples"] for row in only["classes"]) == only["examples"]
    for path, row in only["paths"].items():
        shares = [one["paths"][path]["robust_accuracy"] * one["examples"] for one in only["classes"]]
        assert round(sum(shares)) == round(row["robust_accuracy"] * only["examples"])
    first = page.read_bytes()
    found = Parsed(first.decode())
    assert f"--data {data} --attack pgd2x1 --report" in found.text
    assert percent(only["paths"]["robust"]["clean_accuracy"]) in found.text
    assert "What an attack looks like" in found.text
    assert run(*options, "--json").stdout == done.stdout
    assert page.read_bytes() == first, "the same bytes from the same command"
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--report", "nowhere/report.html"], "no folder nowhere for --report"),
        (["--report", "."], "--report . is a folder"),
        (
            ["--report", "r.html", "--include", "nothing.json"],
            "no result of smart-export or smart-bench at nothing.json: No such file",
        ),
        (["--report", "r.html", "--include", "."], "no result of smart-export or smart-bench at .: Is a directory"),
        (["--include", "nothing.json"], "--report"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_the_attacks(
    options: list[str], words: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(str(trained), "--attack", "pgd1x1", "-o", "results.jsonl", *options)
    assert done.exit_code in {1, 2}
    assert words in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "results.jsonl").exists(), "nothing was measured"
