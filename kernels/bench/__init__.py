"""Our kernels beside those of others, on a GPU: `python -m kernels.bench`."""
