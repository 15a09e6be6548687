"""How far the probabilities of each path can be believed on the test images, without and with its temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from smart_eval.measure import Paths, exactly
from smart_train.accuracy import tensors, wilson
from smart_train.calibration import calibration_error, confidence_of, reliability
from smart_train.data.images import Split
from smart_train.masking.attack_mode import attack_mode


def measure_calibration(
    net: Paths, split: Split, *, temperatures: Mapping[str, float], chunk: int, device: torch.device | str
) -> dict[str, Any]:
    """Return by path the expected calibration error on clean images, in plain values, with the bins that it is of.

    Args:
        net: on ``device``; its train/eval flag is as before afterwards.
        split: the test images.
        temperatures: by path; 1 for one that has none.
        chunk: images that are run together.
        device: where the network is.
    """
    found = {}
    for path in net.path_names:
        model, parts = net.path(path), []
        with exactly(), attack_mode(model), torch.no_grad():
            for start in range(0, len(split), chunk):
                images, _ = tensors(split, slice(start, start + chunk), device)
                parts.append(model(images).float().cpu().numpy())
        scores, temperature = np.concatenate(parts), temperatures.get(path, 1.0)
        if not np.isfinite(scores).all():  # a check says so
            continue
        before, bins = (
            reliability(*confidence_of(scores, split.labels, temperature=one)) for one in (1.0, temperature)
        )
        found[path] = {
            "temperature": temperature,
            "error_before": calibration_error(before),
            "error_after": calibration_error(bins),
            "bins": [{**asdict(one), "interval": list(wilson(one.accuracy, one.images))} for one in bins],
        }
    return found


def table(found: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and rows for people: of each model, by name, the errors of each path."""
    several = len(found) > 1
    columns = [*(["model"] if several else []), "path", "temperature", "without it", "with it"]
    rows = [
        [
            *([name] if several else []),
            path,
            f"{one['temperature']:.3g}",
            f"{one['error_before']:.3f}",
            f"{one['error_after']:.3f}",
        ]
        for name, paths in found
        for path, one in paths.items()
    ]
    return "expected calibration error on clean test images (15 bins)", columns, rows
