"""The mixes of an export, as they are asked for and told."""
