"""The model classes, in torch. A set of kernels (`kernels/base.py`) makes their linear layers and their attention."""
