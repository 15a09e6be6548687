"""Classify what a camera sees: here, the pictures of a folder one after the other, as a camera would deliver them.

    make demo                                               # makes demo-out/bundle
    python examples/02_camera.py --bundle demo-out/bundle --folder pictures --loops 10 --robust-while robust.on
    touch robust.on                                         # in another terminal: the robust path takes over
    rm robust.on                                            # and the clean one again

When the robust path is to answer is for you to say here: the policy reads a signal of your own after each frame,
whether a file exists. Yours may be the time or the place; 06_tripwire.py has a policy that looks at the frames.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from smart_common.errors import SmartError
from smart_runtime import Hysteresis, InputError, SmartModel, preprocess


def show(model: SmartModel, name: str, picture: Path) -> None:
    """Classify one frame and print a line about it."""
    try:
        frame = preprocess(picture, model)  # takes a camera's frames as well, of any size
    except InputError as error:  # one bad frame is no reason to stop
        print(f"{name}: {error}")
        return
    result = model.run(frame)  # a batch of one
    scores = result.scores[0]
    shares = np.exp(scores - scores.max())  # softmax
    best = int(scores.argmax())
    print(
        f"{name}: {model.class_names[best]} ({shares[best] / shares.sum():.0%}), path {result.path}, "
        f"{result.latency_ms:.2f} ms"
    )


def frames(pictures: list[Path], *, loops: int) -> Iterator[tuple[int, Path]]:
    """Yield the pictures with the number of the loop, for ever if ``loops`` is 0."""
    for loop in itertools.count() if loops == 0 else range(loops):
        for picture in pictures:
            yield loop, picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="the pictures, shown in order of their names")
    parser.add_argument("--loops", type=int, default=1, help="how often the folder is shown; 0 is for ever")
    parser.add_argument("--robust-while", type=Path, default=Path("robust.on"), metavar="FILE")
    options = parser.parse_args()

    pictures = sorted(path for path in options.folder.iterdir() if path.is_file())
    if not pictures:
        parser.error(f"expected pictures in {options.folder}, got none")
    stopped: list[int] = []
    for known in (signal.SIGTERM, signal.SIGINT):
        signal.signal(known, lambda number, _: stopped.append(number))
    # The signal is a yes or a no here, so both levels lie between; the robust path stays for a second longer.
    policy = Hysteresis(options.robust_while.exists, path="robust", otherwise="clean", enter=0.5, leave=0.5, hold_s=1)
    with SmartModel.load(options.bundle, policy=policy) as model:
        for loop, picture in frames(pictures, loops=options.loops):
            if stopped:
                print("stopped")
                break
            # A name may hold anything: shown as it is, it could redraw the terminal, or not be text at all.
            name = picture.name if picture.name.isprintable() else ascii(picture.name)
            show(model, f"{loop + 1}/{name}", picture)
        stats = model.stats
    print(f"\nswitches: {stats.switches}" + (f", last reason: {stats.last_reason}" if stats.switches else ""))
    for path, seen in stats.paths.items():
        if seen.calls:
            median, slow = seen.latency.quantile(0.5), seen.latency.quantile(0.99)
            print(f"path {path}: {seen.calls} frames, half of them in {median:.2f} ms, 99% in {slow:.2f} ms")


if __name__ == "__main__":
    try:
        main()
    except (SmartError, OSError) as error:  # no bundle, or no folder
        sys.exit(f"error: {error}")
