"""A user's own ONNX file is first run in a process of its own: it may ask for any amount of memory or time."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np

from smart_common.errors import SmartError
from smart_common.limited import run_limited
from smart_devices.engine_rows import REFERENCE_ENGINE
from smart_runtime.bench.contenders import Contender, Source, open_contender
from smart_runtime.bench.measure import random_batch
from smart_runtime.errors import EngineError

# Of processor time and address space for batches up to `_IMAGES`, and more for each byte of the file: ONNX Runtime
# packs weights in other orders.
_SECONDS, _SECONDS_A_GIB = 60, 120
_MAX_BYTES, _BYTES_A_BYTE = 6 * 2**30, 8
_IMAGES = 32


def try_baseline(baseline: Contender, *, engine: str, batch: int, threads: int, seed: int) -> None:
    """Open and run the baseline once within bounds; on the CPU only, since GPU drivers reserve any address space.

    Raises:
        EngineError: The engine refuses it, or it takes more than a minute of processor time or 6 GiB, and more for a
            large file or batch.
    """
    if engine != REFERENCE_ENGINE:
        return
    times = -(-batch // _IMAGES)
    request = {"source": asdict(baseline.source), "engine": engine, "batch": batch, "threads": threads, "seed": seed}
    answer = run_limited(
        "smart_runtime.bench.baseline:run_once",
        json.dumps(request).encode(),
        seconds=times * _SECONDS + _SECONDS_A_GIB * baseline.bytes // 2**30,
        max_bytes=times * _MAX_BYTES + _BYTES_A_BYTE * baseline.bytes,
    )
    if answer is None:
        raise EngineError(
            f"{baseline.source.place!r} takes more time or memory than a network of its size; check the baseline"
        )
    if answer["refused"] is not None:
        raise EngineError(answer["refused"])


def run_once(data: bytes) -> dict[str, str | None]:
    """Do it, in that process."""
    request = json.loads(data)
    source = Source(**request["source"] | {"shape": tuple(request["source"]["shape"])})
    try:
        engine = open_contender(source, engine=request["engine"], batch=request["batch"], threads=request["threads"])
        rng = np.random.default_rng(request["seed"])
        engine.run(random_batch(source.shape, size=request["batch"], rng=rng))
    except SmartError as error:
        return {"refused": str(error)}
    return {"refused": None}
