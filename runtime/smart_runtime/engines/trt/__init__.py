"""TensorRT and TensorRT-RTX: plans built on the device, and the engine that runs them."""
