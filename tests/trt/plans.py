"""Keys of plans, and a process that builds plans at a word, each time in a forked child, which may die on the way.

python -m trt.plans
{"folder": "/tmp/engines", "version": "10.3.0", "plan_bytes": 1000, "die_at": 17}
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from forks import serve
from smart_common import files
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines import plans, private_folder
from smart_runtime.engines.engine import BatchRange
from smart_runtime.engines.plan_keys import Key, plan_key
from smart_runtime.engines.plans import PlanCache
from smart_runtime.errors import EngineError


@dataclass(frozen=True)
class FakeGpu:
    name: str = "Orin"
    capability: str = "8.7"
    multiprocessors: int = 8
    total_bytes: int = 8 * 2**30
    integrated: bool = True


GRAPH = GraphBytes(model=b"model", weights=b"weights", weights_name="weights.bin")
TERMS: dict[str, Any] = {
    "library": "tensorrt",
    "version": "10.3.0",
    "graph": GRAPH,
    "inputs": InputSpec(name="image", channels=3, height=32, width=32),
    "outputs": OutputSpec(name="scores", classes=10),
    "batch": BatchRange(1, 8, 64),
    "precision": "fp32",
    "recipe": None,
    "tf32": False,
    "sparse": False,
    "level": 3,
    "workspace_bytes": None,
    "gpu": FakeGpu(),
    "system": "L4T 36.4.3",
}


def key(**changes: Any) -> Key:
    return plan_key(**{**TERMS, **changes})


def plan_of(size: int) -> bytes:
    return bytes(i * 37 % 251 for i in range(size))


def build(folder: str, version: str, plan_bytes: int, die_at: int | None = None) -> None:
    """Build a plan, and die at the ``die_at``th line of our code on the way; exit with status 3 if it is refused.

    The lines are those of the modules that write. 0 counts them, into the file ``lines``.
    """
    lines = 0
    ours = {module.__file__ for module in (files, plans, private_folder)}

    def watch(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return watch if frame.f_code.co_filename in ours else None

    def work() -> tuple[bytes, dict[str, Any]]:
        return plan_of(plan_bytes), {"seconds": 1.5}

    if die_at is not None:
        sys.settrace(watch)
    try:
        PlanCache(Path(folder)).build_once(key(version=version), work)
    except EngineError as error:
        sys.settrace(None)
        sys.stderr.write(f"error: {error}\n")
        sys.exit(3)
    sys.settrace(None)
    if die_at == 0:
        Path(folder, "lines").write_text(str(lines))


if __name__ == "__main__":
    if sys.argv[1:]:
        build(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        serve(build)
