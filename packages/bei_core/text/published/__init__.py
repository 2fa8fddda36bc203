"""Makes one tokenizer.json from all tokenizer files of a published model folder, as transformers reads them.

    folder.py         reads the files, and finds the transformers class that reads them
    classes.py        what each class adds to its files: special tokens, flags, token types
    vocabulary.py     makes a tokenizer.json from vocab.txt, or from vocab.json and merges.txt
    sentencepiece.py  makes a tokenizer.json from a sentencepiece model
    added.py          adds tokens to the vocabulary
    components.py     makes normalizer, pre-tokenizer and post-processor
    canonical.py      does all of this in order

This code runs when an engine is built, and never for a request: the engine folder holds the tokenizer.json.
docs/decisions/018-tokenizers.md says which rules apply where versions of transformers differ.
"""

from bei_core.text.published.added import named_tokens
from bei_core.text.published.canonical import (
    RULES,
    CanonicalTokenizer,
    canonical_tokenizer,
    check_tokenizer,
    special_token_ids,
    static_tokenizer,
)
from bei_core.text.published.folder import read_published

__all__ = [
    "RULES",
    "CanonicalTokenizer",
    "canonical_tokenizer",
    "check_tokenizer",
    "named_tokens",
    "read_published",
    "special_token_ids",
    "static_tokenizer",
]
