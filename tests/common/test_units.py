from __future__ import annotations

import pytest

from smart_common.units import duration, si


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


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (187, "3:07 min"), (3600, "1:00:00 h"), (7509, "2:05:09 h")],
)
def test_times_as_a_person_says_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
