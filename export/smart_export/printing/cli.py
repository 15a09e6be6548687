"""What ``smart-export`` prints of an export for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from smart_common.console import cli as house
from smart_common.units import si
from smart_export.dial.cli import mix_lines
from smart_export.timings import Stopwatch, seconds_since_start

if TYPE_CHECKING:
    from smart_export.build import BuildResult


def print_result(result: BuildResult, found: dict[str, Any]) -> None:
    """Print tables of the graphs and of what became of each layer; ``found`` is the result as JSON has it."""
    from smart_export import report as show  # noqa: PLC0415  # loads torch and onnx

    target = result.target
    title = f"{result.bundle}: {result.precision} for {target.name}, {show.verdict(result)}"
    house.console().print(house.table(title, *show.graph_table(found)))
    print_lines([] if result.masks is None else result.masks.lines())
    print_lines([] if result.outlook is None else result.outlook.lines)
    print_lines(show.gate_lines(result))
    print_lines(mix_lines(result))
    estimates = show.expectations(result)
    print_lines(show.expected_lines(estimates))
    for names, layers, reasons in show.build_tables(result.paths, estimates):
        house.print_wide(house.table(names, show.build_columns(target), layers, text_columns=2))
        print_lines(reasons)
    for graph in result.paths.values():
        print_lines(show.attention(graph.name, graph))
    print_lines(show.plan_lines(result.plans))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of a result, however long."""
    for line in lines:
        house.say(line)


def print_phase(name: str, seconds: float) -> None:
    """Say how long a phase of the export took."""
    house.note(f"{name}: {seconds:.2f} s")


def print_total(stopwatch: Stopwatch, *, peak: int) -> None:
    """Say how long the process has run, and how many bytes of memory it had at most."""
    print_phase("total", seconds_since_start() or sum(stopwatch.seconds.values()))
    house.note(f"peak memory: {si(peak, 'B')}")
