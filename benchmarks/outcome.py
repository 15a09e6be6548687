"""How a benchmark ends: its results in a file, its table on the screen, status 1 if a goal is missed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn


def finish(record: Mapping[str, Any], *, output: Path | None, lines: Sequence[str]) -> NoReturn:
    """Write ``record`` to ``output``, print ``lines`` and the goals that are missed, and end the process.

    Args:
        record: what ``benchmarks/tables.py`` reads; ``goals`` has a list of {"goal", "value", "reached"}.
        output: the file of results, None to write none.
        lines: what to print.
    """
    if output is not None:
        output.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(*lines, sep="\n")
    missed = [f"{goal['goal']}: {goal['value']:.4g}" for goal in record["goals"] if not goal["reached"]]
    print("\n".join(["missed:", *missed]) if missed else "all goals reached")
    sys.exit(1 if missed else 0)
