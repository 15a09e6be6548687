"""The audit log: every switch in a file whose lines are chained by their hashes, and what checks such a file."""
