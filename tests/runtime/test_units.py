from __future__ import annotations

import pytest

from smart_runtime.units import si


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0, "", "0"),
        (7, "B", "7 B"),
        (999, "", "999"),
        (999.6, "", "1 k"),
        (1234, "B", "1.23 kB"),
        (1_160_000_000, "", "1.16 G"),
        (42_900_000, "B", "42.9 MB"),
        (5e15, "", "5000 T"),
    ],
)
def test_three_digits_and_a_prefix(value: float, unit: str, shown: str) -> None:
    assert si(value, unit) == shown
