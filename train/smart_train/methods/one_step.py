"""Fast adversarial training: ``pgd_at.py`` against one step; ``training/collapse.py`` watches for its collapse."""

from __future__ import annotations

from smart_train.methods.interface import Method
from smart_train.methods.pgd_at import PGD_AT, PgdAt

FGSM_RS = Method(
    name="fgsm-rs",
    summary="one path that learns from images attacked in one step from a random start",
    reference="Wong et al. 2020, arXiv 2001.03994",
    paths=PGD_AT.paths,
    build=PgdAt.build,
    forwards=PGD_AT.forwards,
    default_density=1.0,
    defaults={"attack": "fgsm-rs", "schedule": "cyclic", "lr": 0.2},
    attack="fgsm-rs",
)

N_FGSM = Method(
    name="n-fgsm",
    summary="one path that learns from images attacked in one step from twice the noise, which is not taken back",
    reference="de Jorge et al. 2022, arXiv 2202.01181",
    paths=PGD_AT.paths,
    build=PgdAt.build,
    forwards=PGD_AT.forwards,
    default_density=1.0,
    defaults={"attack": "n-fgsm", "schedule": "cyclic", "lr": 0.2},
    attack="n-fgsm",
)
