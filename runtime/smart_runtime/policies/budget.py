"""What the machine draws, or how hot it is, decides: above a level the cheaper path answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from smart_devices.errors import SensorError
from smart_devices.power import NoPower, Part, find_power
from smart_runtime.bundle.manifest import Manifest
from smart_runtime.errors import InputError, PathError
from smart_runtime.inputs import Images
from smart_runtime.policies.policy import PolicyModel, SwitchRequest, check_choice
from smart_runtime.serving import Result


class Budget:
    """Lets the cheaper path answer while a reading is high: watts, degrees, or what else has to stay low.

        Budget(machine_watts(), above=12, below=10, unit="W")
        Budget(lambda: int(open("/sys/class/thermal/thermal_zone0/temp").read()) / 1000, above=80, below=70, unit="C")

    It answers from when the reading is above ``above`` until it is below ``below``. A reading of NaN changes nothing;
    one that raises is a failure of the policy, and nothing changes either.
    """

    def __init__(
        self,
        reading: Callable[[], float],
        *,
        above: float,
        below: float,
        path: str | None = None,
        otherwise: str | None = None,
        unit: str = "",
        every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Decide by ``reading``.

        Args:
            reading: Returns a number; called after a call, in its thread.
            above: In the reading's own unit.
            below: Less than ``above``.
            path: The cheaper path; None for the one with the fewest multiply-accumulates by the manifest.
            otherwise: Answers else; None for the bundle's default path.
            unit: For reasons.
            every_s: How often to read, at most.
            clock: Returns seconds that never decrease.

        Raises:
            ValueError: ``below`` is not below ``above``, or ``every_s`` is negative, or one of them is NaN.
        """
        if not below < above:
            raise ValueError(f"expected below < above, got below {below:g} and above {above:g}; leave some room")
        if not every_s >= 0:
            raise ValueError(f"expected every_s in seconds, at least 0, got {every_s:g}")
        self._reading = reading
        self._above, self._below = above, below
        self._named = (path, otherwise)
        self._path = self._otherwise = ""
        self._unit = f" {unit}" if unit else ""
        self._every_s = every_s
        self._clock = clock
        self._next_s = float("-inf")
        self._last = float("nan")

    def start(self, model: PolicyModel) -> None:
        """Choose the paths; raises as `check_choice`, and PathError if the two are one or cost the same."""
        self._choose(model)
        request = self._read()
        if request is not None:
            model.switch(request.path, request.reason)

    def reloaded(self, model: PolicyModel) -> None:
        """Choose again by the new manifest; raises as `start`."""
        self._choose(model)

    def _choose(self, model: PolicyModel) -> None:
        manifest = model.manifest
        otherwise = self._named[1] or manifest.default_path
        path = self._named[0] or min(manifest.paths, key=lambda name: manifest.paths[name].macs)
        for name in (path, otherwise):
            check_choice(name, model)
        if self._named[0] is None and manifest.paths[path].macs >= _macs(manifest, otherwise):
            raise PathError(f"no path is cheaper than {otherwise!r} by the manifest; name one, as in path='robust'")
        if path == otherwise:
            raise PathError(f"expected two paths, got {path!r} twice; name another, as in otherwise='clean'")
        self._path, self._otherwise = path, otherwise

    def observe(self, result: Result, images: Images) -> SwitchRequest | None:  # noqa: ARG002  # the reading counts
        """Return what the reading asks for, None if it is not time to read."""
        return self._read()

    def _read(self) -> SwitchRequest | None:
        if (now := self._clock()) < self._next_s:
            return None
        self._next_s = now + self._every_s
        value = self._last = self._reading()
        if value > self._above:
            return SwitchRequest(self._path, f"{value:.4g}{self._unit} is above {self._above:g}")
        if value < self._below:
            return SwitchRequest(self._otherwise, f"{value:.4g}{self._unit} is below {self._below:g}")
        return None

    def status(self) -> Mapping[str, Any]:
        """Return the last reading and the levels."""
        return {"reading": self._last, "above": self._above, "below": self._below, "path": self._path}

    def stop(self) -> None:
        """Nothing to give back."""


def _macs(manifest: Manifest, name: str) -> int:
    """Return what a call on a path costs, or on a mix, which runs two."""
    parts = manifest.mixes[name].paths if name in manifest.mixes else (name,)
    return sum(manifest.paths[part].macs for part in parts)


def machine_watts(*, part: Part = "cpu", clock: Callable[[], float] = time.monotonic) -> Callable[[], float]:
    """Return what reads the mean power in W since its last reading; NaN at the first, and where the sensor fails.

    Of the whole board on a Jetson, else of ``part``: see `smart_devices.power.find_power`.

    Raises:
        InputError: This machine has no sensor that can be read.
    """
    source = find_power(part=part)
    if isinstance(source, NoPower):
        raise InputError(f"no power can be read here: {source.reason}; give a function of your own")
    meter = source.new_meter()
    last: tuple[float, float] | None = None  # when it was read, in seconds, and the joules so far

    def watts() -> float:
        nonlocal meter, last
        now, before = clock(), last
        try:
            meter.read(now)
            joules = 0.0 if before is None else meter.joules
        except SensorError:  # a counter that was set back, say: begin anew
            meter, last = source.new_meter(), None
            return float("nan")
        last = now, joules
        return float("nan") if before is None or now <= before[0] else (joules - before[1]) / (now - before[0])

    return watts
