// Unmodified clients for Node. Reads {"embedder", "ranker": addresses of servers, "texts", "query", "model"} and prints, by
// the name of each function in CALLS, {"answer"} or {"fault"}.
import { readFileSync } from "node:fs";

import { createCohere } from "@ai-sdk/cohere";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, rerank } from "ai";
import { CohereClient, CohereClientV2 } from "cohere-ai";
import OpenAI from "openai";

const BEST = 5;
const KEY = "any";
const given = JSON.parse(readFileSync(0, "utf8"));
const { embedder, ranker, texts, query, model } = given;

const openai = new OpenAI({ baseURL: `${embedder}/v1`, apiKey: KEY, maxRetries: 0 });

const providerOptions = { cohere: { inputType: "search_document" } }; // it says that texts are queries otherwise

async function embedded(provider) {
  const model = provider.textEmbeddingModel(given.model);
  const found = await embedMany({ model, values: texts, maxRetries: 0, providerOptions });
  return found.embeddings;
}

const CALLS = {
  async openai_base64() {
    const found = await openai.embeddings.create({ model, input: texts });
    return found.data.map((item) => item.embedding);
  },
  async openai_float() {
    const found = await openai.embeddings.create({ model, input: texts, encoding_format: "float" });
    return found.data.map((item) => item.embedding);
  },
  async openai_models() {
    const names = [];
    for await (const found of openai.models.list()) names.push(found.id);
    return [names, (await openai.models.retrieve(model)).id];
  },
  async openai_error() {
    try {
      await openai.embeddings.create({ model, input: [] });
    } catch (error) {
      return [error.constructor.name, error.status, error.type, error.param];
    }
  },
  ai_openai: () => embedded(createOpenAI({ baseURL: `${embedder}/v1`, apiKey: KEY })),
  ai_openai_compatible: () => embedded(createOpenAICompatible({ name: "bei", baseURL: `${embedder}/v1` })),
  ai_cohere: () => embedded(createCohere({ baseURL: `${embedder}/v2`, apiKey: KEY })),
  async ai_cohere_rerank() {
    const provider = createCohere({ baseURL: `${ranker}/v2`, apiKey: KEY });
    const found = await rerank({ model: provider.reranking(model), query, documents: texts, topN: BEST });
    return found.ranking.map((item) => [item.originalIndex, item.score, item.document]);
  },
  async cohere_v1_rerank() {
    const client = new CohereClient({ environment: ranker, token: KEY });
    const found = await client.rerank({ model, query, documents: texts, topN: BEST, returnDocuments: true });
    return found.results.map((item) => [item.index, item.relevanceScore, item.document.text]);
  },
  async cohere_v2_rerank() {
    const client = new CohereClientV2({ environment: ranker, token: KEY });
    const found = await client.rerank({ model, query, documents: texts, topN: BEST });
    return found.results.map((item) => [item.index, item.relevanceScore, texts[item.index]]);
  },
  async cohere_v2() {
    const client = new CohereClientV2({ environment: embedder, token: KEY });
    const found = await client.embed({ model, texts, inputType: "search_document", embeddingTypes: ["float"] });
    return found.embeddings.float;
  },
};

const outcomes = {};
for (const [name, call] of Object.entries(CALLS)) {
  try {
    outcomes[name] = { answer: await call() };
  } catch (error) {
    outcomes[name] = { fault: String(error.stack) };
  }
}
console.log(JSON.stringify(outcomes));
