"""TensorBoard's event files, which tell the history while a training runs."""

from __future__ import annotations

from pathlib import Path

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from smart_common.errors import MissingExtraError
from smart_train.errors import ConfigError


def tensorboard_loggers(folder: Path, *, resume: bool) -> list[Logger]:
    """Return what Fabric writes events with; ``resume`` allows ``folder`` to have some already.

    Raises:
        ConfigError: if the folder has events of another training.
        MissingExtraError: if TensorBoard is not installed.
    """
    if not resume and any(folder.glob("events.out.tfevents*")):
        raise ConfigError(
            f"{folder} has TensorBoard events of another training, which would mix with this one's; name another folder"
        )
    try:
        import tensorboard  # noqa: F401, PLC0415  # Fabric would miss it only at the first figures
    except ImportError as error:
        raise MissingExtraError("--tensorboard needs TensorBoard; pip install 'smart-edge[tensorboard]'") from error
    return [TensorBoardLogger(root_dir=folder, name="", version="")]
