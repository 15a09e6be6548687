"""How the rows of a comparison are sorted without a script: a rule of style for each row and column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from smart_eval.comparison import Comparison, Figure, Row


@dataclass(frozen=True)
class Column:
    """One column of the comparison.

    Attributes:
        name: its heading.
        of: the cell of a row, None where it is not known.
        descending: whether the largest is the best.
    """

    name: str
    of: Callable[[Row], Any]
    descending: bool = False
    accuracy: bool = False

    def value(self, row: Row) -> Any:
        """Return the number or text of a row."""
        found = self.of(row)
        return found.value if isinstance(found, Figure) else found

    def interval(self, row: Row) -> tuple[float, float]:
        """Return the interval of an accuracy."""
        found = self.of(row)
        assert isinstance(found, Figure)
        return found.interval

    def order(self, rows: Sequence[Row]) -> list[int]:
        """Return the numbers of the rows, best first, what is not known last."""

        def rank(number: int) -> tuple[bool, Any]:
            value = self.value(rows[number])
            if value is None:
                return True, 0
            return False, -value if self.descending else value

        return sorted(range(len(rows)), key=rank)


@dataclass(frozen=True)
class Sorting:
    """The columns that say something, of which the first ``text_columns`` are text, and the rules that sort by them."""

    columns: Sequence[Column]
    text_columns: int
    rules: str


def sorting(comparison: Comparison) -> Sorting:
    """Return how the rows can be sorted.

    A heading is the label of a radio button; the rule of the checked one places the rows. A browser that does not know
    these rules, and paper, for which an ordinary table folds better, have them in the order in which they were given.
    """

    def attack(name: str) -> Column:
        return Column(name, lambda row: row.attacks[name], descending=True, accuracy=True)

    text = [
        Column("model", lambda row: row.subject),
        Column("method", lambda row: row.method),
        Column("path", lambda row: row.path),
    ]
    numbers = [
        Column("stored", lambda row: row.stored),
        Column("parameters", lambda row: row.parameters),
        Column("MACs", lambda row: row.macs),
        Column("clean", lambda row: row.clean, descending=True, accuracy=True),
        *map(attack, comparison.attack_names),
        *(
            [Column("worst of all", lambda row: row.worst, descending=True, accuracy=True)]
            if comparison.attack_names
            else []
        ),
        Column("corruptions", lambda row: row.corruptions, descending=True, accuracy=True),
        Column("latency", lambda row: row.latency_ms),
        Column("bytes", lambda row: row.bytes),
        Column("forwards an image", lambda row: row.forwards),
    ]
    columns = [*text, *(one for one in numbers if any(one.value(row) is not None for row in comparison.rows))]
    rules = [
        f"#comparison:has(#by-{number}:checked) tbody tr:nth-child({row + 1}){{order:{place}}}"
        for number, column in enumerate(columns)
        for place, row in enumerate(column.order(comparison.rows))
    ]
    layout = (
        f".sortable table{{display:grid;grid-template-columns:repeat({len(columns)},auto)}}"
        ".sortable :is(thead,tbody,tr){display:grid;grid-template-columns:subgrid;grid-column:1/-1}"
    )
    # Numbers of ours alone: nothing in it is from a file.
    return Sorting(
        columns, len(text), f"@media screen{{@supports (grid-template-columns:subgrid){{{layout}{''.join(rules)}}}}}"
    )
