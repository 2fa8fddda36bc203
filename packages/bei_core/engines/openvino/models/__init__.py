"""Model families as OpenVINO graphs.

Each page (module) has a class `Transformer`, made from `(family, config, weights, max_len)`, with the layers of one
checkpoint: `graph(inputs)` returns token vectors f32[R, L, H]. `max_len` is the length of the longest sequence.
"""
