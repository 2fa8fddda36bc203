"""The names by which a model is asked for."""

from __future__ import annotations

import re

# A repository's page on the hub, as people copy it from a browser.
_HUB_PAGE = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/tree/([^/?#]+))?/?")


def name_and_id(model: str) -> tuple[str | None, str]:
    """The name (None if it has none) and the model_id in an item of `models`."""
    name, equals, model_id = model.partition("=")
    return (name, model_id) if equals and name and model_id and "/" not in name else (None, model)


def at_hub(model_id: str | None, revision: str | None) -> tuple[str | None, str | None]:
    """Repository and revision, if the model_id is the URL of a repository's page; else both as they are."""
    page = _HUB_PAGE.fullmatch(model_id or "")
    return (page[1], revision or page[2]) if page else (model_id, revision)
