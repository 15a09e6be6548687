from __future__ import annotations

import pytest

from smart_devices.jetpack import JetPackVersion, jetpack_of, jetpack_table


def test_every_release_is_named_once() -> None:
    versions = [version for row in jetpack_table() for version in row.versions]
    releases = [release for row in jetpack_table() for release in row.l4t]
    assert len(set(versions)) == len(versions)
    assert len(set(releases)) == len(releases)


def test_later_releases_bring_no_older_software() -> None:
    def numbers(text: str | None) -> tuple[int, ...] | None:
        return None if text is None else tuple(map(int, text.split(".")))

    for column in ("ubuntu", "python", "cuda", "tensorrt"):
        found = [value for row in jetpack_table() if (value := numbers(getattr(row, column))) is not None]
        assert found == sorted(found), column


@pytest.mark.parametrize(
    ("l4t", "expected"),
    [
        ("35.4.1", JetPackVersion("5.1.2", "table")),
        ("36.4.4", JetPackVersion("6.2.1", "table")),
        ("36.4.7", JetPackVersion("6.2.1", "table")),
        ("36.4.12", JetPackVersion("6.2.1", "nearest")),
        ("36.5.1", JetPackVersion("6.2.2", "nearest")),
        ("32.7.4", JetPackVersion("4.6.4", "table")),
        ("36.6.0", None),  # a minor release brings other software: no neighbour counts
        ("40.0.0", None),
        ("36.4", None),
        ("36.4.x", None),
        ("36.4.٣", None),
        ("", None),
    ],
)
def test_which_jetpack_an_l4t_release_belongs_to(l4t: str, expected: JetPackVersion | None) -> None:
    assert jetpack_of(l4t) == expected
    assert expected is None or ("approximate" in str(expected)) == (expected.source == "nearest")
