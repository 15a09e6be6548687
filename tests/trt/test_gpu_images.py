"""Images that are on the GPU already, given to a model by DLPack and by ``__cuda_array_interface__``."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from pathlib import Path

import numpy as np
import pytest

from cuda.stand_in import StandInDriver
from hardened.striking import places, struck
from runtime.bundles import CHANNELS, HEIGHT, WIDTH
from runtime.fakes import TIMEOUT
from smart_runtime import SmartModel, SwitchRequest
from smart_runtime.engines.cuda.dlpack import CUDA_MANAGED
from smart_runtime.engines.cuda.lane_pool import LanePool
from smart_runtime.engines.cuda.resources import Stream
from trt.gpu_arrays import IMAGES, OPTIONS, PROTOCOLS, GpuArray, GpuLibrary, finished
from trt.machine import gpu_machine

EVERY = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
N, C, H, W = 2, CHANNELS, HEIGHT, WIDTH


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_batch_size_gives_the_bits_of_the_reference(
    model: SmartModel, stand_in: StandInDriver, library: GpuLibrary, expected: np.ndarray, protocol: str
) -> None:
    stand_in.delay(20)
    for images in (1, 2, 3, 7, 8, 9, 16, 17):
        array = library.array(IMAGES[:images], byte_offset=4 * images)
        given = PROTOCOLS[protocol](array)
        before = stand_in.calls()
        assert np.array_equal(model(given), expected[:images])
        copies = [name for name in stand_in.trace(before) if name.startswith("cuMemcpy")]
        assert copies.count("cuMemcpyDtoDAsync_v2") == -(-images // 8)
        assert copies.count("cuMemcpyHtoDAsync_v2") == (0 < images % 8 < 3), "only what fills up comes from the host"
        assert array.given == array.deleted == ("DLPack" in protocol)
        array.release()
    assert sum(path.images for path in model.stats.paths.values()) == 1 + 2 + 3 + 7 + 8 + 9 + 16 + 17


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_call_on_every_path_takes_them_once_for_each(model: SmartModel, library: GpuLibrary, protocol: str) -> None:
    array = library.array(IMAGES[:9])
    found = model.both(PROTOCOLS[protocol](array))
    for path, scores in found.scores.items():
        with model.using(path):
            assert np.array_equal(scores, model(IMAGES[:9]))
    assert array.given == array.deleted == 2 * ("DLPack" in protocol)
    array.release()


@pytest.mark.parametrize("protocol", ["DLPack 1", "DLPack before 1", "interface 3"])
def test_what_the_producer_is_still_working_on_is_waited_for(  # noqa: PLR0917
    monkeypatch: pytest.MonkeyPatch, model: SmartModel, stand_in: StandInDriver, library: GpuLibrary,
    expected: np.ndarray, protocol: str,
) -> None:  # fmt: skip
    """The producer's stream goes on only when the call is at its end and waits for the lane's."""
    arrived = threading.Event()
    gate = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: arrived.wait(TIMEOUT) and None)
    synchronize = Stream.synchronize

    def arrive(stream: Stream) -> None:
        arrived.set()
        synchronize(stream)

    with library.device.use():
        code = stand_in.library.cuLaunchHostFunc(ctypes.c_void_p(library.stream.handle), gate, None)
    assert code == 0
    array = library.array(IMAGES[:4])
    monkeypatch.setattr(Stream, "synchronize", arrive)
    assert np.array_equal(model(PROTOCOLS[protocol](array)), expected[:4])
    array.release()


@pytest.mark.parametrize("stream", [1, 2])
def test_the_default_streams_are_waited_for_by_their_names(
    model: SmartModel, stand_in: StandInDriver, library: GpuLibrary, expected: np.ndarray, stream: int
) -> None:
    array = library.array(IMAGES[:4])
    given = finished(array, stream=stream)
    before = stand_in.calls()
    assert np.array_equal(model(given), expected[:4])
    trace = stand_in.trace(before)
    assert trace.index("cuEventRecord") < trace.index("cuStreamWaitEvent") < trace.index("cuMemcpyDtoDAsync_v2")
    array.release()


def test_strides_that_say_contiguous_will_do(model: SmartModel, library: GpuLibrary, expected: np.ndarray) -> None:
    steps = (C * H * W, H * W, W, 1)
    for strides in (steps, (7, *steps[1:])):  # the first one counts for nothing: it is of one image
        array = library.array(IMAGES[:1], strides=strides)
        assert np.array_equal(model(array), expected[:1])
        interface = finished(array, strides=tuple(4 * step for step in strides))
        assert np.array_equal(model(interface), expected[:1])
        array.release()


def test_a_batch_that_is_too_small_is_filled_up_with_zeros(model: SmartModel, library: GpuLibrary) -> None:
    def views() -> list[np.ndarray]:
        """The lanes' inputs, which the host can read here."""
        lanes = LanePool.shared(library.device)._lanes
        return [np.ctypeslib.as_array((ctypes.c_float * (3 * C * H * W)).from_address(a))
                for lane in lanes for a in (lane.device_in.address, lane.host_in.address)]  # fmt: skip

    for images in (IMAGES[:1], library.array(IMAGES[:1])):
        for view in views():
            view[:] = np.nan
        model(images)
        (seen,) = (view for view in views()[::2] if not np.isnan(view[0]))
        assert np.array_equal(seen.reshape(3, C, H, W), np.concatenate([IMAGES[:1], np.zeros((2, C, H, W))]))
    assert isinstance(images, GpuArray)
    images.release()


def test_managed_memory_is_taken_too(model: SmartModel, library: GpuLibrary, expected: np.ndarray) -> None:
    array = library.array(IMAGES[:4], kind=CUDA_MANAGED)
    assert np.array_equal(model(array), expected[:4])
    array.release()


def test_the_memory_of_an_array_that_nobody_has_is_freed_after_the_call(
    model: SmartModel, stand_in: StandInDriver, library: GpuLibrary, expected: np.ndarray
) -> None:
    used = stand_in.used()
    array = library.array(IMAGES, frees=True)
    assert np.array_equal(model(array), expected)
    assert array.deleted == 1
    assert stand_in.used() == used
    assert not any(stand_in.faults().values())


class Recorder:
    """A policy that switches at once, and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def start(self, model: object) -> None: ...

    def observe(self, result: object, images: object) -> SwitchRequest:  # noqa: ARG002  # a policy's signature
        self.seen.append(images)
        return SwitchRequest("robust", "for once")

    def stop(self) -> None: ...


def test_a_policy_is_shown_the_array(
    monkeypatch: pytest.MonkeyPatch, stand_in: StandInDriver, tmp_path: Path, bundle: Path
) -> None:
    policy = Recorder()
    with (
        gpu_machine(monkeypatch, stand_in, "10.3", cache=tmp_path),
        SmartModel.load(bundle, engine="tensorrt", options=OPTIONS, policy=policy) as model,
    ):
        library = GpuLibrary()
        array = library.array(IMAGES[:4])
        assert model.run(array).path == "clean"
        assert asyncio.run(model.arun(array)).path == "robust"
        assert policy.seen == [array, array]
        array.release()
        library.close()


def test_threads_with_images_here_and_there_mix_nothing(
    model: SmartModel, stand_in: StandInDriver, expected: np.ndarray
) -> None:
    stand_in.delay(100)
    right: list[bool] = []

    def work(seed: int) -> None:
        library = GpuLibrary()
        for call in range(12):
            images = slice((seed + call) % 8, (seed + 5 * call) % 8 + 9)
            array = library.array(IMAGES[images], frees=True)
            right.append(np.array_equal(model(array), expected[images]))
            right.append(np.array_equal(model(IMAGES[images]), expected[images]))
        library.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 96


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # within a finalizer it is only printed
@pytest.mark.parametrize("protocol", ["DLPack 1", "interface 3"])
@EVERY
def test_an_interrupt_at_any_place_keeps_no_array_and_lets_none_go_too_early(  # noqa: PLR0917
    model: SmartModel, stand_in: StandInDriver, library: GpuLibrary, expected: np.ndarray, protocol: str, every: int
) -> None:
    stand_in.delay(20)

    def new_array() -> GpuArray:
        array = library.array(IMAGES[:9], frees=True)
        with library.device.use():
            library.stream.synchronize()  # so that whatever is in the way of freeing it is not the library's own work
        return array

    def call(array: GpuArray) -> None:
        assert np.array_equal(model(PROTOCOLS[protocol](array)), expected[:9])

    array = library.array(IMAGES[:9])
    call(array)  # what is imported is no place of the next one
    numbers = places(lambda: call(array))
    array.release()
    stops = 0
    for at in numbers[::every]:
        array = new_array()
        stops += struck(lambda array=array: call(array), at=at) is not None  # type: ignore[misc]
        assert array.deleted == array.given
        assert not any(stand_in.faults().values())
        array.free()
        assert np.array_equal(model(IMAGES), expected)
    assert stops > 0.8 * len(numbers[::every]) > 10
