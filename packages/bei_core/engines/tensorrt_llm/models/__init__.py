"""Our model classes, in torch over TensorRT-LLM's Linear and Attention; `classes.register` makes it know them."""
