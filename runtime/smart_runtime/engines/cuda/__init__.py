"""NVIDIA GPUs through the CUDA driver: the device, its memory and streams, and lanes for calls."""
