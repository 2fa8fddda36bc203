"""The tokenizer of a model folder as it was published: one tokenizer.json made of every file that transformers reads.

    folder.py         the files, and which class of transformers reads them
    classes.py        what each class adds to its files: special tokens, flags, token types
    vocabulary.py     a tokenizer.json of vocab.txt, or of vocab.json and merges.txt
    sentencepiece.py  a tokenizer.json of a sentencepiece model
    added.py          tokens that are added to the vocabulary
    components.py     normalizer, pre-tokenizer and post-processor
    canonical.py      all of that in order

Nothing here runs while requests are served: an engine folder holds the tokenizer.json that is made here at build time.
docs/decisions/018-tokenizers.md says which rules are followed where versions of transformers differ.
"""

from bei_core.text.published.canonical import (
    RULES,
    CanonicalTokenizer,
    canonical_tokenizer,
    check_tokenizer,
    special_token_ids,
    static_tokenizer,
)

__all__ = [
    "RULES",
    "CanonicalTokenizer",
    "canonical_tokenizer",
    "check_tokenizer",
    "special_token_ids",
    "static_tokenizer",
]
