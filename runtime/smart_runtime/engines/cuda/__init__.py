"""NVIDIA's driver and the memory, streams and events of one GPU; nothing here is loaded before an engine needs it."""
