"""A trained detector out of JAX: its scoring as a graph of ONNX, of OpenVINO, or as StableHLO."""
