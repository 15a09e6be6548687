"""A fork while a call runs on the GPU: the child harms nobody, however it ends, and is told what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cuda.stand_in import StandInDriver
from smart_runtime import BatchRange, EngineOptions, SmartModel
from trt.fake_tensorrt import environment
from trt.machine import gpu_machine

_FORK_WHILE_A_CALL_RUNS = """
import ctypes, gc, json, os, signal, sys, threading
import numpy as np
from cuda.stand_in import StandInDriver
from smart_runtime import BatchRange, ClosedError, EngineOptions, SmartModel, engines
from trt.fake_tensorrt.execution import Call

def load(engine):
    return SmartModel.load(sys.argv[1], engine=engine, options=EngineOptions(batch=BatchRange(1, 2, 4)))

def told():  # on the GPU in one sentence, and on the CPU of it
    try:
        load("tensorrt")
    except ClosedError as error:
        sentence = str(error)
    engines.has_library = lambda info: info.name in {"tensorrt", "onnxruntime-cpu"}
    with load("auto") as own:
        right = bool(np.array_equal(own(images), known))
        print(json.dumps([sentence, own.engine_name, right, own.notes]), flush=True)
    sys.exit(3)

def let_go():
    global model
    model.close()
    del model
    gc.collect()
    sys.exit(3)

driver, model = StandInDriver(ctypes.CDLL("libcuda.so.1")), load("tensorrt")
images = np.full((4, *model.manifest.input.shape), 0.5, np.float32)
known = model(images)

entered, go_on, compute, scores = threading.Event(), threading.Event(), Call.compute, []

def compute_later(call):
    entered.set()
    assert go_on.wait(60)
    compute(call)

Call.compute = compute_later
caller = threading.Thread(target=lambda: scores.append(model(images)), daemon=True)
caller.start()
assert entered.wait(60)
before = driver.live(), driver.used(), 0
for end in (lambda: os._exit(3), lambda: sys.exit(3), let_go, told):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a hang must end
        end()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (driver.live(), driver.used(), driver.calls_of_forked_children()) == before
assert not scores, "the call ran all along"
go_on.set()
caller.join()
assert np.array_equal(scores[0], known)
for path in ("robust", "clean"):
    model.switch(path)
    assert np.array_equal(model(images), known) is (path == "clean")
model.close()
assert driver.leaks() == {} and not driver.unknown_frees()
"""


def test_a_child_forked_while_a_call_runs_frees_nothing(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path
) -> None:
    """At once, with all finalizers, or closing the model first: it makes no call of the driver, and the parent goes on.

    `auto` takes the CPU in such a child and says why; an engine that is named is refused.
    """
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path):
        SmartModel.load(bundle, engine="tensorrt", options=EngineOptions(batch=BatchRange(1, 2, 4))).close()
    done = subprocess.run(
        [sys.executable, "-m", "trt.gpu_process", _FORK_WHILE_A_CALL_RUNS, str(bundle)],
        env=environment("10.3", stand_in.environment()),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sentence, engine, right, notes = json.loads(done.stdout)
    assert sentence == (
        "CUDA does not survive a fork, and this process was forked from one that uses the GPU; let the parent load no "
        "model before it forks, or start this process by multiprocessing's 'spawn'"
    )
    assert (engine, right) == ("onnxruntime-cpu", True)
    assert f"tensorrt: {sentence}" in notes
