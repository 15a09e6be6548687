"""The checkpoints of a bundle as the command line names them: one with all paths, or two of one path each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from smart_common.console import cli as house
from smart_common.files import digest_and_value

if TYPE_CHECKING:
    from smart_export.sources import Sources
    from smart_train import Checkpoint
    from smart_train.data.cli import DataPlaces
    from smart_train.data.images import ImageSet

_F = TypeVar("_F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class GivenCheckpoints:
    """The files: ``whole`` has all paths, or ``separate`` are networks of their own, by path."""

    whole: Path | None
    separate: Mapping[str, Path]

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [*self.separate.values()] if self.whole is None else [self.whole]

    def bundle(self, target: str) -> Path:
        """Return where the bundle goes unless the user says: beside the first of them."""
        return self.files[0].with_name("-".join([*(file.stem for file in self.files), target]))

    def read(self, load: Callable[[Path], Checkpoint]) -> tuple[Sources, dict[str, Any]]:
        """Return what they hold, read by ``load``, and their digests for machines.

        Raises:
            CheckpointError: one is no checkpoint.
            ExportError: they do not go into one bundle.
        """
        from smart_export.sources import read_sources  # noqa: PLC0415  # loads torch

        if self.whole is not None:
            digest, checkpoint = digest_and_value(self.whole, load)
            return read_sources(checkpoint), {"checkpoint_digest": digest}
        found = {path: digest_and_value(file, load) for path, file in self.separate.items()}
        digests = {path: digest for path, (digest, _) in found.items()}
        sources = read_sources({path: checkpoint for path, (_, checkpoint) in found.items()})
        return sources, {"checkpoint_digest": None, "checkpoint_digests": digests}

    def control(
        self, file: Path | None, sources: Sources, *, load: Callable[[Path], Checkpoint]
    ) -> Mapping[str, Mapping[str, Any]] | None:
        """Return what the dense control in ``file``, or beside the checkpoint, measured; see `control.find_control`."""
        from smart_export.control import find_control  # noqa: PLC0415  # loads torch

        if self.whole is None:
            return None
        return find_control(file, sources.whole, file=self.whole, load=load, note=house.note)


def images_for(spec: str, places: DataPlaces, sources: Sources) -> ImageSet:
    """Return the images that ``spec`` names, in the form that the checkpoints take; raises what `load_data` raises."""
    from smart_train.data.load import wanted_size  # noqa: PLC0415  # loads NumPy

    return places.load(spec, image_size=wanted_size(spec, input_shape=sources.whole.input_shape))


def checkpoint_options(function: _F) -> _F:
    """Add CHECKPOINT, ``--clean`` and ``--robust``, passed to the command as one ``given: GivenCheckpoints``."""

    @click.argument("checkpoint", type=_FILE, required=False)
    @click.option(
        "--clean",
        type=_FILE,
        metavar="CKPT",
        help="Instead of CHECKPOINT, with --robust: a network of one path, whatever its name, that becomes the path "
        "clean: --clean standard.pt --robust trades.pt.",
    )
    @click.option("--robust", type=_FILE, metavar="CKPT", help="Likewise, the path robust; they share no weights.")
    @functools.wraps(function)
    def command(
        *, checkpoint: Path | None, clean: Path | None, robust: Path | None, dense_control: Path | None, **others: Any
    ) -> Any:
        separate = {path: file for path, file in (("clean", clean), ("robust", robust)) if file is not None}
        if len(separate) != (0 if checkpoint is not None else 2):
            raise click.UsageError("Give one CHECKPOINT with all paths, or --clean and --robust with a path each.")
        if separate and dense_control is not None:
            raise click.UsageError("--dense-control is of one CHECKPOINT, and two separate networks have none.")
        return function(given=GivenCheckpoints(checkpoint, separate), dense_control=dense_control, **others)

    return command  # type: ignore[return-value]  # it takes three parameters where the function takes one
