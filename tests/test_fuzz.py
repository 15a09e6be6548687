"""The short form of ``make fuzz``, and that the harness finds what it is there to find."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutators import mutate_protobuf
from subject import Subject
from targets import TARGETS

from runtime.bundles import CHANNELS, CLASSES, HEIGHT, WIDTH, graph_files
from smart_runtime.bundle.graph_bytes import GraphBytes
from smart_runtime.bundle.manifest import InputSpec, OutputSpec
from smart_runtime.engines import AUTO, create_engine
from smart_runtime.errors import EngineError

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="needs atheris, which has wheels for x86-64 only"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUZZ / "fuzz_bundle.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@needs_atheris
@pytest.mark.parametrize("inputs", [1500, pytest.param(6000, marks=pytest.mark.slow)])
def test_a_few_thousand_inputs_find_nothing(tmp_path: Path, inputs: int) -> None:
    done = run("--runs", str(inputs), "--json", "--artifacts", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["inputs"], record["findings"]) == (inputs, 0)
    assert {found["target"] for found in record["targets"]} == set(TARGETS) - {"planted"}
    for found in record["targets"]:
        assert found["inputs"] == found["accepted"] + found["refused"]
        assert found["accepted"], f"{found['target']} accepted nothing: what lies behind its checks was not tried"
        assert found["refused"] > found["inputs"] / 4, f"{found['target']} was given too little that is wrong"


@needs_atheris
def test_equal_seeds_give_equal_inputs(tmp_path: Path) -> None:
    counts = {}
    for name, seed in (("first", 1), ("second", 1), ("other", 2)):
        done = run(
            "--target", "checksums", "--runs", "1500", "--seed", str(seed), "--json", "--artifacts", str(tmp_path)
        )
        counts[name] = json.loads(done.stdout)["targets"][0]["accepted"]
    assert counts["first"] == counts["second"] != counts["other"]


@needs_atheris
def test_a_planted_defect_is_found_saved_and_replayed(tmp_path: Path) -> None:
    """It takes four bytes that random inputs would meet once in four thousand million: coverage leads there."""
    done = run("--target", "planted", "--runs", "300000", "--artifacts", str(tmp_path))
    assert done.returncode == 1
    assert "findings in planted" in done.stdout
    assert "KeyError: 'planted'" in done.stderr
    (finding,) = tmp_path.glob("planted-crash-*")
    assert finding.read_bytes().startswith(b"edge")
    assert f"--target planted --replay {finding}" in done.stderr
    again = run("--target", "planted", "--replay", str(finding))
    assert (again.returncode, again.stderr.splitlines()[-1]) == (1, "KeyError: 'planted'")


def test_what_is_no_finding_replays_without_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    done = run("--target", "planted", "--replay", str(tmp_path / "x"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "accepted\n", "")
    done = run("--target", "manifest", "--replay", str(tmp_path / "x"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


def test_without_atheris_it_says_so_in_one_sentence() -> None:
    code = (
        "import runpy, sys; sys.modules['atheris'] = None; sys.path.insert(0, sys.argv[1]); "
        "sys.argv[:] = ['fuzz_bundle.py']; runpy.run_path(sys.path[0] + '/fuzz_bundle.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(FUZZ)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: atheris, which leads the fuzzing by coverage, is not there on ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    names = ("manifest", "checksums", "graph", "key", "bundle")
    return {name: TARGETS[name].prepare(tmp_path_factory.mktemp(name)) for name in names}


@pytest.mark.parametrize("name", ["manifest", "checksums", "graph", "key", "bundle"])
@settings(max_examples=150)
@given(rng=st.randoms(use_true_random=False), changes=st.integers(0, 3))
def test_a_changed_file_is_as_promised_or_refused(
    subjects: dict[str, Subject], name: str, rng: random.Random, changes: int
) -> None:
    """Without atheris too: what is accepted holds what the target checks, and what is not is refused in a sentence."""
    subject = subjects[name]
    data = rng.choice(subject.seeds)
    for _ in range(changes):
        data = subject.mutate(data, rng) or data
    accepted = subject.accepts(data)
    assert accepted or changes


def test_a_changed_graph_stays_a_message_now_and_then() -> None:
    """Bytes changed at random break the lengths of all the messages around them."""
    onnx = pytest.importorskip("onnx")
    whole, rng = graph_files("clean")[0], random.Random(0)  # noqa: S311  # repeatable, not secret
    parsed = 0
    for _ in range(200):
        try:
            onnx.ModelProto.FromString(mutate_protobuf(whole, rng) or b"\xff")
        except Exception:  # noqa: S112  # protobuf's own error, which moves between its versions
            continue
        parsed += 1
    assert parsed > 100, f"{parsed} of 200"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [(b"\x12\x01N", b"\x12\x01\xe6", "names in UTF-8"), (b"hidden", b"hidde\xd2", "did not accept")],
    ids=["of a size", "of a value"],
)
def test_names_that_are_not_utf_8_are_refused_and_print_nothing(
    capfd: pytest.CaptureFixture[str], old: bytes, new: bytes, said: str
) -> None:
    """Found by the target ``session``: ONNX Runtime takes such names, and its Python side trips over them."""
    model, weights = graph_files("clean")
    before, found, after = model.rpartition(old)
    assert found
    graph = GraphBytes(model=before + new + after, weights=weights, weights_name="weights.bin")
    inputs = InputSpec(name="image", channels=CHANNELS, height=HEIGHT, width=WIDTH)
    with pytest.raises(EngineError, match=said):
        create_engine(AUTO, graph, inputs=inputs, outputs=OutputSpec(name="scores", classes=CLASSES))
    assert capfd.readouterr() == ("", "")
