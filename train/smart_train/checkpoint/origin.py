"""Whether a checkpoint can be the one that a bundle was exported from."""

from __future__ import annotations

from smart_common.errors import shortened
from smart_runtime.bundle.manifest import Manifest
from smart_train.checkpoint.format import Checkpoint
from smart_train.errors import ConfigError


def check_source(manifest: Manifest, source: Checkpoint) -> None:
    """Raise ConfigError if a bundle and a checkpoint differ in input shape, classes or paths."""
    theirs = (manifest.input.shape, manifest.class_names, tuple(manifest.paths))
    ours = (source.input_shape, source.class_names, source.net.path_names)
    for what, in_bundle, in_source in zip(("input shape", "classes", "paths"), theirs, ours, strict=True):
        if in_bundle != in_source:
            raise ConfigError(
                f"the {what} of the bundle, {shortened(str(in_bundle))}, and of the checkpoint, "
                f"{shortened(str(in_source))}, differ; give the checkpoint that it was exported from"
            )
