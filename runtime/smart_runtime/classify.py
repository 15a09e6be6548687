"""What ``smart-run infer`` says about a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from smart_runtime.model import SmartModel
from smart_runtime.pictures import read_picture


def classify(model: SmartModel, picture: Path, *, top: int) -> dict[str, Any]:
    """Return the ``top`` classes of one picture, best first and of equals the earlier one, as ``--json`` prints them.

    Raises:
        InputError: The file is no picture.
        EngineError: The engine failed.
    """
    spec = model.manifest.input
    image = read_picture(picture, height=spec.height, width=spec.width, colour=model.manifest.preprocessing.colour)
    result = model.run(image[None])
    scores = result.scores[0]
    exponents = np.exp(scores.astype(np.float64) - scores.max())  # softmax; the shift keeps exp from overflowing
    probabilities = exponents / exponents.sum()
    predictions = [
        {
            "class": model.class_names[index],
            "index": int(index),
            "score": float(scores[index]),
            "probability": float(probabilities[index]),
        }
        for index in np.argsort(-scores, kind="stable")[:top]
    ]
    return {"picture": str(picture), "predictions": predictions, "latency_ms": result.latency_ms}
