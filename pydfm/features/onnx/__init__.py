"""The feature network in onnxruntime, which is faster than torch on CPUs and starts without it."""
