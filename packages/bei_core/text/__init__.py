"""Texts to tokens and back: the tokenizer, prompt templates of rerankers, grouping of tokens to named entities."""
