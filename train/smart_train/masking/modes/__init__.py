"""The ways in which masks are found, a file each; ``MASK_MODES`` in ``smart_train.choices`` names them."""
