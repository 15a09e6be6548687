"""``smart-devices``: what the known target devices can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import click
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from smart_devices.console.cli import Command, Group, console, json_option, print_json
from smart_devices.facts import Fact
from smart_devices.profiles import (
    SCHEMA_VERSION,
    DenseSparse,
    PowerMode,
    Profile,
    load_profile,
    profile_names,
    resolve_target,
)
from smart_devices.version import version

_Row = tuple[str, str, str]


@click.group(cls=Group, epilog="Example: smart-devices show jetson-orin")
@click.version_option(version(), prog_name="smart-devices")
def main() -> None:
    """Show what the devices that smart-export knows can do, and where each figure comes from."""


@main.command("list", cls=Command, epilog="Example: smart-devices list --json")
@json_option
def list_profiles(*, as_json: bool) -> None:
    """List the device profiles.

    Any name or alias is a --target of smart-export.
    """
    profiles = [load_profile(name) for name in profile_names()]
    if as_json:
        print_json({"profiles": [_document(profile) for profile in profiles]})
        return
    table = Table(title="Device profiles", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "alias", "compute", "2:4", "memory", "bandwidth"):
        table.add_column(column, justify="left" if column in {"name", "alias"} else "right", no_wrap=True)
    for profile in profiles:
        table.add_row(
            profile.name,
            ", ".join(profile.aliases),
            _text(profile.compute_capability),
            str(profile.sparse_tensor_cores),
            str(profile.memory.size),
            str(profile.memory.bandwidth),
        )
    console().print(table)


@main.command(cls=Command, epilog="Example: smart-devices show jetson-orin")
@click.argument("name")
@json_option
def show(name: str, *, as_json: bool) -> None:
    """Show one profile, with sources.

    NAME is a profile's name or an alias of it.
    """
    target = resolve_target(name)
    profile = target.profile
    if as_json:
        print_json({"requested": target.name, **_document(profile)})
        return
    screen = console()
    aliases = f" (alias {', '.join(profile.aliases)})" if profile.aliases else ""
    screen.print(f"{profile.title}: {profile.name}{aliases}", style="bold", markup=False)
    facts = Table(box=SIMPLE_HEAD, pad_edge=False)  # without lines, so that the sources have room in 80 columns
    for column in ("what", "value", "source"):
        facts.add_column(column, justify="right" if column == "value" else "left", overflow="fold")
    for row in _rows(profile):
        facts.add_row(*map(escape, row))
    screen.print(facts)
    if profile.power_modes:
        screen.print(_power_modes(profile.power_modes))
    if profile.jetpack:
        screen.print(_jetpack(profile))


def _document(profile: Profile) -> dict[str, object]:
    """Return what the profile's JSON file holds."""
    return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(profile)}


def _rows(profile: Profile) -> Iterator[_Row]:
    if profile.export_only is not None:
        yield ("export only", "yes", profile.export_only)
    yield ("identity", "\n".join(profile.identity.names), profile.identity.source)
    yield _row("compute capability", profile.compute_capability)
    yield _row("2:4 sparse tensor cores", profile.sparse_tensor_cores)
    yield _row("memory", profile.memory.size)
    yield _row("memory bandwidth", profile.memory.bandwidth)
    yield ("memory shared with host", "yes" if profile.memory.shared_with_host else "no", "")
    for precision, pair in profile.throughput.items():
        yield from _pair(f"peak {precision}", pair)
    if profile.dla is not None:
        yield _row("DLA engines", profile.dla.engines)
        yield from _pair("DLA peak int8", profile.dla.int8)
    for precision, pair in profile.channel_alignment.items():
        yield from _pair(f"channel alignment {precision}", pair)
    yield _row("ONNX opset", profile.onnx_opset)
    yield ("engines, best first", "\n".join(profile.engines), "")


def _row(what: str, fact: Fact[str] | Fact[bool] | Fact[int] | Fact[float] | None) -> _Row:
    return (what, _text(fact), "" if fact is None else fact.source)


def _pair(what: str, pair: DenseSparse) -> Iterator[_Row]:
    yield _row(what, pair.dense)
    if pair.sparse is not None:
        yield _row(f"{what}, 2:4 sparse", pair.sparse)


def _text(fact: object) -> str:
    """Return a fact for people; ``none`` where the device has no such thing."""
    return "none" if fact is None else str(fact)


def _power_modes(modes: tuple[PowerMode, ...]) -> Table:
    table = Table(title="Power modes (sources: --json)", title_justify="left")
    for column in ("mode", "power", "GPU int8 sparse", "DLA int8 sparse"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for mode in modes:
        gpu = mode.throughput.get("int8")
        table.add_row(
            f"{mode.name} (default)" if mode.default else mode.name,
            str(mode.power),
            "unknown" if gpu is None else _text(gpu.sparse),
            "none" if mode.dla_int8 is None else _text(mode.dla_int8.sparse),
        )
    return table


def _jetpack(profile: Profile) -> Table:
    table = Table(title="JetPack releases (sources: --json)", title_justify="left")
    for column in ("JetPack", "L4T", "Python", "CUDA", "TensorRT", "newest opset"):
        table.add_column(column)
    for row in profile.jetpack:
        opset = None if row.onnx_opset is None else str(row.onnx_opset)
        cells = (row.python, row.cuda, row.tensorrt, opset)
        table.add_row(", ".join(row.versions), ", ".join(row.l4t), *(cell or "unknown" for cell in cells))
    return table


if __name__ == "__main__":
    main()
