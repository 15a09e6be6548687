"""VGG (Simonyan and Zisserman 2014, arXiv 1409.1556): a chain, flattened into linear layers with dropout."""

from __future__ import annotations

from torch import Tensor, nn


class Vgg(nn.Module):
    def __init__(self, *, num_classes: int, in_channels: int, width: int = 16, batch_norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for channels in (width, width, 2 * width):
            layers.append(nn.Conv2d(before, channels, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(channels))
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            before = channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(2 * width * 4, 64),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(64, 32),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(32, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return scores


def bare(*, num_classes: int, in_channels: int, width: int = 16) -> nn.Module:
    """The original, without batch norms."""
    return Vgg(num_classes=num_classes, in_channels=in_channels, width=width, batch_norm=False)
