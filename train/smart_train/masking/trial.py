"""Copies of a network to try things on, and how exactly what is tried on them must hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_M = TypeVar("_M", bound=nn.Module)

# In float64 what should be equal agrees to rounding (1e-13 seen); a wrong slice is off by orders of magnitude more.
EXACT = 1e-9
# What float32 sums in another order differ by at most, as a fraction of the largest score; 1e-6 is usual.
ROUNDED = 1e-4
_TRIED = 2  # images: not one, which code may treat as none


def copied(network: _M, *, shared: dict[int, Any] | None = None) -> _M:
    """Return a deep copy of ``network``; ``shared``, by their ids, are used in it as they are.

    Activations that a forward kept in ``self`` belong to the graph of that pass, which cannot be copied: their values
    are.
    """
    return copy.deepcopy(network, {**kept_values(network), **(shared or {})})


def kept_values(network: nn.Module) -> dict[int, Tensor]:
    """Return, as a memo for ``copy.deepcopy``, the values of the activations that a forward kept in ``network``."""
    return {id(kept): kept.detach().clone() for module in network.modules() for kept in _activations(vars(module))}


def _activations(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _activations(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _activations(inner)


@dataclass(frozen=True, eq=False)
class Trial:
    """A copy of a network in eval mode on the CPU.

    Attributes:
        network: the copy.
        dtype: float64 where the network computes in it from beginning to end, else float32.
        tolerance: what two results that should be equal may differ by, as a fraction of the largest one.
    """

    network: nn.Module
    dtype: torch.dtype
    tolerance: float


def trial_of(network: nn.Module, images: Tensor, *, prepare: Callable[[nn.Module], None] = lambda _: None) -> Trial:
    """Return a copy of ``network`` to try things on, in float64 unless its own code insists on float32.

    Args:
        network: any module; it is not changed.
        images: float (N, C, H, W), an input it takes.
        prepare: changes the copy in place before its precision is tried.
    """
    exact = copied(network).to(device="cpu", dtype=torch.float64).eval()
    prepare(exact)
    if _computes_in_float64(exact, images[:_TRIED]):
        return Trial(exact, torch.float64, EXACT)
    rounded = copied(network).to(device="cpu", dtype=torch.float32).eval()
    prepare(rounded)
    return Trial(rounded, torch.float32, ROUNDED)


class _Coarse(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether an operator gives floating-point numbers coarser than float64."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64:
                self.seen = True
        return result


@torch.no_grad()
def _computes_in_float64(network: nn.Module, images: Tensor) -> bool:
    """Whether ``network``, in float64, runs without a tensor of less: a cast, or a kernel made on the way."""
    coarse = _Coarse()  # type: ignore[no-untyped-call]
    try:
        with coarse:
            network(images.to(device="cpu", dtype=torch.float64))
    except Exception:  # two types in one operator, say: its own code runs here
        return False
    return not coarse.seen
