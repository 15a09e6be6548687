"""The bundle as it lies on a disk: its files, checksums, signature, manifest and graphs."""
