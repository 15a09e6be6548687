"""``smart-bench``: how fast each graph of a bundle is on this device, compared so that the figures can be believed."""
