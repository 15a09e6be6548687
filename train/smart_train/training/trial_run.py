"""A trial of the whole way on a few images, before hours are spent on a network of the user's own."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from smart_common.errors import SmartError, shortened
from smart_train.accuracy import to_tensor
from smart_train.architectures.custom import Factory
from smart_train.checkpoint.format import Checkpoint, Samples, load_checkpoint, save_checkpoint
from smart_train.data.images import Split
from smart_train.errors import NetworkError
from smart_train.masking.tracing import run_classifier
from smart_train.masking.trial import kept_values
from smart_train.methods.interface import Training
from smart_train.training.loop import Trainer

TRIAL_IMAGES = 4  # a half for each path, and batch norms want two


class _Trial(Trainer):
    """One step of ``trainer`` on copies of all that it trains, with masks at their target after it."""

    def __init__(self, trainer: Trainer, *, output: Path, factory: Factory | None) -> None:
        self._tried = trainer
        few = Split(trainer.data.train.images[:TRIAL_IMAGES], trainer.data.train.labels[:TRIAL_IMAGES])
        config = replace(
            trainer.config,
            epochs=1,
            batch_size=len(few),
            train_images=None,
            test_images=None,
            permute=False,
            learning_rate=1e-6,  # so that nothing blows up which a schedule would lead up to
            attack=replace(trainer.config.attack, steps=1),
            # Images of the data alone; and the only step has what later ones would have.
            refinements=replace(trainer.config.refinements, extra_share=0.0, awp_from=1),
        )
        data = replace(trainer.data, train=few, validation=few, test=few)
        teacher = None if trainer.teacher is None else trainer.teacher.network
        super().__init__(config, data, output=output, factory=factory, teacher=teacher)

    def _build(self) -> Training:
        self._normalisation = self._tried._normalisation
        training = self._tried._training
        return copy.deepcopy(training, dict(kept_values(training.modules)))


def try_out(
    trainer: Trainer, *, factory: Factory | None, export: Callable[[Checkpoint], None] = lambda _: None
) -> None:
    """Do one step on a few images, evaluate, write and read a checkpoint, and ``export`` that, all on copies.

    The trainer and the random state of torch are as before afterwards.

    Raises:
        NetworkError: if anything of it stops, with the reason.
    """
    doing = "in a training step"
    device = trainer.net.path(trainer.net.path_names[0]).normalise.get_buffer("mean").device
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            tempfile.TemporaryDirectory(prefix="smart-train-trial-") as folder,
        ):
            file = Path(folder, "ckpt.pt")
            trial = _Trial(trainer, output=file, factory=factory)
            images = torch.from_numpy(trial.data.train.images[:TRIAL_IMAGES])
            labels = torch.from_numpy(trial.data.train.labels[:TRIAL_IMAGES])
            trial.step(trial.batches.batch(images.to(device), labels.to(device), number=1))
            doing = "in evaluation"
            net = trial.deployed()
            net.eval()
            with torch.no_grad():
                for path in net.path_names:
                    run_classifier(net.path(path), to_tensor(images).to(device))
            doing = "in its checkpoint"
            save_checkpoint(
                trial.checkpoint(net, Samples(images, labels, _copies(images, net.path_names), 0.0, "none")), file
            )
            loaded = load_checkpoint(file, factory=factory)
            doing = "in the export"
            export(loaded)
    except SmartError as error:
        raise NetworkError(f"{error} (found by a trial on {TRIAL_IMAGES} images; --no-trial leaves it out)") from error
    except Exception as error:  # the user's own code, met on the way
        raise NetworkError(
            f"a trial on {TRIAL_IMAGES} images stopped {doing}: {shortened(f'{type(error).__name__}: {error}')}; "
            f"change the network, or leave the trial out with --no-trial"
        ) from error


def _copies(images: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    return {name: images.clone() for name in names}
