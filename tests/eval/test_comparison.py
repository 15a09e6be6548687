"""Several subjects in one table: measured now, saved before, checkpoints and bundles."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from eval.reports import Parsed, marks, model, report
from eval.results import bench_result, export_result
from smart_eval.cli import main as smart_eval
from smart_eval.comparison import Comparison, read_saved_results, table
from smart_eval.costs import cost_of_bundle, cost_of_network
from smart_eval.models import open_checkpoint, read_source
from smart_eval.page.included import Included, read_included
from smart_eval.page.page import render
from smart_eval.page.sorting import sorting
from smart_runtime import Bundle
from smart_train import ConfigError, load_checkpoint
from train.networks import resnet, smart

FIRST = Path(__file__).parent.parent / "formats" / "first"
CHECKPOINT, OTHER, BUNDLE = FIRST / "channel.pt", FIRST / "two-four.pt", FIRST / "channel-bundle"


@pytest.fixture
def npz(tmp_path: Path) -> str:
    """Ten classes of noise, of the size that these networks take."""
    labels = np.arange(40) % 10
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    arrays: dict[str, Any] = {
        "train_images": images,
        "train_labels": labels,
        "test_images": images[:20],
        "test_labels": labels[:20],
    }
    np.savez(tmp_path / "data.npz", **arrays)
    return f"npz:{tmp_path / 'data.npz'}"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(smart_eval, [str(argument) for argument in arguments])


def subject(name: str = "a.pt", *, digest: str = "aa" * 32, **changes: Any) -> dict[str, Any]:
    """A model as smart-eval prints it, with what it costs."""
    found = model(name, digest=digest)
    costs = {
        path: {"parameters": 1000 + place, "macs": 4000 + place, "bytes": None, "dense": False}
        for place, path in enumerate(found["paths"])
    }
    return {
        **found,
        "precision": "fp32",
        "engine": "torch",
        "method": "smart",
        "randomised": False,
        "cost": {"stored_parameters": 1500, "stored_bytes": None, "paths": costs},
        "forwards_per_image": 17.0,
        "data": {"kind": "digits", "digest": "dd" * 32},
        "warnings": [],
        **changes,
    }


NOTHING = Included()


def compared(*subjects: Mapping[str, Any], included: Included = NOTHING) -> Comparison:
    return Comparison.of(subjects, included=included)


# What paths cost.


@pytest.mark.parametrize("density", [0.25, 1.0])
def test_parameters_and_macs_are_counted_by_hand(density: float) -> None:
    net = smart(width=8, density=density)
    generator = torch.Generator().manual_seed(0)
    for path in net.path_names:  # masks of the two paths differ
        for number, group in enumerate(net.groups):
            keep = torch.zeros(group.size, dtype=torch.bool)
            keep[torch.randperm(group.size, generator=generator)[: int(density * group.size)]] = True
            net.set_mask(path, number, keep)
    found = cost_of_network(net, input_shape=(1, 8, 8))
    plain = resnet(width=8)
    # Two stages of one block each, 8x8 and 4x4; of a block the channels between its convolutions are masked.
    inner = [int(density * 8), int(density * 16)]
    norms = sum(2 * size for size in (8, inner[0], 8, inner[1], 16, 16))
    convolutions = [9 * 8, 9 * 8 * inner[0], 9 * inner[0] * 8, 9 * 8 * inner[1], 9 * inner[1] * 16, 8 * 16]
    linear = 16 * 3
    for cost in found.paths.values():
        assert cost.parameters == sum(convolutions) + norms + linear + 3
        assert cost.macs == 64 * sum(convolutions[:3]) + 16 * sum(convolutions[3:]) + linear
        assert cost.dense == (density == 1)
        assert cost.bytes is None
    assert density < 1 or found.paths["clean"].parameters == sum(p.numel() for p in plain.parameters())
    if density == 1:
        assert found.stored == found.paths["clean"].parameters + norms, "shared but for the batch norms"
    else:
        assert max(one.parameters for one in found.paths.values()) < found.stored
        assert found.stored <= sum(one.parameters for one in found.paths.values())


def test_a_bundle_costs_what_its_checkpoint_does() -> None:
    manifest, checkpoint = Bundle.open(BUNDLE).manifest, load_checkpoint(CHECKPOINT)
    ours = cost_of_network(checkpoint.net, input_shape=checkpoint.input_shape)
    theirs = cost_of_bundle(manifest)
    for path, cost in theirs.paths.items():
        assert cost.macs == ours.paths[path].macs
        assert cost.bytes == manifest.paths[path].bytes
    assert theirs.stored == sum(graph.parameters for graph in manifest.paths.values())
    assert theirs.bytes == sum(graph.bytes for graph in manifest.paths.values())


def test_what_an_image_cost_in_training_follows_from_the_method_and_its_attack() -> None:
    checkpoint = load_checkpoint(CHECKPOINT)

    def opened(training: dict[str, Any]) -> tuple[str | None, float | None]:
        found = open_checkpoint(read_source(replace(checkpoint, training=training)), file=CHECKPOINT)
        return found.method, found.forwards

    assert opened({"method": "smart", "attack": {"steps": 7}}) == ("smart", 10), "half of the batch is attacked"
    assert opened({"method": "pgd-at", "attack": {"steps": 10}}) == ("pgd-at", 23)
    assert opened({"method": "of\x1b[31m mine", "attack": {"steps": 7}}) == ("of?[31m mine", None)
    for training in ({}, {"method": 7}):
        assert opened(training) == (None, None)
    for steps in (-1, 10**30, "7", None, True):
        assert opened({"method": "smart", "attack": {"steps": steps}}) == ("smart", None)
    assert opened({"method": "smart", "attack": [7]}) == ("smart", None)

    attack = {"attack": {"steps": 10}}
    plain = {"method_options": {"base": "pgd-at", "beta": 6.0}, "refinements": {"awp": 0.0, "average": "ema"}}
    assert opened({"method": "part", **attack, **plain}) == ("part", 24.1)
    assert opened({"method": "part", **attack, "method_options": {"base": "trades"}}) == ("part", None)
    for more in ({"awp": 0.01}, {"distill": 0.5}, {"awp": "x"}):
        assert opened({"method": "trades", **attack, "refinements": more}) == ("trades", None), "nobody counted it"
    assert opened({"method": "trades", **attack, "refinements": [1]}) == ("trades", 27)


def test_a_reconstruction_is_called_one_in_a_bundle_of_two_networks_too() -> None:
    training = {"method": "standard-and-vfd", "attack": {"steps": 10}}
    source = read_source(replace(load_checkpoint(CHECKPOINT), training=training))
    assert open_checkpoint(source, file=CHECKPOINT).method == "standard-and-vfd (reconstruction)"


# Terms.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"kind": "digits", "digest": "ee" * 32}}, "differ in their data"),
        ({"example_indices": [4, 2]}, "differ in their test images"),
        ({"examples": 11}, "differ in their test images"),
        ({"eps": 0.3}, "differ in their eps, 0.03137 and 0.3"),
    ],
)
def test_what_is_not_on_equal_terms_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    for name, one in (("a", subject()), ("b", subject("b.pt", digest="bb" * 32, **change))):
        (tmp_path / f"{name}.json").write_text(json.dumps({"models": [one]}))
    done = run(tmp_path / "a.json", tmp_path / "b.json")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert "a.pt and b.pt" in done.stderr


def test_corruptions_of_two_sets_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        mean = {
            "set": f"set {name}",
            "paths": {path: {"accuracy": 0.5, "interval": [0.4, 0.6]} for path in subject()["paths"]},
        }
        one = subject(f"{name}.pt", digest=name * 64, corruptions_mean=mean)
        (tmp_path / f"{name}.json").write_text(json.dumps({"models": [one]}))
    done = run(tmp_path / "a.json", tmp_path / "b.json")
    assert done.exit_code == 1
    assert "the corruptions set a and set b do not compare" in done.stderr


def test_other_attacks_are_refused_before_anything_is_measured(npz: str, tmp_path: Path) -> None:
    done = run(CHECKPOINT, BUNDLE, "--data", npz, "-o", tmp_path / "r.jsonl")
    assert done.exit_code == 1
    assert "differ in their attacks" in done.stderr
    assert "square needs no gradients" in done.stderr
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"digest": 7}, "printable text at models[0].digest"),
        ({"eps": None}, "a number in [0, 1] at models[0].eps"),
        ({"data": None}, "an object at models[0].data"),
        ({"example_indices": ["1"]}, "a list of whole numbers or null"),
        ({"paths": {"clean": {"clean_accuracy": 1.5}}}, "the attacks pgd20x1, autoattack|at models[0]"),
        ({"paths": {"\x1b[31m": {}}}, "models[0].paths"),
        ({"paths": {}}, "one path or more at models[0].paths"),
        ({"kind": "toaster"}, "one of"),
        ({"cost": {"stored_parameters": -1, "paths": {}}}, "at models[0].cost"),
    ],
)
def test_a_damaged_result_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    file.write_text(json.dumps({"models": [subject(**change)]}))
    with pytest.raises(ConfigError, match="is no result of smart-eval --json") as refused:
        read_saved_results([file])
    assert any(word in str(refused.value) for word in words.split("|"))
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("content", ["[]", "{}", '{"rows": []}', "hello", "", '{"models": []}'])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="is no result of smart-eval --json"):
        read_saved_results([file])


# One command from end to end.


def test_one_command_measures_joins_and_writes_all_of_it(npz: str, tmp_path: Path) -> None:
    flags = ["--data", npz, "--attack", "pgd2x1", "--eps", "0.1", "--examples", "8", "--no-checks", "--no-threats"]
    first = run(CHECKPOINT, *flags, "--json")
    assert first.exit_code == 0, first.output
    (tmp_path / "first.json").write_text(first.stdout)
    bench = bench_result(digest=Bundle.open(BUNDLE).digest)
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    results, rows, page = tmp_path / "r.jsonl", tmp_path / "rows.csv", tmp_path / "page.html"
    done = run(
        *(CHECKPOINT, OTHER, BUNDLE, tmp_path / "first.json", "--source", CHECKPOINT, *flags),
        *("--include", tmp_path / "bench.json", "-o", results, "--csv", rows, "--report", page, "--json"),
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    saved = json.loads(first.stdout)["models"][0]
    digests = [one["digest"] for one in document["models"]]
    assert digests.count(saved["digest"]) == 1, "what is known is not measured again"
    assert saved["digest"] not in {json.loads(line)["model"] for line in results.read_text().splitlines()}
    assert saved in document["models"]
    comparison = document["comparison"]
    assert comparison["strongest_attack"] == "pgd2x1"
    assert [(row["subject"], row["path"]) for row in comparison["rows"]] == [
        (str(file), path) for file in (OTHER, BUNDLE, CHECKPOINT) for path in ("clean", "robust")
    ]
    by_subject = {(row["subject"], row["path"]): row for row in comparison["rows"]}
    deployed, source = by_subject[str(BUNDLE), "robust"], by_subject[str(CHECKPOINT), "robust"]
    assert deployed["method"] == source["method"] == "smart"
    assert deployed["macs"] == source["macs"]
    assert (deployed["latency_ms"], source["latency_ms"]) == (0.034, None)
    assert deployed["bytes"] == Bundle.open(BUNDLE).manifest.paths["robust"].bytes
    assert source["clean"] == saved["paths"]["robust"]["clean_accuracy"]
    with rows.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 6
    for line, row in zip(written, comparison["rows"], strict=True):
        assert line == {key: "" if value is None else str(value) for key, value in row.items()}
    shown = Parsed(page.read_text("utf-8"))
    assert "accuracy under pgd2x1, %" in shown.text
    assert "On equal terms" in shown.text
    assert [a["id"] for name, a in shown.elements if name == "section"].count("comparison") == 1
    assert "trade-off" not in [a.get("id") for name, a in shown.elements if name == "section"], "one drawing"
    lacking = run(CHECKPOINT, tmp_path / "first.json", *flags, "--corruptions")
    assert "has no corruptions; leave that file out to measure what is missing" in lacking.stderr
    again = run(tmp_path / "first.json", "--csv", rows, "--report", page)  # a saved result alone, and files of ours
    assert again.exit_code == 0, again.output
    assert "1 model: 8 test images, pgd2x1" in again.stdout
    assert "no plain file" not in again.stderr
    assert "L-infinity, eps 0.1 · seed 0" in Parsed(page.read_text("utf-8")).text
    idle = run(tmp_path / "first.json", "--attack", "square")
    assert idle.exit_code == 2
    assert "--attack is of models to measure, and every MODEL is a saved result." in idle.stderr
    (tmp_path / "joined.json").write_text(done.stdout)
    assert len(read_saved_results([tmp_path / "joined.json", tmp_path / "first.json"])) == 3, "each once"


def test_the_table_says_what_is_known() -> None:
    control = subject("b.pt", digest="bb" * 32, method=None, forwards_per_image=None)
    control["cost"]["stored_parameters"] = None
    control["warnings"] = ["the path 'robust' holds 5.0% under all that was tried"]
    title, columns, rows = table(compared(subject(randomised=True), control))
    assert title == "2 models: 10 test images, pgd20x1, autoattack, eps 0.03137, seed 0, 95% intervals"
    assert columns == [
        *("model", "method", "path", "stored", "parameters", "MACs", "clean", "pgd20x1", "autoattack", "worst of all"),
        "forwards an image",
    ]
    assert rows[0][:6] == ["a.pt (fp32 masked paths, randomised)", "smart", "clean", "1.5 k", "1 k", "4 k"]
    assert rows[0][6] == "0.900  [0.850, 0.900]"
    assert rows[3][:4] == ["b.pt (fp32 masked paths)", "", "robust (!)", ""]
    assert (rows[0][-1], rows[3][-1]) == ("17", "")


def test_a_path_that_failed_a_check_is_suspect_in_table_drawing_and_status(tmp_path: Path) -> None:
    failed = {"name": "square", "path": "robust", "passed": False, "figures": {}, "sentence": "Square breaks more."}
    passed = {**failed, "path": "clean", "passed": True}
    doubted = subject("b.pt", digest="bb" * 32, suspect=True, checks=[failed, passed])
    found = compared(subject(), doubted)
    assert [row.suspect for row in found.rows] == [False, False, False, True]
    assert [row[2] for row in table(found)[2]] == ["clean", "robust", "clean", "robust suspect"]
    page = Parsed(render(report(subject(), comparison=found)))
    assert page.text.count("(suspect)") == 1
    assert "robust suspect" in page.text
    (tmp_path / "saved.json").write_text(json.dumps({"models": [doubted]}))
    done = run(tmp_path / "saved.json", "--csv", tmp_path / "rows.csv")
    assert done.exit_code == 3, done.output
    assert "b.pt: SUSPECT" in done.stderr
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [line["suspect"] for line in csv.DictReader(file)] == ["False", "True"]


def test_the_strongest_attack_is_autoattack_or_what_leaves_least() -> None:
    assert compared(subject()).strongest == "autoattack"
    weaker = subject()
    weaker["attacks"] = [{"name": name, "eps": 8 / 255, "description": name} for name in ("square", "pgd20x1")]
    for path, left in (("clean", 0.1), ("robust", 0.4)):
        figures = weaker["paths"][path]["attacks"]
        figures["square"] = {**figures.pop("autoattack"), "accuracy": 0.45}
        figures["pgd20x1"] = {**figures.pop("pgd20x1"), "accuracy": left}
    assert compared(weaker).strongest == "pgd20x1"
    clean = subject(attacks=[])
    for path in clean["paths"].values():
        path["attacks"] = {}
    assert compared(clean).strongest is None
    assert "a cross is a dense network" not in render(report(clean, comparison=compared(clean)))


# The page.


def test_the_drawing_has_a_mark_a_path_and_a_cross_for_what_is_dense() -> None:
    dense = subject("b.pt", digest="bb" * 32)
    for path in dense["cost"]["paths"].values():
        path |= {"dense": True, "macs": 16_000}
    found = compared(subject(), dense)
    page = Parsed(render(report(subject(), dense, comparison=found, pictures=[None, None])))
    assert len(marks(page, "cross")) == 2
    areas = [float(one["r"] or 0) for one in marks(page, "area")]
    assert areas[2] == pytest.approx(2 * areas[0], abs=0.02), "four times the MACs"
    for words in ("accuracy under autoattack, %", "a cross is a dense network", "A: a.pt", "B: b.pt"):
        assert words in page.text
    assert "a.pt, clean: 90.0% clean, 50.0% under autoattack, 4 k MACs" in page.text
    assert "b.pt, robust: 80.0% clean, 50.0% under autoattack, 16 k MACs, dense" in page.text


def test_latency_and_bytes_come_from_saved_results(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(bench_result(digest="11" * 32)))
    (tmp_path / "export.json").write_text(json.dumps(export_result(checkpoint="aa" * 32, bundle="11" * 32)))
    included = read_included([tmp_path / "bench.json", tmp_path / "export.json"])
    rows = compared(subject(), subject("b.pt", digest="bb" * 32), included=included).rows
    assert [row.latency_ms for row in rows] == [0.033, 0.034, None, None]
    assert [row.bytes for row in rows] == [4000, 4000, None, None]


def test_each_heading_sorts_best_first_and_what_is_not_known_last() -> None:
    subjects = []
    for number, clean in enumerate((7, 9, 8)):
        one = subject(f"{number}.pt", digest=f"{number}{number}" * 32, method=["smart", None, "oat"][number])
        one["paths"] = {"robust": {**one["paths"]["robust"], "clean_accuracy": clean / 10}}
        one["cost"]["paths"]["robust"]["macs"] = [3, None, 1][number]
        subjects.append(one)
    found = compared(*subjects)
    columns = {column.name: column.order(found.rows) for column in sorting(found).columns}
    assert columns["clean"] == [1, 2, 0]
    assert columns["MACs"] == [2, 0, 1]
    assert columns["method"] == [2, 0, 1]
    assert columns["model"] == [0, 1, 2]
    assert "latency" not in columns, "nobody knows one"
    number, rules = list(columns).index("MACs"), sorting(found).rules
    for place, row in enumerate(columns["MACs"]):
        assert f"(#by-{number}:checked) tbody tr:nth-child({row + 1}){{order:{place}}}" in rules


def test_the_page_sorts_without_a_script_and_escapes_names() -> None:
    hostile = '"><script>alert(1)</script>}</style>.pt'
    found = compared(subject(hostile, method=hostile), subject("b.pt", digest="bb" * 32))
    page = render(report(subject(hostile), comparison=found))
    parsed = Parsed(page)
    assert {name for name, _ in parsed.elements} >= {"input", "label"}
    assert "script" not in {name for name, _ in parsed.elements}
    assert not [a for _, a in parsed.elements if "style" in a or any(key.startswith("on") for key in a)]
    rules = page.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|alert", rules)
    assert len([a for name, a in parsed.elements if name == "input"]) == len(sorting(found).columns)


def test_a_name_in_a_csv_is_no_formula(tmp_path: Path) -> None:
    formulas = json.dumps({"models": [subject("=1+1.pt")]}).replace('"pgd20x1"', '"=2+2"')
    (tmp_path / "a.json").write_text(formulas)
    assert run(tmp_path / "a.json", "--csv", tmp_path / "rows.csv").exit_code == 0
    assert "'=1+1.pt" in (tmp_path / "rows.csv").read_text()
    assert ",'=2+2," in (tmp_path / "rows.csv").read_text().splitlines()[0], "the name of an attack"
    np.testing.assert_equal((tmp_path / "rows.csv").read_text().count("\n"), 3)
