from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reference import attacks as oracle
from smart_common.console import cli as house
from smart_eval.attacks.pgd import Pgd
from smart_eval.attacks.table import CLEAN, parse_attacks
from smart_eval.cli import main as smart_eval
from smart_eval.measure import Run, chunk_seed, measure
from smart_eval.records import Records, Right
from smart_eval.threats import EXPLAINED, Threats, measure_threats, strongest_pgd, table
from smart_train import Attack, load_checkpoint
from smart_train.accuracy import to_tensor
from smart_train.data.images import Split
from smart_train.masking.layers import Expert
from smart_train.masking.network import SmartNetwork
from train.networks import image_set

CLASSES = 4


class Linear(nn.Module):
    """A linear classifier of 3x3 images that computes in float64."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(CLASSES, 9, generator=generator, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double() @ self.weight.T


def some_images(paths: Mapping[str, nn.Module], *, seed: int, count: int = 24) -> Split:
    """Images of which each path gets half of its own and some of the others' right."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, 3, 1)).astype(np.uint8)
    says = torch.stack([path(to_tensor(torch.from_numpy(images))).argmax(dim=1) for path in paths.values()])
    return Split(images, says[np.arange(count) % len(paths), np.arange(count)].numpy())


def clean(paths: Mapping[str, nn.Module], split: Split) -> dict[str, dict[str, Right]]:
    pixels, labels = to_tensor(torch.from_numpy(split.images)), torch.from_numpy(split.labels)
    return {name: {CLEAN: (path(pixels).argmax(dim=1) == labels).numpy()} for name, path in paths.items()}


def threats_to(
    paths: Mapping[str, nn.Module], split: Split, attack: Attack, *, records: Records | None = None, **changes: Any
) -> Threats:
    right, made_on = changes.pop("right", None) or clean(paths, split), changes.pop("made_on", None)
    options: dict[str, Any] = {"seed": 0, "about": {"model": "m"}, "chunk": 10, **changes}
    run = Run(records=records or Records(), **options)
    return measure_threats(paths, split, attack=Pgd(attack), right=right, made_on=made_on, run=run)


def differing(first: Threats, second: Threats) -> list[str]:
    """Say which results differ; nothing where all are equal to the bit."""
    return [
        f"{'+'.join(source)} on {path}"
        for source, by_path in first.right.items()
        for path, right in by_path.items()
        if not np.array_equal(right, second.right[source][path])
    ] + [path for path in first.paths if not np.array_equal(first.worst(path), second.worst(path))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")], ids=len)
def test_figures_are_those_of_the_closed_form_on_linear_paths(names: tuple[str, ...], seed: int) -> None:
    paths = {name: Linear(10 * seed + i) for i, name in enumerate(names)}
    split, attack = some_images(paths, seed=seed), Attack(eps=0.1, steps=7)
    before = {name: found[CLEAN] for name, found in clean(paths, split).items()}
    found = threats_to(paths, split, attack, seed=seed)
    assert [*found.right] == [*((name,) for name in names), names]
    for source, by_path in found.right.items():
        weight = np.stack([paths[name].weight.numpy() for name in source])
        expected: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for number, start in enumerate(range(0, len(split), 10)):
            part = slice(start, start + 10)
            some = np.logical_or.reduce([one[part] for one in before.values()])
            images = to_tensor(torch.from_numpy(split.images[part][some]))
            labels = split.labels[part][some]
            generator = torch.Generator().manual_seed(chunk_seed(seed, "pgd7x1", number))
            noise = torch.empty_like(images).uniform_(-attack.eps, attack.eps, generator=generator)
            made = oracle.pgd_linear(
                images.flatten(1).double().numpy(),
                labels,
                (images + noise).clamp(0, 1).flatten(1).double().numpy(),
                weight=weight,
                eps=attack.eps,
                step=attack.step,
                steps=attack.steps,
            )
            for name in names:
                right = np.zeros(len(some), dtype=bool)
                right[some] = (made @ paths[name].weight.numpy().T).argmax(axis=1) == labels
                expected[name].append(right & before[name][part])
        for name in names:
            np.testing.assert_array_equal(by_path[name], np.concatenate(expected[name]), f"{source} on {name}")


@given(
    eps=st.floats(0, 0.3),
    restarts=st.integers(1, 3),
    count=st.integers(2, 3),
    chunk=st.integers(1, 30),
    seed=st.integers(0, 999),
)
def test_the_worst_is_no_better_than_any_part(eps: float, restarts: int, count: int, chunk: int, seed: int) -> None:
    paths = {f"p{i}": Linear(seed + i) for i in range(count)}
    split = some_images(paths, seed=seed)
    right = clean(paths, split)
    for i, by_attack in enumerate(right.values()):
        by_attack["other"] = by_attack[CLEAN] & (np.arange(len(split)) % 5 != i)
    found = threats_to(paths, split, Attack(eps=eps, steps=2, restarts=restarts), right=right, chunk=chunk)
    for path in paths:
        tried = [by_path[path] for by_path in found.right.values()]
        assert not any((one & ~right[path][CLEAN]).any() for one in tried)
        assert not any((found.worst(path) & ~one).any() for one in [*tried, *right[path].values()])
        lost = right[path][CLEAN] & ~found.worst(path)
        assert all(any(not one[i] for one in [*tried, right[path]["other"]]) for i in np.flatnonzero(lost))
        assert not (found.chosen & ~found.worst(path)).any()
    answer = found.document()
    expected = answer["unknown_path"]["expected"]["accuracy"]
    assert expected == pytest.approx(np.mean([one["accuracy"] for one in answer["unknown_path"]["paths"].values()]))
    assert answer["chosen_path"]["accuracy"] <= min(one["accuracy"] for one in answer["worst"]["paths"].values())
    assert answer["chosen_path"]["accuracy"] <= answer["unknown_path"]["expected_worst"]["accuracy"]
    for source in found.right:
        assert answer["unknown_path"]["expected_worst"]["accuracy"] <= found.shares(source).mean() + 1e-12


def test_eps_zero_is_clean() -> None:
    paths = {"a": Linear(0), "b": Linear(1)}
    split = some_images(paths, seed=0)
    found, right = threats_to(paths, split, Attack(eps=0.0, steps=2, restarts=2)), clean(paths, split)
    assert 0 < right["a"][CLEAN].sum() < len(split), "the test needs some of both"
    for path in paths:
        for one in [*(by_path[path] for by_path in found.right.values()), found.worst(path)]:
            np.testing.assert_array_equal(one, right[path][CLEAN])
    np.testing.assert_array_equal(found.chosen, right["a"][CLEAN] & right["b"][CLEAN])


@given(seed=st.integers(0, 999), restarts=st.integers(1, 3))
def test_of_equal_paths_all_figures_are_equal(seed: int, restarts: int) -> None:
    paths = {"a": Linear(seed), "b": Linear(seed)}
    split = some_images(paths, seed=seed)
    found = threats_to(paths, split, Attack(eps=0.1, steps=3, restarts=restarts))
    one = found.right["a",]["a"]
    for other in [*(right for by_path in found.right.values() for right in by_path.values()), found.chosen]:
        np.testing.assert_array_equal(other, one)
    assert found.document()["unknown_path"]["expected_worst"]["accuracy"] == one.mean()


def net_of(trained: Path) -> SmartNetwork:
    return load_checkpoint(trained).net


def paths_of(net: SmartNetwork) -> dict[str, nn.Module]:
    return {name: net.path(name) for name in net.path_names}


def test_images_are_perturbed_to_the_last_step_with_masks_held_and_flags_as_before(trained: Path) -> None:
    net, split, attack = net_of(trained), image_set().test, Attack(eps=0.2, steps=3, restarts=2)
    net.eval()
    paths = paths_of(net)
    before = clean(paths, split)
    paths["clean"].train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    seen = []

    def look(*_: object) -> None:
        experts = [module for module in net.modules() if isinstance(module, Expert) and module.weight is not None]
        seen.append(all(one.held is not None for one in experts) and not any(p.training for p in paths.values()))

    found = threats_to(paths, split, attack, right=before, chunk=21, done=look)
    assert seen == [True] * 3
    assert (paths["clean"].training, paths["robust"].training) == (True, False)
    assert all(module.held is None for module in net.modules() if isinstance(module, Expert))
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())

    net.eval()
    some = before["clean"][CLEAN] | before["robust"][CLEAN]
    images, labels = to_tensor(torch.from_numpy(split.images[some])), torch.from_numpy(split.labels[some])
    for source in paths:
        generator = torch.Generator().manual_seed(chunk_seed(0, attack.label, 0))
        made = attack.run(paths[source], images, labels, generator=generator)
        for victim in paths:
            after = np.zeros(len(split), dtype=bool)
            after[some] = (paths[victim](made).argmax(dim=1) == labels).numpy()
            np.testing.assert_array_equal(found.right[source,][victim], after & before[victim][CLEAN])


def test_a_repeated_or_resumed_run_gives_the_same_bits(trained: Path, tmp_path: Path) -> None:
    paths, split, file = paths_of(net_of(trained).eval()), image_set().test, tmp_path / "results.jsonl"
    attack = Attack(eps=0.15, steps=2)
    with Records(file) as records:
        whole = threats_to(paths, split, attack, records=records)
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == 3 * 3 * 2, "sources, chunks and paths"
    assert not differing(threats_to(paths, split, attack), whole)
    for cut in (0, len(lines[0]), len(lines[0]) + 9, len(content) // 2, len(content) - 1, len(content)):
        file.write_bytes(content[:cut])
        with Records(file, resume=True) as records:
            assert not differing(threats_to(paths, split, attack, records=records), whole)
        assert file.read_bytes() == content
    for changes in ({"seed": 1}, {"chunk": 9}, {"about": {"model": "n"}}):
        with Records(file, resume=True) as records:
            threats_to(paths, split, attack, records=records, **changes)
        assert len(file.read_bytes()) > len(content), "results of another run are not taken"
        content = file.read_bytes()


def test_results_of_both_kinds_live_in_one_file(trained: Path, tmp_path: Path) -> None:
    net, split, file = net_of(trained).eval(), image_set().test, tmp_path / "results.jsonl"
    attack, common = Pgd(Attack(eps=0.15, steps=2)), {"seed": 0, "about": {"model": "m"}, "chunk": 21}
    found = []
    for resume in (False, True):
        with Records(file, resume=resume) as records:
            right = measure(net, split, attacks=[attack], run=Run(records=records, **common))  # type: ignore[arg-type]
            found.append(threats_to(paths_of(net), split, attack.attack, records=records, right=right, **common))
    assert not differing(*found)
    assert len(file.read_bytes().splitlines()) == 2 * 2 + 3 * 2


@pytest.mark.parametrize(
    ("text", "name"),
    [("autoattack", "pgd20x1"), ("pgd7x1", "pgd7x1"), ("pgd50x1,pgd20x5,apgd-ce", "pgd20x5")],
)
def test_the_strongest_pgd_makes_the_images(text: str, name: str) -> None:
    found = strongest_pgd(parse_attacks(text, eps=0.1, steps=20, restarts=1, step_size=None, classes=4), eps=0.1)
    assert (found.name, found.attack.eps) == (name, 0.1)


def test_a_table_has_models_with_other_paths() -> None:
    found = []
    for names in (("a", "b"), ("b", "c", "d")):
        paths = {name: Linear(ord(name)) for name in names}
        found.append((f"of {len(names)}", threats_to(paths, some_images(paths, seed=0), Attack(eps=0.1, steps=2))))
    title, columns, rows = table(found)
    assert "pgd2x1" in title
    assert columns[1:-2] == ["path that runs", "made on a", "made on b", "made on c", "made on d"]
    assert len(rows) == 4 + 5
    assert {len(row) for row in rows} == {len(columns)}
    assert (rows[0][4], rows[-1][2]) == ("-", "-")
    assert rows[2][-1] == f"{found[0][1].worst_shares.mean():.3f}"
    assert rows[2][2] == f"{np.mean([one.mean() for one in found[0][1].right['a',].values()]):.3f}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    found, path = image_set(), tmp_path_factory.mktemp("data") / "images.npz"
    names = {f"{part}_{what}": getattr(getattr(found, part), what) for part in ("train", "test") for what in _PARTS}
    np.savez(path, **names)
    return f"npz:{path}"


_PARTS = ("images", "labels")


@pytest.mark.slow
def test_the_command_has_them_by_default_and_leaves_them_out(
    trained: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[list[int]] = []

    @contextmanager
    def bar(_: str, *, total: int) -> Iterator[house.Advance]:
        bars.append([total, 0])

        def advance(status: str = "", count: int = 1) -> None:  # as a bar has it
            bars[-1][1] += count

        yield advance

    monkeypatch.setattr(house, "progress", bar)

    def answer(*options: str) -> dict[str, Any]:
        done = CliRunner().invoke(smart_eval, [str(trained), "--data", data, "--json", *options])
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    attack = ["--attack", "pgd3x2,pgd2x1", "--eps", "0.15", "--chunk", "8"]
    given_ = answer(*attack)
    (model,) = given_["models"]
    threats, warnings = model.pop("threats"), model.pop("warnings")
    without = answer(*attack, "--no-threats")
    fewer = without["models"][0].pop("warnings")  # of the attacks alone, so of higher figures
    assert given_ == without, "the other keys are as before"
    assert len(fewer) <= len(warnings)
    assert all("under all that was tried" in sentence for sentence in (*warnings, *fewer))
    assert "threats" not in answer("--attack", "clean")["models"][0]
    assert all(total == counted for total, counted in bars)

    assert threats["attack"]["name"] == "pgd3x2"
    for path, row in model["paths"].items():
        assert threats["worst"]["paths"][path]["accuracy"] <= row["robust_accuracy"]
        for source in model["paths"]:
            figure = threats["transfer"]["paths"][path][source]
            assert threats["worst"]["paths"][path]["accuracy"] <= figure["accuracy"] <= row["clean_accuracy"]
            assert figure["interval"][0] <= figure["accuracy"] <= figure["interval"][1]
    said = [threats[name]["threat_model"] for name in ("transfer", "unknown_path", "worst", "chosen_path")]
    assert tuple(said) == EXPLAINED

    shown = CliRunner().invoke(smart_eval, [str(trained), "--data", data, *attack])
    for words in ("made on clean", "made on robust", "the attacker's choice", *said):
        assert words in shown.output
