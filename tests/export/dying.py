"""A process that exports at a word, each time in a forked child (tests/forks.py), which may kill itself on the way.

python -m export.dying ckpt.pt
{"output": "/tmp/bundle", "death": "converted", "default_path": "clean"}
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NoReturn
from unittest.mock import patch

from forks import serve
from smart_devices import resolve_target
from smart_export import build, build_bundle, fold, graph, publish
from smart_train import Checkpoint, load_checkpoint

WITHOUT_A_BUNDLE = ("converting", "described", "publishing")
WITH_ONE = (
    "converting",
    "writing",
    "converted",
    "described",
    "publishing",
    "exchanged",
    "removing",
    "between the renames",
)


def die(*_: object, **__: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody outlives SIGKILL")


def die_at(event: str, *, name: str, nth: int = 1) -> None:
    """Die just before the ``nth`` time that this process does ``event`` to a file that ends in ``name``."""
    left = nth

    def watch(seen: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if seen == event and str(args[0]).endswith(name):
            left -= 1
            if left == 0:
                die()

    sys.addaudithook(watch)


def replace(module: ModuleType, name: str, value: Callable[..., object]) -> None:
    patch.object(module, name, value).start()


def exchange_and(then: Callable[[], None]) -> None:
    """Do ``then`` once the new bundle has changed places with the old one."""
    exchange = publish._exchange

    def exchanging(one: Path, other: Path) -> bool:
        assert exchange(one, other), "this file system cannot"
        then()
        return True

    replace(publish, "_exchange", exchanging)


def arrange(death: str | None) -> None:
    """Make this process die at the point that ``death`` names; "plain renames" only forces them."""
    if death == "converting":
        replace(graph, "strip_", die)  # the first graph is half made
    elif death == "writing":
        die_at("open", name="clean/model.onnx")  # its weights are written
    elif death == "described":
        replace(build, "write_checksums", die)  # the manifest is written
    elif death == "publishing":
        replace(build, "publish", die)  # the bundle is whole, and has no name
    elif death == "exchanged":
        exchange_and(die)
    elif death == "removing":
        exchange_and(lambda: die_at("os.remove", name="", nth=3))  # of the old bundle's files
    elif death in {"between the renames", "plain renames"}:
        replace(publish, "_exchange", lambda *_: False)
        if death == "between the renames":
            die_at("os.rename", name=".tmp")


def export(checkpoint: Checkpoint, *, output: str, default_path: str, death: str | None = None) -> None:
    arrange(death)
    build_bundle(
        checkpoint,
        output=Path(output),
        target=resolve_target("cpu"),
        baseline=False,
        default_path=default_path,
        random_images=1,
        force=True,
        on_step=die if death == "converted" else lambda _: None,
    )


def main() -> None:
    checkpoint = load_checkpoint(Path(sys.argv[1]))
    folded = fold(checkpoint.net, path="clean", keeps=checkpoint.net.masks("clean"))
    graph.onnx_from_module(folded, input_shape=checkpoint.input_shape, opset=20)  # the first conversion imports much
    serve(partial(export, checkpoint))


if __name__ == "__main__":
    main()
