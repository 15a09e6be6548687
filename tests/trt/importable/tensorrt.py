"""What a child process imports by this name: the stand-in whose dialect the environment names."""

from __future__ import annotations

import os
import sys

from trt.fake_tensorrt import VARIABLE, make_module

_made = make_module(os.environ[VARIABLE])
if _made.__name__ != __name__:
    raise ImportError(f"{VARIABLE} names another library than {__name__}")
sys.modules[__name__] = _made
