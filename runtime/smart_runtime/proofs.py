"""Prove that what an engine compiled on this device computes what was exported."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smart_runtime.bundle.bundle import Bundle
from smart_runtime.engines.engine import Engine, EngineOptions
from smart_runtime.errors import DisprovedError
from smart_runtime.reference import TOLERANCES, ParityResult, ReadFile, StoredScores, compare, stored_scores

EXPORT = "bundle"
"""What a `Proof` is against whose scores are those of the export, in the bundle."""

NOT_USED = (
    "it is not used: try `smart-run install BUNDLE --level 2`, and report this with what "
    "`smart-run selftest BUNDLE --json` prints"
)
"""What to do about a plan that was disproved before it ever served."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How well a plan agreed with ``against``: `EXPORT`, or the name of an engine that ran here too."""

    against: str
    result: ParityResult


def proof(engine: Engine, stored: StoredScores, *, against: str = EXPORT, options: EngineOptions) -> Proof:
    """Hold ``engine`` against scores of its graph, within what the graph's precision allows.

    TF32 rounds to the 10 bits of mantissa that fp16 has, so with it fp32 has the tolerance of fp16.

    Raises:
        EngineError: The engine fails, or gives scores of another shape.
    """
    tolerance = max(stored.tolerance, TOLERANCES["fp16"]) if options.tf32 else stored.tolerance
    return Proof(against=against, result=compare(engine, stored, tolerance=tolerance))


def proofs_by_export(
    engine: Engine, bundle: Bundle, name: str, *, options: EngineOptions, read: ReadFile | None = None
) -> tuple[Proof, ...]:
    """Hold ``engine`` against what its graph ``name`` answered at export; empty where the bundle does not say.

    Errors are those of `proof` and of `stored_scores`, which takes ``read`` too.
    """
    stored = stored_scores(bundle, name, read=read)
    return () if stored is None else (proof(engine, stored, options=options),)


def facts_of(name: str, proofs: Sequence[Proof], *, remedy: str = NOT_USED) -> dict[str, Any]:
    """Return what is kept with the plan of the graph ``name``, nothing if it was held against nothing.

    Raises:
        DisprovedError: It computes something else; the message ends with ``remedy``.
    """
    for one in proofs:
        result = one.result
        if not result.holds:
            whose = "the export" if one.against == EXPORT else one.against
            raise DisprovedError(
                f"the plan of {name!r} computes something else on this device: its scores differ by "
                f"{result.max_rel_diff:.2g} of the largest from those of {whose}, {result.tolerance:.2g} are allowed, "
                f"or another class is best; {remedy}"
            )
    return {"proved_ns": time.time_ns(), "proofs": [one.against for one in proofs]} if proofs else {}
