"""NVIDIA's management library, through nvidia-ml-py (the module ``pynvml``), where it and a driver are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

_SM_CLOCK = 1  # NVML_CLOCK_SM
_NOT_FOUND = 12  # NVML_ERROR_LIBRARY_NOT_FOUND: no driver is installed

_outcomes: dict[ModuleType, str | None] = {}
"""What came of initialising a library, an error in words or None, where trying again could bring nothing else."""


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
            return _text(self._library.nvmlSystemGetDriverVersion())
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
            return getattr(self._library, function)(self._handle, *arguments)
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
    try:
        if (failure := _initialise(library)) is None:
            return tuple(Gpu(library, library.nvmlDeviceGetHandleByIndex(index)) for index in indices(library))
    except library.NVMLError as error:
        failure = str(error)
    return f"no NVIDIA graphics card that answers (NVML: {failure})"


def _initialise(library: ModuleType) -> str | None:
    """Initialise the library once in a process; return in words why it cannot be, None if it is.

    It holds a lock while it does (nvidia-ml-py 13.615), and one that an interrupt leaves locked lets nobody in again.
    Errors after which a later try may succeed, such as of a driver that has not started, come before that lock.
    """
    if library not in _outcomes:
        try:
            library.nvmlInit()
            _outcomes[library] = None
        except library.NVMLError as error:
            if getattr(error, "value", None) != _NOT_FOUND:
                raise
            _outcomes[library] = str(error)  # itself it would keep alive whatever its traceback has
    return _outcomes[library]


def _text(value: object) -> str | None:
    """Return a string of the library's, which its older versions give as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else None if value is None else str(value)
