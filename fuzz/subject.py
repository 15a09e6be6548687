"""What is fuzzed: where inputs come from, how they change, what they are given to and what it may raise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mutators import Mutator


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One reader, ready to be given inputs.

    Attributes:
        seeds: valid inputs to begin with.
        mutate: changes an input and keeps its form.
        check: gives an input to the reader, and raises AssertionError if what is accepted is not as promised.
        refusals: the exceptions by which the reader may refuse; any other is a finding.
    """

    seeds: tuple[bytes, ...]
    mutate: Mutator
    check: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...]

    def accepts(self, data: bytes) -> bool:
        """Say whether ``data`` is accepted; it is refused in one printable sentence.

        Raises:
            Exception: A finding.
        """
        try:
            self.check(data)
        except self.refusals as error:
            from smart_common.names import is_printable  # noqa: PLC0415  # not before what is fuzzed was instrumented

            said = str(error)
            assert is_printable(said), f"a refusal that is no printable sentence: {said!r}"
            assert len(said) < 5000, f"a refusal of {len(said)} characters: {said[:100]}"
            return False
        return True
