"""The state that a training is resumed from, ``ckpt.last.pt`` beside ``ckpt.pt``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smart_train.checkpoint.network_state import load_network_state_, network_state
from smart_train.checkpoint.reader import Reader, read_plain, save_atomically
from smart_train.errors import CheckpointError, ConfigError
from smart_train.masking.learner import MaskLearner
from smart_train.methods.interface import Training
from smart_train.training.averaging import WeightAverage
from smart_train.training.batches import Generators
from smart_train.training.control import control_path
from smart_train.training.history import Row

STATE_FORMAT = "smart-edge training state"
STATE_VERSION = 4  # 2 has the augmentation's random state, 3 the masks of single weights, 4 what regrow wants
MAX_THREADS = 1024  # more than any machine has cores for one training


def state_path(checkpoint: Path) -> Path:
    """Return where the state that resuming needs lies: ``ckpt.last.pt`` beside ``ckpt.pt``."""
    return checkpoint.with_name(f"{checkpoint.stem}.last{checkpoint.suffix}")


def check_output(checkpoint: Path) -> None:
    """Raise ConfigError if a training could not write ``checkpoint``, which it would find out after an epoch."""
    if not checkpoint.parent.is_dir():
        raise ConfigError(f"no folder {checkpoint.parent} for {checkpoint.name}; create it first")
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise ConfigError(
            f"{processes} processes would each train all of the network and write the same {checkpoint.name}; start "
            "smart-train without torchrun"
        )
    if checkpoint.is_dir():
        raise ConfigError(f"{checkpoint} is a folder; name a file in it, as in {checkpoint / 'ckpt.pt'}")


@dataclass
class Progress:
    """What changes from epoch to epoch beside the network.

    Attributes:
        epoch: the epochs that are done.
        best, best_epoch: the score and number of the best epoch; -1 and 0 before there is one.
        train_seconds, seconds: of training, and of all.
        history: one row an epoch.
    """

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    history: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Parts:
    """What a state holds beside the progress: everything that moves while a network trains.

    Attributes:
        training: its network, and what else learns.
        precision: Fabric's plugin, which has the loss scale of 16-mixed.
        generators: random numbers.
        average: of the weights.
    """

    training: Training
    learner: MaskLearner
    optimizer: torch.optim.Optimizer
    precision: Any
    generators: Generators
    average: WeightAverage


def save_state(
    parts: Parts, progress: Progress, *, identity: dict[str, Any], options: Mapping[str, Any], path: Path
) -> None:
    """Write the state to ``path``, whole.

    ``identity`` is what a resumed training must have in common with this; ``options`` are for `read_options`.
    """
    net, extra = parts.training.net, parts.training.extra
    save_atomically(
        {
            "format": STATE_FORMAT,
            "format_version": STATE_VERSION,
            "config": identity,
            "options": dict(options),
            "progress": asdict(progress),
            "network": network_state(net),
            "masks": {name: [m.cpu() for m in net.masks(name)] for name in net.path_names},
            "weight_masks": {name: {n: m.cpu() for n, m in net.weight_masks(name).items()} for name in net.path_names},
            "learner": parts.learner.state(),
            "optimizer": parts.optimizer.state_dict(),
            "precision": parts.precision.state_dict(),
            **{name: generator.get_state() for name, generator in vars(parts.generators).items()},
            "threads": torch.get_num_threads(),
            **({} if extra is None else {"extra": extra.state_dict()}),
            "average": parts.average.state(),
        },
        path,
    )


def read_state(path: Path, *, identity: dict[str, Any]) -> dict[str, Any]:
    """Read the state of a training of the same ``identity``.

    Raises:
        CheckpointError: if the file holds something else.
        ConfigError: if the training had other options or data.
    """
    state = read_plain(path)
    found = state if isinstance(state, dict) else {}
    name, version, threads = (found.get(key) for key in ("format", "format_version", "threads"))
    # By type first: a tensor in the place of a number is neither equal to it nor different.
    if (
        not (isinstance(name, str) and name == STATE_FORMAT)
        or not (type(version) is int and version == STATE_VERSION)
        or not (type(threads) is int and 1 <= threads <= MAX_THREADS)
    ):
        raise CheckpointError(f"{path} is no training state of format {STATE_VERSION}; train from the start")
    theirs = Reader(path).record(state, "config")
    other = sorted(key for key in identity if theirs.get(key) != identity[key])
    if other or len(theirs) != len(identity):
        other = other or ["set of options"]
        raise ConfigError(
            f"{path.name} was started with another {', '.join(other)}; repeat the same options to resume, or use "
            f"--force to start anew"
        )
    return found


def read_options(checkpoint: Path) -> dict[str, Any]:
    """Return the options in the state of the training that writes ``checkpoint``, in the form of a recipe.

    Raises:
        CheckpointError: if there is no state, or it holds something else.
        ConfigError: if ``checkpoint`` is the state or the dense control of another one, which goes on with it.
    """
    if checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} is a folder; name the checkpoint of a training")
    path = state_path(checkpoint)
    if (whole := _without(checkpoint, state_path)) is not None:
        read_options(whole)  # it may be a dense control's
        raise ConfigError(f"{checkpoint} is the state of a training; smart-train --resume {whole} goes on with it")
    if (whole := _without(checkpoint, control_path)) is not None and read_options(whole).get("dense_control") is True:
        raise ConfigError(
            f"{checkpoint} is the dense control of {whole}; smart-train --resume {whole} goes on with both"
        )
    if not path.exists():
        ended = "this training has ended, or it is none" if checkpoint.exists() else "there is none yet"
        raise CheckpointError(f"no {path.name} beside {checkpoint} to resume from: {ended}; check the name")
    state = read_plain(path)
    if not isinstance(state, dict) or "options" not in state:
        raise CheckpointError(f"{path} does not say its options; type them again, with --resume and -o {checkpoint}")
    return Reader(path).record(state, "options")


def _without(file: Path, added: Callable[[Path], Path]) -> Path | None:
    """Return the checkpoint whose training's state lies beside it and whose name ``added`` makes into ``file``."""
    if not file.suffix:
        return None
    checkpoint = file.with_name(f"{Path(file.stem).stem}{file.suffix}")
    return checkpoint if added(checkpoint) == file and state_path(checkpoint).exists() else None


def _load_momentum_(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor | None]]) -> None:
    """Give the optimiser its running means back; its options are those of this training."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, kept in state.items():
        buffer = kept["momentum_buffer"]
        if buffer is not None and buffer.shape != parameters[number].shape:  # torch would notice at the first step
            raise ValueError("a misshapen momentum")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_(parts: Parts, state: dict[str, Any], *, path: Path, epochs: int, steps_per_epoch: int) -> Progress:
    """Put ``parts`` where they were when ``state`` was read from ``path``, and return how far the training is.

    Raises:
        CheckpointError: if a part is missing or damaged.
    """
    net, extra = parts.training.net, parts.training.extra
    try:
        load_network_state_(net, state["network"])
        for name in net.path_names:
            for i, mask in zip(range(len(net.groups)), state["masks"][name], strict=True):
                net.set_mask(name, i, mask)
            for layer in net.weight_layers:
                net.set_weight_mask(name, layer, state["weight_masks"][name][layer])
        _load_momentum_(parts.optimizer, state["optimizer"]["state"])
        parts.precision.load_state_dict(state["precision"])
        for name, generator in vars(parts.generators).items():
            generator.set_state(state[name])
        if extra is not None:
            extra.load_state_dict(state["extra"])
        if "average" in state:  # older ones have none
            parts.average.load_state(state["average"])
        progress = _progress(Reader(path).record(state, "progress"), epochs=epochs)
        parts.learner.load_state(state["learner"], step=progress.epoch * steps_per_epoch)
    except Exception as error:  # whatever a part that is missing or misshapen makes torch trip over
        raise CheckpointError(f"the training state {path} is damaged; train from the start with --force") from error
    return progress


def _progress(record: dict[str, Any], *, epochs: int) -> Progress:
    """Return the progress that a state holds; ValueError or TypeError if it is not that of so many epochs."""
    found = Progress(**record)
    whole = (type(found.epoch) is int and 1 <= found.epoch <= epochs) and (
        type(found.best_epoch) is int and 0 <= found.best_epoch <= found.epoch
    )
    amounts = (found.best, found.train_seconds, found.seconds)
    rows = type(found.history) is list and all(type(row) is dict and row for row in found.history)
    if not whole or not rows or not all(type(amount) is float for amount in amounts):
        raise ValueError("a progress of other types or out of range")
    numbers = [value for row in found.history for value in row.values()]
    if (
        len(found.history) != found.epoch
        or any(row.keys() != found.history[0].keys() for row in found.history)
        or not all(type(number) in {int, float} for number in numbers)
    ):
        raise ValueError("a history that is not a row of numbers an epoch")
    return found
