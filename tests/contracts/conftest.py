"""What the contracts run on."""

from __future__ import annotations

from cuda.stand_in import stand_in

__all__ = ["stand_in"]
