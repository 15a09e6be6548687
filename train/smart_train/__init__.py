"""Train one network with several masked paths: networks, masks, methods, attacks, data, checkpoints.

It stands on torch; the device side (``smart_devices``, ``smart_runtime``) never imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smart_common.lazy import lazy_attributes

if TYPE_CHECKING:
    from smart_train.attacks import Attack
    from smart_train.checkpoint.format import Checkpoint, load_checkpoint, save_checkpoint
    from smart_train.errors import CheckpointError, ConfigError, DataError, NetworkError
    from smart_train.masking.network import SmartNetwork, convert
    from smart_train.masking.structure import Structure

__all__ = [
    "Attack",
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "NetworkError",
    "SmartNetwork",
    "Structure",
    "convert",
    "load_checkpoint",
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
        "NetworkError": "smart_train.errors",
        "SmartNetwork": "smart_train.masking.network",
        "Structure": "smart_train.masking.structure",
        "convert": "smart_train.masking.network",
        "load_checkpoint": "smart_train.checkpoint.format",
        "save_checkpoint": "smart_train.checkpoint.format",
    },
)
