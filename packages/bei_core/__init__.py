"""Baseten Embeddings Inference, open: embedding, reranking and classification models, served."""
