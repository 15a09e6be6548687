"""The report page in a real browser: it fits, it can be read, it loads nothing and complains of nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from browser import Page, Scheme, browser, find_browser
from eval.reports import THREATS, check, corruption_rows, curve, model, some_pictures
from eval.reports import report as made_of
from eval.results import bench_result, export_result
from smart_eval.cli import main as smart_eval
from smart_eval.page.page import render

FOUND = find_browser()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(FOUND is None, reason="needs Chromium, or one named by SMART_EDGE_BROWSER"),
]

# Text that is too pale to read: WCAG 2.1, 1.4.3, asks for a contrast of 4.5, or 3 from 24 px (bold from 18.7 px) on.
# Of what stands behind an element the first opaque colour counts; the page lays text on no other.
PALE = """(() => {
  const light = c => { c /= 255; return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4 };
  const luminance = ([r, g, b]) => .2126 * light(r) + .7152 * light(g) + .0722 * light(b);
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parts(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c; }
    return [255, 255, 255] };
  const pale = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const e = node.parentElement, style = getComputedStyle(e);
    if (!node.data.trim() || e.closest("title, style, .spoken")) continue;
    const color = parts(e.closest("svg") ? style.fill : style.color), size = parseFloat(style.fontSize);
    const [a, b] = [luminance(color), luminance(behind(e))].sort((x, y) => y - x);
    const enough = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    if ((a + .05) / (b + .05) < enough) pale.add(`${e.tagName} ${node.data.trim().slice(0, 20)} ${color}`);
  }
  return [...pale];
})()"""

# What sticks out of the page's width and is in no box that scrolls by itself.
OUTSIDE = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, .spoken")
  && e.getBoundingClientRect().right > innerWidth + .5).map(e => e.tagName + " " + e.className)"""


@pytest.fixture(scope="module")
def report(trained: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two models with names of no mercy, and results of both other commands."""
    folder = tmp_path_factory.mktemp("page")
    long = folder / f"{'a-very-long-name-' * 8}.pt"
    long.write_bytes(trained.read_bytes())
    hostile = folder / "<script>alert(1)<&script>.pt"
    hostile.write_bytes(trained.read_bytes())
    (folder / "bench.json").write_text(json.dumps(bench_result(bundle="a/path/of/a/bundle/" * 6)))
    (folder / "export.json").write_text(json.dumps(export_result()))
    options = [
        "--data",
        data,
        "--attack",
        "pgd2x1,pgd3x1,pgd4x1",
        "--eps",
        "8/255",
        "--no-checks",
    ]
    options += ["--include", str(folder / "bench.json"), "--include", str(folder / "export.json")]
    done = CliRunner().invoke(smart_eval, [str(long), str(hostile), *options, "--report", str(folder / "report.html")])
    assert done.exit_code == 0, done.output
    return folder / "report.html"


@pytest.fixture(scope="module")
def doubted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of all sections, one path of which is suspect."""
    checks = [check("square", passed=False), check("no-bound", passed=True), check("one-step", passed=None)]
    found = model(checks=checks, suspect=True, threats=THREATS, corruptions=corruption_rows(), eps_curve=curve())
    file = tmp_path_factory.mktemp("doubted") / "report.html"
    file.write_text(render(made_of(found, pictures=[some_pictures()])), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    assert FOUND is not None
    with browser(FOUND) as opened:
        yield opened


@pytest.mark.parametrize("scheme", get_args(Scheme))
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_and_can_be_read(page: Page, report: Path, width: int, scheme: Scheme) -> None:
    page.open(report, width=width, scheme=scheme)
    assert page.value("innerWidth") == width
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value(OUTSIDE) == []
    page.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value(PALE) == []
    dark = page.value("getComputedStyle(document.body).backgroundColor").startswith("rgb(16")
    assert dark == (scheme == "dark")
    assert page.complaints == []
    assert page.requests == [report.absolute().as_uri()]
    assert page.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.value("document.images.length") > 10
    assert page.value("document.querySelectorAll('svg.chart').length") >= 3


@pytest.mark.parametrize("scheme", get_args(Scheme))
def test_doubt_is_seen_beside_the_figure(page: Page, doubted: Path, scheme: Scheme) -> None:
    page.open(doubted, width=375, scheme=scheme)
    page.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.value("document.documentElement.scrollWidth") <= 375
    assert page.value(OUTSIDE) == []
    assert page.value(PALE) == []
    beside = "[...document.querySelectorAll('.card .big')].map(e => e.innerText.replace(/\\s+/g, ' '))"
    assert page.value(beside) == ["90.0%", "0.0% suspect", "80.0%", "30.0%"]
    cut_off = "[...document.querySelectorAll('.flag')].filter(e => e.getClientRects().length > 1).length"
    assert page.value(cut_off) == 0
    assert page.complaints == []


def test_the_page_prints_in_ink_on_paper(page: Page, report: Path) -> None:
    page.open(report, width=700, scheme="dark", media="print")
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.value("getComputedStyle(document.body).color") == "rgb(21, 24, 29)"
    assert page.value(PALE) == []
    beyond = "[...document.querySelectorAll('td, th')].filter(e => e.getBoundingClientRect().right > innerWidth).length"
    assert page.value(beyond) == 0, "paper does not scroll"
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    assert page.complaints == []


def test_a_page_that_is_wrong_in_all_of_this_is_told(page: Page, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.html"
    wide = "<p style='color: #999; width: 900px'>pale and wide</p>"
    wrong.write_text(f"<!doctype html><script>nothing.there</script><img src='none.png'>{wide}")
    page.open(wrong, width=375, scheme="light")
    assert page.value("document.documentElement.scrollWidth") > 375
    assert page.value(PALE) == ["P pale and wide 153,153,153"]
    assert page.value("innerWidth = 375") == 375
    assert page.value(OUTSIDE) == ["P "]
    assert len(page.complaints) >= 2
    assert len(page.requests) == 2
