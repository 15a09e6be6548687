"""Masks: what they may remove, where, how they are found, and the network whose paths have them."""
