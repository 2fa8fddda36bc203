"""The files of sentence-transformers: what they say of a model that is not in transformers' own.

The rules are those of sentence-transformers 6.2 (`base/model.py`, `base/modules/{transformer,dense,normalize}.py`,
`sentence_transformer/modules/`, `sparse_encoder/modules/splade_pooling.py`, `cross_encoder/`), which also reads the
files of its older releases and of PyLate. What would change a result and is not supported is refused by its name.
"""
