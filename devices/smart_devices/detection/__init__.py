"""What machine this is, from its files, NVIDIA's tools and libraries: see `detect`."""

from __future__ import annotations

from smart_devices.cpu import Cpu
from smart_devices.detection.machine import Card, Cards, Jetson, Machine, detect
from smart_devices.detection.nvpmodel import LiveMode
from smart_devices.detection.releases import Software

__all__ = ["Card", "Cards", "Cpu", "Jetson", "LiveMode", "Machine", "Software", "detect"]
