"""Our model classes. They get their linear layers and their attention from a set of kernels (`kernels/base`)."""
