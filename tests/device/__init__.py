"""The CUDA step of train_gpt.py without a GPU: traced and compiled for an H100 on fake tensors, counted, not run."""
