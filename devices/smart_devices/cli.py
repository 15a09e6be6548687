"""``smart-devices``: what the known target devices can do, which one this is, and what can run on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smart_common.console.cli import Command, Group, console, json_option, print_json, say, table, version_option
from smart_common.outputs import check_outputs
from smart_devices.engine_rows import EngineStatus, engine_info

if TYPE_CHECKING:
    from rich.table import Table

    from smart_devices.detection import Machine
    from smart_devices.device_profile import DenseSparse, Fact, PowerMode, Profile

_Row = tuple[str, str, str]


@click.group(cls=Group, epilog="Example: smart-devices show jetson-orin")
@version_option("smart-devices")
def main() -> None:
    """Show what the devices that smart-export knows can do, and what this one is and can run."""


@main.command("list", cls=Command, epilog="Example: smart-devices list --json")
@json_option
def list_profiles(*, as_json: bool) -> None:
    """List the device profiles.

    Any name or alias is a --target of smart-export.
    """
    from smart_devices.profiles import load_profile, profile_names  # noqa: PLC0415  # here and below: not for `--help`

    profiles = [load_profile(name) for name in profile_names()]
    if as_json:
        print_json({"profiles": [_document(profile) for profile in profiles]})
        return
    rows = [
        [
            profile.name,
            ", ".join(profile.aliases),
            _text(profile.compute_capability),
            str(profile.sparse_tensor_cores),
            str(profile.memory.size),
            str(profile.memory.bandwidth),
        ]
        for profile in profiles
    ]
    columns = ["name", "alias", "compute", "2:4", "memory", "bandwidth"]
    console().print(table("Device profiles", columns, rows, text_columns=2, lines=False))
    say(f"export only: {', '.join(profile.name for profile in profiles if profile.export_only)}")


@main.command(cls=Command, epilog="Example: smart-devices show jetson-orin")
@click.argument("name")
@json_option
def show(name: str, *, as_json: bool) -> None:
    """Show one profile, with sources.

    NAME is a profile's name or an alias of it.
    """
    from smart_devices.profiles import profile_file, resolve_target  # noqa: PLC0415

    check_outputs(inputs=[profile_file(name)])
    target = resolve_target(name)
    profile = target.profile
    if as_json:
        print_json({"requested": target.name, **_document(profile)})
        return
    screen = console()
    aliases = f" (alias {', '.join(profile.aliases)})" if profile.aliases else ""
    screen.print(f"{profile.title}: {profile.name}{aliases}", style="bold", markup=False)
    facts = table("", ["what", "value", "source"], list(_rows(profile)), lines=False)  # so the sources have room
    for column in facts.columns:
        column.overflow, column.no_wrap = "fold", False
    facts.columns[-1].justify = "left"
    screen.print(facts)
    if profile.power_modes:
        screen.print(_power_modes(profile.power_modes))
    if profile.jetpack:
        screen.print(_jetpack(profile))


@main.command("detect", cls=Command, epilog="Example: smart-devices detect --json")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    show_default=True,
    help="Read the files of another machine, whose disc is mounted here; no command is run for it.",
)
@json_option
def detect_machine(root: Path, *, as_json: bool) -> None:
    """Say what this machine is.

    A Jetson is known by its module's part number, a card by its name and memory; what is not known is not guessed.
    """
    if not root.is_dir():  # click lets devices and pipes pass
        raise click.BadParameter(f"Directory {click.format_filename(root)!r} is a file.", param_hint="'--root'")
    from smart_devices.detection import detect  # noqa: PLC0415

    machine = detect(root)
    if as_json:
        print_json(dataclasses.asdict(machine))
        return
    _lines(_machine(machine))


@main.command(cls=Command, epilog="Example: smart-devices doctor --json")
@json_option
@click.pass_context
def doctor(context: click.Context, *, as_json: bool) -> None:
    """Say which engines can run here, what is missing and how to get it.

    The exit status is 0 when at least one of them can run here, else 1.
    """
    from rich.padding import Padding  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from smart_devices.engines import diagnose  # noqa: PLC0415

    diagnosis = diagnose()
    if as_json:
        answer = {"can_run": diagnosis.can_run, "next_steps": diagnosis.next_steps}
        print_json({**dataclasses.asdict(diagnosis), **answer})
    else:
        _lines(
            [
                *_machine(diagnosis.machine),
                ("Python", f"{diagnosis.python} ({diagnosis.prefix})"),
                *([] if diagnosis.cuda_driver is None else [("newest CUDA of the driver", diagnosis.cuda_driver)]),
            ]
        )
        screen = console()
        for status in diagnosis.engines:
            screen.print()
            screen.print(f"{status.name}: {_answer(status)}", style="bold", markup=False)
            if status.reason is not None:
                screen.print(Padding(Text(status.reason), (0, 0, 0, 2)))
            if status.install is not None:
                say(f"  {status.install}")  # in one piece, to be copied
        for warning in diagnosis.warnings:
            screen.print()
            say(f"warning: {warning}")
        for step in diagnosis.next_steps:
            screen.print()
            say(f"next: {step}")
    context.exit(0 if diagnosis.can_run else 1)


def _machine(machine: Machine) -> Iterator[tuple[str, str | None]]:
    """Yield what `detect` found, for people; None is unknown."""
    yield ("machine", machine.verdict)
    yield ("profile", machine.profile or f"none: {machine.reason}")
    if machine.jetson is not None:
        yield ("model text", machine.jetson.model)
        yield ("L4T", machine.jetson.l4t)
        yield ("JetPack", None if machine.jetson.jetpack is None else str(machine.jetson.jetpack))
        mode = machine.jetson.power_mode
        yield ("power mode", None if mode is None else mode.name)
    elif machine.cards.cards:
        for card in machine.cards.cards:
            memory = "memory unknown" if card.memory_gib is None else f"{card.memory_gib:g} GiB"
            yield ("card", f"{card.name}, compute capability {card.compute_capability or 'unknown'}, {memory}")
        yield ("NVIDIA driver", machine.cards.driver)
    else:
        yield ("graphics cards", machine.cards.reason)
    if machine.cpu.features or machine.cpu.lacks:
        has, lacks = ", ".join(machine.cpu.features) or "none", ", ".join(machine.cpu.lacks) or "none"
        yield ("CPU features", f"has {has}; lacks {lacks}")
    yield ("system's Python", machine.software.python)
    yield ("CUDA toolkit", machine.software.cuda or "none found")
    yield ("TensorRT package", machine.software.tensorrt or "none found")
    yield from (("note", note) for note in machine.notes)


def _lines(rows: Iterable[tuple[str, str | None]]) -> None:
    lines = table("", ["", ""], [(what, value or "unknown") for what, value in rows], text_columns=2, lines=False)
    lines.box, lines.show_header = None, False
    lines.columns[0].style, lines.columns[1].overflow = "bold", "fold"
    console().print(lines)


def _answer(status: EngineStatus) -> str:
    version = f", {status.version}" if status.version else ""
    runs = "" if engine_info(status.name).factory is not None else " (builds engines, runs none)"
    return f"{'yes' if status.available else 'no'}{version}{runs}"


def _document(profile: Profile) -> dict[str, object]:
    """Return what the profile's JSON file holds."""
    from smart_devices.profiles import SCHEMA_VERSION  # noqa: PLC0415

    return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(profile)}


def _rows(profile: Profile) -> Iterator[_Row]:
    if profile.export_only is not None:
        yield ("export only", "yes", profile.export_only)
    yield ("identity", ", ".join(profile.identity.names), profile.identity.source)
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
    yield ("engines, best first", ", ".join(profile.engines), "")


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
    rows = [
        [
            f"{mode.name} (default)" if mode.default else mode.name,
            str(mode.power),
            "unknown" if "int8" not in mode.throughput else _text(mode.throughput["int8"].sparse),
            "none" if mode.dla_int8 is None else _text(mode.dla_int8.sparse),
        ]
        for mode in modes
    ]
    return table("Power modes (sources: --json)", ["mode", "power", "GPU int8 sparse", "DLA int8 sparse"], rows)


def _jetpack(profile: Profile) -> Table:
    rows = []
    for row in profile.jetpack:
        known = (row.python, row.cuda, row.tensorrt, row.onnx_opset)
        rows.append([", ".join(row.versions), ", ".join(row.l4t), *(str(value or "unknown") for value in known)])
    columns = ["JetPack", "L4T", "Python", "CUDA", "TensorRT", "newest opset"]
    releases = table("JetPack releases (sources: --json)", columns, rows, text_columns=len(columns))
    releases.columns[0].no_wrap = False
    return releases


if __name__ == "__main__":
    main()
