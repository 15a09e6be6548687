"""The names that command lines offer, for help pages that must not wait for torch; a test holds them to the tables."""

from __future__ import annotations

ARCHITECTURES = ("resnet8", "resnet18", "resnet20", "resnet34", "resnet50", "wrn16-8", "wrn40-2")
ATTACKS = ("pgd", "fgsm-rs")
DATA_SPECS = "digits, cifar10, cifar100, svhn, stl10, npz:FILE or folder:DIR"
MASK_MODES = ("gradual", "regrow", "static")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
SCOPES = ("block", "all")
SCORES = ("magnitude", "gradient")
STRUCTURES = "channel, N:M (2:4), channel+N:M or unstructured"

DEFAULT_ALIGN = 8
