"""Write the tables of README.md and docs/benchmarks.md from benchmarks/results/.

    .venv/bin/python benchmarks/tables.py           # after a benchmark has written new results
    .venv/bin/python benchmarks/tables.py --check   # status 1 if a page does not say what the results say

A table stands between the lines <!-- table NAME --> and <!-- end NAME -->; all else on the pages is written by hand.
Goals that are missed are in the tables like all others.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bench_attacks
import bench_cifar
import bench_demo
import bench_export
import bench_hostile
import bench_method_costs
import bench_methods
import bench_networks
import bench_paths
import bench_precision
import bench_quantised
import bench_rtx
import bench_runtime
import bench_sparsity
import bench_switch
import bench_train
import bench_tripwire
import kill_rule

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs/benchmarks.md",
    ROOT / "docs/evidence.md",
    ROOT / "docs/networks.md",
    ROOT / "docs/policies.md",
    ROOT / "docs/precision.md",
    ROOT / "docs/sparsity.md",
    ROOT / "docs/security.md",
)


def load(name: str) -> dict[str, Any]:
    """Return the results of one benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def made_by(record: Mapping[str, Any]) -> str:
    """Return one sentence on the command and the machine."""
    run = record if "environment" in record else record["runs"][0]
    machine, threads = run["environment"], run.get("threads")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name != "smart-edge")
    governor = machine.get("governor") or "unknown"
    load_average = machine["load_average"][0]
    return (
        f"`{record['command']}` on {machine['cpu']} ({machine['usable_cores']} cores, governor {governor}, load "
        f"{load_average:.2f} before it began){f', threads {threads}' if threads else ''}, Python {machine['python']}, "
        f"{versions}."
    )


def short_paths() -> str:
    """Return the paths' speed-ups at one thread and scope `block`, a line for each network, density and batch size."""
    rows = [
        row for row in load("paths")["rows"] if row["threads"] == 1 and row.get("scope", "block") in {"block", None}
    ]
    dense = {(row["network"], row["batch"]): row for row in rows if row["name"] == "dense"}
    lines = [
        "| network | batch | density (align) | dense | `clean` | `robust` | MAC ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row["name"] != "clean":
            continue
        key = ("network", "batch", "density", "align")
        robust = next(r for r in rows if r["name"] == "robust" and all(r[k] == row[k] for k in key))
        shape = "x".join(map(str, row["input_shape"]))
        lines.append(
            f"| {row['network']}, {shape} | {row['batch']} | {row['density']:g} ({row['align']}) "
            f"| {dense[row['network'], row['batch']]['median_ms']:.1f} ms "
            f"| {row['speedup']:.2f}x | {robust['speedup']:.2f}x | {row['mac_ratio']:.2f} |"
        )
    return "\n".join(lines)


def goals() -> str:
    """Return every goal that a benchmark is held to, with what was seen; those of a kind share a line."""
    lines = ["| goal | seen | reached | benchmark |", "| --- | --- | --- | --- |"]
    others = (
        "attacks",
        "paths",
        "sparsity",
        "precision",
        "runtime",
        "switch",
        "train",
        "export",
        "cifar",
        "networks",
        "method_costs",
    )
    for name, found in (
        ("demo", bench_demo.goals(load("demo")["runs"])),
        *((name, load(name)["goals"]) for name in others),
    ):
        kinds: dict[str, list[Mapping[str, Any]]] = {}
        for goal in found:
            kinds.setdefault(goal["goal"].rpartition(": ")[2], []).append(goal)
        for kind, members in kinds.items():
            values = sorted(goal["value"] for goal in members)
            seen = f"{values[0]:.3g}" + (f" to {values[-1]:.3g}" if len(values) > 1 else "")
            missed = [goal["goal"].rpartition(": ")[0] for goal in members if not goal["reached"]]
            reached = "yes" if not missed else "**no**"
            if missed and len(members) > 1:
                both = dict.fromkeys(name.removesuffix(", clean").removesuffix(", robust") for name in missed)
                reached = f"**{len(members) - len(missed)} of {len(members)}**, not " + "; ".join(both)
            lines.append(f"| {kind} | {seen} | {reached} | `bench_{name}.py` |")
    return "\n".join(lines)


def with_source(name: str, table: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """Return a block that is the table of one benchmark and how it was made."""

    def block() -> str:
        record = load(name)
        return f"{table(record)}\n\n{made_by(record)}"

    return block


def switch() -> str:
    """Return what a switch costs in the demo, means over the seeds."""
    runs = load("demo")["runs"]

    def mean(key: str) -> float:
        return float(statistics.mean(run["switch"][key] for run in runs))

    return (
        f"A switch takes {mean('median_us'):.1f} us and the new path's first result {mean('first_result_ms'):.2f} ms; "
        f"loading that path cold takes {mean('cold_load_ms'):.1f} ms."
    )


def short_switch() -> str:
    """Return what came of calls from several threads under switches, in two sentences."""
    record = load("switch")
    fire = record["results"]["fire"]["resnet34"]
    soak = record["results"]["soak"]
    return (
        f"{record['callers']} threads, a switch every {1e3 * fire['seconds'] / fire['switches']:.1f} ms, "
        f"{fire['seconds']:.0f} s, ResNet-34: {fire['calls']:,} results, {fire['mixed']} of which differ from what the "
        f"path that they name gives, {fire['failed']} failed calls, {fire['throughput_ratio']['value']:.2f} of the "
        f"throughput without switches. First result of the new path: {fire['idle']['first_result_ms']:.1f} ms, against "
        f"{fire['idle']['cold_load_ms']:.0f} ms for loading it cold. A soak of {soak['calls']:,} calls and "
        f"{soak['switches']:,} switches: {100 * soak['growth']['bytes']:.2f}% more memory. "
        f"`benchmarks/bench_switch.py`."
    )


def quantised(record: dict[str, Any]) -> str:
    """Return the quantised graphs, what the processor has for them, and what became of bfloat16."""
    has = ", ".join(name for name, there in record["cpu_features"].items() if there)
    bf16 = record["bf16"]
    found = "runs" if bf16["runs_on_cpu_provider"] else f"does not run: `{bf16['refusal']}`"
    return f"{bench_quantised.table(record['rows'])}\n\nThe processor has {has}. A bfloat16 convolution {found}."


BLOCKS: dict[str, Callable[[], str]] = {
    "demo": lambda: bench_demo.table(load("demo")["runs"]),
    "demo-full": with_source("demo", lambda record: bench_demo.table(record["runs"])),
    "switch": switch,
    "attacks": lambda: bench_attacks.table(load("attacks")),
    "attacks-full": with_source("attacks", bench_attacks.table),
    "attack-times": with_source("attacks", bench_attacks.time_table),
    "paths-short": short_paths,
    "goals": goals,
    "zeros": with_source("sparsity", lambda record: bench_sparsity.table(record["rows"])),
    "paths": with_source("paths", lambda record: bench_paths.table(record["rows"])),
    "runtime": with_source("runtime", lambda record: bench_runtime.table(record["results"])),
    "switch-short": short_switch,
    "switch-full": with_source("switch", lambda record: bench_switch.table(record["results"])),
    "train": with_source("train", lambda record: bench_train.table(record["rows"])),
    "hostile": with_source("hostile", bench_hostile.table),
    "export": with_source("export", lambda record: bench_export.table(record["runs"])),
    "rtx": with_source("rtx", lambda record: bench_rtx.table(record["rows"])),
    "precision": with_source("precision", lambda record: bench_precision.table(record["rows"])),
    "quantisers": lambda: bench_precision.methods_table(load("precision")["methods"]),
    "quantised": with_source("quantised", quantised),
    "networks": with_source("networks", lambda record: bench_networks.table(record["rows"])),
    "cifar": with_source("cifar", lambda record: bench_cifar.table(record["networks"], attack=record["attack"])),
    "methods-digits": with_source("methods-digits", bench_methods.table),
    "rule-short": lambda: kill_rule.short(load("methods-digits")),
    "tripwire": with_source("tripwire", bench_tripwire.table),
    "tripwire-scores": lambda: bench_tripwire.score_table(load("tripwire")),
    "tripwire-speed": with_source("tripwire_speed", bench_tripwire.speed_table),
    "rule-digits": lambda: kill_rule.verdict(load("methods-digits")),
    "method-costs": with_source("method_costs", lambda record: bench_method_costs.table(record["rows"])),
}


def renewed(page: str) -> str:
    """Return ``page`` with every table as the results have it."""

    def block(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- table {name} -->\n{BLOCKS[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- table ([a-z-]+) -->\n.*?<!-- end \1 -->", block, page, flags=re.DOTALL)


def main() -> None:
    """Renew the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = []
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        new = renewed(page)
        if new != page:
            stale.append(path.relative_to(ROOT).as_posix())
            if not options.check:
                path.write_text(new, encoding="utf-8")
    if stale and options.check:
        sys.exit(
            f"error: expected the tables of the results in {', '.join(stale)}, got others; run {Path(__file__).name}"
        )


if __name__ == "__main__":
    main()
