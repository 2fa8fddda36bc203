"""Linear layers and attention for the models: the protocol `Kernels`, and the set in torch."""
