"""A command that memory does not suffice for ends in one sentence, whoever noticed it first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from smart_common.console.cli import Command


def of_numpy() -> None:
    np.empty(2**60, dtype=np.uint8)


def of_torch() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def of_python() -> None:
    raise MemoryError


@pytest.mark.parametrize("work", [of_numpy, of_torch, of_python])
def test_too_little_memory_is_one_sentence(work: Callable[[], None]) -> None:
    done = CliRunner().invoke(Command("work", callback=work))
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    assert done.stderr.startswith("error: there is too little memory")
    assert done.stderr.count("\n") == 1


def test_another_error_of_that_kind_is_a_bug_still() -> None:
    def work() -> None:
        raise RuntimeError("broken")

    assert str(CliRunner().invoke(Command("work", callback=work)).exception) == "broken"
