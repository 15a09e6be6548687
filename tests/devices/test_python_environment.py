"""What is looked for without being imported."""

from __future__ import annotations

import _imp
import sys
import threading

from smart_devices.python_environment import find_module


def test_a_module_is_looked_for_without_waiting_for_any_import() -> None:
    """An exception thrown into a thread that holds the import lock may leave it locked: no later load may hang."""
    assert "this" not in sys.modules
    found: list[str | None] = []
    looking = threading.Thread(target=lambda: found.append(find_module("this")), daemon=True)
    _imp.acquire_lock()
    try:
        looking.start()
        looking.join(timeout=60)
    finally:
        _imp.release_lock()
    assert len(found) == 1, "it waited for the lock"
    assert found[0] is not None
    assert found[0].endswith("this.py")
    assert find_module("no_such_module_anywhere") is None
