"""Our model classes, in torch with TensorRT-LLM's Linear and Attention. `classes.register` registers them with it."""
