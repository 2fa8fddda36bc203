"""Jina's `late_chunking`: all inputs are read as one text, and each gets the mean of its tokens' vectors.

So a vector knows what stands before and after its text (Günther et al. 2024, arxiv.org/abs/2409.04701).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np

from bei_core.errors import ValidationError
from bei_core.http.schemas.common import refuse
from bei_core.serving.served_model import ServedModel
from bei_core.serving.service import Result
from bei_core.tasks import EmbedAll, EncodeOptions, Rows, Text, TokenRows, TruncationSide, weighted_mean


def late_task(texts: Sequence[Text], options: EncodeOptions, model: ServedModel) -> EmbedAll:
    """Returns the task to embed the tokens of all texts in one pass.

    Raises ValidationError for token ids, or if the model's vectors are not means of its tokens' vectors.
    """
    is_mean = model.is_plain_mean and model.token_width
    strings = [text for text in texts if isinstance(text, str) and text]
    refuse(
        {
            "late_chunking": not is_mean and "is for models whose vector is the mean of the vectors of tokens",
            "input": len(strings) < len(texts) and "must hold texts that are not empty if `late_chunking` is true",
            "chunk": options.chunk and "excludes `late_chunking`",
        }
    )
    model.check_num_inputs(len(texts))
    options = replace(options, truncate=True, side=TruncationSide.RIGHT, spans=True)  # `late_rows` sees what is cut off
    return EmbedAll(["".join(_spaced(strings))], options)


def late_rows(result: Result[Sequence[TokenRows]], texts: Sequence[str]) -> Rows:
    """Returns f32[N, D], the mean of each text's tokens. The first text has the prompt and the special token before it,
    the last text the special token after it.

    Raises ValidationError if the texts together are too long for the model, or if one has no token of its own.
    """
    (tokens,), (rows,) = result.tokens, result.rows
    ends = list(accumulate(map(len, _spaced(texts))))
    # A token belongs to the text in which its last character is; special tokens have no place in the text.
    places = [0 if span.special else int(np.searchsorted(ends, span.end, side="left")) for span in tokens.spans]
    owners = np.maximum.accumulate(np.array(places))[tokens.skip :]
    last = max(span.end for span in tokens.spans)
    if last < len("".join(_spaced(texts)).rstrip()):
        raise ValidationError(
            f"`late_chunking` reads all texts as one, which is too long: it has more than {len(tokens)} tokens",
            param="input",
        )
    if missing := set(range(len(texts))) - set(owners.tolist()):
        raise ValidationError(f"text {min(missing)} of `input` has no token of its own", param="input")
    return weighted_mean(rows[tokens.skip :], owners, np.ones(len(owners), np.float32))


def _spaced(texts: Sequence[str]) -> list[str]:
    """Returns the texts, each with a space after it if no white space is between it and the next one."""
    spaces = [not (left[-1].isspace() or right[0].isspace()) for left, right in pairwise(texts)]
    return [text + " " * space for text, space in zip(texts, [*spaces, False], strict=True)]
