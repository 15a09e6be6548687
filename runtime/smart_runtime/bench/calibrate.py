"""Measure what a processor attains, once, so that smart-export can say how long a network should take on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields

import numpy as np
import numpy.typing as npt

from smart_devices.roofline import CALIBRATED_ENGINE, Calibration, CalibrationKey, calibration_key
from smart_devices.roofline.calibration import Amounts, amounts
from smart_runtime.bench.measure import calls_per_block, interleave
from smart_runtime.bench.probes import Probe, ProbeEngine
from smart_runtime.bench.statistics import Block
from smart_runtime.engines import Batch, resolve_engine
from smart_runtime.errors import EngineError

ROUNDS = 12
"""Blocks of calls of each probe."""

NOISY = 0.35
"""A worst error above this is the machine's doing: on a quiet one it is about a quarter or less."""

PROBES = (
    # Convolutions that compute much and read little, over many positions and few, 3x3 and 1x1.
    Probe(channels=64, side=16, kernel=3, layers=8),
    Probe(channels=64, side=28, kernel=3, layers=4),
    Probe(channels=128, side=14, kernel=1, layers=24),
    Probe(channels=64, side=16, kernel=3, layers=2, batch=8),
    # Weights that no cache holds, so that they are read from memory at every call, as those of a large network are.
    Probe(channels=256, side=4, kernel=3, layers=20),
    Probe(channels=384, side=2, kernel=3, layers=10),
    Probe(channels=384, side=4, kernel=3, layers=10),
    Probe(channels=256, side=4, kernel=3, layers=8, batch=8),
    # Channels that fill no block.
    Probe(channels=20, side=16, kernel=3, layers=16),
    Probe(channels=40, side=16, kernel=3, layers=8),
    # Next to no work: what an operator and a call cost.
    Probe(channels=16, side=2, kernel=1, layers=2),
    Probe(channels=16, side=2, kernel=1, layers=64),
    # The other kinds of layers.
    Probe(channels=128, side=28, kernel=3, layers=8, depthwise=True),
    Probe(channels=256, side=7, kernel=3, layers=16, depthwise=True),
    Probe(channels=1024, side=1, kernel=0, layers=10),
)
"""What is measured: shapes of layers as classifiers have them, none of them of a network in particular."""

# What is fitted: the amounts of a layer in the order of their class, then an operator and a call.
_COSTS = (*(f"{entry.name.removesuffix('s')}_s" for entry in fields(Amounts)), "operator_s", "call_s")
_BLOCKS = (1, 8, 16)  # channels at once: no blocked kernel, AVX2, AVX-512
_Figures = npt.NDArray[np.float64]
_NO_IMAGES: Batch = np.zeros((1, 1, 1, 1), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The time of one call of a probe."""

    probe: Probe
    seconds: float


def calibrate(
    *, threads: int = 1, rounds: int = ROUNDS, seed: int = 0, advance: Callable[[str], None] = lambda _: None
) -> Calibration:
    """Measure this machine's processor; it takes some seconds, and is as good as the machine is quiet.

    Args:
        threads: Threads a call may use.
        rounds: Blocks of calls of each probe, which take turns.
        seed: Of weights, images and the order of blocks.
        advance: Called after each round.

    Raises:
        EngineError: ONNX Runtime does not run a probe, or the times make no sense.
        MissingExtraError: ONNX Runtime is not installed.
    """
    name = resolve_engine(CALIBRATED_ENGINE)
    rng = np.random.default_rng(seed)
    with ExitStack() as open_engines:
        engines = open_probes(threads=threads, rng=rng, opened=open_engines)
        calls = [calls_per_block(engine, _NO_IMAGES) for engine in engines]
        blocks = interleave(engines, _NO_IMAGES, calls=calls, blocks=rounds, rng=rng, advance=advance)
    return fitted(timings_of(blocks), key=calibration_key(threads=threads, engine=name))


def timings_of(blocks: Sequence[Sequence[Block]]) -> list[Timing]:
    """Return the timings of `PROBES` from their blocks of calls.

    The shortest call counts: whatever else the machine does makes others longer, never this one shorter.
    """
    return [
        Timing(probe=probe, seconds=float(np.concatenate(of_probe).min()) / 1e3)
        for probe, of_probe in zip(PROBES, blocks, strict=True)
    ]


def open_probes(*, threads: int, rng: np.random.Generator, opened: ExitStack) -> list[ProbeEngine]:
    """Return an engine for each of `PROBES`, closed with ``opened``."""
    engines = []
    for probe in PROBES:
        engines.append(ProbeEngine(probe, engine=CALIBRATED_ENGINE, threads=threads, rng=rng))
        opened.callback(engines[-1].close)
    return engines


def fitted(timings: Sequence[Timing], *, key: CalibrationKey) -> Calibration:
    """Return the costs that explain ``timings`` best: the least squares of relative errors, none of them negative.

    Raises:
        EngineError: Nothing explains them: no convolution seems to take any time.
    """
    best: tuple[float, Calibration] | None = None
    seconds = np.array([timing.seconds for timing in timings])
    for block in _BLOCKS:
        asked = np.array([_asked(timing.probe, block) for timing in timings])
        costs, residual = _least_squares(asked / seconds[:, None])
        if costs[0] > 0 and (best is None or residual < best[0]):
            errors = np.abs(asked @ costs / seconds - 1)
            figures = {name: float(cost) for name, cost in zip(_COSTS, costs, strict=True)}
            best = residual, Calibration(key=key, **figures, channel_block=block, worst_error=float(errors.max()))
    if best is None:
        raise EngineError("expected convolutions to take time, got figures that say otherwise; calibrate again")
    return best[1]


def _asked(probe: Probe, block: int) -> list[float]:
    """Return what a call of ``probe`` asks for, in the order of `_COSTS`."""
    one = amounts(probe.work, batch=probe.batch, channel_block=block)
    return [*(probe.layers * amount for amount in (*astuple(one), 1.0)), 1.0]


def _least_squares(asked: _Figures) -> tuple[_Figures, float]:
    """Return the costs (columns,), 0 or more, for which ``asked @ costs`` is nearest to 1, and the squares left.

    With so few columns, every set of those that are not 0 can be tried.
    """
    columns = asked.shape[1]
    scale = np.maximum(np.abs(asked).max(axis=0), 1e-300)  # bytes and calls differ by ten orders of magnitude
    best = np.zeros(columns), float(len(asked))
    for size in range(1, columns + 1):
        for chosen in itertools.combinations(range(columns), size):
            part = asked[:, chosen] / scale[list(chosen)]
            found = np.linalg.lstsq(part, np.ones(len(asked)), rcond=None)[0]
            left = float(np.square(part @ found - 1).sum())
            if (found >= 0).all() and left < best[1]:
                costs = np.zeros(columns)
                costs[list(chosen)] = found / scale[list(chosen)]
                best = costs, left
    return best
