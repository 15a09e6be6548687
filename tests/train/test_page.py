"""The report page: what stands in it, and that nothing from a file becomes markup."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from smart_train import Attack, ConfigError, load_checkpoint
from smart_train.data.images import Split
from smart_train.evaluation.cli import main as smart_eval
from smart_train.evaluation.models import OpenCheckpoint
from smart_train.evaluation.named import AutoAttackParts, NamedAttack, Pgd
from smart_train.evaluation.page import Included, make_pictures, read_included, render, shown_attack
from smart_train.evaluation.page.axes import axis
from smart_train.evaluation.page.charts import Line, Pair, Point, lines, pairs, scatter
from smart_train.evaluation.page.figures import barred, latency, percent, points, radius, span
from smart_train.evaluation.page.html import Markup, tag, text
from smart_train.evaluation.page.included import Drop, Switch
from smart_train.evaluation.page.pictures import Pictures
from smart_train.evaluation.page.png import data_uri, png
from train.networks import image_set
from train.reports import THREATS, check, corruption_rows, curve, figure, model, path_record, report, some_pictures
from train.results import bench_result, export_result

VOID = {"meta", "img", "br"}
ALLOWED = {
    *("html", "head", "title", "style", "body", "header", "main", "section", "div", "article", "figure", "figcaption"),
    *("h1", "h2", "h3", "h4", "p", "span", "strong", "b", "small", "bdi", "pre", "code", "ul", "li", "dl", "dt", "dd"),
    *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "svg", "g", "path", "rect", "circle", "text"),
    "a",
    *VOID,
}


class Parsed(HTMLParser):
    """A page as a browser takes it: elements, attributes and text; refuses what is not balanced."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def shape(self) -> list[tuple[str, list[str]]]:
        return [(name, sorted(attributes)) for name, attributes in self.elements]


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
    page = Parsed(tag("p", value, title=value))
    shown = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    assert page.text == shown
    assert page.elements[0][1]["title"] == shown


def test_markup_is_kept_and_only_that() -> None:
    assert text(Markup("<b>")) == "<b>"
    assert tag("p", "<b>", tag("b", "&")) == "<p>&lt;b&gt;<b>&amp;</b></p>"
    assert tag("img", src="a", alt="", hidden=True, width=None) == '<img src="a" alt="" hidden>'


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_come_back_as_they_were(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    uri = data_uri(pixels)
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) as opened:
        found = np.asarray(opened)
    expected = pixels.mean(axis=2).round().astype(np.uint8) if channels == 2 else pixels.squeeze()
    np.testing.assert_array_equal(found, expected)
    assert png(pixels).endswith(b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big"))


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=9),
    scale=st.sampled_from([1e-6, 1.0, 255.0]),
    bounded=st.booleans(),
)
def test_an_axis_holds_its_values_between_round_numbers(values: list[float], scale: float, bounded: bool) -> None:
    values = [value * scale for value in values]
    found = axis(values, start=10, end=110, top=1 if bounded and scale <= 1 else None)
    assert found.low <= min(values) + 1e-9 * scale
    assert found.high >= max(values) - 1e-9 * scale
    assert 2 <= len(found.ticks) <= 9
    assert all(10 - 1e-6 <= found.at(value) <= 110 + 1e-6 for value in [*values, *found.ticks])


def number(element: dict[str, str | None], key: str) -> float:
    value = element[key]
    assert value is not None
    return float(value)


def marks(page: Parsed, class_: str) -> list[dict[str, str | None]]:
    return [attributes for _, attributes in page.elements if attributes.get("class") == class_]


def point(x: float, y: float, **changes: Any) -> Point:
    usual = Point(
        x=x, y=y, x_interval=(x - 0.05, x + 0.05), y_interval=(y - 0.1, y + 0.1), size=None, label="A 33 µs",
        title="all of it", colour=0, hollow=False,
    )  # fmt: skip
    return replace(usual, **changes)


def test_the_trade_off_is_drawn_to_scale() -> None:
    points = [point(0.2, 0.5, size=1.0, colour=1), point(0.4, 0.8, size=4.0), point(0.6, 0.8, hollow=True)]
    page = Parsed(scatter(points, x_title="x", y_title="y", label="all in words"))
    small, large = (number(one, "r") for one in marks(page, "area"))
    assert large == pytest.approx(2 * small, abs=0.02), "four times the area"
    first, second, third = [*marks(page, "mark"), *marks(page, "hollow")]
    xs, ys = ([number(one, key) for one in (first, second, third)] for key in ("cx", "cy"))
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.02)
    assert xs[0] < xs[1]
    assert ys[0] > ys[1] == ys[2], "up is better"
    whiskers = [re.findall(r"[-\d.]+", one["d"] or "") for one in marks(page, "whisker")]
    left, at, right = (float(value) for value in whiskers[0])
    assert (left + right) / 2 == pytest.approx(xs[0], abs=0.02)
    assert at == ys[0]
    assert (right - left) == pytest.approx(0.5 * (xs[1] - xs[0]), abs=0.02)
    assert marks(page, "chart")[0]["aria-label"] == "all in words"
    assert marks(page, "chart")[0]["role"] == "img"


def labels(page: Parsed) -> list[tuple[float, float, float, float]]:
    """The boxes of the labels of a drawing of which all say the same: left, top, right, bottom."""
    wide, found = 6.4 * len("A 33 µs"), []
    for kind, shift in (("start", 0.0), ("end", 1.0), ("middle", 0.5)):
        for one in marks(page, f"label {kind}"):
            left, base = number(one, "x") - shift * wide, number(one, "y")
            found.append((left, base - 11, left + wide, base + 2))
    return found


@given(st.lists(st.tuples(st.floats(0.06, 0.94), st.floats(0.11, 0.89)), min_size=1, max_size=8))
def test_labels_stay_inside_of_the_drawing(places: list[tuple[float, float]]) -> None:
    page = Parsed(scatter([point(x, y) for x, y in places], x_title="x", y_title="y", label=""))
    boxes = labels(page)
    assert len(boxes) == len(places)
    for left, top, right, bottom in boxes:
        assert 0 <= left <= right <= 360
        assert 0 <= top <= bottom <= 270


def test_labels_of_equal_points_are_not_on_each_other() -> None:
    boxes = labels(Parsed(scatter([point(0.5, 0.5)] * 4, x_title="x", y_title="y", label="")))
    for one, other in itertools.combinations(boxes, 2):
        wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
        assert wide <= 0 or high <= 5, "lines of a text may touch"


def test_lines_and_pairs_are_drawn_to_scale() -> None:
    line = Line(name="p", points=[(0, 1.0), (2, 0.5), (4, 0.0)], intervals=[(0.9, 1.0), (0.4, 0.6), (0, 0.1)], colour=2)
    page = Parsed(lines([line], x_title="x", y_title="y", label="", mark=2))
    dots = [(number(one, "cx"), number(one, "cy")) for one in marks(page, "mark")]
    assert dots == [(54, 14), (200, 120), (346, 226)]
    assert marks(page, "guide")[0]["d"] == "M200 226V14"
    assert marks(page, "line")[0]["d"] == "M54 14L200 120L346 226"
    assert marks(page, "band")[0]["d"] == "M54 14L200 98.8L346 204.8L346 226L200 141.2L54 35.2Z"
    assert "p, 2: 50.0%" in page.text
    assert not marks(Parsed(lines([line], x_title="x", y_title="y", label="")), "guide")
    both, clean = Pair(clean=1.0, worst=0.5, colour=0), Pair(clean=0.0, worst=None, colour=1)
    page = Parsed(pairs([("a class of a long name", [both, clean]), ("dog", [both, clean])], x_title="x", label=""))
    assert "a class of a …" in page.words
    assert "a class of a long name: 100.0% clean, 50.0% under the worst attack" in page.text
    assert "dog: 0.0% clean" in page.words
    full, hollow = marks(page, "mark"), marks(page, "hollow")
    assert (len(full), len(hollow)) == (4, 2)
    left, middle, right = number(full[1], "cx"), number(hollow[0], "cx"), number(full[0], "cx")
    assert right == 346
    assert middle == pytest.approx((left + right) / 2, abs=0.02)
    assert number(full[1], "cy") - number(full[0], "cy") == 12
    assert number(full[2], "cy") - number(full[0], "cy") == 32, "two paths and a gap"


def test_a_bar_is_as_long_as_its_share() -> None:
    page = Parsed(barred(0.25, (0.2, 0.35), colour="c1"))
    assert [attributes.get("width") for name, attributes in page.elements if name == "rect"] == ["100.0", "25.0"]
    assert marks(page, "fill c1")
    assert marks(page, "whisker")[0]["d"] == "M20.00 5H35.00"
    assert page.text == "25.0%20.0 to 35.0"
    assert marks(Parsed(barred(0.25, (0.2, 0.35), colour=None)), "fill")


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
        assert "densefp32--82.5 µs83.3 µs1.00x÷ 1.004 kB1.25 mJ3.5 W" in words
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
    some = render(report(model("one.pt"), model("two.pt", threats=THREATS)))
    assert "Not all models" in Parsed(some).text, "more was tried on one"


def test_each_attack_is_told_with_its_strength() -> None:
    square = AutoAttackParts("square", 0.3).record
    pgd = {**Pgd(Attack(eps=0.3, steps=20, restarts=5)).record, "made_on": "source"}
    words = Parsed(render(report(model(attacks=[square]), model("bundle", attacks=[{**square, **pgd}, square])))).text
    words = words[words.index("Who the attacker is") : words.index("How this page was made")]
    assert words.endswith(
        "squareof AutoAttack, within eps 0.3 of each pixel: square, Square with up to 5,000 queries an image"
        "pgd20x5projected gradient descent, within eps 0.3 of each pixel: 20 steps of 0.0375, 5 random start(s), "
        "made on the checkpoint that the bundle was exported from"
    )
    parts = {"name": "apgd-t", "eps": 8 / 255, "parts": ["apgd-t"], "made_on": "source"}
    words = Parsed(render(report(model(attacks=[parts])))).text
    assert "apgd-tof AutoAttack, within eps 8/255 of each pixel: apgd-t, made on the checkpoint that" in words


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
    assert all(name in page for name in names)


def test_pictures_are_attacked_within_eps_and_the_same_each_time(trained: Path) -> None:
    model, data = OpenCheckpoint(load_checkpoint(trained), "ab"), image_set()
    attack = Pgd(Attack(eps=0.1, steps=5))
    options: dict[str, Any] = {"attack": attack, "eps": 0.1, "seed": 0}
    state = torch.random.get_rng_state()
    found, again = (make_pictures(model, data.test, **options) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert 2 <= len(found.pictures) <= 6
    for first, second in zip(found.pictures, again.pictures, strict=True):
        assert np.array_equal(first.pixels, second.pixels)
        assert set(first.attacked) == set(model.net.path_names)
        for path, one in first.attacked.items():
            assert np.array_equal(one.pixels, second.attacked[path].pixels)
            change = one.pixels.astype(int) - first.pixels
            assert abs(change).max() <= 0.1 * 255 + 0.5, "rounded to a level"
            shown = (one.perturbation / 255 - 0.5) * 0.2
            assert np.abs(shown - change / 255).max() <= 0.5 / 255 + 0.2 * 0.5 / 255 + 1e-9
    rightly = [picture for picture in found.pictures if set(picture.says.values()) == {picture.label}]
    assert len({picture.label for picture in rightly}) == min(len(rightly), len(data.class_names))


class Reading(nn.Module):
    """Says the class that stands in an image's first pixel; ``wrong`` if the second one is not black."""

    def __init__(self, *, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second = (images[:, 0, 0, i].mul(255).round().long() for i in (0, 1))
        return nn.functional.one_hot((first + (second > 0) * self.wrong) % 3, 3).float()


class TwoReaders:
    """What `make_pictures` asks of a model and its network."""

    class_names = ("a", "b", "c")
    path_names = ("sure", "unsure")

    @property
    def net(self) -> TwoReaders:
        return self

    def path(self, name: str) -> nn.Module:
        return Reading(wrong=name == "unsure")


class Brighter:
    """Adds its radius to each pixel."""

    name = "brighter"

    def __init__(self, **more: str) -> None:
        self.record: dict[str, Any] = {"name": self.name, "eps": 2 / 255, **more}

    def __call__(self, model: Any, images: torch.Tensor, labels: torch.Tensor, *, seed: int) -> torch.Tensor:
        assert len(model(images)) == len(labels)
        assert 0 <= seed < 2**64
        return (images + 2 / 255).clamp(0, 1)


def shown_of(labels: list[int], unsure: list[int], *, size: int = 4, **more: str) -> Pictures:
    """Pictures of images whose third pixel is their number."""
    images = np.zeros((len(labels), size, size, 3), dtype=np.uint8)
    images[:, 0, 0], images[:, 0, 2] = np.array(labels)[:, None], np.arange(len(labels))[:, None]
    images[unsure, 0, 1] = 9
    split = Split(images, np.array(labels, dtype=np.int64))
    subject: Any = TwoReaders()
    return make_pictures(subject, split, attack=Brighter(**more), eps=2 / 255, seed=0)


def test_pictures_are_the_first_of_different_classes_that_every_path_gets_right() -> None:
    found = shown_of([0, 0, 1, 1, 2, 2, 0, 1], unsure=[0, 4, 5])
    assert [int(picture.pixels[0, 2, 0]) for picture in found.pictures] == [1, 2, 3, 6, 7, 0]
    first, last = found.pictures[0], found.pictures[-1]
    assert (first.label, first.says) == (0, {"sure": 0, "unsure": 0})
    assert (last.label, last.says) == (0, {"sure": 0, "unsure": 1})
    attacked = first.attacked["unsure"]
    assert attacked.says == {"sure": 2, "unsure": 0}, "two levels brighter, and no longer black"
    assert attacked.pixels.min() == 2
    assert np.all(attacked.perturbation == 255), "as far up as it may go"
    assert found.attack == "brighter"
    assert shown_of([0, 1], [], made_on="source").attack == "brighter made on its source"
    assert [int(one.pixels[0, 2, 0]) for one in shown_of([2, 1, 0], []).pictures] == [0, 1, 2], "in their order"


@pytest.mark.parametrize(("size", "count"), [(4, 6), (200, 5), (300, 2), (600, 2)])
def test_large_pictures_are_few(size: int, count: int) -> None:
    assert len(shown_of([0, 1, 2] * 3, [], size=size).pictures) == count


def test_pictures_are_shown_with_what_each_path_says_of_them() -> None:
    shown = shown_of([0, 1], [1])
    changed = model(classes=("a", "b"))
    changed["paths"] = {"sure": changed["paths"]["clean"], "unsure": changed["paths"]["robust"]}
    changed["classes"] = [{**row, "paths": changed["paths"]} for row in changed["classes"]]
    page = Parsed(render(report(changed, pictures=[shown])))
    words = page.text[page.text.index("What an attack looks like") :]
    assert "originalIt is asure: a ✓ rightunsure: a ✓ right" in words
    assert "originalIt is bsure: b ✓ rightunsure: c ✗ wrong" in words
    assert "changeattackedMade on sure" in words
    assert "They were attacked again for this page, by brighter within eps 2/255" in words
    images = [attributes for name, attributes in page.elements if name == "img"]
    assert len(images) == 2 * (1 + 2 * 2)
    assert images[0]["src"] == data_uri(shown.pictures[0].pixels)
    assert (images[0]["width"], images[0]["alt"]) == ("4", "a test image of class a")
    assert {attributes["class"] for attributes in images} == {"pixelated"}
    still = Parsed(render(report(changed, pictures=[replace(shown, eps=0.0)]))).text
    assert "The radius is 0, so nothing changes." in still


class Blind(OpenCheckpoint):
    """Like a bundle whose source nobody gave."""

    @property
    def made_on(self) -> dict[str, nn.Module]:
        return {}


def test_pictures_are_attacked_by_pgd_where_there_are_gradients(trained: Path) -> None:
    opened = OpenCheckpoint(load_checkpoint(trained), "ab")
    listed: list[NamedAttack] = [AutoAttackParts("square", 0.1), Pgd(Attack(eps=0.1, steps=3))]
    assert shown_attack(opened, listed, eps=0.1).name == "pgd3x1"
    assert shown_attack(opened, listed[:1], eps=0.1).name == "pgd20x1"
    assert shown_attack(Blind(opened.checkpoint, "ab"), listed[:1], eps=0.1).name == "square"


def test_corruptions_are_drawn_by_kind_from_the_clean_image_on() -> None:
    page = Parsed(render(report(model(corruptions=corruption_rows()))))
    for words in ("our own set", "gaussian noise", "jpeg: how much", "0.125", "80.0%"):
        assert words in page.text
    drawn = [attributes["d"] or "" for _, attributes in page.elements if attributes.get("class") == "line"]
    assert len([line for line in drawn if line.count("L") == 2]) == 4, "two kinds, two paths, three points each"
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
        (b"{}", "got something else"),
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
        (["--report", "nowhere/report.html"], "expected a folder nowhere for --report"),
        (["--report", "."], "got the folder ."),
        (["--report", "r.html", "--include", "nothing.json"], "nothing there"),
        (["--report", "r.html", "--include", "."], "got a folder"),
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
