"""NVIDIA's TensorRT and TensorRT-RTX: building plans for a GPU and running them."""
