"""history.csv, the line an epoch, the curves and TensorBoard's events: all tell the same figures."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from smart_common.errors import OutputError
from smart_common.roles import Role
from smart_train import load_checkpoint
from smart_train.accuracy import Accuracy, accuracy
from smart_train.data.images import Split
from smart_train.errors import ConfigError
from smart_train.masking.network import PathNetwork
from smart_train.training.curves import draw_history
from smart_train.training.history import check_history, history_path, write_history
from smart_train.training.loop import Trainer
from smart_train.training.results import EpochReport
from smart_train.training.selection import SELECTION_IMAGES, Measurement
from train.networks import image_set, tiny_config

COLUMNS = [
    "epoch",
    "learning_rate",
    "clean_loss",
    "robust_loss",
    "clean_density",
    "robust_density",
    "clean_path_clean_accuracy",
    "robust_path_clean_accuracy",
    "robust_path_robust_accuracy",
]


def read(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_each_epoch_is_one_row_and_the_checkpoint_has_the_same(trained: Path) -> None:
    text = history_path(trained).read_text()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    rows = read(history_path(trained))
    assert rows == load_checkpoint(trained).training["history"], "floats are written to the last digit"
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    densities = [row["clean_density"] for row in rows]
    assert densities == sorted(densities, reverse=True)
    assert densities[-1] == 0.5
    assert rows[-1]["learning_rate"] == pytest.approx(0, abs=1e-12)
    for row in rows:
        assert row["robust_path_robust_accuracy"] <= row["robust_path_clean_accuracy"] <= 1


def test_of_a_large_validation_split_a_part_is_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []

    def spy(model: PathNetwork, split: Split, **options: Any) -> Accuracy:
        asked.append((len(split), options["attack"] is not None))
        return accuracy(model, split, **options)

    monkeypatch.setattr("smart_train.training.selection.accuracy", spy)
    data = image_set(train=10 * (SELECTION_IMAGES + 60))
    Trainer(tiny_config(epochs=1, batch_size=2000), data, output=tmp_path / "ckpt.pt").run()
    assert sorted(asked) == [(1000, True), (1060, False), (1060, False)]


def test_every_epoch_is_reported_with_its_row(tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    trainer = Trainer(tiny_config(), image_set(), output=tmp_path / "ckpt.pt")
    trainer.run(on_epoch=reports.append)
    assert [report.row for report in reports] == trainer.history
    assert {report.epochs for report in reports} == {4}
    assert not reports[0].best, "the masks are not frozen yet"
    best = [report.row["epoch"] for report in reports if report.best]
    assert best[-1] == load_checkpoint(tmp_path / "ckpt.pt").training["best_epoch"]
    assert all(report.images_per_second > 0 for report in reports)
    assert all(report.seconds_left > 0 for report in reports), "the report is still to come after the last"


def test_the_time_left_counts_the_report_by_its_passes() -> None:
    whole = image_set()
    validation, test = Split(whole.train.images[:3], whole.train.labels[:3]), whole.test
    share = Measurement(eps=0.1, seed=0, device=torch.device("cpu")).report_share(
        {"clean": Role.CLEAN, "robust": Role.ATTACKED}, validation=validation, test=test
    )
    validated = 3 + 3 + 3 * (1 + 3 * 10)  # both paths on clean images, one under PGD-10
    one_path = len(test) + (len(test) + 3) * (1 + 3 * 20)  # clean, PGD-20, and that on the samples
    assert share == 2 * one_path / validated


def test_a_resumed_training_writes_the_whole_history(tmp_path: Path, trained: Path) -> None:
    class Unplugged(Exception):  # noqa: N818  # no error: the test pulls the plug
        pass

    def pull(report: EpochReport) -> None:
        if report.row["epoch"] == 2:
            raise Unplugged

    output = tmp_path / "ckpt.pt"
    with pytest.raises(Unplugged):
        Trainer(tiny_config(), image_set(), output=output).run(on_epoch=pull)
    assert len(read(history_path(output))) == 2
    Trainer(tiny_config(), image_set(), output=output, resume=True).run()
    assert history_path(output).read_bytes() == history_path(trained).read_bytes()


def test_a_history_is_replaced_whole_and_a_foreign_file_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.csv"
    check_history(path)
    write_history([{"epoch": 1, "learning_rate": 0.1}], path)
    check_history(path)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write_history([{"epoch": 1, "learning_rate": 0.1}, {"epoch": 2, "learning_rate": 0.0}], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("year,event\n1917,revolution\n")
    with pytest.raises(ConfigError, match="is not the history of a training"):
        check_history(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="is not the history of a training"):
        check_history(path)


@pytest.mark.parametrize("name", ["curves.png", "curves.svg"])
def test_the_curves_of_a_history_are_drawn(trained: Path, tmp_path: Path, name: str) -> None:
    rows = load_checkpoint(trained).training["history"]
    file = tmp_path / name
    for some in (rows, rows[:1]):
        draw_history(some, file, attack="pgd10x1")
        assert file.stat().st_size > 5000
    assert list(tmp_path.iterdir()) == [file]
    if file.suffix == ".svg":
        text = file.read_text()
        for words in ("Loss", "Validation accuracy", "Kept", "robust path, pgd10x1"):
            assert f"<!-- {words} -->" in text
    with pytest.raises(OutputError, match=r"ending in \.png"):
        draw_history(rows, tmp_path / "curves.doc", attack="pgd10x1")


def test_trainings_that_write_one_history_at_the_same_time_do_not_trip_each_other(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    code = "import sys; from pathlib import Path; from smart_train.training.history import write_history as w\n"
    code += "for i in range(200): w([{'epoch': i, 'learning_rate': float(sys.argv[2])}], Path(sys.argv[1]))"
    both = [subprocess.Popen([sys.executable, "-c", code, str(path), rate]) for rate in ("0.1", "0.2")]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert read(path)[0]["epoch"] == 199
    assert list(tmp_path.iterdir()) == [path]


def test_events_of_two_trainings_are_not_mixed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder, output = tmp_path / "events", tmp_path / "ckpt.pt"
    Trainer(tiny_config(epochs=1), image_set(), output=output, tensorboard=folder).run()
    Trainer(tiny_config(epochs=1), image_set(), output=output, tensorboard=folder, resume=True)
    with pytest.raises(ConfigError, match="another training"):
        Trainer(tiny_config(epochs=1), image_set(), output=tmp_path / "other.pt", tensorboard=folder)


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "events"
    trainer = Trainer(tiny_config(epochs=2), image_set(), output=tmp_path / "ckpt.pt", tensorboard=folder)
    trainer.run()
    found = events.EventAccumulator(str(folder)).Reload()
    assert set(found.Tags()["scalars"]) == {*COLUMNS, "images_per_second"}
    for name in COLUMNS:
        logged = [(event.step, event.value) for event in found.Scalars(name)]
        wanted = [(row["epoch"], torch.tensor(row[name]).item()) for row in trainer.history]
        assert logged == wanted, name
