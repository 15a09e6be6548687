"""One graph alone in a fresh process, which takes a JSON request on standard input.

Other sessions in a process can slow a graph down (idle thread pools that spin, a shared allocator); if the median here
differs from the interleaved one, the comparison is not to be trusted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from smart_common.children import python_command
from smart_common.errors import SmartError, shortened
from smart_devices.engine_rows import engine_info
from smart_runtime.bench.contenders import Source, open_contender
from smart_runtime.bench.measure import WARM_UP_MS, random_batch, summarise, time_block
from smart_runtime.errors import EngineError

_REFUSED = 3  # an exit status that Python itself does not have


@dataclass(frozen=True, kw_only=True)
class SoloRequest:
    """What a worker is asked to time."""

    source: Source
    engine: str
    batch: int
    threads: int
    blocks: int
    calls: int
    seed: int


def solo_median_ms(request: SoloRequest) -> float:
    """Return the median latency in ms of a graph that has a process to itself.

    Raises:
        EngineError: The process failed.
    """
    done = subprocess.run(
        python_command("smart_runtime.bench.worker"),
        input=json.dumps(asdict(request)),
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # a library may print a file's name, which need not be UTF-8
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        what = request.source.graph or request.source.place
        if done.returncode == _REFUSED:
            raise EngineError(f"{what!a} runs here, but not in a process of its own beside this one: {last}")
        raise EngineError(f"expected {what!r} to run in a process of its own, got {shortened(last)!r}; report this")
    return float(json.loads(done.stdout)["median_ms"])


def _request(document: dict[str, Any]) -> SoloRequest:
    """Return what `solo_median_ms` wrote; JSON has no tuples."""
    source = document.pop("source")
    return SoloRequest(source=Source(**source | {"shape": tuple(source["shape"])}), **document)


def _answer(request: SoloRequest) -> float:
    engine = open_contender(request.source, engine=request.engine, batch=request.batch, threads=request.threads)
    batch = random_batch(request.source.shape, size=request.batch, rng=np.random.default_rng(request.seed))
    warm_up_ms = WARM_UP_MS[engine_info(request.engine).part]
    blocks = [time_block(engine, batch, calls=request.calls, warm_up_ms=warm_up_ms) for _ in range(request.blocks)]
    return summarise(blocks).median_ms


def main() -> int:
    """Answer one request; return the exit status."""
    try:
        median_ms = _answer(_request(json.load(sys.stdin)))
    except SmartError as error:
        sys.stderr.write(f"{error}\n")
        return _REFUSED
    sys.stdout.write(json.dumps({"median_ms": median_ms}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
