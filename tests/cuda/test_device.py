from __future__ import annotations

from cuda.stand_in import StandInDriver
from smart_runtime.engines.cuda.device import Device


def test_first(stand_in: StandInDriver) -> None:
    device = Device.shared()
    print(device, vars(device))
    with device.use():
        memory = device.memory(100)
        pinned = device.pinned(100)
        back = device.pinned(100)
        stream = device.stream()
        pinned.array[:] = 5
        stream.copy_in(memory.address, pinned.address, 100)
        stream.copy_out(back.address, memory.address, 100)
        stream.synchronize()
        assert (back.array == 5).all()
    print(stand_in.trace())
    for one in (memory, pinned, back, stream):
        one.release()
    device.release()
    assert stand_in.leaks() == {}
