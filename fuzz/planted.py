"""A target with a defect: it shows that the harness is led by coverage, finds, saves and replays."""

from __future__ import annotations

from subject import Subject

WORD = b"edge"


def check(data: bytes) -> None:
    """Raise KeyError for an input that begins with ``WORD``; letter by letter, so that each is new coverage."""
    if data[0:1] == WORD[0:1]:
        if data[1:2] == WORD[1:2]:
            if data[2:3] == WORD[2:3]:
                if data[3:4] == WORD[3:4]:
                    raise KeyError("planted")
                raise ValueError("three letters")
            raise ValueError("two letters")
        raise ValueError("one letter")


def subject() -> Subject:
    """Return it."""
    return Subject(seeds=(b"    ",), mutate=lambda data, rng: None, check=check, refusals=(ValueError,))  # noqa: ARG005
