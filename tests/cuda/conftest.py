"""The driver without a device, for every test here."""

from __future__ import annotations

from cuda.stand_in import stand_in

__all__ = ["stand_in"]
