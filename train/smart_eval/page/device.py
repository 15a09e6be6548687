"""What the included results say: latency, size and energy on a device, and what an export cost."""

from __future__ import annotations

from smart_common.units import si
from smart_eval.page.figures import latency, percent, size
from smart_eval.page.html import Markup, join, name_of, note, section, table, tag
from smart_eval.page.included import Bench, Drop, Export, Speed, Switch
from smart_eval.page.subject import Model, Report, under_attack
from smart_eval.page.trust import flag

_UNKNOWN = "-"


def on_the_device(report: Report) -> Markup | None:
    """Return every result of smart-bench, accuracies beside latencies."""
    benches = report.included.benches
    if not benches:
        return None
    return section("device", "On the device", *(_bench(report, bench) for bench in benches))


def _bench(report: Report, bench: Bench) -> Markup:
    several = len({row.bundle for row in bench.rows}) > 1
    energy = any(row.energy_mj is not None for row in bench.rows)
    attacked = any(model["attacks"] for model in report.models)
    accuracies = {
        id(row): _accuracies(model, path)[: 1 + attacked]
        for model in sorted(report.models, key=lambda model: model["kind"] == "bundle")  # whose row it is comes last
        for path, row in report.speeds(model)[0].items()
        if path in model["paths"]
    }
    columns: list[object] = [
        "graph",
        "precision",
        *(["clean images", "under attack"][: 1 + attacked] if accuracies else []),
        "median",
        "90% below",
        "speed-up",
        "MACs",
        "size",
        *(["energy an image", "power"] if energy else []),
    ]
    rows = []
    for row in bench.rows:
        bundle = tag("small", name_of(row.bundle or _UNKNOWN)) if several else None
        cells: list[object] = [join(report.path(row.graph), bundle), row.precision or _UNKNOWN]
        if accuracies:
            cells += accuracies.get(id(row), [_UNKNOWN] * (1 + attacked))
        cells += [latency(row.median_ms) + ("" if row.agrees else " (!)"), latency(row.p90_ms), _speedup(row)]
        cells += [_UNKNOWN if row.mac_ratio is None else f"÷ {row.mac_ratio:.2f}", size(row.bytes)]
        if energy:
            cells += [_UNKNOWN if row.energy_mj is None else f"{row.energy_mj:.3g} mJ"]
            cells += [_UNKNOWN if row.power_w is None else f"{row.power_w:.3g} W"]
        rows.append(cells)
    return join(
        tag("h3", name_of(bench.device)),
        table(label="latency and size of each graph", columns=columns, rows=rows, text_columns=2),
        None if bench.switch is None else tag("p", _switch(bench.switch)),
        note(
            "smart-bench, from ",
            name_of(bench.file),
            ": ",
            "; ".join(f"{name} {value}" for name, value in bench.conditions.items()),
            f". Speed-ups, with 95% intervals, and MACs are against {bench.against}." if bench.against else ".",
            " (!): alone in a fresh process it took another time, so the machine was busy; measure again."
            if not all(row.agrees for row in bench.rows)
            else None,
        ),
    )


def _accuracies(model: Model, path: str) -> list[object]:
    under = join(percent(under_attack(model, path)[0]), flag(model, path)) if model["attacks"] else _UNKNOWN
    return [percent(model["paths"][path]["clean_accuracy"]), under]


def _switch(switch: Switch) -> str:
    return (
        f"Switching paths took {latency(switch.median_ms)}; the first result of the new path came after "
        f"{latency(switch.first_result_ms)}, against {latency(switch.cold_load_ms)} for a cold load."
    )


def _speedup(row: Speed) -> str:
    if row.speedup is None:
        return _UNKNOWN
    if row.speedup_low is None or row.speedup_high is None or row.speedup_low == row.speedup_high:
        return f"{row.speedup:.2f}x"
    return f"{row.speedup:.2f}x ({row.speedup_low:.2f} to {row.speedup_high:.2f})"


def exported(report: Report) -> Markup | None:
    """Return every result of smart-export: what became smaller, and what accuracy it cost."""
    exports = report.included.exports
    return section("export", "What the export made", *(_export(report, one) for one in exports)) if exports else None


def _export(report: Report, export: Export) -> Markup:
    judged = any(graph.clean_drop is not None for graph in export.graphs)
    columns: list[object] = ["graph", "channels or weights kept", "MACs", "parameters", "size"]
    columns += ["lost on clean images", "lost under attack"] if judged else []
    rows: list[list[object]] = [
        [
            report.path(graph.name),
            "all" if graph.density is None else percent(graph.density),
            f"{si(graph.macs)} (÷ {graph.dense_macs / graph.macs:.2f})" if graph.macs else "0",
            si(graph.parameters),
            size(graph.bytes),
            *([_drop(graph.clean_drop), _drop(graph.robust_drop)] if judged else []),
        ]
        for graph in export.graphs
    ]
    return join(
        tag("h3", name_of(export.bundle)),
        table(label="graphs of the export", columns=columns, rows=rows),
        note(
            "smart-export, from ",
            name_of(export.file),
            f": {export.precision} for {export.target}",
            f" ({export.profile})" if export.profile != export.target else None,
            ". Losses are in points of accuracy from the masked network to the graph, with 95% intervals."
            if judged
            else ".",
        ),
    )


def _drop(drop: Drop | None) -> str:
    if drop is None:
        return _UNKNOWN
    return f"{100 * drop.value + 0.0:.1f} ({100 * drop.low:.1f} to {100 * drop.high:.1f})"
