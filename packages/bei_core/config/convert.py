"""Converts values from any source (text, YAML) to a setting's type, with errors that say which values are possible."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar, get_args

import msgspec
from msgspec import Struct

from bei_core.config.declaration import Declared, TypeForm, choices_of, description_of, members, metas_of
from bei_core.errors import ConfigError

StructT = TypeVar("StructT", bound=Struct)


def value_of(setting: Declared, value: object, where: str, *, strict: bool) -> object:
    """A value converted to a setting's type. Unless `strict`, text may stand for a number or a boolean.

    Raises ConfigError that begins with `where`, the setting's name in its source.
    """
    for text in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(text, str) and setting.plain is not Path and not is_unicode(text):
            raise ConfigError(f"{where} is not text in UTF-8")
    if isinstance(value, str):
        try:
            value = _from_text(setting, value)
        except msgspec.DecodeError as fault:
            raise ConfigError(f"{where} is not JSON: {fault}") from fault
    if setting.about.split and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        value = [part for item in value for part in _split(item)]
    return convert(setting.kind, value, where, strict=strict, shown="***" if setting.about.secret else None)


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a character, as which Python reads a byte of a flag that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _from_text(setting: Declared, text: str) -> object:
    """A text as a choice, a list or a block, if the setting has such a type; else the text itself."""
    choice = text.lower().replace("-", "_")  # text-embeddings-inference writes last-token
    if choice in setting.choices:
        return choice
    if setting.plain is tuple:
        return msgspec.json.decode(text) if text.lstrip().startswith("[") else _split(text)
    return msgspec.json.decode(text) if issubclass(setting.plain, Struct) else text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def convert(
    kind: TypeForm, value: object, where: str, *, strict: bool = True, shown: str | None = None, note: str = ""
) -> object:
    """A value converted to a type. Raises ConfigError with the value (or `shown` instead) and what is expected."""
    struct = next((part for part in members(kind) if isinstance(part, type) and issubclass(part, Struct)), None)
    if struct is not None:
        return _block(struct, value, where)
    try:
        return msgspec.convert(value, kind, strict=strict, dec_hook=_path)
    except msgspec.ValidationError as fault:
        raise ConfigError(f"{where} is {shown or repr(value)}: {_expected(kind, str(fault), note)}") from fault


def _block(kind: type[StructT], value: object, where: str) -> StructT:
    """A mapping converted to a struct, key by key, so that an error names the key and its possible values."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}: expected a mapping of {', '.join(kind.__struct_fields__)}")
    infos = {info.name: info for info in msgspec.structs.fields(kind)}
    for name in value:
        if name not in infos:
            raise unknown("key", f"{where}.{name}", [f"{where}.{known}" for known in infos])
    values = {
        name: convert(infos[name].type, item, f"{where}.{name}", note=description_of(infos[name].type))
        for name, item in value.items()
        if item is not None
    }
    for name, info in infos.items():
        if info.required and name not in values:
            expected = _expected(info.type, "it has no default", description_of(info.type))
            raise ConfigError(f"{where}.{name} is missing: {expected}")
    return kind(**values)


def _expected(kind: TypeForm, fault: str, note: str) -> str:
    """The possible values of a type, for an error: its choices, else msgspec's text (`fault`); then the note.

    For a text that must match a pattern, they are what the type says of it.
    """
    choices = choices_of(kind) or (_descriptions_of_patterns(kind) if "matching regex" in fault else ())
    said = f"expected {'one of ' if choices[1:] else ''}{', '.join(choices)}" if choices else fault
    return f"{said}; {note}" if note else said


def _descriptions_of_patterns(kind: TypeForm) -> tuple[str, ...]:
    """The descriptions of the texts with a pattern that a type has, also in a list."""
    own = tuple(meta.description for meta in metas_of(kind) if meta.pattern and meta.description)
    return own or tuple(each for part in get_args(kind) for each in _descriptions_of_patterns(part))


def _path(kind: type, value: object) -> object:
    """A path, with `~` replaced by the user's home. msgspec calls this because it does not know paths."""
    if kind is Path and isinstance(value, (str, Path)) and value:
        return Path(value).expanduser()
    raise ValueError("expected the path of a folder or a file")


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for an unknown name. It suggests the nearest known one."""
    choices, name = sorted(known), public_part(name)
    nearest = difflib.get_close_matches(name.rstrip("…"), choices, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ";"
    return ConfigError(f"unknown {what} {name}{hint} known are {', '.join(choices)}")


def public_part(name: str) -> str:
    """A name for an error text, up to the first character that names do not have.

    The rest may be a secret: in `{api_key:SECRET}`, where a space is missing, YAML reads all of it as a name.
    """
    known = re.match(r"[\w./-]*", name)
    return name if known is None or known[0] == name else f"{known[0]}…"
