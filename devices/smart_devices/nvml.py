"""NVIDIA's management library, through nvidia-ml-py (the module ``pynvml``), where it and a driver are installed."""

from __future__ import annotations

from _thread import start_new_thread
from collections.abc import Callable, Iterable
from importlib import import_module
from queue import SimpleQueue
from types import ModuleType
from typing import Any, TypeVar

_T = TypeVar("_T")

_SM_CLOCK = 1  # NVML_CLOCK_SM


class Gpu:
    """One graphics card; what it does not tell is None, whatever the reason.

    Made by `open_gpu` and `open_gpus`.
    """

    def __init__(self, library: ModuleType, handle: Any) -> None:
        self._library = library
        self._handle = handle

    @property
    def name(self) -> str:
        """Its name, as in ``NVIDIA GeForce RTX 4090``."""
        return _text(self._ask("nvmlDeviceGetName")) or "NVIDIA GPU"

    @property
    def compute_capability(self) -> str | None:
        """Its compute capability, as in ``8.9``."""
        numbers = self._ask("nvmlDeviceGetCudaComputeCapability")
        return None if numbers is None else ".".join(map(str, numbers))

    @property
    def memory_bytes(self) -> int | None:
        """Its memory, a little less than it is sold with; machines that share theirs with the host do not tell."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.total)

    @property
    def driver(self) -> str | None:
        """The version of the driver that all cards share, as in ``580.65.06``."""
        try:
            return _text(_apart(self._library.nvmlSystemGetDriverVersion))
        except self._library.NVMLError:
            return None

    def energy_mj(self) -> int | None:
        """Return the energy since the driver was loaded, in mJ (Volta and later)."""
        return self._number("nvmlDeviceGetTotalEnergyConsumption")

    def power_mw(self) -> int | None:
        """Return the power in mW."""
        return self._number("nvmlDeviceGetPowerUsage")

    def sm_clock_mhz(self) -> int | None:
        """Return the clock of the multiprocessors in MHz."""
        return self._number("nvmlDeviceGetClockInfo", _SM_CLOCK)

    def max_sm_clock_mhz(self) -> int | None:
        """Return the highest clock of the multiprocessors in MHz."""
        return self._number("nvmlDeviceGetMaxClockInfo", _SM_CLOCK)

    def clock_event_reasons(self) -> int | None:
        """Return why the clock is not higher, a sum of bits (``NVML_CLOCKS_EVENT_REASONS``)."""
        reasons = self._number("nvmlDeviceGetCurrentClocksEventReasons")
        return reasons if reasons is not None else self._number("nvmlDeviceGetCurrentClocksThrottleReasons")

    def _number(self, function: str, *arguments: int) -> int | None:
        value = self._ask(function, *arguments)
        return value if isinstance(value, int) else None

    def _ask(self, function: str, *arguments: int) -> Any:
        try:
            return _apart(lambda: getattr(self._library, function)(self._handle, *arguments))
        except (self._library.NVMLError, AttributeError):  # not supported, driver gone; a library too old to know it
            return None


def open_gpu(index: int = 0, *, load: Callable[[str], ModuleType] = import_module) -> Gpu | str:
    """Return the graphics card number ``index``, or in words why there is none to ask.

    The library stays loaded until the process ends, as CUDA does.

    Args:
        index: As the library counts.
        load: Imports a module by name.
    """
    found = _open(load, lambda _: [index])
    return found if isinstance(found, str) else found[0]


def open_gpus(*, load: Callable[[str], ModuleType] = import_module) -> tuple[Gpu, ...] | str:
    """Return every graphics card, at least one, or in words why there is none to ask; see `open_gpu`."""
    found = _open(load, lambda library: range(library.nvmlDeviceGetCount()))
    return found or "no NVIDIA graphics card that the driver knows"


def _open(load: Callable[[str], ModuleType], indices: Callable[[ModuleType], Iterable[int]]) -> tuple[Gpu, ...] | str:
    try:
        library = load("pynvml")
    except ImportError:
        return "no nvidia-ml-py to ask a graphics card with: pip install 'smart-edge[nvml]'"

    def cards() -> tuple[Gpu, ...]:
        library.nvmlInit()
        return tuple(Gpu(library, library.nvmlDeviceGetHandleByIndex(index)) for index in indices(library))

    try:
        return _apart(cards)
    except library.NVMLError as error:
        return f"no NVIDIA graphics card that answers (NVML: {error})"


def _apart(work: Callable[[], _T]) -> _T:
    """Return ``work()``, done in a thread that no interrupt reaches.

    The library takes its lock a line before the `try` that frees it (nvidia-ml-py 13.615): interrupted there, it would
    let nobody in again. An interrupt ends the wait for the work instead, which ends by itself.
    """
    done: SimpleQueue[tuple[_T, None] | tuple[None, BaseException]] = SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # raised again where it is waited for
            done.put((None, error))

    start_new_thread(run, ())
    found, error = done.get()
    if error is not None:
        raise error
    return found  # type: ignore[return-value]  # either is None


def _text(value: object) -> str | None:
    """Return a string of the library's, which its older versions give as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else None if value is None else str(value)
