"""How many images are attacked together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from smart_eval.cli import main as smart_eval
from smart_train import ConfigError, load_checkpoint
from smart_train import chunks as subject
from smart_train.chunks import CHUNK, enough_memory, usual_chunk

SHAPE = (1, 4, 4)


class Layers(nn.Module):
    """So many sigmoids, each of which keeps its output for the gradient, behind weights that are kept once."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16, 16), requires_grad=False)
        self.count = count

    def forward(self, images: Tensor) -> Tensor:
        found = images.flatten(1) @ self.weight
        for _ in range(self.count):
            found = found.sigmoid()
        return found


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=3), memory=st.integers(1, 10**6))
def test_the_gradients_of_a_chunk_fit_the_memory_and_those_of_twice_as_many_do_not(
    counts: list[int], memory: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "MEMORY", memory)
        chunk = usual_chunk([Layers(count) for count in counts], SHAPE, device="cuda")
    an_image = sum(counts) * 16 * 4  # bytes of float32
    assert 1 <= chunk <= CHUNK
    assert chunk & (chunk - 1) == 0, "a power of two"
    assert chunk == 1 or chunk * an_image <= memory
    assert chunk == CHUNK or 2 * chunk * an_image > memory


def test_a_network_that_does_other_things_with_other_numbers_has_a_chunk_too() -> None:
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            found = images.flatten(1)
            for _ in range(len(images)):
                found = found.sigmoid()
            return found

    assert 1 <= usual_chunk([Odd()], SHAPE, device="cpu") <= CHUNK


def test_without_gradients_the_size_of_the_images_counts() -> None:
    for shape, chunk in (((3, 32, 32), CHUNK), ((1, 8, 8), CHUNK), ((3, 64, 64), CHUNK // 4), ((3, 2048, 2048), 1)):
        assert usual_chunk([], shape, device="cpu") == chunk


@given(most=st.integers(1, 10**5))
def test_on_a_cpu_each_tensor_stays_small(most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "MOST_IN_A_TENSOR", most)
        chunk = usual_chunk([Layers(3), Layers(1)], SHAPE, device="cpu")
        assert usual_chunk([Layers(3)], SHAPE, device="cuda") == CHUNK
    assert chunk == 1 or chunk * 16 * 4 < most
    assert chunk == CHUNK or 2 * chunk * 16 * 4 >= most


def test_a_network_is_as_it_was(trained: Path) -> None:
    checkpoint = load_checkpoint(trained)
    net = checkpoint.net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert usual_chunk([net.path("clean")], checkpoint.input_shape, device="cpu", most=64) == 64
    assert net.path("clean").training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_too_little_memory_is_one_sentence_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="--chunk 64"), enough_memory(256):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), enough_memory(256):
        torch.zeros(3) @ torch.zeros(4, 4)


def test_the_command_takes_fewer_images_where_memory_is_short(
    trained: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [str(trained), "--data", data, "--attack", "pgd1x1", "--no-checks", "--no-threats", "--json"]
    monkeypatch.setattr(subject, "MEMORY", 0)
    fewest = CliRunner().invoke(smart_eval, options)
    assert '"chunk": 1,' in fewest.stdout, fewest.output
    assert '"chunk": 5,' in CliRunner().invoke(smart_eval, [*options, "--chunk", "5"]).stdout
