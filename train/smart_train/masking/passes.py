"""One forward pass through one path of a network, and what it gives.

Named tuples, since precision plugins rebuild what goes through a wrapped network and refuse frozen dataclasses.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

INPUT = ":input"
"""Behind the name of a tapped module: what it is given first, not what it gives."""


class Pass(NamedTuple):
    """A forward pass to do.

    Attributes:
        path: through which path.
        images: float (N, C, H, W) in [0, 1].
        tap: names of modules of the path's network whose outputs are wanted too; or ``NAME:input``, their inputs.
        condition: int64 (N,), of each image, what a method's own modules take it for; a network of paths ignores it.
    """

    path: str
    images: Tensor
    tap: tuple[str, ...] = ()
    condition: Tensor | None = None


class Out(NamedTuple):
    """What a pass gives: scores (N, classes), and for each tapped name what was wanted of that module."""

    scores: Tensor
    features: dict[str, Tensor]
