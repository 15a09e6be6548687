"""What a user should know about a bundle on the engine that runs it here: nothing is wrong, but it may surprise."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from smart_common.errors import MissingExtraError
from smart_runtime.bundle.bundle import Bundle
from smart_runtime.bundle.manifest import Manifest
from smart_runtime.engines import AUTO, choose_engine
from smart_runtime.engines.onnxruntime import CPU

_log = logging.getLogger(__name__)


def notes_on(manifest: Manifest, *, engine_name: str) -> tuple[str, ...]:
    """Return a sentence for each thing to know; none for a bundle that was made for this engine.

    Args:
        manifest: The bundle's.
        engine_name: What runs it, as `resolve_engine` returns it.
    """
    if engine_name != CPU:
        return ()
    notes = []
    target = manifest.target
    if target.kind not in {None, "cpu"}:
        notes.append(f"this bundle was made for {target.name} and runs here on the CPU ({engine_name})")
    if manifest.precision == "int8" and manifest.recipe not in {None, "cpu"}:
        notes.append(
            f"its int8 graphs have the recipe of {manifest.recipe} and may run slower on this engine than fp32; "
            "export with --target cpu for int8 that is fast here"
        )
    if manifest.precision == "fp16":
        notes.append("this engine converts fp16 to fp32 and back around what it computes: expect no gain over fp32")
    return tuple(notes)


def log_notes(notes: Sequence[str]) -> None:
    """Log what `notes_on` returns as warnings: who loads the bundle sees them without asking."""
    for sentence in notes:
        _log.warning("%s", sentence)


def notes_here(bundle: Bundle) -> tuple[str, ...]:
    """Return the notes on the engine that this device would take; none where it has no engine."""
    try:
        choice = choose_engine(AUTO, bundle)
    except MissingExtraError:
        return ()
    return notes_on(bundle.manifest, engine_name=choice.engine) + choice.passed_over
