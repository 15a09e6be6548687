from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyautoattack
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from smart_common.errors import MissingExtraError
from smart_eval.attacks.autoattack import AutoAttackParts
from smart_eval.attacks.base import NamedAttack
from smart_eval.attacks.pgd import Pgd
from smart_eval.attacks.table import parse_attacks
from smart_eval.cli import main as smart_eval
from smart_eval.measure import Run, chunk_seed, measure
from smart_eval.records import Records
from smart_train import Attack, ConfigError, load_checkpoint, save_checkpoint
from smart_train.accuracy import accuracy, classified_rightly, to_tensor
from smart_train.data.load import load_data
from smart_train.masking.network import SmartNetwork
from train.networks import image_set

EPS = 0.1
FIGURES = {"eps": EPS, "steps": 20, "restarts": 1, "step_size": None, "classes": 10}


class Counting:
    """A linear classifier of three classes that counts the images it is given."""

    def __init__(self, seed: int = 0) -> None:
        self.weight = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.images = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return images.flatten(1) @ self.weight.T

    def rightly_classified(self, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Images far from 0 and 1, so that an attack of 0.2 is never cut off, with what the model says of them."""
        generator = torch.Generator().manual_seed(seed)
        images = 0.3 + 0.4 * torch.rand(count, 3, 2, 2, generator=generator, dtype=torch.float64)
        return images, self(images).argmax(dim=1)

    def breakable(self, images: Tensor, labels: Tensor, eps: float) -> np.ndarray:
        """Which images some perturbation of eps breaks: the margin to a class falls by eps times an L1 norm at most."""
        pixels, weight = images.flatten(1).numpy(), self.weight.numpy()
        scores = pixels @ weight.T
        found = np.zeros(len(pixels), dtype=bool)
        for i, label in enumerate(labels.numpy()):
            for other in set(range(3)) - {int(label)}:
                margin = scores[i, label] - scores[i, other]
                found[i] |= margin < eps * np.abs(weight[label] - weight[other]).sum()
        return found


@given(eps=st.floats(0.001, 0.2), seed=st.integers(0, 2**32))
def test_what_is_broken_is_broken_within_eps_and_could_be(eps: float, seed: int) -> None:
    model = Counting()
    images, labels = model.rightly_classified(20, seed=seed)
    found = Attack(eps=eps, steps=20, restarts=2).run(
        model, images, labels, generator=torch.Generator().manual_seed(seed), early_stop=True
    )
    assert float((found - images).abs().max()) <= eps * (1 + 1e-12)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    broken = (model(found).argmax(dim=1) != labels).numpy()
    possible = model.breakable(images, labels, eps)
    assert not (broken & ~possible).any()
    again = Attack(eps=eps, steps=20, restarts=2).run(
        model, images, labels, generator=torch.Generator().manual_seed(seed)
    )
    assert broken.sum() >= (model(again).argmax(dim=1) != labels).sum() - 1, "as strong as its last iterate"


def test_images_that_are_broken_are_left_alone() -> None:
    model = Counting()
    images, labels = model.rightly_classified(64, seed=0)
    attack = Attack(eps=0.2, steps=50, restarts=5)
    model.images = 0
    attack.run(model, images, labels, generator=torch.Generator().manual_seed(0), early_stop=True)
    fooling = model.images
    model.images = 0
    attack.run(model, images, labels, generator=torch.Generator().manual_seed(0))
    survivors = int((~model.breakable(images, labels, 0.2)).sum())
    assert fooling < model.images * max(0.2, 2 * survivors / 64)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("clean", []),
        ("pgd", ["pgd20x1"]),
        ("clean,pgd50x5", ["pgd50x5"]),
        (" pgd7x1 , clean,square", ["pgd7x1", "square"]),
        ("autoattack,apgd-ce,apgd-t,fab-t", ["autoattack", "apgd-ce", "apgd-t", "fab-t"]),
    ],
)
def test_attacks_are_named(text: str, names: list[str]) -> None:
    found = parse_attacks(text, **FIGURES)  # type: ignore[arg-type]
    assert [attack.name for attack in found] == names
    assert all(attack.eps == attack.record()["eps"] == EPS for attack in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "choose out of clean, pgd, pgd50x5, autoattack"),
        ("pgd,", "unknown attack ''"),
        ("fgsm", "unknown attack 'fgsm'"),
        ("pgd0x1", "unknown attack 'pgd0x1'"),
        ("pgd20x1,pgd", "pgd20x1 is named twice"),
        ("square50x5", "unknown attack 'square50x5'"),
        ("PGD20x1", "unknown attack 'PGD20x1'"),
    ],
)
def test_other_names_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_attacks(text, **FIGURES)  # type: ignore[arg-type]


def test_without_pyautoattack_its_attacks_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(MissingExtraError, match=r"smart-edge\[eval\]"):
        parse_attacks("pgd,autoattack", **FIGURES)  # type: ignore[arg-type]


def test_two_classes_are_too_few_for_the_targeted_attack() -> None:
    images = torch.rand(2, 1, 4, 4)
    with pytest.raises(ConfigError, match="4 or more classes for autoattack"):
        AutoAttackParts("autoattack", EPS)(
            nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), images, torch.zeros(2, dtype=torch.int64), seed=0
        )
    for name in ("autoattack", "pgd2000x20,apgd-t"):  # before hours of PGD, not after
        with pytest.raises(ConfigError, match="apgd-ce,fab-t,square"):
            parse_attacks(name, **{**FIGURES, "classes": 3})  # type: ignore[arg-type]
    assert len(parse_attacks("apgd-ce,fab-t,square", **{**FIGURES, "classes": 3})) == 3  # type: ignore[arg-type]


def test_parts_of_autoattack_are_checked_when_they_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown part of AutoAttack 'fab'"):
        AutoAttackParts("fab", EPS)
    with pytest.raises(ConfigError, match=r"eps in \[0, 1\]"):
        AutoAttackParts("square", 7)


def test_autoattack_runs_in_its_standard_version(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Watched(pyautoattack.AutoAttack):  # type: ignore[misc]
        def run_standard_evaluation(self, images: Tensor, labels: Tensor, **_: Any) -> Any:
            made.append(self)
            return images, labels

    monkeypatch.setattr(pyautoattack, "AutoAttack", Watched)
    AutoAttackParts("autoattack", EPS)(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 10)),
        torch.rand(2, 1, 4, 4),
        torch.zeros(2, dtype=torch.int64),
        seed=5,
    )
    (found,) = made
    assert found.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (found.norm, found.epsilon, found.seed) == ("Linf", EPS, 5)
    assert (found.apgd.n_iter, found.apgd_targeted.n_iter, found.fab.n_iter, found.square.n_queries) == (100,) * 3 + (
        5000,
    )
    assert found.apgd.n_restarts == found.apgd_targeted.n_restarts == found.fab.n_restarts == 1
    assert found.apgd_targeted.n_target_classes == found.fab.n_target_classes == 9


def test_autoattack_leaves_random_states_alone_and_repeats_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    images = torch.rand(12, 1, 4, 4, generator=generator)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    state = torch.random.get_rng_state()
    first, second = (AutoAttackParts("square", 0.02, queries=500)(model, images, labels, seed=3) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    assert float((first - images).abs().max()) <= 0.02 + 1e-6
    assert torch.equal(AutoAttackParts("autoattack", 0.0)(model, images, labels, seed=3), images)


@dataclass(frozen=True)
class Noting(NamedAttack):
    """Changes nothing, and notes the seeds that it is given, and how a GPU would compute."""

    seeds: list[int]
    exact: list[tuple[bool, ...]]
    name: str = "noting"
    eps: float = EPS
    description = "nothing"

    def __call__(self, _: Any, images: Tensor, __: Tensor, *, seed: int) -> Tensor:
        self.seeds.append(seed)
        backends = torch.backends
        self.exact.append((backends.cudnn.deterministic, backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32))
        return images


def test_each_chunk_is_attacked_by_a_seed_of_its_own_that_is_the_same_on_each_path(trained: Path) -> None:
    attack = Noting([], [])
    measured(net_of(trained), Records(), attacks=[attack], seed=6)
    assert attack.seeds == [chunk_seed(6, "noting", chunk) for chunk in range(3)] * 2
    assert set(attack.exact) == {(True, False, False)}, "float32 is float32, in one order"


def net_of(trained: Path) -> SmartNetwork:
    return load_checkpoint(trained).net


def measured(net: SmartNetwork, records: Records, **changes: Any) -> dict[str, dict[str, np.ndarray]]:
    attacks = [Pgd(Attack(eps=EPS, steps=3, restarts=2)), AutoAttackParts("apgd-ce", EPS)]
    attacks = changes.pop("attacks", attacks)
    options: dict[str, Any] = {"seed": 0, "about": {"model": "m"}, "chunk": 8, **changes}
    return measure(net, image_set().test, attacks=attacks, run=Run(records=records, **options))


def test_a_result_counts_what_is_right_before_and_after(trained: Path) -> None:
    net, split = net_of(trained), image_set().test
    result = measured(net, Records())
    for path, found in result.items():
        assert list(found) == ["clean", "pgd3x2", "apgd-ce"]
        generator = torch.Generator().manual_seed(0)
        clean = accuracy(net.path(path), split, attack=None, generator=generator)
        assert int(found["clean"].sum()) == clean.correct
        assert all(not (right & ~found["clean"]).any() for right in found.values())
    nothing = measured(net, Records(), attacks=[Pgd(Attack(eps=0, steps=2)), AutoAttackParts("apgd-ce", 0.0)])
    assert all(np.array_equal(right, found["clean"]) for found in nothing.values() for right in found.values())


def equal(first: dict[str, dict[str, np.ndarray]], second: dict[str, dict[str, np.ndarray]]) -> bool:
    return all(np.array_equal(found[name], second[path][name]) for path, found in first.items() for name in found)


QUICK = {"attacks": [Pgd(Attack(eps=EPS, steps=3, restarts=2)), Pgd(Attack(eps=EPS, steps=2))]}


def test_a_run_goes_on_wherever_it_was_cut_off(trained: Path, tmp_path: Path) -> None:
    net, file = net_of(trained), tmp_path / "results.jsonl"
    with Records(file) as records:
        whole = measured(net, records, **QUICK)
    content = file.read_bytes()
    assert content.count(b"\n") == 2 * 3 * 3, "paths, attacks and chunks"
    for cut in (0, len(content) // 3, content.index(b"\n") + 1, len(content) - 1, len(content)):
        file.write_bytes(content[:cut])
        with Records(file, resume=True) as records:
            assert equal(measured(net, records, **QUICK), whole)
        assert sorted(file.read_bytes().splitlines()) == sorted(content.splitlines())


def test_results_of_other_runs_are_not_taken_and_not_lost(trained: Path, tmp_path: Path) -> None:
    net, file = net_of(trained), tmp_path / "results.jsonl"
    with Records(file) as records:
        measured(net, records, **QUICK)
    content = file.read_bytes()
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"about": {"model": "other"}},
        {"chunk": 7},
        {"attacks": [Pgd(Attack(eps=0.2, steps=3, restarts=2))]},
        {"attacks": [Pgd(Attack(eps=EPS, steps=3, restarts=2, step_size=0.01))]},
    ]
    for changes in others:
        with Records(file, resume=True) as records:
            measured(net, records, **{**QUICK, **changes})
        assert len(file.read_bytes()) > len(content)
        assert file.read_bytes().startswith(content)
        content = file.read_bytes()


@pytest.mark.parametrize("line", ["hello", "[1]", "{}", '{"right": ""}', '{"right": "2"}', '{"right": [1]}', "\xff"])
def test_a_file_of_something_else_is_refused_and_kept(line: str, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(ConfigError, match=r"line 1 of .* is no result"):
        Records(file, resume=True)
    with pytest.raises(ConfigError, match="exists already"):
        Records(file)
    assert file.read_bytes() == line.encode("latin-1") + b"\n"


def test_a_file_without_a_whole_line_is_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "export.json"
    file.write_text('{"what": "json.dump ends without a newline"}')
    with pytest.raises(ConfigError, match="holds no whole line"):
        Records(file, resume=True)
    assert file.read_text() == '{"what": "json.dump ends without a newline"}'


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    with Records(str(file)), pytest.raises(ConfigError, match="another run is writing"):
        Records(file, resume=True)
    with Records(file, resume=True):
        pass


def test_a_line_that_does_not_fit_the_disk_is_an_error_and_cut_off_later(tmp_path: Path) -> None:
    file, key = tmp_path / "results.jsonl", {"attack": "x", "chunk": 0}
    right = np.array([True, False])
    with Records(file) as records:
        records.of(key, count=2, judge=lambda: right)
        whole = file.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 9, limits[1]))
        try:
            with pytest.raises(OSError, match=r"results\.jsonl"):
                records.of({**key, "chunk": 1}, count=2, judge=lambda: right)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(file.read_bytes()) == len(whole) + 9
    with Records(file, resume=True):
        assert file.read_bytes() == whole


def test_seeds_differ_by_chunk_attack_and_seed() -> None:
    seeds = {chunk_seed(s, a, c) for s in range(3) for a in ("pgd20x1", "square") for c in range(4)}
    assert len(seeds) == 24
    assert all(0 <= seed < 2**56 for seed in seeds)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(smart_eval, arguments)


def test_the_document_has_every_model_attack_and_path(trained: Path, data: str, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    options = ["--data", data, "--attack", "clean,pgd3x2,apgd-ce", "--eps", "8/255", "--examples", "9", "--json"]
    done = run(str(trained), *options, "-o", str(output))
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    (model,) = answer["models"]
    assert [attack["name"] for attack in model["attacks"]] == ["pgd3x2", "apgd-ce"]
    assert model["eps"] == 8 / 255
    assert len(set(model["example_indices"])) == model["examples"] == 9
    assert answer["paths"] == model["paths"]
    for row in model["paths"].values():
        below = [found["accuracy"] for found in row["attacks"].values()]
        assert row["robust_accuracy"] <= min(below)
        assert max(below) <= row["clean_accuracy"]
    again = run(str(trained), *options, "-o", str(output), "--resume")
    assert json.loads(again.stdout) == answer
    two = json.loads(run(str(trained), str(trained), *options, "--no-checks", "--no-threats").stdout)
    assert set(two) == {"models", "comparison"}
    assert [one["paths"] for one in two["models"]] == [model["paths"]] * 2


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(trained: Path, data: str, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    options = [str(trained), "--data", data, "--attack", "pgd50x2", "--no-threats", "--chunk", "7", "--json"]
    command = [sys.executable, "-m", "smart_eval.cli", *options, "-o", str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (output.exists() and output.read_bytes().count(b"\n") > 20):
            pass  # it is killed in the midst of its checks
        process.kill()
    kept = output.read_bytes().count(b"\n")
    assert 20 < kept < 2 * 20 * 3, "it was killed before it ended"
    resumed = run(*options, "-o", str(output), "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert output.read_bytes().count(b"\n") == 2 * 20 * 3
    assert resumed.stdout == run(*options).stdout


WHO = ("shared", "alone")


@pytest.mark.slow
def test_processes_that_share_a_run_end_as_one_alone(trained: Path, data: str, tmp_path: Path) -> None:
    files = {who: ["-o", str(tmp_path / f"{who}.jsonl"), "--report", str(tmp_path / f"{who}.html")] for who in WHO}
    options = [str(trained), "--data", data, "--attack", "pgd3x2", "--chunk", "11", "--device", "cpu", "--json"]
    shared = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    module = ["-m", "smart_eval.cli", *options, *files["shared"]]
    done = subprocess.run(
        [sys.executable, *shared, *module],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run(*options, *files["alone"])
    finally:
        torch.set_num_threads(threads)
    assert done.stdout == alone.stdout
    lines, lines_alone = (sorted((tmp_path / f"{who}.jsonl").read_text().splitlines()) for who in WHO)
    assert lines == lines_alone
    assert done.stderr.count("report: ") == 1, "the first process writes it"
    page, page_alone = ((tmp_path / f"{who}.html").read_text(encoding="utf-8") for who in WHO)
    assert ", shared by 2 processes" in page
    page = page.replace(str(tmp_path / "shared"), str(tmp_path / "alone"))
    assert page.replace(", shared by 2 processes", "") == page_alone


def test_an_attack_by_its_strength_is_the_one_by_its_name(trained: Path, data: str) -> None:
    options = [str(trained), "--data", data, "--no-checks", "--no-threats", "--json"]
    named = json.loads(run(*options, "--attack", "pgd4x2").stdout)
    assert json.loads(run(*options, "--attack", "pgd", "--steps", "4", "--restarts", "2").stdout) == named


def test_tables_have_a_column_for_each_attack_and_a_row_for_each_path(trained: Path, data: str, tmp_path: Path) -> None:
    other, found = tmp_path / "other.pt", load_checkpoint(trained)
    save_checkpoint(replace(found, training={**found.training, "seed": 1}), other)
    done = run(str(trained), str(other), "--data", data, "--attack", "pgd1x1,apgd-ce", "--no-checks")
    assert done.exit_code == 0, done.output
    for words in ("2 models", "pgd1x1", "apgd-ce", "worst of all", "robust"):
        assert words in done.stdout


def test_other_images_of_the_same_number_are_another_run(trained: Path, data: str, tmp_path: Path) -> None:
    options = [str(trained), "--data", data, "--attack", "pgd1x1", "--no-checks", "--no-threats", "--json"]
    output, total = ("-o", str(tmp_path / "results.jsonl"), "--resume"), len(image_set().test)
    chosen = ("--examples", str(total))  # all of them, in another order
    assert run(*options, *output).exit_code == 0
    assert run(*options, *chosen, *output).stdout == run(*options, *chosen).stdout


@pytest.mark.parametrize("eps", ["nan", "1e400", "2", "-1", "8/0"])
def test_a_radius_that_is_none_is_refused_also_without_an_attack(trained: Path, data: str, eps: str) -> None:
    done = run(str(trained), "--data", data, "--attack", "clean", "--eps", eps, "--json")
    assert done.exit_code in {1, 2}
    assert done.stdout == ""
    assert "Traceback" not in done.output


def test_no_name_is_not_the_usual_attack(trained: Path, data: str) -> None:
    assert "unknown attack ''" in run(str(trained), "--data", data, "--attack", "").output


def test_a_page_takes_the_place_of_nothing_that_the_run_reads_or_writes(
    trained: Path, data: str, tmp_path: Path
) -> None:
    model, results = tmp_path / "ckpt.pt", tmp_path / "results.jsonl"
    model.write_bytes(trained.read_bytes())
    options = [str(model), "--data", data, "--attack", "clean", "-o", str(results)]
    (tmp_path / "link").symlink_to(model)
    for place in ("ckpt.pt", "link", "results.jsonl"):
        done = run(*options, "--report", str(tmp_path / place))
        assert done.exit_code == 1
        assert "would replace or change" in done.output
    assert model.read_bytes() == trained.read_bytes()
    assert not results.exists()


def test_going_on_needs_a_file(trained: Path) -> None:
    done = run(str(trained), "--resume")
    assert done.exit_code == 2
    assert "-o names" in done.output


def digits_network(*, attack: Attack | None, epochs: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network trained on digits, on adversarial ones if there is an attack, with its test images and labels."""
    data = load_data("digits")
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, labels = to_tensor(torch.from_numpy(data.train.images)), torch.from_numpy(data.train.labels)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(labels), generator=generator), 64):
            given = images[batch]
            if attack is not None:
                given = attack.run(model, given, labels[batch], generator=generator)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(given), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return model.eval(), to_tensor(torch.from_numpy(data.test.images)), torch.from_numpy(data.test.labels)


def left_by(attack: NamedAttack, model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy under an attack."""
    before = classified_rightly(model, images, labels)
    images, labels = images[before], labels[before]
    after = classified_rightly(model, attack(model, images, labels, seed=0), labels)
    return float(after.sum()) / len(before)


def test_a_plainly_trained_network_withstands_no_autoattack() -> None:
    model, images, labels = digits_network(attack=None, epochs=5)
    assert float(classified_rightly(model, images, labels).float().mean()) > 0.9
    assert left_by(AutoAttackParts("autoattack", 0.3), model, images[:100], labels[:100]) <= 0.02


def test_pgd_with_restarts_agrees_with_apgd() -> None:
    model, images, labels = digits_network(attack=Attack(eps=0.15, steps=5), epochs=8)
    ours = left_by(Pgd(Attack(eps=0.15, steps=50, restarts=5)), model, images, labels)
    theirs = left_by(AutoAttackParts("apgd-ce", 0.15), model, images, labels)
    assert 0.2 < theirs < 0.9, "neither nothing nor everything is left"
    assert abs(ours - theirs) <= 0.01
