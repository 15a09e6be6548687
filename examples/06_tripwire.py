"""A camera under attack: the tripwire notices that the two paths disagree and lets the robust one answer.

    make demo                                               # makes demo-out/bundle and demo-out/ckpt.pt
    python examples/06_tripwire.py --bundle demo-out/bundle --checkpoint demo-out/ckpt.pt --plot tripwire.png

The stream has 2,000 frames: the checkpoint's validation pictures in random order, from frame 1,200 on as an attacker
who knows the clean path has changed them. Nothing tells the model so. Frames before the alarm are lost, and an
attacker who also knows the tripwire is noticed late or never: docs/policies.md has the figures.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from smart_common.errors import SmartError
from smart_common.figures import INK, PATH_COLOURS, check_plot, drawing
from smart_runtime import SmartModel
from smart_runtime.policies import Tripwire
from smart_train import load_checkpoint


def plot(seen: list[dict[str, Any]], attacked_from: int, file: Path) -> None:
    """Draw the tripwire's sum and the path that answered over the frames."""
    with drawing(file, width=8, height=3) as figure:
        axes = figure.add_subplot()
        numbers = np.arange(len(seen))
        axes.plot(numbers, [one["S"] for one in seen], color=INK, label="sum of log-likelihood ratios")
        axes.axhline(seen[0]["threshold"], color=INK, linestyle=":", label="threshold")
        axes.axvline(attacked_from, color=INK, linestyle="--", label="attacked from here on")
        for colour, path in zip(PATH_COLOURS, ("clean", "robust"), strict=False):
            axes.fill_between(
                numbers, 0, 1, where=[one["path"] == path for one in seen], color=colour, alpha=0.15,
                transform=axes.get_xaxis_transform(), label=f"path {path} answers",
            )  # fmt: skip
        axes.set_xlabel("frame")
        axes.set_ylabel("nats")
        axes.legend(loc="upper left", fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="what the bundle was exported from")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--attacked-from", type=int, default=1200)
    parser.add_argument("--rate", type=float, default=300.0, help="frames a second")
    parser.add_argument("--every", type=int, default=10, help="the shadow sees one of so many frames")
    parser.add_argument("--seed", type=int, default=0, help="of the stream; the tripwire's own draws are secret")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.plot is not None:
        check_plot(options.plot)

    samples = load_checkpoint(options.checkpoint).samples
    clean, attacked = samples.images.numpy(), samples.adversarial["clean"].numpy()
    labels = samples.labels.numpy()
    order = np.random.default_rng(options.seed).integers(0, len(labels), options.frames)
    seen: list[dict[str, Any]] = []
    with SmartModel.load(options.bundle, policy=Tripwire(every=options.every)) as model:
        assert isinstance(model.policy, Tripwire)
        for number, which in enumerate(order):
            images = attacked if number >= options.attacked_from else clean
            result = model.run(images[which : which + 1])
            right = bool(result.scores[0].argmax() == labels[which])
            seen.append({"path": result.path, "right": right, **model.policy.status()})
            time.sleep(1 / options.rate)
        status, stats = model.policy.status(), model.stats

    before = seen[: options.attacked_from]
    print(f"before the attack: {np.mean([one['right'] for one in before]):.1%} of {len(before)} frames right")
    during = seen[options.attacked_from :]
    taken_over = next((number for number, one in enumerate(during) if one["path"] == "robust"), len(during))
    for name, part in (("clean", during[:taken_over]), ("robust", during[taken_over:])):
        if part:
            right = np.mean([one["right"] for one in part])
            print(f"under attack, path {name}: {right:.1%} of {len(part)} frames right")
    alarm = f"no alarm in {len(during)} frames under attack"
    if taken_over < len(during):
        alarm = f"alarm {taken_over} frames after the attack began, {status['alarms_total']} in all"
    print(
        f"{alarm}; {status['shadow_runs_total']} shadow frames, {status['dropped_total']} dropped; last reason: "
        f"{stats.last_reason or 'none'}"
    )
    if options.plot is not None:
        plot(seen, options.attacked_from, options.plot)
        print(f"plot: {options.plot}")


if __name__ == "__main__":
    try:
        main()
    except (SmartError, OSError) as error:
        sys.exit(f"error: {error}")
