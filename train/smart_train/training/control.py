"""The dense control: the same network by the same recipe with nothing masked, beside the training that it is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from smart_train.errors import ConfigError
from smart_train.training.config import TrainConfig


def control_path(checkpoint: Path) -> Path:
    """Return where the dense control of a training lies: ``ckpt.dense.pt`` beside ``ckpt.pt``."""
    return checkpoint.with_name(f"{checkpoint.stem}.dense{checkpoint.suffix}")


def control_config(config: TrainConfig) -> TrainConfig:
    """Return the recipe of the dense control: that of ``config``, seed and epochs too, with a density of 1.

    Its paths keep every channel and every weight, and batch norms of their own.

    Raises:
        ConfigError: if ``config`` removes nothing: then its training is its own control.
    """
    if config.structure.removes_nothing:
        raise ConfigError(
            f"nothing is masked by method {config.method} at density 1, so its dense control would be the same "
            "training again; leave out --dense-control, or give --density"
        )
    whole = replace(config.structure, name="channel", density=1.0, align=1, min_channels=1)
    return replace(config, structure=whole, permute=False)
