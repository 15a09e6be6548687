"""Parameters and multiply-accumulates of residual networks, counted from the papers' tables with nothing but integers.

``kept`` says how many of a block interior's channels are there: all of them in a plain network, fewer on a masked path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Kept = Callable[[int], int]


@dataclass
class Count:
    """Sums up layers; ``side`` is that of the square feature map that the next layer reads."""

    side: int
    parameters: int = 0
    macs: int = 0
    normalised: int = 0

    @property
    def folded_parameters(self) -> int:
        """Parameters once every batch norm is in the convolution before it: a weight fewer for each of its channels."""
        return self.parameters - self.normalised

    def convolution(self, before: int, after: int, *, kernel: int, stride: int = 1) -> None:
        """Add a convolution without bias, padded by half its kernel: each output takes before * kernel^2 products."""
        self.side = pooled(self.side, kernel=kernel, stride=stride)
        weights = before * after * kernel**2
        self.parameters += weights
        self.macs += weights * self.side**2

    def shortcut(self, before: int, after: int, *, side: int, stride: int) -> None:
        """Add a 1x1 convolution that reads the block's input, of ``side``, beside the others."""
        weights = before * after
        self.parameters += weights
        self.macs += weights * pooled(side, kernel=1, stride=stride) ** 2

    def batch_norm(self, channels: int) -> None:
        """Add a weight and a bias a channel; no multiply-accumulate of its own once it is folded."""
        self.parameters += 2 * channels
        self.normalised += channels

    def linear(self, before: int, after: int) -> None:
        """Add a linear layer with bias."""
        self.parameters += before * after + after
        self.macs += before * after


def pooled(side: int, *, kernel: int, stride: int) -> int:
    """Return the side behind a window of ``kernel`` with half of it as padding."""
    return (side + 2 * (kernel // 2) - kernel) // stride + 1


def _all(channels: int) -> int:
    return channels


def resnet(*, blocks: tuple[int, ...], width: int, side: int, classes: int, kept: Kept = _all) -> Count:
    """Count He et al. 2016, basic blocks behind one 3x3 convolution on colour images."""
    count = Count(side)
    count.convolution(3, width, kernel=3)
    count.batch_norm(width)
    before = width
    for stage, number in enumerate(blocks):
        channels = width * 2**stage
        inside = kept(channels)
        for block in range(number):
            stride, start = (2 if stage and block == 0 else 1), count.side
            count.convolution(before, inside, kernel=3, stride=stride)
            count.batch_norm(inside)
            count.convolution(inside, channels, kernel=3)
            count.batch_norm(channels)
            if before != channels:
                count.shortcut(before, channels, side=start, stride=stride)
                count.batch_norm(channels)
            before = channels
    count.linear(before, classes)
    return count


def bottleneck_resnet(*, blocks: tuple[int, ...], width: int, side: int, classes: int, kept: Kept = _all) -> Count:
    """Count He et al. 2016, table 1, 50-layer, with the stride in the 3x3; the stem is inside no residual stream."""
    count = Count(side)
    before = kept(width)
    count.convolution(3, before, kernel=7, stride=2)
    count.batch_norm(before)
    count.side = pooled(count.side, kernel=3, stride=2)
    for stage, number in enumerate(blocks):
        inside, channels = kept(width * 2**stage), 4 * width * 2**stage
        for block in range(number):
            stride, start = (2 if stage and block == 0 else 1), count.side
            count.convolution(before, inside, kernel=1)
            count.batch_norm(inside)
            count.convolution(inside, inside, kernel=3, stride=stride)
            count.batch_norm(inside)
            count.convolution(inside, channels, kernel=1)
            count.batch_norm(channels)
            if block == 0:
                count.shortcut(before, channels, side=start, stride=stride)
                count.batch_norm(channels)
            before = channels
    count.linear(before, classes)
    return count


def wide_resnet(*, blocks: tuple[int, ...], width: int, side: int, classes: int, kept: Kept = _all) -> Count:
    """Count Zagoruyko and Komodakis 2016, table 1: batch norm before each convolution, 16 channels behind the stem."""
    return preactivation_resnet(blocks=blocks, width=width, side=side, classes=classes, kept=kept, stem=16)


def preactivation_resnet(
    *,
    blocks: tuple[int, ...],
    width: int,
    side: int,
    classes: int,
    kept: Kept = _all,
    stem: int | None = None,
    last_norm: bool = True,
) -> Count:
    """Count He et al. 2016 (1603.05027), figure 1 (b), basic blocks; the stem is as wide as the first stage."""
    count = Count(side)
    stem = width if stem is None else stem
    before = kept(stem) if width != stem else stem  # alone unless the first stage adds to it
    count.convolution(3, before, kernel=3)
    for stage, number in enumerate(blocks):
        channels = width * 2**stage
        inside = kept(channels)
        for block in range(number):
            stride, start = (2 if stage and block == 0 else 1), count.side
            count.batch_norm(before)
            count.convolution(before, inside, kernel=3, stride=stride)
            count.batch_norm(inside)
            count.convolution(inside, channels, kernel=3)
            if block == 0 and (before, stride) != (channels, 1):
                count.shortcut(before, channels, side=start, stride=stride)
            before = channels
    if last_norm:
        count.batch_norm(before)
    count.linear(before, classes)
    return count
