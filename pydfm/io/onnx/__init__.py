"""A fitted model as one graph of ONNX, from pixels to scores, verdicts and maps."""
