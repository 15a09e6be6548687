"""What decides by itself which path answers: a policy is one file here and one row in the table.

`SmartModel.load(policy=...)` takes any object with the methods of `smart_runtime.Policy`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from smart_common.lazy import lazy_attributes

POLICIES: Mapping[str, str] = MappingProxyType(
    {
        "Hysteresis": "smart_runtime.policies.hysteresis",
        "Tripwire": "smart_runtime.policies.tripwire",
    }
)
"""The module of each policy; its class is imported from here, ``from smart_runtime.policies import Hysteresis``."""

__getattr__ = lazy_attributes(__name__, POLICIES)
