"""The training loop: one network, its masks, a checkpoint each epoch, resumable to the bit."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning_fabric
import torch
from torch import Tensor, nn

from smart_train.accuracy import some_examples
from smart_train.architectures.custom import Factory
from smart_train.checkpoint.format import Checkpoint, Samples, load_checkpoint, save_checkpoint
from smart_train.data.extra import ExtraImages, load_extra
from smart_train.data.images import ImageSet
from smart_train.data.load import load_data
from smart_train.errors import CheckpointError, ConfigError
from smart_train.masking.accounting import density
from smart_train.masking.learner import MaskLearner
from smart_train.masking.network import SmartNetwork
from smart_train.masking.permutation import Gain, permute_channels_
from smart_train.methods import load_method
from smart_train.methods.interface import Batch, Setup, Training
from smart_train.training.averaging import WeightAverage
from smart_train.training.batches import Batches
from smart_train.training.collapse import Collapse, find_collapse, record
from smart_train.training.config import TrainConfig
from smart_train.training.history import Row, history_path, tensorboard_loggers, write_history
from smart_train.training.initial_files import FilePath, normalisation, read_initial_files
from smart_train.training.owner import owning_output
from smart_train.training.plain_network import plain_network
from smart_train.training.results import EpochReport, TrainResult
from smart_train.training.schedule import Stream, stream_generator, stream_seed
from smart_train.training.selection import Measurement, figures, report_attack, selection_attack
from smart_train.training.state import Parts, Progress, check_output, read_state, restore_, save_state, state_path
from smart_train.training.stepper import Stepper
from smart_train.training.targets import Targets
from smart_train.training.teacher import check_teacher, read_teacher

SGD_MOMENTUM = 0.9

_log = logging.getLogger(__name__)


class Trainer:
    """Trains one network on one data set.

    Args:
        config: what to do.
        data: what to learn from, or its name as `load_data` takes it.
        output: where ``ckpt.pt`` goes; ``ckpt.last.pt`` and ``ckpt.history.csv`` are kept beside it.
        resume: continue from ``ckpt.last.pt``, or start where there is none yet.
        factory: what makes a ``CUSTOM`` network.
        initial: a plain state dict of the network to start from (masks that do not start dense start from its
            magnitudes too), or several by the path that takes its batch norms from them, as `read_initial_files` does.
        teacher: what methods that need one learn from, and ``config.refinements.distill``, as `read_teacher` takes it:
            a checkpoint, ``CKPT:PATH``, or a module, which is frozen and stays in eval mode.
        extra: further training images, or ``npz:FILE`` as `load_extra` takes it; of each batch they are
            ``config.refinements.extra_share``.
        tensorboard: a folder for TensorBoard's event files; None writes none.
        options: of the command line, which ``ckpt.last.pt`` keeps for ``smart-train --resume ckpt.pt``.

    Raises:
        ConfigError: if ``output`` cannot be written, the options do not fit the data, it has fewer images than asked
            for, the device is missing, or a resumed training had other options.
        CheckpointError: if the state to resume from is damaged, or the weights to start from do not fit.
        MissingExtraError: if TensorBoard is not installed.
        NetworkError: if the network cannot be masked.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: ImageSet | str | os.PathLike[str],
        *,
        output: str | os.PathLike[str],
        resume: bool = False,
        factory: Factory | None = None,
        initial: FilePath | Mapping[str, FilePath] | None = None,
        teacher: FilePath | nn.Module | None = None,
        extra: ExtraImages | str | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        data = data if isinstance(data, ImageSet) else load_data(data)
        output = Path(output)
        check_output(output)
        if config.train_images is not None:
            data = data.subset(config.train_images)
        if config.test_images is not None:
            data = replace(data, test=some_examples(data.test, config.test_images, seed=config.seed))
        if len(data.train) < config.batch_size:
            raise ConfigError(
                f"expected a batch of at most the {len(data.train)} training images, got {config.batch_size}; "
                f"use a smaller batch"
            )
        config.augmentation.check(height=data.shape[1], width=data.shape[2])
        config.check_device()
        self.config, self.data, self.output = config, data, output
        self._factory = factory
        self._command = dict(options or {})
        self._method = load_method(config.method)
        self._initial = read_initial_files(initial, paths=[path.name for path in self._method.paths])
        self._progress, self._report_seconds = Progress(), 0.0
        self._extra = load_extra(extra, beside=data) if isinstance(extra, str) else extra
        if (self._extra is None) != (config.refinements.extra_share == 0):
            raise ConfigError("--extra and --extra-share belong together; give both, or neither")
        check_teacher(self._method, distill=config.refinements.distill, given=teacher is not None)
        self.teacher = None if teacher is None else read_teacher(teacher, data, factory=factory)
        self._best: SmartNetwork | None = None
        self._gains: dict[str, Gain] = {}
        self._normalisation = normalisation(config.normalize, data, factory=factory, initial=self._initial.shared)
        self._last = last = state_path(output)
        state = read_state(last, identity=self._identity()) if resume and last.exists() else None
        if state is not None:
            torch.set_num_threads(state["threads"])  # results are equal to the bit only at the same thread count
        self._fabric = lightning_fabric.Fabric(
            accelerator=config.device,
            devices=1,
            precision=config.precision,
            loggers=[] if tensorboard is None else tensorboard_loggers(Path(tensorboard), resume=state is not None),
        )
        self._training = self._build()
        self._modules = self._training.modules
        self._modules.to(self._fabric.device)
        self.batches = Batches(
            data.train,
            config,
            targets=Targets(config.refinements, len(data.class_names), self._training.setup.teacher),
            device=self._fabric.device,
            extra=None if self._extra is None else self._extra.split,
        )
        average = WeightAverage(self._modules, config.refinements, steps=self.batches.steps, total=self.batches.total)
        self._optimizer = torch.optim.SGD(
            self._modules.parameters(), lr=config.learning_rate, momentum=SGD_MOMENTUM, weight_decay=config.weight_decay
        )
        wrapped, wrapped_optimizer = self._fabric.setup(self._modules, self._optimizer)
        self._parts = Parts(
            training=self._training,
            learner=MaskLearner(
                self._training.net,
                plan=config.masks,
                total_steps=self.total_steps,
                steps_per_epoch=self.batches.steps,
                generator=stream_generator(config.seed, Stream.MASKS),
                from_weights=self._initial.shared is not None,
            ),
            optimizer=self._optimizer,
            precision=self._fabric.strategy.precision,
            generators=self.batches.generators,
            average=average,
        )
        self._stepper = Stepper(
            self._parts, self.batches, config, fabric=self._fabric, modules=wrapped, optimizer=wrapped_optimizer
        )
        self._measurement = Measurement(eps=config.attack.eps, seed=config.seed, device=self._fabric.device)
        if state is not None:
            self._progress = restore_(
                self._parts, state, path=last, epochs=config.epochs, steps_per_epoch=self.batches.steps
            )
            if self._progress.best_epoch and not output.exists():
                raise CheckpointError(f"no best epoch at {output}; put it back, or train from the start with --force")

    @property
    def net(self) -> SmartNetwork:
        """The network that learns; after :meth:`run` the deployed one of the best epoch, as in the checkpoint."""
        return self._training.net if self._best is None else self._best

    @property
    def gains(self) -> dict[str, Gain]:
        """What permuting the channels gained in each layer with a pattern; empty without it."""
        return dict(self._gains)

    @property
    def history(self) -> list[Row]:
        """One row an epoch, those before a resume included."""
        return [dict(row) for row in self._progress.history]

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.batches.total

    @property
    def steps_left(self) -> int:
        """Optimiser steps still to do."""
        return self.total_steps - self._progress.epoch * self.batches.steps

    @property
    def stopped(self) -> Collapse | None:
        """Why training ended before its last epoch, or would have."""
        return find_collapse(self._progress.history, attack=self.config.attack, data=self.data)

    def _build(self) -> Training:
        plain = plain_network(self.config, self.data, factory=self._factory, initial=self._initial.shared)
        mean, std = self._normalisation
        structure, example = self.config.structure, torch.zeros(2, *self.data.shape)
        if self.config.permute:
            generator = stream_generator(self.config.seed, Stream.PERMUTE)
            self._gains = permute_channels_(plain, example, structure=structure, generator=generator)
        setup = Setup(
            example=example,
            structure=structure,
            mean=mean,
            std=std,
            num_classes=len(self.data.class_names),
            paths=self._method.paths,
            options=self._method.read_options(self.config.method_options),
            attack=self.config.attack,
            seed=stream_seed(self.config.seed, Stream.METHOD),
            teacher=None if self.teacher is None else self.teacher.network.to(self._fabric.device),
        )
        training = self._method.build(plain, setup)
        return self._initial.started(training, self.config, self.data, self._factory)

    def run(
        self,
        *,
        on_step: Callable[[str], None] = lambda _: None,
        on_epoch: Callable[[EpochReport], None] = lambda _: None,
        on_phase: Callable[[str], None] = lambda _: None,
    ) -> TrainResult:
        """Train to the last epoch, or to one in which training collapses; then measure the best on the test split.

        Args:
            on_step: called after every optimiser step with a few words on how things stand.
            on_epoch: called after every epoch.
            on_phase: called with the name of each stretch of work when it begins: an epoch, its validation, the report.

        Raises ConfigError if another training is writing ``output``, the loss is not finite, or training collapses
        before there is an epoch to keep.
        """
        with owning_output(self.output):
            progress, config = self._progress, self.config
            first, spent = progress.epoch, 0.0
            while progress.epoch < config.epochs and self.stopped is None:
                started = time.perf_counter()
                number = f"epoch {progress.epoch + 1}/{config.epochs}"
                on_phase(number)
                losses = self._epoch(on_step)
                on_phase(f"{number}: validation")
                train_seconds = time.perf_counter() - started
                progress.train_seconds += train_seconds
                progress.epoch += 1
                with self._stepper.averaged(epoch=progress.epoch):
                    best = self._judge(losses)
                images_per_second = self.batches.steps * config.batch_size / max(train_seconds, 1e-9)
                row = progress.history[-1]
                # Before the state: an epoch that is not logged when the process is killed is trained and logged again.
                self._fabric.log_dict({**row, "images_per_second": images_per_second}, step=progress.epoch)
                seconds = time.perf_counter() - started
                progress.seconds += seconds
                save_state(self._parts, progress, identity=self._identity(), options=self._command, path=self._last)
                spent += seconds
                left = spent / (progress.epoch - first) * (config.epochs - progress.epoch) + self._report_seconds
                on_epoch(EpochReport(row, config.epochs, best, images_per_second, left))
            if not progress.best_epoch:
                raise ConfigError(
                    f"{self.stopped}, and no epoch can be kept, since masks were not at their target or weights not "
                    "averaged yet; lower --eps or --lr, or train against pgd, from the start with --force"
                )
            if self.stopped is not None:
                _log.warning("training stopped, since %s; epoch %d is kept", self.stopped, progress.best_epoch)
            write_history(progress.history, history_path(self.output))  # a resumed training may have had no epoch left
            on_phase(f"report: every path on {len(self.data.test)} test images, clean and attacked")
            return self._report(on_phase)

    def _epoch(self, on_step: Callable[[str], None]) -> dict[str, float]:
        number = self._progress.epoch + 1
        sums: dict[str, Tensor] = {}
        self._training.epoch_start(number, partial(self.batches.sample, epoch=number))
        for batch in self.batches.epoch(number):
            for name, value in self.step(batch).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            on_step(f"epoch {number}/{self.config.epochs}")
        means = {f"{name}_loss": float(value) / self.batches.steps for name, value in sums.items()}
        if not all(math.isfinite(v) for v in means.values()):
            raise ConfigError(
                f"the loss is not finite in epoch {number}, {means}; lower --lr, --eps or --awp and train anew"
            )
        return means

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Do one optimiser step and return the parts of its loss, scalars on the device."""
        return self._stepper.step(batch)

    def _judge(self, losses: dict[str, float]) -> bool:
        """Validate the epoch that has just ended, add it to the history, and write the checkpoint if it is the best.

        An epoch counts once masks are at their target and weights are averaged. Its figures wait for the last epoch.
        """
        progress, net, validation, roles = self._progress, self.deployed(), self.data.validation, self._method.roles
        done, started = progress.epoch * self.batches.steps, time.perf_counter()
        columns, score = self._measurement.validate(net, validation, roles=roles)
        share = self._measurement.report_share(roles, validation=validation, test=self.data.test)
        self._report_seconds = share * (time.perf_counter() - started)  # it is more of the same
        row: Row = {
            "epoch": progress.epoch,
            "learning_rate": self._stepper.learning_rate(done),
            **losses,
            **{f"{path}_density": density(net, path=path) for path in net.path_names},
            **columns,
        }
        progress.history.append(row)
        write_history(progress.history, history_path(self.output))
        counts = done >= max(self._parts.learner.closed_from, self._parts.average.first)
        # An equal later epoch is kept: its learning rate is lower.
        if not counts or score < progress.best or self.stopped is not None:
            return False
        progress.best, progress.best_epoch = score, progress.epoch
        samples = self._measurement.samples(net, validation, attack=selection_attack(self.config.attack.eps))
        save_checkpoint(self.checkpoint(net, samples), self.output)
        return True

    def deployed(self) -> SmartNetwork:
        """Return the network as it would be deployed now."""
        return self._training.deployable(partial(self.batches.sample, epoch=max(1, self._progress.epoch)))

    def checkpoint(self, net: SmartNetwork, samples: Samples) -> Checkpoint:
        """Return ``net`` as it is deployed, with ``samples`` and no figures."""
        mean, std = self._normalisation
        return Checkpoint(
            architecture=self.config.model,
            arguments=self.config.model_arguments,
            input_shape=self.data.shape,
            class_names=self.data.class_names,
            mean=mean,
            std=std,
            net=net,
            samples=samples,
            training=self._record(),
            metrics={path: {} for path in net.path_names},
            roles=self._method.roles,
            factory=getattr(self._factory, "reference", None),
        )

    def _record(self) -> dict[str, Any]:
        """Describe the training in plain values; data appears as kind and digest, never as a path."""
        data = self.data
        return {
            **self._options(),
            **({"caveat": self._method.caveat} if self._method.caveat else {}),
            "data": {
                "kind": data.kind,
                "digest": data.digest,
                "train": len(data.train),
                "validation": len(data.validation),
                "test": len(data.test),
                **({"notes": list(data.notes)} if data.notes else {}),
            },
            **({"permutation": {name: asdict(gain) for name, gain in self._gains.items()}} if self._gains else {}),
            **self._training.record(),
            "best_epoch": self._progress.best_epoch,
            "history": self.history,
            "versions": {"torch": str(torch.__version__)},
        }

    def _report(self, on_phase: Callable[[str], None]) -> TrainResult:
        """Measure the best epoch on the test split; its checkpoint gets the figures and samples of full strength."""
        best = load_checkpoint(self.output, factory=self._factory)
        self._best = best.net.to(self._fabric.device)
        attack = report_attack(self.config.attack.eps)
        found = self._measurement.report(best.net, self.data.test)
        on_phase("report: attacked images for the checkpoint")
        trained, stopped = self._progress.epoch * self.batches.steps, self.stopped
        final = replace(
            best,
            training={**best.training, "history": self.history, **record(stopped)},
            metrics={path: figures(a, attack, split="test") for path, a in found.items()},
            samples=self._measurement.samples(best.net, self.data.validation, attack=attack),
        )
        save_checkpoint(final, self.output)
        return TrainResult(
            checkpoint=self.output,
            seconds=self._progress.seconds,
            images_per_second=trained * self.config.batch_size / max(self._progress.train_seconds, 1e-9),
            best_epoch=self._progress.best_epoch,
            accuracy=found,
            stopped=stopped,
        )

    def _options(self) -> dict[str, Any]:
        """Return the configuration, and the digests of what else was read."""
        return {
            **self.config.record(),
            **self._initial.record(),
            **({"extra_digest": self._extra.digest} if self._extra else {}),
            **({"teacher": self.teacher.record()} if self.teacher else {}),
        }

    def _identity(self) -> dict[str, Any]:
        return {**self._options(), "data_digest": self.data.digest}
