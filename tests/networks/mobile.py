"""MobileNetV3 (Howard et al. 2019, arXiv 1905.02244): inverted residuals, depthwise, squeeze-excite, hard-swish."""

from __future__ import annotations

from torch import Tensor, nn

from networks.residual import unit


class SqueezeExcite(nn.Module):
    """Scales every channel by what two 1x1 convolutions make of the channels' means."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features * self.gate(self.expand(self.relu(self.reduce(self.pool(features)))))
        return result


class Inverted(nn.Module):
    def __init__(self, before: int, after: int, *, stride: int, excite: bool) -> None:
        super().__init__()
        inner = 3 * before
        activation = nn.Hardswish
        self.inner = nn.Sequential(
            unit(before, inner, 1),
            activation(inplace=True),
            unit(inner, inner, 3, stride=stride, groups=inner),
            activation(inplace=True),
            SqueezeExcite(inner, 8) if excite else nn.Identity(),
            unit(inner, after, 1),
        )
        self.residual = stride == 1 and before == after

    def forward(self, features: Tensor) -> Tensor:
        inner: Tensor = self.inner(features)
        return features + inner if self.residual else inner


class MobileNet(nn.Module):
    def __init__(self, *, num_classes: int, in_channels: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            unit(in_channels, width, 3),
            nn.Hardswish(inplace=True),
            Inverted(width, width, stride=1, excite=True),
            Inverted(width, 2 * width, stride=2, excite=False),
            Inverted(2 * width, 2 * width, stride=1, excite=True),
            unit(2 * width, 64, 1),
            nn.Hardswish(inplace=True),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Sequential(
            nn.Linear(64, 48), nn.Hardswish(inplace=True), nn.Dropout(0.2), nn.Linear(48, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(images).flatten(1))
        return scores
