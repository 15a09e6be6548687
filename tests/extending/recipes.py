"""The recipes of CONTRIBUTING.md, read as its reader does: files to write, rows to add, commands to type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("devices", "runtime", "train", "export")
_BLOCK = re.compile(r"^```(?P<kind>\w+)(?: (?P<file>\S+))?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Recipe:
    """One section.

    Attributes:
        files: what to write, by where.
        rows: diffs without line numbers, by the file to change.
        commands: in their order.
    """

    files: dict[str, str]
    rows: dict[str, str]
    commands: list[str]

    @property
    def touched(self) -> set[str]:
        """The files of the packages that the addition needs."""
        return {file for file in (*self.files, *self.rows) if file.split("/")[0] in PACKAGES}

    def apply(self, clone: Path) -> None:
        """Write the files and add the rows."""
        for file, text in self.files.items():
            assert not (clone / file).exists(), f"{file} is there already"
            (clone / file).write_text(text, encoding="utf-8")
        for file, diff in self.rows.items():
            after = "".join(line[1:] for line in diff.splitlines(keepends=True))
            before = "".join(line[1:] for line in diff.splitlines(keepends=True) if not line.startswith("+"))
            assert before, f"where does the row go in {file}?"
            text = (clone / file).read_text(encoding="utf-8")
            assert text.count(before) == 1, f"{file} has not exactly one place like {before!r}"
            (clone / file).write_text(text.replace(before, after), encoding="utf-8")


def recipe(title: str) -> Recipe:
    """Return the recipe under the heading ``title``."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### {re.escape(title)}\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    blocks = list(_BLOCK.finditer(section))
    return Recipe(
        files={block["file"]: block["text"] for block in blocks if block["kind"] == "python"},
        rows={block["file"]: block["text"] for block in blocks if block["kind"] == "diff"},
        commands=[
            line.removeprefix("$ ")
            for block in blocks
            if block["kind"] == "console"
            for line in block["text"].splitlines()
        ],
    )
