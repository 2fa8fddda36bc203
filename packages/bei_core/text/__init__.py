"""Text to tokens and back: tokenizer, templates of rerankers, grouping of named entities."""
