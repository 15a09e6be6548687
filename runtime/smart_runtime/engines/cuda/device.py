"""One GPU of this process: its primary context, and the memory, streams and events in it."""

from __future__ import annotations

import ctypes
import logging
import os
from ctypes import byref, c_int, c_size_t, c_void_p
from types import TracebackType
from typing import Any

from smart_common.errors import MissingExtraError
from smart_runtime.engines.cuda.driver import CudaError, Driver, OutOfDeviceMemory, load_driver
from smart_runtime.engines.cuda.resources import DeviceMemory, Event, Held, PinnedMemory, Stream
from smart_runtime.errors import ClosedError, DeviceLostError, DeviceTakenError, EngineError, OutOfMemoryError

_log = logging.getLogger(__name__)

# Values of cuda.h.
_MULTIPROCESSOR_COUNT, _INTEGRATED, _COMPUTE_MODE = 16, 18, 20  # CUdevice_attribute
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_PROHIBITED = 2  # CUcomputemode
_DEVICE_ORDINAL = 9  # CUpointer_attribute
_INVALID_VALUE, _NOT_INITIALIZED, _UNAVAILABLE = 1, 3, 46  # CUresult
_GONE = {201, 709}  # INVALID_CONTEXT, CONTEXT_IS_DESTROYED: whoever made the context before ours has destroyed it
_LONGEST_NAME = 256


class _Process:
    """What one process has of the driver; a forked child inherits that of its parent and must not touch it."""

    def __init__(self) -> None:
        self.devices: dict[int, Device] = {}
        self.uses_driver = False


_processes: dict[int, _Process] = {}  # by process id; more than one only in a child that was forked


def _this_process() -> _Process:
    own = os.getpid()
    if any(process.uses_driver for pid, process in list(_processes.items()) if pid != own):
        raise _forked()
    return _processes.setdefault(own, _Process())


def _forked() -> ClosedError:
    return ClosedError(
        "CUDA does not survive a fork, and this process was forked from one that uses the GPU; let the parent load no "
        "model before it forks, or start this process by multiprocessing's 'spawn'"
    )


class Device:
    """A GPU, shared by all in this process; `Device.shared` makes it.

    Its primary context is the one in which PyTorch and CuPy work too, so their memory can be read here. The first use
    retains it for good: NVIDIA's libraries keep it to the end of the process too, and it must not go while it is
    current in a thread. All methods but `shared` and `use` are for the inside of a ``with device.use():`` block; those
    that make something may be called anywhere.

    Attributes:
        ordinal: Its number in this process, from 0.
        name: As the driver says it, such as ``Orin``.
        uuid: 32 hexadecimal digits.
        capability: Its compute capability, such as ``8.7``.
        multiprocessors: How many it has.
        total_bytes: Its memory; on an integrated GPU that of the whole board.
        integrated: Whether it shares its memory with the CPU, as on a Jetson.
        cuda_version: The newest CUDA that the driver runs, such as ``13.0``.
        lost: The error after which this process cannot use the device any more; None while all is well.
    """

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self.ordinal = ordinal
        self.name = ""
        self.lost: str | None = None
        self.driver = driver
        # By id. The garbage collector gives back too and may take no lock; single operations on a dict need none.
        self.held: dict[int, Held] = {}
        self._pid = os.getpid()
        self._handle = c_int(ordinal)
        self._context = c_void_p()
        self._read()

    @classmethod
    def shared(cls, ordinal: int = 0) -> Device:
        """Return the device of that number; nothing of its memory is taken before its first use.

        Raises:
            MissingExtraError: There is no driver, or it does not answer.
            EngineError: There is no such device, or it refuses.
            DeviceLostError: This process cannot use it any more.
            ClosedError: This process was forked from one that uses the driver.
        """
        process = _this_process()
        device = process.devices.get(ordinal)
        if device is None:
            driver = load_driver()
            process.uses_driver = True
            _check_ordinal(driver, ordinal)
            device = process.devices.setdefault(ordinal, cls(driver, ordinal))  # another thread may have been first
        device._check_not_lost()
        return device

    @property
    def is_in_use(self) -> bool:
        """Whether this process has retained its primary context, as every use does."""
        return bool(self._context)

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process may use it; a child that was forked may not even give back what is on it."""
        return os.getpid() == self._pid

    def use(self) -> _Use:
        """Return what makes the context current in this thread for a ``with`` block, and puts back the one before it.

        It may be used within itself, where it costs one call of the driver.

        Raises:
            ClosedError: This is a forked child.
            DeviceLostError: This process cannot use the device any more.
            OutOfMemoryError: Within the block the driver had no memory left.
            EngineError: Within the block the driver refused something else.
        """
        return _Use(self)

    def check(self) -> None:
        """Raise, as `use` does, if this process cannot use it, because another one has it to itself, for example."""
        with self.use():
            pass

    def memory(self, size: int) -> DeviceMemory:
        """Return memory of the device, ``size`` bytes of it, at least 256-byte aligned; what it holds is undefined."""
        return DeviceMemory(self, size)

    def pinned(self, size: int) -> PinnedMemory:
        """Return ``size`` bytes of the host's memory that the device copies from and to while the CPU goes on."""
        return PinnedMemory(self, size)

    def stream(self) -> Stream:
        """Return a new stream, which waits for no other one."""
        return Stream(self)

    def event(self, *, timing: bool = False) -> Event:
        """Return a new event; only those with ``timing`` can say what lies between them, and they cost a little."""
        return Event(self, timing=timing)

    def free_bytes(self) -> int:
        """Return how much of the device's memory nobody uses; on a Jetson the kernel may free more."""
        free, total = c_size_t(), c_size_t()
        with self.use():
            self.driver.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def ordinal_of(self, address: int) -> int | None:
        """Return the number of the device whose memory ``address`` lies in; None if it is none that CUDA knows."""
        ordinal = c_int(-1)
        with self.use():
            try:
                self.driver.call("cuPointerGetAttribute", byref(ordinal), _DEVICE_ORDINAL, address)
            except CudaError as error:
                if error.code != _INVALID_VALUE:
                    raise
                return None
        return ordinal.value if ordinal.value >= 0 else None  # negative: memory of the host that CUDA knows

    def __str__(self) -> str:
        """Return its number and name."""
        return f"GPU {self.ordinal}" + (f" ({self.name})" if self.name else "")

    def _read(self) -> None:
        call = self.driver.call
        total, version = c_size_t(), c_int()
        name, uuid = ctypes.create_string_buffer(_LONGEST_NAME), ctypes.create_string_buffer(16)
        try:
            call("cuDeviceGet", byref(self._handle), self.ordinal)
            call("cuDeviceGetName", name, _LONGEST_NAME, self._handle)
            self.name = name.value.decode(errors="replace")
            call("cuDeviceGetUuid_v2", uuid, self._handle)
            call("cuDeviceTotalMem_v2", byref(total), self._handle)
            call("cuDriverGetVersion", byref(version))
            self.uuid = uuid.raw.hex()
            self.total_bytes = total.value
            self.cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
            self.capability = f"{self._attribute(_CAPABILITY_MAJOR)}.{self._attribute(_CAPABILITY_MINOR)}"
            self.multiprocessors = self._attribute(_MULTIPROCESSOR_COUNT)
            self.integrated = bool(self._attribute(_INTEGRATED))
        except CudaError as error:
            raise self._explained(error) from error

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self.driver.call("cuDeviceGetAttribute", byref(value), attribute, self._handle)
        return value.value

    def _primary_context(self) -> c_void_p:
        if not self.is_of_this_process:
            raise _forked()
        self._check_not_lost()
        if not self._context:
            context = c_void_p()
            try:
                self.driver.call("cuDevicePrimaryCtxRetain", byref(context), self._handle)
            except CudaError as error:
                if self._attribute(_COMPUTE_MODE) == _PROHIBITED:  # cuda.h promises an unknown error, else a sticky one
                    raise EngineError(
                        f"{self} lets no process in: its compute mode is prohibited; "
                        "`nvidia-smi --compute-mode=DEFAULT` ends that"
                    ) from error
                raise
            self._context = context
        return self._context

    def _check_not_lost(self) -> None:
        if self.lost is not None:
            raise self._lost_error()

    def _lost_error(self) -> DeviceLostError:
        return DeviceLostError(
            f"{self} failed with {self.lost} and this process cannot use it any more; start the process again"
        )

    def _explained(self, error: CudaError) -> EngineError:
        """Return what ``error`` means to the user; a sticky one ends the use of the device in this process."""
        if error.sticky:
            self._lose(error)
            return self._lost_error()
        if isinstance(error, OutOfDeviceMemory):
            return OutOfMemoryError(
                f"{self} has no memory left ({error.function}); end other programs that use it, or lower the batch"
            )
        if error.code == _UNAVAILABLE:  # the compute mode is "exclusive process"
            return DeviceTakenError(
                f"{self} serves one process at a time and another one has it ({error.name}); end that one, or let "
                "several in with `nvidia-smi --compute-mode=DEFAULT`"
            )
        return EngineError(
            f"{self} refused a call ({error}); try once more, and report it with what `smart-run selftest` prints"
        )

    def _lose(self, error: CudaError) -> None:
        if self.lost is None:
            self.lost = f"{error.name} ({error.code}) in {error.function}"

    def give_back(self, held: Held) -> None:
        """Give ``held`` back to the driver, whatever fails on the way; nothing if that was done or is not ours."""
        if not self.is_of_this_process or not held.claim or not held.value:
            self.held.pop(id(held), None)
            return
        errors: list[CudaError] = []
        previous, context = c_void_p(), self._context
        known = self._insist(errors, "cuCtxGetCurrent", byref(previous))
        ours = known and previous.value == context.value
        try:
            if not ours:
                self._insist(errors, "cuCtxSetCurrent", context)
            if held.wait is not None:
                self._try(errors, held.wait, held.value)
            try:
                self.driver.call_once(held.free, held.claim)
            except CudaError as error:
                errors.append(error)
            self.held.pop(id(held), None)
        finally:
            if known and not ours:
                self._insist(errors, "cuCtxSetCurrent", previous)
        self._report(errors)

    def give_back_orphans(self) -> None:
        """Give back what has lost its owner, whose finalizer an interrupt has struck; never raises."""
        for held in tuple(self.held.values()):
            if held.owner() is None:
                self.give_back(held)

    def _insist(self, errors: list[CudaError], function: str, *args: Any) -> bool:
        """Call twice if need be: a call may fail with the error of earlier work, and without these nothing is freed."""
        return self._try(errors, function, *args) or self._try(errors, function, *args)

    def _try(self, errors: list[CudaError], function: str, *args: Any) -> bool:
        try:
            self.driver.call(function, *args)
        except CudaError as error:
            errors.append(error)
            return False
        return True

    def _report(self, errors: list[CudaError]) -> None:
        """Log the first of what failed while something was given back; that of a lost device is known already."""
        if errors and self.lost is None:
            _log.warning("%s: giving back failed (%s)", self, errors[0])
            for error in errors:
                if error.sticky:
                    self._lose(error)


class _Use:
    """The ``with`` block of `Device.use`; one object is for one block."""

    __slots__ = ("_device", "_previous")

    def __init__(self, device: Device) -> None:
        self._device = device
        self._previous: c_void_p | None = None  # unless our context was current already

    def __enter__(self) -> None:
        device, previous = self._device, c_void_p()
        try:
            context = device._primary_context()
            device.driver.call("cuCtxGetCurrent", byref(previous))
            if previous.value != context.value:
                self._previous = previous
                device.driver.call("cuCtxSetCurrent", context)
        except BaseException as error:  # Ctrl-C too: __exit__ is not called then
            self._put_back()
            if isinstance(error, CudaError):
                raise device._explained(error) from error
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed = self._put_back()
        if isinstance(error, CudaError):
            raise self._device._explained(error) from error
        if failed is not None and (explained := self._device._explained(failed)) and error is None:
            raise explained from failed

    def _put_back(self) -> CudaError | None:
        errors: list[CudaError] = []
        if self._previous is not None:
            self._device._insist(errors, "cuCtxSetCurrent", self._previous)
        return next((error for error in errors if error.code not in _GONE), None)


def _check_ordinal(driver: Driver, ordinal: int) -> None:
    count = c_int()
    try:
        driver.call("cuInit", 0)
        driver.call("cuDeviceGetCount", byref(count))
    except CudaError as error:
        if error.code == _NOT_INITIALIZED:  # a library that we know nothing of has used the driver before the fork
            raise _forked() from error
        raise MissingExtraError(
            f"the NVIDIA driver does not answer ({error}); `smart-devices doctor` says what is missing"
        ) from error
    if not 0 <= ordinal < count.value:
        raise EngineError(
            f"there is no GPU {ordinal}: the driver shows {count.value}, counted from 0; choose one of them, or look "
            "at CUDA_VISIBLE_DEVICES"
        )
