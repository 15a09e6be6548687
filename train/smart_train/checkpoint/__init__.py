"""``ckpt.pt``: how it is written and read, and the images that travel in it."""
