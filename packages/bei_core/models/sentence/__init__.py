"""Reads the files of sentence-transformers, which say about a model what transformers' own files do not say.

The rules are those of sentence-transformers 6.2 (`base/model.py`, `base/modules/{transformer,dense,normalize}.py`,
`sentence_transformer/modules/`, `sparse_encoder/modules/splade_pooling.py`, `cross_encoder/`), which also reads the
files of its older releases and of PyLate. An unsupported
setting that would change a result is refused with an error that names it.
"""
