"""The text of `SmartModel.metrics`, read by a strict parser of the exposition format 0.0.4."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runtime.bundles import as_float, random_images
from smart_runtime import InputError, Result, SmartModel, SwitchRequest
from smart_runtime.inputs import Images
from smart_runtime.metrics import prometheus_text
from smart_runtime.policies.policy import PolicyModel
from smart_runtime.stats import LatencyHistogram, PathStats, Recorder, Stats

FLOATS = as_float(random_images(2))

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)')

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> tuple[dict[str, str], Samples]:
    """Return the type of each family and the value of each sample; AssertionError where the format is not kept."""
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    samples: Samples = {}
    family = helped = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            helped, _, what = line.removeprefix("# HELP ").partition(" ")
            assert re.fullmatch(_NAME, helped)
            assert helped not in kinds
            assert re.fullmatch(r"(?:[^\\]|\\[\\n])+", what)
        elif line.startswith("# TYPE "):
            family, _, kind = line.removeprefix("# TYPE ").partition(" ")
            assert family == helped, "HELP comes before TYPE"
            assert kind in {"counter", "gauge", "histogram"}
            assert kind != "counter" or family.endswith("_total")
            kinds[family] = kind
        else:
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            name, labels, value = match.groups()
            parts = ("_bucket", "_sum", "_count") if kinds[family] == "histogram" else ("",)
            assert name in {family + part for part in parts}, "a family's samples stand together"
            key = (name, frozenset(pairs(labels or "")))
            assert key not in samples, f"twice: {line}"
            samples[key] = float(value)
            assert not (kinds[family] == "counter" and samples[key] < 0)
    check_histograms(kinds, samples)
    return kinds, samples


def pairs(labels: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(labels):
        match = _LABEL.match(labels, at)
        assert match is not None, labels
        value = re.sub(r"\\(.)", lambda escaped: {"n": "\n"}.get(escaped[1], escaped[1]), match[2])
        found.append((match[1], value))
        at = match.end()
    assert len({name for name, _ in found}) == len(found)
    return found


def check_histograms(kinds: Mapping[str, str], samples: Samples) -> None:
    for family in (name for name, kind in kinds.items() if kind == "histogram"):
        for rest in {labels for name, labels in samples if name == f"{family}_count"}:
            buckets = sorted(
                (float(dict(labels)["le"]), value)
                for (name, labels), value in samples.items()
                if name == f"{family}_bucket" and {one for one in labels if one[0] != "le"} == rest
            )
            counts = [count for _, count in buckets]
            assert counts == sorted(counts), "buckets are cumulative"
            assert buckets[-1] == (math.inf, samples[f"{family}_count", rest])
            assert (f"{family}_sum", rest) in samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"smart_edge_{name}", frozenset(labels.items())]


class Watching:
    """Asks for the robust path once; its status holds all sorts of things."""

    def __init__(self) -> None:
        self.says: Any = {
            "shadow_runs_total": 12,
            "disagreement": 0.25,
            "alarm": True,
            "state": "alarm",
            "nothing": None,
            "per path": {"clean": 3, "robust\n": 4.5, "deeper": {"not": 1}},
            "9 odd-name": float("nan"),
            "failures_total": 99,
            "huge": 10**400,
        }

    def start(self, model: PolicyModel) -> None: ...

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:  # noqa: ARG002  # it always asks
        return SwitchRequest("robust", 'it said "7\\2"\nand left')

    def status(self) -> Any:
        return self.says() if callable(self.says) else self.says

    def stop(self) -> None: ...


def test_what_a_model_did_is_in_its_metrics(bundle: Path) -> None:
    with SmartModel.load(bundle, policy=Watching()) as model:
        for _ in range(3):
            model.run(FLOATS)
        with pytest.raises(InputError):
            model.run(FLOATS[0])
        model.path = "clean"
        model.run(FLOATS)
        model.reload(bundle)
        kinds, samples = parsed(model.metrics())
        digest = model.bundle.digest
    assert value(samples, "info", bundle=digest, engine="onnxruntime-cpu", policy="watching") == 1
    assert [value(samples, "calls_total", path=path) for path in ("clean", "robust")] == [2, 2]
    assert [value(samples, "images_total", path=path) for path in ("clean", "robust")] == [4, 4]
    assert [value(samples, "errors_total", path=path) for path in ("clean", "robust")] == [0, 1]
    assert [value(samples, "path_active", path=path) for path in ("clean", "robust")] == [1, 0]
    assert value(samples, "latency_seconds_count", path="clean") == 2
    assert 0 < value(samples, "latency_seconds_sum", path="clean") < 60
    assert value(samples, "switches_total", by="watching", reason='it said "#\\#"\nand left') == 1
    assert value(samples, "switches_total", by="hand", reason="") == 1
    assert (value(samples, "policy_overridden"), value(samples, "ignored_switches_total")) == (1, 1)
    assert (value(samples, "reloads_total"), value(samples, "audit_failures_total")) == (1, 0)
    assert value(samples, "policy_shadow_runs_total") == 12
    assert (value(samples, "policy_disagreement"), value(samples, "policy_alarm")) == (0.25, 1)
    assert (value(samples, "policy_per_path_clean"), value(samples, "policy_per_path_robust_")) == (3, 4.5)
    assert math.isnan(value(samples, "policy_9_odd_name"))
    assert value(samples, "policy_failures_total") == 0, "what is ours already is not the policy's to say"
    assert (kinds["smart_edge_policy_shadow_runs_total"], kinds["smart_edge_policy_alarm"]) == ("counter", "gauge")
    assert not [name for name in kinds if "state" in name or "nothing" in name or "deeper" in name or "huge" in name]


def test_metrics_go_on_where_the_status_fails_and_after_the_end(bundle: Path) -> None:
    policy = Watching()
    model = SmartModel.load(bundle, policy=policy)
    policy.says = lambda: 1 / 0
    _, samples = parsed(model.metrics())
    assert value(samples, "policy_failures_total") == 1
    policy.says = ["no", "mapping"]
    parsed(model.metrics())
    policy.says = {f"number{i}": i for i in range(1000)}
    kinds, _ = parsed(model.metrics())
    assert sum("number" in name for name in kinds) == 64
    model.close()
    _, samples = parsed(model.metrics())
    assert [value(samples, "path_active", path=path) for path in ("clean", "robust")] == [0, 0]
    with SmartModel.load(bundle) as plain:
        kinds, samples = parsed(plain.metrics())
    assert value(samples, "switches_total", by="hand", reason="") == 0


def test_each_latency_is_in_the_buckets_above_it() -> None:
    latencies = [0, 1, 2**14 - 1, 2**14, 2**14 + 1, 50_000, 999_999, 2**20, 2**33, 2**34 - 1, 2**34, 2**41, 2**50]
    recorder = Recorder(["clean"])
    for latency in latencies:
        recorder.call("clean", images=1, latency_ns=latency)
    _, samples = parsed(prometheus_text(recorder.snapshot(), paths=["clean"], active="clean", facts={}, status={}))
    bounds = [dict(labels)["le"] for name, labels in samples if name.endswith("_bucket")]
    assert len(bounds) == 22
    for bound in bounds:
        expected = sum(latency < float(bound) * 1e9 for latency in latencies)
        assert value(samples, "latency_seconds_bucket", path="clean", le=bound) == expected, bound


def test_names_are_escaped_whatever_they_hold() -> None:
    path = 'a"b\\c\nd'
    stats = Stats(
        paths={path: PathStats(latency=LatencyHistogram())}, switches=0, reloads=0, policy_failures=0, last_reason=""
    )
    text = prometheus_text(stats, paths=[path], active=path, facts={"engine": "\ud800"}, status={})
    text.encode("utf-8")
    assert value(parsed(text)[1], "path_active", path=path) == 1
