"""``smart-run calibrate``: count how clean frames of the user's own look to the tripwire."""

from __future__ import annotations

import os
from pathlib import Path

import click

from smart_common.console.cli import Command, json_option, print_json, progress, say, warn
from smart_common.outputs import Output, check_outputs
from smart_devices.engine_rows import AUTO, engine_names


@click.command(cls=Command, epilog="Example: smart-run calibrate bundle/ quiet-day/ -o quiet-day.tripwire.json")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Where to.  [default: BUNDLE.tripwire.json]"
)
@click.option("--threads", default=None, type=click.IntRange(min=1), help="Threads.  [default: one a physical core]")
@click.option("--trust", metavar="KEY.pub", type=click.Path(path_type=Path), help="Take only what it signed.")
@click.option(
    "--engine",
    metavar="NAME",
    default=AUTO,
    show_default=True,
    help=f"Engine that runs the graphs: {', '.join((AUTO, *engine_names()))}.",
)
@json_option
def calibrate(
    *,
    bundle: Path,
    folder: Path,
    output: Path | None,
    threads: int | None,
    trust: Path | None,
    engine: str,
    as_json: bool,
) -> None:
    """Run both paths on the pictures in FOLDER, which nobody attacked, and count how they look to the tripwire.

    `Tripwire(calibration=FILE)` goes by these counts instead of the training images', so that false alarms are as rare
    as it says on frames like yours. The bundle is not changed.
    """
    from smart_runtime.calibrating.counting import calibrate_on  # noqa: PLC0415  # its NumPy takes long
    from smart_runtime.errors import InputError  # noqa: PLC0415  # as above
    from smart_runtime.model import SmartModel  # noqa: PLC0415  # as above
    from smart_runtime.pictures import list_pictures  # noqa: PLC0415  # as above
    from smart_runtime.tripwire.calibration import (  # noqa: PLC0415  # as above
        SUFFIX,
        calibrated,
        is_calibration,
        write_calibration,
    )
    from smart_runtime.tripwire.outlook import outlook_of  # noqa: PLC0415  # as above
    from smart_runtime.tripwire.records import require_tripwire  # noqa: PLC0415  # as above

    place = Path(os.path.abspath(bundle))  # noqa: PTH100  # without "..", and links as they are
    if output is None and not place.name:
        raise InputError(f"no name for the calibration follows from {bundle}; say -o FILE")
    file = output or place.with_name(place.name + SUFFIX)
    if not file.parent.is_dir():
        raise InputError(f"no folder {file.parent} for the calibration; make it first")
    check_outputs([Output("-o", file, ours=is_calibration)], inputs=[bundle, folder, trust])
    files, nothing = list_pictures([folder])
    for why in nothing.values():
        raise InputError(why)
    with (
        SmartModel.load(bundle, engine=engine, threads=threads, trust=trust) as model,
        progress("running both paths", total=len(files)) as advance,
    ):
        tripwire = require_tripwire(model.manifest)
        found = calibrate_on(model, files, tripwire=tripwire, advance=advance)
        digest = model.bundle.digest
    write_calibration(file, found)
    outlook = outlook_of(calibrated(tripwire, found, digest=digest))
    warn(outlook.warnings)
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "digest": digest,
                "calibration": str(file),
                "frames": found.frames,
                "tripwire": outlook.record(),
                "warnings": list(outlook.warnings),
            }
        )
        return
    say(f"{file}: {found.frames} clean frames; Tripwire(calibration={str(file)!r}) goes by them")
    for line in outlook.lines:
        say(line)
