"""``smart-run install``: build the plans of a bundle on this device, and prove them there."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smart_common.console.cli import (
    Command,
    if_interrupted,
    json_option,
    note,
    print_json,
    print_wide,
    progress,
    say,
    table,
)
from smart_common.outputs import check_outputs
from smart_common.units import si
from smart_devices.engine_rows import AUTO, engine_names

if TYPE_CHECKING:
    from smart_runtime.installing.install import InstalledPlan

_MIB = 2**20


class _Batch(click.ParamType[str]):
    """Three batch sizes, ``MIN,OPT,MAX``."""

    name = "MIN,OPT,MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        parts = [part.strip() for part in str(value).split(",")]
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts):
            self.fail(f"expected three batch sizes MIN,OPT,MAX such as 1,8,64, got {value!a:.40}", param, ctx)
        return tuple(int(part) for part in parts)


@click.command(cls=Command, epilog="Example: smart-run install bundle/ --path robust --batch 1,1,8")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--engine", default=AUTO, metavar="NAME", show_default=True, help=f"One of: {', '.join(engine_names())}.")
@click.option("--path", "paths", multiple=True, metavar="NAME", help="Only this path, or `dense`; may be repeated.")
@click.option("--batch", type=_Batch(), help="Batch sizes to build for.  [default: 1,1,8 on a Jetson, else 1,8,64]")
@click.option("--workspace", type=click.IntRange(min=1), metavar="MIB", help="What a layer may use.  [default: all]")
@click.option("--level", type=click.IntRange(0, 5), help="How hard to try, 0 to 5; 5 takes longest.  [default: 3]")
@click.option("--tf32", is_flag=True, help="Let fp32 be rounded to TF32; for who loads with EngineOptions(tf32=True).")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="A build may take.")
@click.option("--device", default=0, show_default=True, type=click.IntRange(min=0), help="The number of the GPU.")
@click.option("--trust", metavar="KEY.pub", type=click.Path(path_type=Path), help="Install only what it signed.")
@click.option("--force", is_flag=True, help="Build plans anew that are there.")
@click.option("--prune", is_flag=True, help="Remove what nothing here can use; needs no BUNDLE, no GPU.")
@json_option
def install(
    *,
    bundle: Path | None,
    engine: str,
    paths: tuple[str, ...],
    batch: tuple[int, int, int] | None,
    workspace: int | None,
    level: int | None,
    tf32: bool,
    timeout: float | None,
    device: int,
    trust: Path | None,
    force: bool,
    prune: bool,
    as_json: bool,
) -> None:
    """Build a bundle's plans on this device, and prove each: its scores must be those of the export.

    A plan is what TensorRT makes of a graph for the very GPU and version at hand, in seconds to many minutes. Plans are
    kept in the user's cache, and `SmartModel.load` finds them there. A build may be interrupted at any time.
    """
    from smart_runtime.bundle.bundle import Bundle  # noqa: PLC0415  # `--help` does without
    from smart_runtime.engines.engine import BatchRange, EngineOptions  # noqa: PLC0415  # as above
    from smart_runtime.installing import install as work  # noqa: PLC0415  # as above

    if timeout is not None and math.isnan(timeout):
        raise click.BadParameter("expected seconds, got nan", param_hint="'--timeout'")
    if bundle is None and not prune:
        raise click.UsageError("Missing argument 'BUNDLE', or --prune.")
    check_outputs(inputs=[bundle, trust])
    options = EngineOptions(
        device=device,
        batch=None if batch is None else BatchRange(*batch),
        workspace_bytes=None if workspace is None else workspace * _MIB,
        level=level,
        tf32=tf32,
    )
    chosen = None if bundle is None else work.installing_engine(engine)
    gone, not_judged = work.prune(engine, options=options) if prune else ((), {})
    for name, why in not_judged.items():
        note(f"the plans of {name} were not judged and stay: {why}")
    plans: list[InstalledPlan] = []
    if_interrupted(lambda: _kept(plans, gone=len(gone)))
    opened = None
    if bundle is not None and chosen is not None:
        opened = Bundle.open(bundle, trust=trust)
        names = tuple(dict.fromkeys(paths)) or tuple(opened.manifest.paths)
        for name in names:
            opened.manifest.graph(name)  # a misspelt one is named before the first build
        with progress(f"installing for {chosen.LIBRARY}", total=len(names)) as advance:
            found = work.install(
                opened,
                engine=chosen,
                names=names,
                options=options,
                timeout_s=timeout,
                force=force,
                on_phase=lambda name: _shown(name, advance),
            )
            for plan in found:
                plans.append(plan)
                advance()
    _report(plans, engine=None if chosen is None else chosen.LIBRARY, gone=gone, opened=opened, as_json=as_json)


def _kept(plans: list[InstalledPlan], *, gone: int) -> str:
    """Return what an interrupt leaves as it was done."""
    names = " and ".join(plan.name for plan in plans)
    done = [f"{names} {'is' if len(plans) == 1 else 'are'} installed"] if plans else []
    done += [f"{gone} plans were removed"] if gone else []
    return f"{', '.join(done)}; run it again to go on" if done else "nothing was changed"


def _shown(name: str, advance: Callable[..., None]) -> Callable[[str, float], None]:
    """Return what shows the phase of a build with its clock: no library says how far it is."""
    return lambda phase, seconds: advance(f"{name}: {phase}, {seconds:.0f} s", count=0)


def _report(plans: list[InstalledPlan], *, engine: str | None, gone: Any, opened: Any, as_json: bool) -> None:
    removed = [{"name": one.name, "bytes": one.bytes, "why": one.why} for one in gone]
    for plan in plans:
        if not plan.proofs:
            note(
                f"the plan of {plan.name} was held against nothing: the bundle has no scores of its own, and ONNX "
                "Runtime is not installed; export the bundle again, or pip install 'smart-edge[cpu]'"
            )
    if as_json:
        print_json(
            {
                "bundle_digest": None if opened is None else opened.digest,
                "engine": engine,
                "plans": [plan.record for plan in plans],
                "pruned": removed,
            }
        )
        return
    for one in gone:
        say(f"removed {one.name[:12]}, {si(one.bytes, 'B')}: {one.why}")
    if plans:
        columns = ["path", "seconds", "plan", "on GPU", "sparse layers", "batch", "proved by", "differs by"]
        print_wide(table(f"plans of {engine}", columns, [_row(plan) for plan in plans]))


def _row(plan: InstalledPlan) -> list[str]:
    seconds = "" if plan.seconds is None else f"{plan.seconds:.1f}"
    sparse = "?" if plan.sparse is None else str(plan.sparse)
    return [
        plan.name,
        f"{seconds} (was there)" if plan.was_there else seconds,
        si(plan.plan_bytes, "B"),
        "" if plan.device_bytes is None else si(plan.device_bytes, "B"),
        f"{sparse} of {plan.eligible}",
        ",".join(map(str, plan.batch)),
        " and ".join(proof.against for proof in plan.proofs) or "nothing",
        ", ".join(f"{proof.result.max_rel_diff:.1e}" for proof in plan.proofs),
    ]
