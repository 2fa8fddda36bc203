"""The tokenizer (texts to tokens and back), prompt templates of rerankers, grouping of tokens into named entities."""
