"""Writes docs/settings.md from the declaration of `Settings`. Run it after a change of a setting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bei_core.config.declaration import Declared
from bei_core.config.settings import SETTINGS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"

INTRODUCTION = """# Settings

<!-- Written by scripts/make_settings_doc.py from packages/bei_core/config/settings.py. Change the settings there. -->

A setting comes from the first of these that has it:

1. a flag of `bei serve` or of another command that runs a model;
2. an environment variable, of those in the table the first that is set (an empty one counts as unset,
   but an empty one of `api_key`, `api_key_file` or `api_keys_file` is an error);
3. a key under `model_metadata.bei` in the config.yaml that `--config` names, or that Truss hands over;
4. Baseten's `trt_llm` block in that file, for the settings that it stands for;
5. a secret that the file declares, for secrets;
6. its default.

A flag that is a yes or no is written `--refresh`, `--no-refresh` or `--refresh false`. A list is written by repeating
its flag; in an environment variable it has commas, or is JSON. Flags of text-embeddings-inference that mean nothing
here are accepted, with a line in the log; the table says "no effect". Other unknown flags, keys and variables that
begin with `BEI_` are refused by name.
"""

_TYPES = {bool: "yes or no", int: "whole number", float: "number", str: "text", Path: "path", tuple: "list of texts"}


# The first setting of each section of docs/settings.md.
SECTIONS = {
    "model_id": "Model",
    "quantization_type": "Quantisation",
    "max_batch_tokens": "Limits",
    "hostname": "Server",
    "log_level": "Logs, traces and metrics",
    "cache_dir": "Files and credentials",
}


def page() -> str:
    """The whole of docs/settings.md."""
    return "\n".join([INTRODUCTION.rstrip(), *_lines()]) + "\n"


def _lines() -> Iterator[str]:
    for name, setting in SETTINGS.items():
        if name in SECTIONS:
            yield from ("", f"## {SECTIONS[name]}", "")
            yield "| setting | flags and variables | value | default | what it is |"
            yield "|---|---|---|---|---|"
        named = "<br>".join(f"`{spelled}`" for spelled in (*setting.flags, *setting.variables))
        default = setting.default_text or "none"
        yield f"| `{name}` | {named} | {_value(setting)} | {_cell(default)} | {_cell(_description(setting))} |"


def _value(setting: Declared) -> str:
    """What values a setting takes."""
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    kind, limits = _TYPES.get(setting.plain, "JSON"), setting.limits
    if limits is None:
        return kind
    if limits.gt is not None:
        return f"{kind}, more than {limits.gt:g}"
    return f"{kind}, {limits.ge:g} or more" if limits.le is None else f"{kind}, {limits.ge:g} to {limits.le:g}"


def _description(setting: Declared) -> str:
    """The description of a setting, and what its traits mean for a user."""
    about, notes = setting.about, [setting.description]
    if about.no_effect:
        notes.append(f"No effect: {about.no_effect}.")
    if about.excludes:
        notes.append(f"Not together with {', '.join(about.excludes)}.")
    if about.of_one_model:
        notes.append("Not with several models.")
    if about.secret:
        names = " or ".join((*about.mounted, setting.name))
        notes.append(f"Hidden in logs; also read from a secret {names}.")
    return " ".join(notes)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
