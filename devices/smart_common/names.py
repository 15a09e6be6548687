"""Names from files and users: which are taken, and how they are shown."""

from __future__ import annotations

import unicodedata

MAX_NAME = 1024
"""Characters of a name."""

# They turn the direction of all text after them, so that a name can look like another one.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_printable(text: str) -> bool:
    """Whether ``text`` can be shown as it is: it neither steers a terminal nor turns its direction.

    Unlike `str.isprintable` it takes spaces of all widths and what joins letters, as Persian words and emoji need it.
    """
    return text.isprintable() or all(
        character.isprintable() or (unicodedata.category(character) in {"Cf", "Zs"} and character not in _TURNING)
        for character in text
    )


def printable(text: str) -> str:
    """Return ``text`` in one line, with a question mark for each character that a terminal or log must not get."""
    if text.isprintable():
        return text
    return "".join(character if is_printable(character) else "?" for character in text)


def is_name(name: str) -> bool:
    """Whether ``name`` can name a class in data, checkpoints and bundles: printable, of 1 to `MAX_NAME` characters."""
    return 1 <= len(name) <= MAX_NAME and is_printable(name)
