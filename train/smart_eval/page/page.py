"""The page as HTML, from templates: whatever they are given is escaped, so no name from a file can become markup."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from smart_common.files import replacing
from smart_common.outputs import Output
from smart_common.units import si
from smart_common.version import version
from smart_devices.cpu import cpu_model
from smart_devices.python_environment import version_of
from smart_eval.comparison import Comparison
from smart_eval.page import dial, plots
from smart_eval.page.figures import data_uri, latency, percent, points, radius, span
from smart_eval.page.included import read_included
from smart_eval.page.pictures import Pictures, make_pictures, shown_attack
from smart_eval.page.sorting import sorting
from smart_eval.page.subject import Report, suspect, tried_more, under_attack
from smart_eval.subjects import Subject
from smart_train.errors import ConfigError

_PAGE = b"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "  # what the template begins with
_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # no HTML text may hold these


def render(report: Report) -> str:
    """Return the page as HTML; equal reports give equal pages, and what the models lack is left out."""
    return ENVIRONMENT.get_template("page.html").render(report=report)


def _source(name: str) -> tuple[str, str, None]:
    """Return a template; the lines of HTML and their indentation are for its readers, and no space on the page."""
    text = resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
    return re.sub(r"\n\s*", "", text) if name.endswith(".html") else text, name, None


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup) else _UNSHOWN.sub("\ufffd", str(value))


ENVIRONMENT = Environment(
    loader=FunctionLoader(_source),
    autoescape=True,
    finalize=_shown,
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
"""Where the page's templates are, with what they call."""
ENVIRONMENT.filters.update(
    data_uri=data_uri,
    g="{:g}".format,
    latency=latency,
    percent=percent,
    points=points,
    radius=radius,
    si=si,
    span=span,
)
ENVIRONMENT.globals.update(
    dial=dial, plots=plots, sorting=sorting, suspect=suspect, tried_more=tried_more, under_attack=under_attack
)


class PageOutput:
    """The page as the user asked for it; where there is none to write, nothing is done.

    Args:
        file: where to write it, None for no page.
        include: saved results to show.

    Raises:
        ConfigError: the page cannot be written there, or a saved result is none.
        OSError: the system cannot read one.
    """

    def __init__(self, file: Path | None, include: Sequence[Path]) -> None:
        if file is not None:
            _check_place(file)
        self._file = file
        self.included = read_included(include)
        self._pictures: list[Pictures | None] = []

    @property
    def outputs(self) -> list[Output]:
        """The page as a file to be written, none where there is none."""
        return [] if self._file is None else [Output("--report", self._file, is_page)]

    def picture(self, subject: Subject, device: torch.device, *, seed: int) -> None:
        """Make the pictures of one model, none where nothing attacked it; models come in the order of the document."""
        if self._file is None:
            return
        found = None
        if subject.attacks:
            attack = shown_attack(subject.model, subject.attacks, eps=subject.eps)
            found = make_pictures(
                subject.model, subject.split, attack=attack, eps=subject.eps, seed=seed, device=device
            )
        self._pictures.append(found)

    def write(
        self,
        models: Sequence[Mapping[str, Any]],
        *,
        comparison: Comparison | None,
        command: str,
        device: torch.device,
        processes: int,
    ) -> Path | None:
        """Write the page of ``models``, as `report.document` has them, whole or not at all; None for no page.

        Returns:
            Where it is.

        Raises:
            OSError: the system refuses.
        """
        if self._file is None:
            return None
        found = Report(
            models=models,
            pictures=self._pictures,
            included=self.included,
            comparison=comparison,
            command=command,
            environment=_made_with(device, processes=processes),
        )
        with replacing(self._file) as file:
            file.write(render(found).encode("utf-8"))
        return self._file


def is_page(file: Path) -> bool:
    """Whether ``file`` is a page that `PageOutput` wrote; raises OSError if the system cannot read it."""
    with file.open("rb") as opened:
        return _PAGE in opened.read(4096)


def _check_place(file: Path) -> None:
    """Refuse a place that cannot be written, before the hours of measuring."""
    folder = file.parent
    if file.is_dir():
        raise ConfigError(f"--report {file} is a folder; name a file such as {file}/report.html")
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder} for --report; make it first, or name another")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"the folder {folder} for --report cannot be written; name another")


def _made_with(device: torch.device, *, processes: int) -> dict[str, str]:
    """Return what the figures were made on and with; no date, so that equal runs make equal pages."""
    processor = f"{cpu_model(Path('/'))}, {torch.get_num_threads()} thread(s)"
    card = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}; " if device.type == "cuda" else ""
    shared = f", shared by {processes} processes" if processes > 1 else ""
    library = version_of("pyautoattack")
    return {
        "device": card + processor + shared,
        "system": f"{platform.system()}, {platform.machine()}, Python {platform.python_version()}",
        "smart-edge": version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **({} if library is None else {"pyautoattack": library}),
    }
