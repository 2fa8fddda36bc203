"""Models as OpenVINO graphs: `transformer.token_vectors` has the vectors of a checkpoint's tokens."""
