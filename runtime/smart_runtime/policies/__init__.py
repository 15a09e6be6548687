"""What decides by itself which path answers: a policy is one file here and one row in the table.

`SmartModel.load(policy=...)` takes any object with the methods of `smart_runtime.Policy`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from smart_common.lazy import lazy_attributes

POLICIES: Mapping[str, str] = MappingProxyType(
    {
        "Budget": "smart_runtime.policies.budget",
        "First": "smart_runtime.policies.first",
        "Hysteresis": "smart_runtime.policies.hysteresis",
        "Limit": "smart_runtime.policies.limit",
        "Schedule": "smart_runtime.policies.schedule",
        "Signal": "smart_runtime.policies.host_signal",
        "Tripwire": "smart_runtime.policies.tripwire",
    }
)
"""The module of each policy; its class is imported from here, ``from smart_runtime.policies import Hysteresis``."""

__getattr__ = lazy_attributes(__name__, POLICIES)
