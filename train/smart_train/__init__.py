"""Train one network with several masked paths: networks, masks, attacks, data, checkpoints, evaluation.

It stands on torch; the device side (``smart_devices``, ``smart_runtime``) never imports it.
"""

from __future__ import annotations

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
