"""``smart-bench``: the table of latencies, speed-ups and the cost of a switch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from smart_devices.console.cli import Command, console, json_option, note, print_json, progress, table
from smart_devices.version import version
from smart_runtime.bench.compare import compare, steps
from smart_runtime.bench.plot import check_plot, write_plot
from smart_runtime.bench.report import MEASURED, Report, Row
from smart_runtime.bench.statistics import SOLO_TOLERANCE
from smart_runtime.bundle import Bundle
from smart_runtime.manifest import DENSE
from smart_runtime.units import si


@click.command(cls=Command, epilog="Example: smart-bench bundle/ --batch 1 --threads 1 --plot bench.png")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--batch", default=1, show_default=True, type=click.IntRange(min=1), help="Images a call.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Threads a call may use.")
@click.option("--blocks", default=40, show_default=True, type=click.IntRange(min=2), help="Blocks of calls a graph.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of input, order and bootstrap.")
@click.option("--plot", default=None, type=click.Path(path_type=Path), help="Draw the result: .png, .svg or .pdf.")
@json_option
@click.version_option(version(), prog_name="smart-bench")
def main(*, bundle: Path, batch: int, threads: int, blocks: int, seed: int, plot: Path | None, as_json: bool) -> None:
    """Compare the graphs of a bundle on this device: dense, clean and robust.

    In one process, in interleaved blocks of calls whose first are discarded; then each graph alone in a fresh process,
    which must agree; then the switch between paths, beside a cold load.
    """
    if plot is not None:
        check_plot(plot)  # before the minutes of measuring, not after
    opened = Bundle.open(bundle)
    with progress("measuring", total=steps(opened, blocks=blocks)) as advance:
        report = compare(opened, batch=batch, threads=threads, blocks=blocks, seed=seed, advance=advance)
    if plot is not None:
        write_plot(report, plot)
        note(f"plot: {plot}")
    if as_json:
        print_json(report.as_json())
    else:
        _print_report(report)


def _print_report(report: Report) -> None:
    out, environment = console(), report.environment
    title = f"{report.engine}, batch {report.batch}, threads {report.threads}, on {environment.cpu}"
    out.print(f"{title} ({environment.usable_cores} cores)", markup=False, soft_wrap=True)
    scale, unit = (1000, "us") if max(row.p90_ms for row in report.rows) < 1 else (1, "ms")
    latency = [
        "graph",
        *(f"{figure} {unit}" for figure in ("median", "p90", "p99", "alone")),
        "speed-up (95% interval)",
    ]
    out.print(table("", latency, [_latency_cells(row, scale=scale) for row in report.rows]))
    size = ["graph", "MACs", "MAC ratio", "parameters", "size"]
    out.print(table("", size, [_size_cells(row) for row in report.rows]))
    out.print(f"latency of {MEASURED}; {_calls(report)}; alone: in a fresh process", soft_wrap=True)
    if any(row.speedup is not None for row in report.rows):
        out.print("the interval holds within this run; another process or another day may lie outside", soft_wrap=True)
    if report.switch is not None:
        switch = report.switch
        out.print(
            f"switch: {switch.median_us:.2f} us (p99 {switch.p99_us:.2f} us); first result of the new path after "
            f"{switch.first_result_ms:.3g} ms, against {switch.cold_load_ms:.3g} ms for a cold load",
            soft_wrap=True,
        )
    apart = [row.name for row in report.rows if not row.solo_agrees]
    if apart:
        out.print(_warning(apart), soft_wrap=True)


def _latency_cells(row: Row, *, scale: float) -> list[str]:
    speed_up = ""
    if row.speedup is not None:
        interval = "" if row.name == DENSE else f" ({row.speedup_low:.2f} - {row.speedup_high:.2f})"
        speed_up = f"{row.speedup:.2f}x{interval}"
    latencies = [f"{scale * value:.4g}" for value in (row.median_ms, row.p90_ms, row.p99_ms, row.solo_median_ms)]
    return [row.name, *latencies[:3], latencies[3] + ("" if row.solo_agrees else " (!)"), speed_up]


def _size_cells(row: Row) -> list[str]:
    ratio = "" if row.mac_ratio is None else f"{row.mac_ratio:.2f}x"
    return [row.name, si(row.macs), ratio, si(row.parameters), si(row.bytes, "B")]


def _warning(apart: Sequence[str]) -> str:
    names = " and ".join(filter(None, (", ".join(apart[:-1]), apart[-1])))
    differ = "differs" if len(apart) == 1 else "differ"
    return (
        f"(!) alone, {names} {differ} by more than {SOLO_TOLERANCE:.0%}: the machine was busy or its clock moved; "
        "do not trust these figures, run again on a quiet machine"
    )


def _calls(report: Report) -> str:
    rounds = len(next(iter(report.blocks.values())))
    calls = min(sum(len(block) for block in blocks) for blocks in report.blocks.values())
    return f"{rounds} interleaved blocks and at least {calls} calls a graph"


if __name__ == "__main__":
    main()
