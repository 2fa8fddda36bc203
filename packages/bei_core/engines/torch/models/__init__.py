"""The model classes, in torch. A set of kernels (`kernels/torch.py`) makes their linear layers and their attention."""
