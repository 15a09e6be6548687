"""Checks of a device and its libraries, on the very machine that will use them; `smart-run selftest` runs them all."""
