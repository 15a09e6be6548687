"""The networks that train by name, residual ones for any input size and channel count, and those of users' own."""
