"""TensorRT's engine under `SmartModel`, over a driver and a TensorRT that are none."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from runtime.bundles import as_float, random_images, write_bundle
from smart_runtime import BatchRange, EngineOptions, SmartModel
from smart_runtime.engines import REFERENCE_ENGINE
from smart_runtime.engines.plan_keys import Key, key_digest
from smart_runtime.engines.plans import PlanCache
from trt.fake_tensorrt import DIALECTS
from trt.machine import gpu_machine

PATHS = ("clean", "robust")
IMAGES = as_float(random_images(24))
OPTIONS = EngineOptions(batch=BatchRange(1, 4, 8))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def expected(bundle: Path) -> dict[str, np.ndarray]:
    """What the reference engine says of each image alone, and so of each in any batch."""
    with SmartModel.load(bundle, engine=REFERENCE_ENGINE, threads=1) as model:
        found = {}
        for path in PATHS:
            model.path = path
            found[path] = np.concatenate([model(IMAGES[i : i + 1]) for i in range(len(IMAGES))])
    return found


@pytest.fixture(params=DIALECTS)
def machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path
) -> Iterator[str]:
    """Every dialect in turn; the name of its engine."""
    with gpu_machine(monkeypatch, stand_in, request.param, cache=tmp_path):
        yield "tensorrt-rtx" if request.param.startswith("rtx") else "tensorrt"


def test_every_batch_size_gives_the_bits_of_the_reference(
    machine: str, bundle: Path, expected: dict[str, np.ndarray]
) -> None:
    with SmartModel.load(bundle, engine=machine, options=OPTIONS) as model:
        for path in (*PATHS, *PATHS):
            model.path = path
            for images in (1, 2, 7, 8, 9, 16, 17, 24):
                assert np.array_equal(model(IMAGES[:images]), expected[path][:images])


def test_a_storm_of_switches_mixes_nothing(
    monkeypatch: pytest.MonkeyPatch,
    stand_in: StandInDriver,
    tmp_path: Path,
    bundle: Path,
    expected: dict[str, np.ndarray],
) -> None:
    calls_each, wrong = 20, []
    stand_in.delay(200)

    def work(model: SmartModel, seed: int) -> None:
        dice = random.Random(seed)  # noqa: S311
        for _ in range(calls_each):
            first = dice.randrange(8)
            last = dice.randrange(first + 1, first + 17)  # up to twice the largest batch
            result = model.run(IMAGES[first:last])
            if not np.array_equal(result.scores, expected[result.path][first:last]):
                wrong.append(result.path)

    with (
        gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path),
        SmartModel.load(bundle, engine="tensorrt", options=OPTIONS) as model,
    ):
        threads = [threading.Thread(target=work, args=(model, seed)) for seed in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            model.switch(random.choice(PATHS))  # noqa: S311
        for thread in threads:
            thread.join()
        stats = model.stats
        assert not wrong
        assert sum(one.calls for one in stats.paths.values()) == 8 * calls_each
        assert all(one.calls for one in stats.paths.values())


def test_a_model_that_nobody_closes_gives_back_the_gpu(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path
) -> None:
    with gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path):
        model = SmartModel.load(bundle, engine="tensorrt", options=OPTIONS)
        assert stand_in.used()
        del model
        gc.collect()
        assert not stand_in.used()


def test_what_was_compiled_on_the_device_is_kept(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path
) -> None:
    saved: list[tuple[Key, bytes]] = []
    save = PlanCache.save_kernels

    def saving(self: PlanCache, key: Key, kernels: bytes) -> None:
        saved.append((key, kernels))
        save(self, key, kernels)

    monkeypatch.setattr(PlanCache, "save_kernels", saving)
    with gpu_machine(monkeypatch, stand_in, "rtx-1.7", cache=tmp_path):
        SmartModel.load(bundle, engine="tensorrt-rtx", options=OPTIONS).close()
        assert len(saved) == len(PATHS)
        SmartModel.load(bundle, engine="tensorrt-rtx", options=OPTIONS).close()
        assert len(saved) == len(PATHS), "they were there"
        kept = PlanCache()
        for key, data in saved:
            found = kept.find(key)
            assert found is not None
            assert found.kernels == data
        (file,) = kept.folder.glob(f"{key_digest(saved[0][0])}/kernels")
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        found = kept.find(saved[0][0])
        assert found is not None
        assert found.kernels == b"", "what was damaged is compiled anew"
        SmartModel.load(bundle, engine="tensorrt-rtx", options=OPTIONS).close()
        assert len(saved) == len(PATHS) + 1


def test_a_plan_for_one_batch_size_takes_every_batch(
    machine: str, bundle: Path, expected: dict[str, np.ndarray]
) -> None:
    """Smaller ones are filled up, larger ones cut into pieces."""
    with SmartModel.load(bundle, engine=machine, options=EngineOptions(batch=BatchRange(4, 4, 4))) as model:
        for images in (1, 4, 6):
            assert np.array_equal(model(IMAGES[:images]), expected["clean"][:images])
