"""How a binding made with pybind11 behaves, and how a class is cut down to what one version has of it."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from trt.fake_tensorrt.rules import DriverError, undefined


@dataclass
class World:
    """One stand-in library: what its classes share.

    Attributes:
        name: ``tensorrt`` or ``tensorrt_rtx``.
        version: As the recorded binding gives it.
        api: The recorded classes and members.
        module: The module itself.
        activation_bytes: What every engine deserialised from now on needs; None derives it from the graph.
        plans_opened: How many plans were deserialised.
        logger: The first logger that was given to a builder or runtime of those that live, whose number ``users`` is.
    """

    name: str
    version: str
    api: Mapping[str, Mapping[str, Any]]
    module: ModuleType
    activation_bytes: int | None = None
    plans_opened: int = 0
    busy: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    logger: weakref.ref[Any] | None = None
    users: int = 0

    def register(self, logger: Any, function: str) -> None:
        """Keep the logger of a new builder or runtime, or warn that there is another one."""
        self.check_logger()
        if self.logger is None:
            self.logger = weakref.ref(logger)
        elif self.logger() is not logger:
            words = f"The logger passed into {function} differs from one already registered"
            logger.log(self.module.ILogger.WARNING, words)
        self.users += 1

    def unregister(self) -> None:
        """Forget a builder or runtime; with the last one goes the logger."""
        self.users -= 1
        if not self.users:
            self.logger = None

    def check_logger(self) -> None:
        """Fail where the library would speak through a logger that is gone."""
        if self.logger is not None and self.logger() is None:
            raise undefined("the first logger was destroyed while the library kept it")

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt_rtx"

    def new(self, name: str, /, **fields: Any) -> Any:
        """Return an object of the class ``name``, which a caller cannot construct."""
        made = object.__new__(getattr(self.module, name))
        for key, value in {"pid": os.getpid(), **fields}.items():
            object.__setattr__(made, f"_{key}", value)
        return made

    def host_memory(self, data: bytes) -> Any:
        return self.module.IHostMemory.__new__(self.module.IHostMemory, data)


class Bound:
    """The root of the classes: attributes that the binding does not have cannot be set, a fork's child may use none."""

    _world: World
    _pid: int

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError(f"{type(self).__name__}: No constructor defined!")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)

    def _enter(self) -> None:
        """Check that this process made the object."""
        if os.getpid() != self._pid:
            raise undefined(f"a {type(self).__name__} was used in another process than the one that made it")
        self._world.check_logger()


class ILogger:
    """What speaks to the user; subclasses are the user's."""

    _world: World

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: Any, msg: str) -> None:  # noqa: ARG002
        raise RuntimeError("Tried to call pure virtual function ILogger::log")


class IProgressMonitor:
    """What follows a build; subclasses are the user's."""

    _world: World

    def __init__(self) -> None:
        self._made = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
        return True

    def phase_finish(self, phase_name: str) -> None: ...


class IHostMemory(bytes):
    """Memory of the library's: read it through ``memoryview`` or ``bytes``, or ask for ``nbytes``, nothing else."""

    _world: World

    def __new__(cls, data: bytes) -> IHostMemory:
        return bytes.__new__(cls, data)

    @property
    def nbytes(self) -> int:
        return memoryview(self).nbytes

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "nbytes":
            raise AttributeError(f"'IHostMemory' object has no attribute {name!r}")
        return bytes.__getattribute__(self, name)

    def __len__(self) -> int:
        raise TypeError("object of type 'IHostMemory' has no len()")


class Value:
    """A property that only keeps what it was set to."""

    def __init__(self, default: Any = None, put: Callable[[Any, Any], Any] = lambda _, value: value) -> None:
        self.default, self.put = default, put

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_value_of_{name}"

    def __get__(self, held: Any, owner: type | None = None) -> Any:
        return self if held is None else getattr(held, self.name, self.default)

    def __set__(self, held: Any, value: Any) -> None:
        object.__setattr__(held, self.name, self.put(held, value))


class Constant:
    """A value of an enumeration as pybind11 makes them: it has a name and converts to an integer."""

    __members__: dict[str, Constant] = {}  # noqa: RUF012  # each enumeration has its own

    value: int
    name: str

    def __init__(self, value: int) -> None:
        found = next((other for other in self.__members__.values() if other.value == value), None)
        self.value = value
        self.name = "" if found is None else found.name

    def __int__(self) -> int:
        return self.value

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.value == self.value

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.value))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}.{self.name}: {self.value}>"

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def enumeration(name: str, names: Sequence[str]) -> type[Constant]:
    """Return an enumeration with these values, numbered in this order."""
    made: type[Constant] = type(name, (Constant,), {"__members__": {}})
    for value, member in enumerate(names):
        constant = made(value)
        constant.name = member
        made.__members__[member] = constant
        setattr(made, member, constant)
    return made


def is_enumeration(members: Mapping[str, Any]) -> bool:
    """Whether the recorded class is one."""
    return members.get("value") == "property" and "value" in members.values()


def fitted(found: type, world: World) -> type:
    """Return ``found`` with those of its public members that the version has, callable as they are there."""
    recorded = world.api[found.__name__]
    members: dict[str, Any] = {"_world": world}
    for name, member in vars(found).items():
        if name in {"__dict__", "__weakref__"}:
            continue
        if not name.startswith("_") and name not in recorded:
            continue
        members[name] = _constructor(member) if name == "__init__" else member
        if callable(member) and isinstance(recorded.get(name), list) and recorded[name]:
            members[name] = _checked(members[name], recorded[name])
    return type(found.__name__, found.__bases__, members)


def _constructor(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def make(*arguments: Any, **named: Any) -> None:
        try:
            method(*arguments, **named)
        except DriverError as error:
            raise TypeError("pybind11::init(): factory function returned nullptr") from error

    return make


def _checked(method: Callable[..., Any], overloads: Sequence[Sequence[str]]) -> Callable[..., Any]:
    """Return ``method``, callable in the ways that the binding's overloads allow."""

    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        for names in overloads:
            free = names[len(arguments) :]
            if len(arguments) <= len(names) and set(named) <= set(free):
                return method(*arguments, **named)
        raise TypeError(f"{method.__name__}(): incompatible function arguments")

    return call
