"""Train one network with several masked paths: networks, masks, methods, attacks, data, checkpoints.

It stands on torch; the device side (``smart_devices``, ``smart_runtime``) never imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_common.lazy import lazy_attributes

if TYPE_CHECKING:
    from smart_train import methods
    from smart_train.attacks import Attack
    from smart_train.checkpoint.format import Checkpoint, load_checkpoint, save_checkpoint
    from smart_train.data.images import ImageSet
    from smart_train.data.load import load_data
    from smart_train.errors import CheckpointError, ConfigError, DataError, NetworkError
    from smart_train.masking.network import SmartNetwork, convert
    from smart_train.masking.structure import Structure
    from smart_train.training.config import TrainConfig
    from smart_train.training.loop import Trainer
    from smart_train.training.results import TrainResult

__all__ = [
    "Attack",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ImageSet",
    "NetworkError",
    "SmartNetwork",
    "Structure",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "convert",
    "load_checkpoint",
    "load_data",
    "methods",
    "save_checkpoint",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Attack": "smart_train.attacks",
        "Checkpoint": "smart_train.checkpoint.format",
        "CheckpointError": "smart_train.errors",
        "ConfigError": "smart_train.errors",
        "DataError": "smart_train.errors",
        "ImageSet": "smart_train.data.images",
        "NetworkError": "smart_train.errors",
        "SmartNetwork": "smart_train.masking.network",
        "Structure": "smart_train.masking.structure",
        "TrainConfig": "smart_train.training.config",
        "TrainResult": "smart_train.training.results",
        "Trainer": "smart_train.training.loop",
        "convert": "smart_train.masking.network",
        "load_checkpoint": "smart_train.checkpoint.format",
        "load_data": "smart_train.data.load",
        "methods": "smart_train.methods",
        "save_checkpoint": "smart_train.checkpoint.format",
    },
)
