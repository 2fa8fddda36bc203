"""The table of routes. A route of another API is a row here and a schema in `http/schemas/`."""

from __future__ import annotations

from bei_core.http import answers
from bei_core.http.route import Route
from bei_core.http.schemas.baseten import PredictTokensRequest
from bei_core.http.schemas.cohere import RerankRequest
from bei_core.http.schemas.huggingface import PredictRequest
from bei_core.http.schemas.infinity import ClassifyRequest
from bei_core.http.schemas.openai import EmbeddingsRequest
from bei_core.http.schemas.tei import (
    DecodeRequest,
    EmbedAllRequest,
    EmbedRequest,
    EmbedSparseRequest,
    SimilarityRequest,
    TokenizeRequest,
)
from bei_core.http.schemas.vertex import VertexRequest

ROUTES = (
    Route("POST", "/v1/embeddings", "OpenAI embeddings", EmbeddingsRequest, inputs="input", openai=True),
    Route("POST", "/embeddings", "OpenAI embeddings", EmbeddingsRequest, inputs="input", openai=True),
    Route("POST", "/embed", "Dense vectors", EmbedRequest),
    Route("POST", "/embed_all", "A vector for every token", EmbedAllRequest),
    Route("POST", "/embed_sparse", "Weights of the vocabulary's terms", EmbedSparseRequest),
    Route("POST", "/similarity", "Cosine similarity of a sentence to others", SimilarityRequest),
    Route("POST", "/predict", "Labels and scores of texts, or scores of pairs", PredictRequest),
    Route("POST", "/predict_tokens", "Labels of tokens, or entities", PredictTokensRequest),
    Route("POST", "/classify", "Labels and scores of texts", ClassifyRequest, inputs="input", openai=True),
    Route("POST", "/rerank", "Texts by relevance to a query", RerankRequest, inputs="texts"),
    Route("POST", "/v1/rerank", "Documents by relevance", RerankRequest, inputs="documents", openai=True),
    Route("POST", "/v2/rerank", "Documents by relevance", RerankRequest, inputs="documents", openai=True),
    Route("POST", "/vertex", "Several bodies at once", VertexRequest, answers.vertex),
    Route("POST", "/tokenize", "Tokens of texts", TokenizeRequest, answers.tokenize),
    Route("POST", "/decode", "Texts of tokens", DecodeRequest, answers.decode, inputs="ids"),
    Route("GET", "/v1/models", "What is served", answer=answers.models, openai=True),
    Route("GET", "/models", "What is served", answer=answers.models, openai=True),
    Route("GET", "/info", "What is served, and its limits", answer=answers.info),
    Route("GET", "/health", "Whether the model answers", answer=answers.health, public=True),
    Route("GET", "/health/ready", "Whether the model answers", answer=answers.health, public=True),
    Route("GET", "/health/live", "Whether the process answers", answer=answers.live, public=True),
    Route("GET", "/ping", "Whether the model answers (SageMaker)", answer=answers.health, public=True),
    Route("GET", "/metrics", "Prometheus metrics", answer=answers.scrape, public=True),
)
