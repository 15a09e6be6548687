"""Run a plain network once, and see who feeds whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smart_train.errors import NetworkError


@dataclass
class Trace:
    """Who feeds whom, seen by module hooks in one forward pass."""

    batch_norm_after: dict[str, str]  # producer -> the batch norm that reads exactly its output
    output_module: str | None
    order: tuple[str, ...]  # of the calls, each module where it was called first


def run_classifier(network: nn.Module, images: Tensor) -> Tensor:
    """Return the scores (N, classes) of a plain ``network``; raise NetworkError if it gives none."""
    try:
        output = network(images)
    except Exception as error:  # its own code runs here
        raise NetworkError(
            f"expected a network that takes images of shape {tuple(images.shape)}, got {type(network).__name__}, which "
            f"stopped with: {error}; check the example input"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise NetworkError(
            f"expected a classifier that maps images to scores (N, classes), got {got}; wrap it so that it does"
        )
    return output


def trace(network: nn.Module, images: Tensor) -> Trace:
    """Trace one forward pass over ``images`` (N, C, H, W); raise NetworkError where `run_classifier` does."""
    made_by: dict[int, str] = {}
    alive: list[Tensor] = []  # keeps every tensor seen, so that no id is given twice
    after: dict[str, str] = {}
    order: dict[str, None] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            order.setdefault(name)
            if isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made_by:
                after[made_by[id(inputs[0])]] = name
            if isinstance(output, Tensor):
                alive.append(output)
                made_by[id(output)] = name

        handles.append(module.register_forward_hook(hook))

    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) or not any(True for _ in module.children()):
            watch(name, module)
    try:
        with torch.no_grad():
            output = run_classifier(network, images)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(batch_norm_after=after, output_module=made_by.get(id(output)), order=tuple(order))


@contextmanager
def traceable(network: nn.Module) -> Iterator[None]:
    """Put ``network`` in eval mode with all gradients on, which Torch-Pruning follows; put both back at the end."""
    flags = [(m, m.training) for m in network.modules()]
    wants = [(p, p.requires_grad) for p in network.parameters()]
    try:
        for p, _ in wants:
            p.requires_grad_(True)
        network.eval()
        yield
    finally:
        for m, flag in flags:
            m.training = flag
        for p, want in wants:
            p.requires_grad_(want)
