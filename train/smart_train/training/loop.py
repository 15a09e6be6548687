"""The training loop: one network, its masks, a checkpoint each epoch, resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import lightning_fabric
import numpy as np
import torch
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor

from smart_common.errors import MissingExtraError
from smart_train.accuracy import PathAccuracy, accuracy, evaluate_path, some_examples, to_tensor
from smart_train.architectures import Argument, Factory, build_network
from smart_train.attacks import Attack
from smart_train.checkpoint.atomic import save_atomically
from smart_train.checkpoint.format import Checkpoint, Samples, load_checkpoint, save_checkpoint
from smart_train.checkpoint.network_state import load_network_state_, network_state
from smart_train.checkpoint.reader import plain_record, read_plain
from smart_train.checkpoint.samples import make_samples
from smart_train.data.augment import Augmentation
from smart_train.data.images import VALIDATION_SAMPLES, ImageSet, Split
from smart_train.errors import CheckpointError, ConfigError
from smart_train.masking.accounting import density
from smart_train.masking.learner import MaskLearner
from smart_train.masking.network import DEFAULT_PATHS, SmartNetwork, convert
from smart_train.masking.permutation import Gain, permute_channels_
from smart_train.masking.plan import MaskPlan
from smart_train.masking.structure import Structure
from smart_train.masking.tracing import run_classifier
from smart_train.methods import METHODS
from smart_train.methods.smart import CLEAN, ROBUST
from smart_train.training.history import Row, history_path, write_history
from smart_train.training.initial_weights import load_initial_weights_, read_initial_weights

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

STATE_FORMAT = "smart-edge training state"
STATE_VERSION = 3  # 2 has the augmentation's random state, 3 the masks of single weights
MAX_THREADS = 1024  # more than any machine has cores for one training
WARM_UP = 0.05  # fraction of training over which the learning rate rises from 0
SGD_MOMENTUM = 0.9
SELECTION_STEPS = 10  # PGD steps on the validation split after each epoch that may be the best
REPORT_STEPS = 20  # PGD steps of the samples and of the final figures
SELECTION_IMAGES = 1000  # at most so many validation images are attacked after each epoch

# Streams of random numbers, so that the seed's uses never overlap.
_INIT, _ORDER, _ATTACK, _MASKS, _VALIDATION, _SAMPLES, _TEST, _AUGMENT, _PERMUTE = range(9)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training gives, beside the data.

    Attributes:
        model, model_arguments: a name in ``ARCHITECTURES`` or ``CUSTOM``, and its arguments.
        structure: what masks may remove, and how much.
        masks: how they are found.
        permute: put channels in an order first in which ``N:M`` keeps more of the weights' magnitude.
        method: a name in ``METHODS``.
        attack: the one trained against.
        augmentation: what is done to training images before the attack.
        train_images: train on this many images, every class in its proportion; None for all.
        test_images: measure the best epoch on this many test images, chosen by the seed; None for all.
        epochs, batch_size: the paths share a batch half and half; images that do not fill one wait for the next epoch.
        learning_rate: the peak; linear warm-up over 5% of the steps, then cosine to 0.
        weight_decay: L2, on all parameters.
        seed: of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Fabric's names; weights and masks are float32 in all of them.

    Raises:
        ConfigError: if a value is out of range.
    """

    model: str = "resnet8"
    model_arguments: dict[str, Argument] = field(default_factory=dict)
    structure: Structure = field(default_factory=Structure)
    masks: MaskPlan = field(default_factory=MaskPlan)
    permute: bool = False
    method: str = "smart"
    attack: Attack = field(default_factory=Attack)
    augmentation: Augmentation = field(default_factory=Augmentation)
    train_images: int | None = None
    test_images: int | None = None
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    seed: int = 0
    device: str = "auto"
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"expected 1 or more epochs, got {self.epochs}")
        if self.batch_size < 4:
            raise ConfigError(
                f"expected a batch of 4 or more, got {self.batch_size}; each path's batch norm needs two images"
            )
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"expected a finite learning rate above 0 and weight decay of 0 or more, got {self.learning_rate} and "
                f"{self.weight_decay}; 0.1 and 5e-4 are usual"
            )
        if self.method not in METHODS:
            raise ConfigError(f"expected a method out of {', '.join(METHODS)}, got {self.method!r}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"expected a precision out of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"expected a seed from 0 to {2**32 - 1}, got {self.seed}")


@dataclass(frozen=True)
class TrainResult:
    """What a finished training gives.

    Attributes:
        checkpoint: the file of the best epoch.
        seconds: of training and validation, over all resumed parts.
        images_per_second: training images, validation not counted.
        best_epoch: 1 for the first.
        accuracy: per path, on the test split under PGD-20.
    """

    checkpoint: Path
    seconds: float
    images_per_second: float
    best_epoch: int
    accuracy: dict[str, PathAccuracy]


@dataclass(frozen=True)
class EpochReport:
    """How an epoch went.

    Attributes:
        row: its line of the history.
        epochs: of the whole training.
        best: whether it is the best so far, and the checkpoint now holds it.
        images_per_second: training images, validation not counted.
        seconds_left: an estimate, from the epochs of this process.
    """

    row: Row
    epochs: int
    best: bool
    images_per_second: float
    seconds_left: float


def state_path(checkpoint: Path) -> Path:
    """Return where the state that resuming needs lies: ``ckpt.last.pt`` beside ``ckpt.pt``."""
    return checkpoint.with_name(f"{checkpoint.stem}.last{checkpoint.suffix}")


def _tensorboard(folder: Path, *, resume: bool) -> list[Any]:
    if not resume and any(folder.glob("events.out.tfevents*")):
        raise ConfigError(
            f"expected no TensorBoard events in {folder}, got those of another training, which would mix with this "
            f"one's; name another folder"
        )
    try:
        import tensorboard  # noqa: F401, PLC0415  # Fabric would miss it only at the first figures
    except ImportError as error:
        raise MissingExtraError("expected TensorBoard, got none; pip install 'smart-edge[tensorboard]'") from error
    return [TensorBoardLogger(root_dir=folder, name="", version="")]


def _generator(seed: int, stream: int, *, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device=device).manual_seed(_stream_seed(seed, stream))


def _stream_seed(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]) >> 1


def _ignore(_: object) -> None:
    return


def selection_attack(eps: float) -> Attack:
    """Return the attack by which the best epoch is chosen: PGD-10, one restart."""
    return Attack(name="pgd", eps=eps, steps=SELECTION_STEPS)


def report_attack(eps: float) -> Attack:
    """Return the attack of the samples and of reported figures: PGD-20, one restart."""
    return Attack(name="pgd", eps=eps, steps=REPORT_STEPS)


@dataclass
class _Progress:
    """What changes from epoch to epoch beside the network."""

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    history: list[Row] = field(default_factory=list)


class Trainer:
    """Trains one network on one data set.

    Args:
        config: what to do.
        data: what to learn from.
        output: where ``ckpt.pt`` goes; ``ckpt.last.pt`` and ``history.csv`` are kept beside it.
        resume: continue from ``ckpt.last.pt``, or start where there is none yet.
        factory: what makes a ``CUSTOM`` network.
        initial: a plain state dict of the network to start from; ``regrow`` and ``static`` masks start from its
            magnitudes too.
        tensorboard: a folder for TensorBoard's event files; None writes none.

    Raises:
        ConfigError: if the options do not fit the data, it has fewer images than asked for, the device is missing, or
            a resumed training had other options.
        CheckpointError: if the state to resume from is damaged, or the weights to start from do not fit.
        MissingExtraError: if TensorBoard is not installed.
        NetworkError: if the network cannot be masked.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: ImageSet,
        *,
        output: Path,
        resume: bool = False,
        factory: Factory | None = None,
        initial: Path | None = None,
        tensorboard: Path | None = None,
    ) -> None:
        if config.train_images is not None:
            data = data.subset(config.train_images)
        if config.test_images is not None:
            data = replace(data, test=some_examples(data.test, config.test_images, seed=config.seed))
        if len(data.train) < config.batch_size:
            raise ConfigError(
                f"expected a batch of at most the {len(data.train)} training images, got {config.batch_size}; "
                f"use a smaller batch"
            )
        _, height, width = data.shape
        config.augmentation.check(height=height, width=width)
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("expected a CUDA device that torch can use, got none; use --device cpu")
        if config.precision == "16-mixed" and (config.device == "cpu" or not torch.cuda.is_available()):
            raise ConfigError(
                "expected a CUDA device for precision 16-mixed, got a CPU; use bf16-mixed or 32-true there"
            )
        self.config = config
        self.data = data
        self.output = output
        self.steps_per_epoch = len(data.train) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        self._factory = factory
        self._initial = None if initial is None else read_initial_weights(initial)
        self._progress = _Progress()
        self._gains: dict[str, Gain] = {}
        self._normalisation = data.mean_std()
        state = self._read_state() if resume and state_path(output).exists() else None
        if state is not None:
            torch.set_num_threads(state["threads"])  # results are equal to the bit only at the same thread count
        self._fabric = lightning_fabric.Fabric(
            accelerator=config.device,
            devices=1,
            precision=config.precision,
            loggers=[] if tensorboard is None else _tensorboard(tensorboard, resume=state is not None),
        )
        self._net = self._build()
        self._net.to(self._fabric.device)
        self._optimizer = torch.optim.SGD(
            self._net.parameters(), lr=config.learning_rate, momentum=SGD_MOMENTUM, weight_decay=config.weight_decay
        )
        self._wrapped, self._wrapped_optimizer = self._fabric.setup(self._net, self._optimizer)
        self._learner = MaskLearner(
            self._net,
            plan=config.masks,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            generator=_generator(config.seed, _MASKS),
            from_weights=initial is not None,
        )
        self._order = _generator(config.seed, _ORDER)
        self._attack = _generator(config.seed, _ATTACK, device=self._fabric.device)
        self._augment = _generator(config.seed, _AUGMENT, device=self._fabric.device)
        self._images = torch.from_numpy(data.train.images).to(self._fabric.device)
        self._labels = torch.from_numpy(data.train.labels).to(self._fabric.device)
        if state is not None:
            self._restore(state)

    @property
    def net(self) -> SmartNetwork:
        """The network in its present state."""
        return self._net

    @property
    def gains(self) -> dict[str, Gain]:
        """What permuting the channels gained in each layer with a pattern; empty without it."""
        return dict(self._gains)

    @property
    def history(self) -> list[Row]:
        """One row an epoch, those before a resume included."""
        return [dict(row) for row in self._progress.history]

    @property
    def steps_left(self) -> int:
        """Optimiser steps still to do."""
        return self.total_steps - self._progress.epoch * self.steps_per_epoch

    def _build(self) -> SmartNetwork:
        channels, height, width = self.data.shape
        mean, std = self._normalisation
        plain = build_network(
            self.config.model,
            num_classes=len(self.data.class_names),
            in_channels=channels,
            arguments=self.config.model_arguments,
            generator_seed=int(np.random.SeedSequence([self.config.seed, _INIT]).generate_state(1)[0]),
            factory=self._factory,
        )
        if self._initial is not None:
            load_initial_weights_(plain, self._initial)
        structure, example = self.config.structure, torch.zeros(2, channels, height, width)
        plain.eval()  # batch norms must not move
        with torch.no_grad():
            scores, classes = run_classifier(plain, example).shape[1], len(self.data.class_names)
        plain.train()
        if scores != classes:  # a factory need not heed num_classes
            raise ConfigError(
                f"expected a network with a score for each of {classes} classes, got {scores} scores; let the factory "
                f"use num_classes"
            )
        if self.config.permute:
            generator = _generator(self.config.seed, _PERMUTE)
            self._gains = permute_channels_(plain, example, structure=structure, generator=generator)
        return convert(
            plain,
            example_input=example,
            paths=DEFAULT_PATHS,
            structure=structure.name,
            density=structure.density,
            align=structure.align,
            scope=structure.scope,
            min_channels=structure.min_channels,
            mean=mean,
            std=std,
        )

    def run(
        self, *, on_step: Callable[[str], None] = _ignore, on_epoch: Callable[[EpochReport], None] = _ignore
    ) -> TrainResult:
        """Train to the last epoch, then measure the best epoch on the test split.

        Args:
            on_step: called after every optimiser step with a few words on how things stand.
            on_epoch: called after every epoch.
        """
        progress, config = self._progress, self.config
        first = progress.epoch
        spent = 0.0
        while progress.epoch < config.epochs:
            started = time.perf_counter()
            losses = self._epoch(on_step)
            train_seconds = time.perf_counter() - started
            progress.train_seconds += train_seconds
            progress.epoch += 1
            best = self._judge(losses)
            images_per_second = self.steps_per_epoch * config.batch_size / max(train_seconds, 1e-9)
            row = progress.history[-1]
            # Before the state: an epoch that is not logged when the process is killed is trained, and logged, again.
            self._fabric.log_dict({**row, "images_per_second": images_per_second}, step=progress.epoch)
            seconds = time.perf_counter() - started
            progress.seconds += seconds
            self._save_state()
            spent += seconds
            seconds_left = spent / (progress.epoch - first) * (config.epochs - progress.epoch)
            on_epoch(EpochReport(row, config.epochs, best, images_per_second, seconds_left))
        write_history(progress.history, history_path(self.output))  # a resumed training may have had no epoch left
        return self._report()

    def _epoch(self, on_step: Callable[[str], None]) -> dict[str, float]:
        config = self.config
        order = torch.randperm(len(self._labels), generator=self._order).to(self._labels.device)
        sums: dict[str, Tensor] = {}
        for i in range(self.steps_per_epoch):
            chosen = order[i * config.batch_size : (i + 1) * config.batch_size]
            losses = self.step(
                self._images[chosen], self._labels[chosen], number=self._progress.epoch * self.steps_per_epoch + i + 1
            )
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            on_step(f"epoch {self._progress.epoch + 1}/{config.epochs}")
        means = {f"{name}_loss": float(value) / self.steps_per_epoch for name, value in sums.items()}
        if not all(math.isfinite(v) for v in means.values()):
            raise ConfigError(
                f"expected a finite loss, got {means} in epoch {self._progress.epoch + 1}; lower --lr or --eps and "
                f"train from the start"
            )
        return means

    def step(self, images: Tensor, labels: Tensor, *, number: int) -> dict[str, Tensor]:
        """Do one optimiser step and return each path's loss, a scalar on the device.

        Args:
            images: uint8 (N, H, W, C), on the network's device.
            labels: int64 (N,), likewise.
            number: of the step in the whole training, 1 for the first; learning rate and masks follow it.
        """
        self._net.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(number)
        with self._fabric.autocast():
            loss = METHODS[self.config.method](
                self._net,
                self._wrapped,
                to_tensor(self.config.augmentation.apply(images, generator=self._augment)),
                labels,
                attack=self.config.attack,
                generator=self._attack,
            )
        self._wrapped_optimizer.zero_grad()
        self._fabric.backward(loss.total)
        self._learner.after_backward()
        self._wrapped_optimizer.step()
        self._learner.after_step(number, optimizer=self._optimizer)
        return loss.paths

    def _learning_rate(self, step: int) -> float:
        warm = max(1, round(WARM_UP * self.total_steps))
        if step <= warm:
            return self.config.learning_rate * step / warm
        return (
            self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.total_steps - warm)))
        )

    def _judge(self, losses: dict[str, float]) -> bool:
        """Validate the epoch that has just ended, add it to the history, and write the checkpoint if it is the best.

        An epoch counts once its masks are at their target. The checkpoint's figures wait for the end of the training.
        """
        progress = self._progress
        done = progress.epoch * self.steps_per_epoch
        whole = self.data.validation
        part = Split(whole.images[:SELECTION_IMAGES], whole.labels[:SELECTION_IMAGES])
        attack = selection_attack(self.config.attack.eps)
        clean = self._validate(CLEAN, whole)
        robust = self._validate(ROBUST, part, attack=attack)
        row: Row = {
            "epoch": progress.epoch,
            "learning_rate": self._learning_rate(done),
            **losses,
            **{f"{path}_density": density(self._net, path=path) for path in self._net.path_names},
            "clean_path_clean_accuracy": clean,
            "robust_path_clean_accuracy": self._validate(ROBUST, whole),
            "robust_path_robust_accuracy": robust,
        }
        progress.history.append(row)
        write_history(progress.history, history_path(self.output))
        score = 0.5 * (clean + robust)
        if (
            done < self._learner.frozen_from or score < progress.best
        ):  # an equal later epoch is kept: its learning rate is lower
            return False
        progress.best, progress.best_epoch = score, progress.epoch
        mean, std = self._normalisation
        checkpoint = Checkpoint(
            architecture=self.config.model,
            arguments=self.config.model_arguments,
            input_shape=self.data.shape,
            class_names=self.data.class_names,
            mean=mean,
            std=std,
            net=self._net,
            samples=self._samples(attack),
            training=self._record(),
            metrics={path: {} for path in self._net.path_names},
        )
        save_checkpoint(checkpoint, self.output)
        return True

    def _validate(self, path: str, split: Split, *, attack: Attack | None = None) -> float:
        device = self._fabric.device
        generator = _generator(self.config.seed, _VALIDATION, device=device)
        return accuracy(self._net.path(path), split, attack=attack, generator=generator, device=device).value

    def _record(self) -> dict[str, Any]:
        """Describe the training in plain values; data appears as kind and digest, never as a path."""
        data = self.data
        return {
            **asdict(self.config),
            **self._start(),
            "data": {
                "kind": data.kind,
                "digest": data.digest,
                "train": len(data.train),
                "validation": len(data.validation),
                "test": len(data.test),
            },
            **({"permutation": {name: asdict(gain) for name, gain in self._gains.items()}} if self._gains else {}),
            "best_epoch": self._progress.best_epoch,
            "history": self.history,
            "versions": {"torch": str(torch.__version__)},
        }

    def _samples(self, attack: Attack) -> Samples:
        split = self.data.validation
        return make_samples(
            self._net,
            torch.from_numpy(split.images[:VALIDATION_SAMPLES]),
            torch.from_numpy(split.labels[:VALIDATION_SAMPLES]),
            attack=attack,
            seed=_stream_seed(self.config.seed, _SAMPLES),
            device=self._fabric.device,
        )

    def _report(self) -> TrainResult:
        """Measure the best epoch on the test split; its checkpoint gets the figures and samples of full strength."""
        best = load_checkpoint(self.output, factory=self._factory)
        load_network_state_(self._net, network_state(best.net))
        for path in self._net.path_names:
            for i, mask in enumerate(best.net.masks(path)):
                self._net.set_mask(path, i, mask)
            for layer, mask in best.net.weight_masks(path).items():
                self._net.set_weight_mask(path, layer, mask)
        attack, device = report_attack(self.config.attack.eps), self._fabric.device
        found = {
            path: evaluate_path(
                self._net.path(path),
                self.data.test,
                attack=attack,
                generator=_generator(self.config.seed, _TEST, device=device),
                device=device,
            )
            for path in self._net.path_names
        }
        final = replace(
            best,
            training={**best.training, "history": self.history},
            metrics={path: _figures(a, attack, split="test") for path, a in found.items()},
            samples=self._samples(attack),
        )
        save_checkpoint(final, self.output)
        return TrainResult(
            checkpoint=self.output,
            seconds=self._progress.seconds,
            images_per_second=self.config.epochs
            * self.steps_per_epoch
            * self.config.batch_size
            / max(self._progress.train_seconds, 1e-9),
            best_epoch=self._progress.best_epoch,
            accuracy=found,
        )

    def _start(self) -> dict[str, str]:
        """Say by its digest what was started from; nothing where that was chance."""
        return {} if self._initial is None else {"init_sha256": self._initial.sha256}

    def _identity(self) -> dict[str, Any]:
        return {**asdict(self.config), **self._start(), "data_digest": self.data.digest}

    def _save_state(self) -> None:
        progress = self._progress
        save_atomically(
            {
                "format": STATE_FORMAT,
                "format_version": STATE_VERSION,
                "config": self._identity(),
                "progress": asdict(progress),
                "network": network_state(self._net),
                "masks": {path: [m.cpu() for m in self._net.masks(path)] for path in self._net.path_names},
                "weight_masks": {
                    path: {n: m.cpu() for n, m in self._net.weight_masks(path).items()} for path in self._net.path_names
                },
                "learner": self._learner.state(),
                "optimizer": self._optimizer.state_dict(),
                "precision": self._fabric.strategy.precision.state_dict(),  # the loss scale of 16-mixed
                "order": self._order.get_state(),
                "attack": self._attack.get_state(),
                "augment": self._augment.get_state(),
                "threads": torch.get_num_threads(),
            },
            state_path(self.output),
        )

    def _read_state(self) -> dict[str, Any]:
        path = state_path(self.output)
        state = read_plain(path)
        found = state if isinstance(state, dict) else {}
        name, version, threads = (found.get(key) for key in ("format", "format_version", "threads"))
        # By type first: a tensor in the place of a number is neither equal to it nor different.
        if (
            not (isinstance(name, str) and name == STATE_FORMAT)
            or not (type(version) is int and version == STATE_VERSION)
            or not (type(threads) is int and 1 <= threads <= MAX_THREADS)
        ):
            raise CheckpointError(
                f"expected a training state of format {STATE_VERSION} in {path}, got another file; train from the start"
            )
        theirs, ours = plain_record(state, "config", path=path), self._identity()
        other = sorted(key for key in ours if theirs.get(key) != ours[key])
        if other or len(theirs) != len(ours):
            other = other or ["set of options"]
            raise ConfigError(
                f"expected the options that {path.name} was started with, got another {', '.join(other)}; repeat the "
                f"same options to resume, or use --force to start anew"
            )
        return found

    def _load_momentum_(self, state: dict[int, dict[str, Tensor | None]]) -> None:
        """Give the optimiser its running means back; its options are those of this training."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        for number, kept in state.items():
            buffer = kept["momentum_buffer"]
            if buffer is not None and buffer.shape != parameters[number].shape:  # torch would notice at the first step
                raise ValueError("a misshapen momentum")
        options = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": options})

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            load_network_state_(self._net, state["network"])
            for path in self._net.path_names:
                for i, mask in zip(range(len(self._net.groups)), state["masks"][path], strict=True):
                    self._net.set_mask(path, i, mask)
                for layer in self._net.weight_layers:
                    self._net.set_weight_mask(path, layer, state["weight_masks"][path][layer])
            self._load_momentum_(state["optimizer"]["state"])
            self._fabric.strategy.precision.load_state_dict(state["precision"])
            self._order.set_state(state["order"])
            self._attack.set_state(state["attack"])
            self._augment.set_state(state["augment"])
            self._progress = _progress(
                plain_record(state, "progress", path=state_path(self.output)), epochs=self.config.epochs
            )
            self._learner.load_state(state["learner"], step=self._progress.epoch * self.steps_per_epoch)
        except Exception as error:  # whatever a part that is missing or misshapen makes torch trip over
            raise CheckpointError(
                f"expected the whole state of a training in {state_path(self.output)}, got a damaged one; train from "
                f"the start with --force"
            ) from error
        if self._progress.best_epoch and not self.output.exists():
            raise CheckpointError(
                f"expected the best epoch so far at {self.output}, got no such file; put it back, or train from "
                f"the start with --force"
            )


def _progress(record: dict[str, Any], *, epochs: int) -> _Progress:
    """Return the progress that a state holds; ValueError or TypeError if it is not that of so many epochs."""
    found = _Progress(**record)
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


def _figures(accuracy: PathAccuracy, attack: Attack, *, split: str) -> dict[str, Any]:
    return {
        "clean_accuracy": accuracy.clean.value,
        "clean_interval": list(accuracy.clean.interval),
        "robust_accuracy": accuracy.robust.value,
        "robust_interval": list(accuracy.robust.interval),
        "attack": attack.label,
        "eps": attack.eps,
        "examples": accuracy.clean.total,
        "split": split,
    }
