"""What a golden tokenizer folder is, and the changes between what transformers writes and what was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.golden_tokenizers.configs import Json

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
WITHOUT_FILE: tuple[str, ...] = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
)
WITHOUT_FILE += ("merges.txt", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")
ONLY_VOCABULARY = tuple(name for name in WITHOUT_FILE if not name.startswith(("tokenizer_config", "special")))


def _unchanged(files: Json) -> Json:
    return files


@dataclass(frozen=True)
class Folder:
    """A folder: a vocabulary, the class that wrote the files, and what of them was published."""

    name: str
    covers: str
    vocabulary: str
    made_by: str  # tokenizer_class while transformers writes the files
    model: Json  # config.json
    made_with: Json = field(default_factory=dict)  # tokenizer_config.json at that time
    kept: tuple[str, ...] = FILES
    files: Mapping[str, Any] = field(default_factory=dict)  # files in place of those
    changed: Callable[[Json], Json] = _unchanged
    by: str = "4"  # the version of transformers that the model was published with
    made_in: str = "4"  # the version that writes the files

    def keeps(self, name: str) -> bool:
        """Whether a file that transformers wrote is in the folder."""
        return name in self.kept


def model(model_type: str, **others: object) -> Json:
    """A config.json."""
    return {"model_type": model_type, **others}


def config(**values: object) -> Callable[[Json], Json]:
    """Changes values of the tokenizer_config.json that was written."""
    return lambda files: {**files, "tokenizer_config.json": {**files["tokenizer_config.json"], **values}}


def component(name: str, value: object) -> Callable[[Json], Json]:
    """Puts another component into tokenizer.json."""
    return lambda files: {**files, "tokenizer.json": {**files["tokenizer.json"], name: value}}


def both(*changes: Callable[[Json], Json]) -> Callable[[Json], Json]:
    """Makes changes one after the other."""

    def change(files: Json) -> Json:
        for each in changes:
            files = each(files)
        return files

    return change
