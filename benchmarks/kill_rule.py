"""The kill rule of docs/evidence.md, on the rows that bench_methods.py made: does SMART pay beside two networks?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

MARGIN = 0.01  # less accurate than this is worse: what smart-export lets an export lose
AT_EQUAL_COST = "two networks 0.5 at the cost of smart"  # what the rule does not ask, and a sceptic does
CHEAPER = 0.6  # of the training or of the bytes of two networks


def verdict(record: dict[str, Any]) -> str:
    """Return every row of smart against two networks of its density, and what docs/evidence.md's rule says of it.

    Differences are means over the seeds that both have, with a 95% interval of Student's t over the seeds.
    """
    attacks = list(next(iter(record["rows"][0]["paths"].values()))["attacks"])
    lines = [
        f"| row | against | clean path, clean | robust path, clean | robust path, {attacks[-1]} | cost of training "
        "| bytes | stored parameters | by the rule |",
        f"|{' --- |' * 9}",
    ]
    names = list(dict.fromkeys(one["name"] for one in record["rows"] if one["name"].startswith("smart ")))
    compared = [(name, f"two networks {name.split()[2]}") for name in names]
    for name, other in [*compared, ("smart gradual 0.5", AT_EQUAL_COST)]:
        by_seed = [{one["seed"]: one for one in _runs(record, each)} for each in (name, other)]
        pairs = [(by_seed[0][seed], by_seed[1][seed]) for seed in sorted(by_seed[0].keys() & by_seed[1].keys())]
        if not pairs:
            continue
        figures = [(accuracies(ours, attacks[-1]), accuracies(theirs, attacks[-1])) for ours, theirs in pairs]
        differences = [[ours[column] - theirs[column] for ours, theirs in figures] for column in range(3)]
        ratios = [
            fmean(ours[key] for ours, _ in pairs) / fmean(theirs[key] for _, theirs in pairs)
            for key in ("cost", "bytes", "stored_parameters")
        ]
        as_good = all(fmean(each) >= -MARGIN for each in differences)
        cheaper = min(ratios[:2]) <= CHEAPER
        why = [] if as_good else ["less accurate"]
        why += [] if cheaper else [f"neither at {CHEAPER} of the training nor of the bytes"]
        said = f"two networks: {', '.join(why)}" if why else "SMART"
        cells = [name, other, *map(difference, differences), *(f"{ratio:.2f}" for ratio in ratios)]
        lines.append(f"| {' | '.join(cells)} | {'-' if other == AT_EQUAL_COST else said} |")
    return "\n".join(lines)


def short(record: dict[str, Any]) -> str:
    """Return smart with its default masks and both pairs of networks, for README: means over the seeds."""
    attack = list(record["rows"][0]["paths"]["clean"]["attacks"])[-1]
    lines = [
        f"| density 0.5 | training | `clean` on clean images | `robust` on clean images | `robust` under {attack} "
        "| size |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    whole = _runs(record, "two networks 0.5")
    for name in ("two networks 0.5", "smart gradual 0.5", AT_EQUAL_COST):
        runs = _runs(record, name)
        cost = fmean(one["cost"] for one in runs) / fmean(one["cost"] for one in whole)
        size = fmean(one["bytes"] for one in runs) / 1e6
        means = [fmean(column) for column in zip(*(accuracies(one, attack) for one in runs), strict=True)]
        cells = [name.replace(" 0.5", ""), f"{cost:.2f}", *(f"{mean:.3f}" for mean in means), f"{size:.2f} MB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _runs(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [one for one in record["rows"] if one["name"] == name]


def accuracies(row: dict[str, Any], attack: str) -> tuple[float, float, float]:
    """Return the three figures that are compared: of the clean path, and of the robust one without and under attack."""
    clean, robust = row["paths"]["clean"], row["paths"]["robust"]
    return clean["clean"], robust["clean"], robust["attacks"][attack]["accuracy"]


def difference(values: Sequence[float]) -> str:
    """Return the mean with its interval over the seeds."""
    mean = f"{fmean(values):+.3f}"
    if len(values) < 2:
        return f"{mean} (one seed)"
    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / len(values) ** 0.5
    return f"{mean} ({fmean(values) - half:+.3f} to {fmean(values) + half:+.3f})"
