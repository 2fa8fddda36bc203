"""Chooses the golden texts of each case, for all ways in which tokenizers truncate and join them."""

from __future__ import annotations

from tests.golden.checkpoints import Description

ALONE = -1  # stored in place of a second text's position
NUM_EXTREMES = 3  # shortest and longest texts that every embedding case has
NUM_TEXTS = 24  # of an embedding case
NUM_FEWER = 16  # of a case with a row per token, or with a column per word of the vocabulary
NUM_BRIEF = 60  # the texts that are short enough to be queries
NUM_EACH = 6  # of each of a classifier's brief pairs, pairs of query and document, and single texts
NUM_PROMPTS = 20  # of a reranker that reads one prompt
MAX_CHARACTERS = 160  # of a document in a prompt, so that no prompt is truncated

Item = tuple[str, ...]  # a text, or a text and its pair


def by_length(texts: list[str]) -> list[int]:
    """Returns the positions of the texts, the shortest text first."""
    return sorted(range(len(texts)), key=lambda row: (len(texts[row]), texts[row]))


def choose_texts(texts: list[str], number: int) -> list[int]:
    """Returns positions of the texts of embedding case `number`: the shortest, the longest, and others in between.

    All cases together use all texts.
    """
    ordered = by_length(texts)
    chosen = ordered[:NUM_EXTREMES] + ordered[-NUM_EXTREMES:]
    others = [row for row in range(len(texts)) if row not in chosen]
    start = number * (NUM_TEXTS - len(chosen))
    chosen += [others[(start + step) % len(others)] for step in range(NUM_TEXTS - len(chosen))]
    return sorted(chosen)


def choose_fewer(texts: list[str], number: int) -> list[int]:
    """Returns positions of NUM_FEWER texts of embedding case `number`, including the shortest and the longest."""
    rows = sorted(choose_texts(texts, number), key=lambda row: (len(texts[row]), texts[row]))
    extremes = [*rows[: NUM_EXTREMES - 1], *rows[1 - NUM_EXTREMES :]]
    others = sorted(set(rows) - set(extremes))
    return sorted([*extremes, *others[: NUM_FEWER - len(extremes)]])


def choose_pairs(texts: list[str], number: int) -> list[tuple[int, int]]:
    """Returns positions of text and pair (or ALONE) for classifier `number`, with all ways to truncate a pair."""
    ordered = by_length(texts)
    shortest, *brief = ordered[:NUM_BRIEF]
    *others, second, longest = ordered[NUM_BRIEF:]
    queries = [brief[(number * NUM_EACH + step) % len(brief)] for step in range(2 * NUM_EACH)]
    documents = [others[(number * 2 * NUM_EACH + step * 7) % len(others)] for step in range(2 * NUM_EACH)]
    chosen = [(shortest, longest), (longest, shortest), (second, longest), (longest, second), (longest, longest)]
    chosen += zip(queries[:NUM_EACH], queries[NUM_EACH:], strict=True)
    chosen += zip(queries[NUM_EACH:], documents[:NUM_EACH], strict=True)
    chosen.append((queries[NUM_EACH], queries[0]))  # the first of these pairs, swapped
    alone = [shortest, longest, *queries[:2], *documents[NUM_EACH:]]
    return sorted([*chosen, *((row, ALONE) for row in alone)])


def choose_prompts(texts: list[str], number: int) -> list[tuple[int, int]]:
    """Returns positions of short queries and short documents; the last pair is the first one, swapped."""
    ordered = by_length(texts)
    queries = [ordered[(number * NUM_PROMPTS + step * 3) % NUM_BRIEF] for step in range(NUM_PROMPTS - 1)]
    documents = [row for row in ordered[NUM_BRIEF // 2 :] if len(texts[row]) <= MAX_CHARACTERS]
    chosen = [(query, documents[(number + step * 7) % len(documents)]) for step, query in enumerate(queries)]
    return [*chosen, chosen[0][::-1]]


def choose(case: Description, texts: list[str]) -> list[tuple[int, int]]:
    """Returns positions of text and pair (or ALONE) of each input."""
    if case.kind == "yes_no":
        return choose_prompts(texts, case.number)
    if case.kind == "classification":
        pairs = choose_pairs(texts, case.number)
        return [pair for pair in pairs if pair[1] != ALONE] if case.template else pairs
    rows = (choose_texts if case.kind == "embedding" else choose_fewer)(texts, case.number)
    return [(row, ALONE) for row in rows]


def fill(template: str, query: str, document: str) -> str:
    """Returns the prompt. str.format would fail or replace a wrong part if a text contains braces."""
    before, rest = template.split("{query}")
    between, after = rest.split("{document}")
    return before + query + between + document + after


def items_of(case: Description, texts: list[str], rows: list[tuple[int, int]]) -> list[Item]:
    """Returns the inputs for the tokenizer: the texts at these positions, or prompts if the case has a template."""
    items: list[Item] = [(texts[text],) if pair == ALONE else (texts[text], texts[pair]) for text, pair in rows]
    return [(fill(case.template, *item),) for item in items] if case.template else items
