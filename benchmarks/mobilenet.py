"""MobileNetV3-Small for ImageNet (Howard et al. 2019, arXiv 1905.02244, table 2), for latency only.

What residual networks do not have: depthwise convolutions, squeeze-excite and hard-swish, in narrow layers.
"""

from __future__ import annotations

from torch import Tensor, nn

# kernel, channels inside, channels after, squeeze-excite, hard-swish instead of ReLU, stride
_TABLE = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
_STEM, _LAST, _HIDDEN = 16, 576, 1024


def _unit(before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(8, channels // 4 // 8 * 8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1), nn.Hardsigmoid()
        )

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features * self.gate(self.pool(features))
        return result


class _Inverted(nn.Module):
    def __init__(self, before: int, row: tuple[int, int, int, bool, bool, int]) -> None:
        super().__init__()
        kernel, inside, after, excite, swish, stride = row
        activation = nn.Hardswish if swish else nn.ReLU
        self.inner = nn.Sequential(
            *([_unit(before, inside, 1), activation()] if inside != before else []),
            _unit(inside, inside, kernel, stride=stride, groups=inside),
            activation(),
            *([_SqueezeExcite(inside)] if excite else []),
            _unit(inside, after, 1),
        )
        self.residual = stride == 1 and before == after

    def forward(self, features: Tensor) -> Tensor:
        inner: Tensor = self.inner(features)
        return features + inner if self.residual else inner


class MobileNetV3(nn.Module):
    """Maps images (N, in_channels, H, W) to scores (N, num_classes)."""

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        outs = [_STEM, *(row[2] for row in _TABLE)]
        self.features = nn.Sequential(
            _unit(in_channels, _STEM, 3, stride=2),
            nn.Hardswish(),
            *(_Inverted(before, row) for before, row in zip(outs, _TABLE, strict=False)),
            _unit(outs[-1], _LAST, 1),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Sequential(nn.Linear(_LAST, _HIDDEN), nn.Hardswish(), nn.Linear(_HIDDEN, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the scores."""
        scores: Tensor = self.classifier(self.features(images).flatten(1))
        return scores
