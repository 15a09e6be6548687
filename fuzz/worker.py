"""One process that fuzzes one target: libFuzzer ends the process that it ran in, so each target has its own.

The counts of inputs and of accepted ones are kept in a file that is mapped into memory, where they outlive a crash.
"""

from __future__ import annotations

import argparse
import mmap
import random
import struct
import tempfile
from pathlib import Path

from targets import TARGETS

COUNTS = struct.Struct("<QQ")
"""Inputs and accepted inputs."""

MAX_SECONDS = 30
"""For one input, on a slow machine under load; hostile ones are meant to be refused in well under a second."""

MAX_MIB = 2048
_PLAIN = 0.2  # of the changes are libFuzzer's own, on bytes
_ANEW = 0.5  # of the others begin with a valid input: most of those that libFuzzer keeps are refused early


def fuzz(name: str, *, runs: int, seed: int, folder: Path, artifacts: Path, counts: Path) -> None:
    """Run ``runs`` inputs and end the process; a finding ends it earlier, with a status that is not 0."""
    import atheris  # noqa: PLC0415  # needed here only: a finding is replayed without it

    target = TARGETS[name]
    with atheris.instrument_imports(include=list(target.modules)):
        subject = target.prepare(folder)
    seeds = folder / "seeds"
    seeds.mkdir()
    for i, data in enumerate(subject.seeds):
        (seeds / str(i)).write_bytes(data)
    counts.write_bytes(bytes(COUNTS.size))
    with counts.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), COUNTS.size)
    inputs = accepted = 0

    def one(data: bytes) -> None:
        nonlocal inputs, accepted
        inputs += 1
        COUNTS.pack_into(shared, 0, inputs, accepted)
        accepted += subject.accepts(data)
        COUNTS.pack_into(shared, 0, inputs, accepted)

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        rng = random.Random(number)  # noqa: S311  # repeatable, not secret
        base = rng.choice(subject.seeds) if rng.random() < _ANEW else data
        changed = None if rng.random() < _PLAIN else subject.mutate(base, rng)
        if changed is None or len(changed) > max_size:
            plain: bytes = atheris.Mutate(data, max_size)
            return plain
        return changed

    options = {
        "runs": runs,
        "seed": seed,
        "max_len": target.max_bytes,
        "len_control": 0,  # else it begins with inputs of a few bytes, which no reader here takes
        "mutate_depth": 2,  # changes in a row: after more, hardly any input gets past the first checks
        "reduce_inputs": 0,  # the shortest input with the same coverage is seldom a valid one
        # Both go by the clock, and runs would differ: reading its folder again, and a schedule by how long inputs take.
        "reload": 0,
        "entropic": 0,
        "timeout": MAX_SECONDS,
        "rss_limit_mb": MAX_MIB,
        "artifact_prefix": f"{artifacts / name}-",
        "print_final_stats": 1,
    }
    arguments = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup(["fuzz", *arguments, str(seeds)], one, custom_mutator=mutate)
    atheris.Fuzz()


def replay(name: str, *, file: Path, folder: Path) -> bool:
    """Give the target the bytes of ``file`` and say whether it accepts them; a finding raises."""
    return TARGETS[name].prepare(folder).accepts(file.read_bytes())


def main() -> None:
    """Fuzz, or replay one input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--artifacts", type=Path)
    parser.add_argument("--counts", type=Path)
    parser.add_argument("--folder", type=Path, help="an empty one")
    parser.add_argument("--replay", type=Path)
    options = parser.parse_args()
    if options.replay is not None:
        with tempfile.TemporaryDirectory() as folder:
            print("accepted" if replay(options.target, file=options.replay, folder=Path(folder)) else "refused")
        return
    fuzz(
        options.target,
        runs=options.runs,
        seed=options.seed,
        folder=options.folder,
        artifacts=options.artifacts,
        counts=options.counts,
    )


if __name__ == "__main__":
    main()
