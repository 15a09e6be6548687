"""``smart-bench``: the table of latencies, speed-ups and the cost of a switch, and what changed since another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from smart_common.console.cli import (
    Command,
    console,
    json_option,
    note,
    print_json,
    print_wide,
    progress,
    say,
    table,
    version_option,
    warnings_as_notes,
)
from smart_common.figures import check_plot, is_plot
from smart_common.outputs import Output, check_outputs
from smart_common.units import si
from smart_devices.engine_rows import AUTO, engine_info
from smart_runtime.cli import engine_option, trust_option

if TYPE_CHECKING:
    from smart_runtime.bench.change import Change, ChangedRow
    from smart_runtime.bench.measure import Interval
    from smart_runtime.bench.report import Report, Row
    from smart_runtime.bench.saved import SavedRow

_MOST_IMAGES = 2**20  # a call: more than a machine has memory for, and no overflow of a size in bytes
_MEASURING = ("batch", "threads", "blocks", "baseline", "trust", "engine", "plot")
_GROUPS = {
    "What is measured": ("baseline", "saved", "trust", "engine"),
    "How it is measured": ("batch", "threads", "blocks", "seed"),
    "Output": ("plot", "as_json"),
}
_EXAMPLES = """Example: smart-bench bundle/ --batch 1 --threads 1 --plot bench.png

Another: smart-bench fp32/ int8/ --baseline other.onnx --json > new.json

Another: smart-bench --compare old.json new.json"""


@click.command(cls=Command, option_groups=_GROUPS, epilog=_EXAMPLES)
@click.argument("bundle", nargs=-1)  # as text: rows name a bundle as the user wrote it, and Path drops a "/" at the end
@click.option("--baseline", metavar="FILE.onnx", type=click.Path(path_type=Path), help="Compare with this ONNX model.")
@trust_option
@engine_option(AUTO)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1, _MOST_IMAGES), help="Images a call.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Threads a call may use.")
@click.option("--blocks", default=40, show_default=True, type=click.IntRange(min=2), help="Blocks of calls a graph.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of input, order and bootstrap.")
@click.option("--plot", default=None, type=click.Path(path_type=Path), help="Draw the result: .png, .svg or .pdf.")
@click.option(
    "--compare",
    "saved",
    nargs=2,
    metavar="A.json B.json",
    type=click.Path(path_type=Path),
    help="Instead of measuring, say how the speed-ups changed from A to B, both saved from --json.",
)
@json_option
@version_option("smart-bench")
@click.pass_context
def main(
    context: click.Context,
    *,
    bundle: tuple[str, ...],
    baseline: Path | None,
    trust: Path | None,
    engine: str | None,
    batch: int,
    threads: int,
    blocks: int,
    seed: int,
    plot: Path | None,
    saved: tuple[Path, Path] | None,
    as_json: bool,
) -> None:
    """Compare the graphs of one or more bundles on this device: dense, clean and robust.

    In one process, in interleaved blocks of calls whose first are discarded; then each graph alone in a fresh process,
    which must agree; then the first bundle's switch between paths, beside a cold load. Speed-ups are against the first
    bundle's dense graph, or with --baseline against that model: any ONNX classifier of the same float32 input.
    Where the machine has a power sensor, each graph runs for some seconds more, for its energy.
    """
    if saved is not None:
        _refuse(context, _MEASURING, bundle, why="--compare reads two saved results and measures nothing")
        from smart_runtime.bench.change import compare_saved  # noqa: PLC0415  # here and below: `--help` needs no NumPy
        from smart_runtime.bench.saved import read_saved  # noqa: PLC0415

        check_outputs(inputs=saved)
        change = compare_saved(read_saved(saved[0]), read_saved(saved[1]), seed=seed)
        if as_json:
            print_json(change.as_json())
        else:
            _print_change(change)
        return
    if not bundle:
        raise click.UsageError("Missing argument 'BUNDLE', or --compare A.json B.json.")
    if plot is not None:
        check_plot(plot)  # before the minutes of measuring, not after
    outputs = [] if plot is None else [Output("--plot", plot, is_plot)]
    check_outputs(outputs, inputs=[*map(Path, bundle), baseline, trust])
    from smart_devices.power import find_power  # noqa: PLC0415
    from smart_runtime.bench.compare import compare, steps  # noqa: PLC0415
    from smart_runtime.bench.contenders import open_bundles  # noqa: PLC0415
    from smart_runtime.bench.plot import write_plot  # noqa: PLC0415
    from smart_runtime.engines import choose_engine  # noqa: PLC0415

    bundles = open_bundles(bundle, trust=trust)
    context.with_resource(warnings_as_notes("smart_runtime"))
    chosen = choose_engine(AUTO if engine is None else engine, next(iter(bundles.values()))).engine
    power = find_power(part=engine_info(chosen).part)
    with progress("measuring", total=steps(bundles, baseline=baseline, blocks=blocks, power=power)) as advance:
        report = compare(
            bundles,
            baseline=baseline,
            batch=batch,
            threads=threads,
            blocks=blocks,
            seed=seed,
            engine=chosen,
            power=power,
            advance=advance,
        )
    if as_json:
        print_json(report.as_json())
    else:
        _print_report(report)
    if plot is not None:  # last, so that one that fails loses no figure
        write_plot(report, plot)
        note(f"plot: {plot}")


def _refuse(context: click.Context, options: Sequence[str], bundle: Sequence[str], *, why: str) -> None:
    given = [name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if bundle or given:
        what = f"--{given[0].replace('_', '-')}" if given else "BUNDLE"
        raise click.UsageError(f"{why}, so it takes no {what}.")


def _print_report(report: Report) -> None:
    from smart_runtime.bench.report import MEASURED  # noqa: PLC0415

    environment = report.environment
    several = len(report.bundles) > 1
    where = f"{environment.gpu or 'a GPU'} and {environment.cpu}" if report.on_gpu else environment.cpu
    title = f"{report.engine}, batch {report.batch}, threads {report.threads}, on {where}"
    state = f"governor {environment.governor or 'unknown'}, load {environment.load_average[0]:.2f} before"
    say(f"{title} ({environment.usable_cores} cores, {state})")
    scale, unit = (1000, "us") if max(row.p90_ms for row in report.rows) < 1 else (1, "ms")
    names = ["bundle", "graph", "precision"] if several else ["graph"]
    figures = (f"{figure} {unit}" for figure in ("median", "p90", "p99", "alone"))
    on_device = any(row.gpu_ms is not None for row in report.rows)
    latency = [*figures, *([f"gpu {unit}", f"copies {unit}"] if on_device else []), "speed-up (95% interval)"]
    cells = [
        _name_cells(row, several=several) + _latency_cells(row, report, scale=scale, on_device=on_device)
        for row in report.rows
    ]
    print_wide(table("", names + latency, cells, text_columns=len(names)))
    if any(row.power_w is not None for row in report.rows):
        cells = [_name_cells(row, several=several) + _energy_cells(row) for row in report.rows]
        print_wide(table("", [*names, "power", "energy an image", "above idle"], cells, text_columns=len(names)))
    size = ["MACs", "MAC ratio", "parameters", "size"]
    cells = [_name_cells(row, several=several) + _size_cells(row) for row in report.rows]
    print_wide(table("", names + size, cells, text_columns=len(names)))
    blocks, calls = len(report.rows[0].blocks), min(row.calls for row in report.rows)
    counted = f"{blocks} interleaved blocks and at least {calls} calls a graph"
    say(f"latency of {MEASURED}; {counted}; alone: in a fresh process")
    if on_device:
        say("gpu and copies: within the latency, by the GPU's own clock")
    for line in _conditions(report):
        say(line)
    if report.reference is not None:
        against = report.label(report.rows[report.reference])
        say(
            f"speed-ups are against {against}; the interval holds within this run; another process or another day may "
            "lie outside"
        )
    if report.switch is not None:
        switch, where = report.switch, f" in {next(iter(report.bundles))}" if several else ""
        say(
            f"switch{where}: {switch.median_us:.2f} us (p99 {switch.p99_us:.2f} us); first result of the new path "
            f"after {switch.first_result_ms:.3g} ms, against {switch.cold_load_ms:.3g} ms for a cold load"
        )
    apart = [report.label(row) for row in report.rows if not row.solo_agrees]
    if apart:
        say(_warning(apart))


def _name_cells(row: Row, *, several: bool) -> list[str]:
    return [row.bundle or "", row.name, row.precision or ""] if several else [row.name]


def _latency_cells(row: Row, report: Report, *, scale: float, on_device: bool) -> list[str]:
    speed_up = ""
    if row.speedup is not None and report.reference is not None:
        is_reference = row is report.rows[report.reference]
        interval = "" if is_reference else f" ({row.speedup_low:.2f} - {row.speedup_high:.2f})"
        speed_up = f"{row.speedup:.2f}x{interval}"
    latencies = [f"{scale * value:.4g}" for value in (row.median_ms, row.p90_ms, row.p99_ms, row.solo_median_ms)]
    latencies[3] += "" if row.solo_agrees else " (!)"
    within = (row.gpu_ms, row.copies_ms) if on_device else ()
    return [*latencies, *("" if value is None else f"{scale * value:.4g}" for value in within), speed_up]


def _energy_cells(row: Row) -> list[str]:
    energies = (row.energy_mj, row.energy_above_idle_mj)
    power = "" if row.power_w is None else f"{row.power_w:.3g} W"
    return [power, *("" if value is None else f"{value:.3g} mJ" for value in energies)]


def _conditions(report: Report) -> Iterator[str]:
    """Yield what there is to say of energy, power mode and clocks, or why nothing."""
    energy = report.energy
    if energy.source is not None:
        idle = "unknown" if energy.idle_w is None else f"{energy.idle_w:.3g} W"
        yield f"energy: {energy.measures} by {energy.source}, {energy.phase_s:.3g} s a graph; idle {idle}"
    if energy.unknown is not None:
        yield f"energy unknown: {energy.unknown}"
    mode = report.environment.power_mode
    clocks = "; ".join(map(str, report.clocks)) or "unknown, the system does not tell"
    held = f"; held back by {', '.join(report.throttled)}" if report.throttled else ""
    yield f"power mode {mode or 'unknown'}; clocks after the last block: {clocks}{held}"


def _size_cells(row: Row) -> list[str]:
    ratio = "" if row.mac_ratio is None else f"{row.mac_ratio:.2f}x"
    macs, parameters = ("" if value is None else si(value) for value in (row.macs, row.parameters))
    return [macs, ratio, parameters, si(row.bytes, "B")]


def _warning(apart: Sequence[str]) -> str:
    from smart_runtime.bench.measure import SOLO_TOLERANCE  # noqa: PLC0415

    names = " and ".join(filter(None, (", ".join(apart[:-1]), apart[-1])))
    differ = "differs" if len(apart) == 1 else "differ"
    return (
        f"(!) alone, {names} {differ} by more than {SOLO_TOLERANCE:.0%}: the machine was busy or its clock moved; "
        "do not trust these figures, run again on a quiet machine"
    )


def _print_change(change: Change) -> None:
    from smart_runtime.bench.change import CAVEAT  # noqa: PLC0415

    say(f"A: {change.a.file}; B: {change.b.file}; speed-ups against {change.a.reference.name}")
    several = max(len(change.a.bundles), len(change.b.bundles)) > 1
    names = ["bundle", "graph"] if several else ["graph"]
    columns = [*names, "speed-up in A", "speed-up in B", "B / A (95% interval)", "verdict"]
    cells = [
        [*([row.bundle_a or ""] if several else []), row.name, *_change_cells(row), row.verdict] for row in change.rows
    ]
    console().print(table("", columns, cells, text_columns=len(names)))
    for one, other in change.by_order:
        say(f"taken for each other by their order: {one} in A, {other} in B")
    for name, rows in (("A", change.only_a), ("B", change.only_b)):
        if rows:
            say(f"only in {name}: {', '.join(_saved_label(row) for row in rows)}")
    if change.differences:
        say("the two were measured on different bundles or under different conditions, so a change may be theirs:")
        for found in change.differences:  # no table: beside a long path or name of a CPU it has no room for the rest
            say(f"  {found.what}: {found.a} in A, {found.b} in B")
    else:
        say("bundles, baseline, environment, batch, threads and engine are the same")
    say(f"B / A: of the medians of block medians; {CAVEAT}")


def _change_cells(row: ChangedRow) -> list[str]:
    return [_ratio(row.speedup_a, "x"), _ratio(row.speedup_b, "x"), _ratio(row.change, "", digits=3)]


def _ratio(ratio: Interval, unit: str, *, digits: int = 2) -> str:
    return f"{ratio.value:.{digits}f}{unit} ({ratio.low:.{digits}f} - {ratio.high:.{digits}f})"


def _saved_label(row: SavedRow) -> str:
    return row.name if row.bundle is None else f"{row.name} of {row.bundle}"


if __name__ == "__main__":
    main()
