"""The declaration of a setting: one field of a struct. Flags, variables, help and docs/settings.md are made from it.

A field has a type, a default, and a description with options (`About`):

    port: Annotated[Port, About("Port to listen on; 0 takes a free one.", flags=("-p", "--port"))] = 7997

The fields of other structs (the options of `bei bench`) are described by msgspec's own `Meta(description=...)`.
"""

from __future__ import annotations

import types
import typing
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeAlias

from msgspec import NODEFAULT, Meta, Struct
from msgspec.structs import FieldInfo, fields

TypeForm: TypeAlias = Any  # a type, a union, a Literal or an Annotated; typing has no name for all of them yet


@dataclass(frozen=True)
class About:
    """The description of a setting (a sentence) and its options."""

    description: str
    _: KW_ONLY
    unset: str = ""  # what holds if the setting is not given, in words, if the default itself does not show it
    flags: tuple[str, ...] = ()  # its flags, if they are not made from its name
    environ: tuple[str, ...] = ()  # more environment variables that are read, the strongest first
    bare: bool = True  # whether its upper-case name without `BEI_` is an environment variable too
    secret: bool = False  # whether logs and errors hide its value; it may also come from a secret of Truss
    mounted: tuple[str, ...] = ()  # more names of Truss's secrets, stronger than the setting's own name
    refuse_empty: bool = False  # whether an empty variable is an error; otherwise it counts as unset
    of_one_model: bool = False  # whether it cannot be set for several models at once
    decides_engine: bool = False  # whether another value needs another engine; a part of the key of the cache's refs
    excludes: tuple[str, ...] = ()  # settings that cannot be given together with it
    split: bool = False  # whether an item of a list may contain several, separated by commas
    no_effect: str = ""  # why it has no effect; such settings are accepted because text-embeddings-inference has them


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A declared field, with all that flags, variables, help and documents are made from."""

    name: str
    kind: TypeForm
    description: str
    default: object  # NODEFAULT if it is computed
    about: About

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flags, such as `("-p", "--port")`."""
        return self.about.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that set it, the strongest first."""
        bare = (self.name.upper(),) if self.about.bare else ()
        return (f"BEI_{self.name.upper()}", *bare, *self.about.environ)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a Literal; empty for any other type."""
        return choices_of(self.kind)

    @property
    def limits(self) -> Meta | None:
        """The minimum and maximum of a number; None if it has neither."""
        metas = [meta for part in members(self.kind) for meta in metas_of(part)]
        return next((meta for meta in metas if (meta.ge, meta.gt, meta.le) != (None, None, None)), None)

    @property
    def plain(self) -> type[Any]:
        """The type of one value: bool, int, float, str, Path, tuple (of texts) or a struct."""
        part = _unannotated(next(part for part in members(self.kind) if part is not types.NoneType))
        container: Any = typing.get_origin(part)  # tuple of tuple[str, ...]; None for int
        return str if container is Literal else container or part

    @property
    def default_text(self) -> str:
        """The default as text; empty if it means nothing to a reader (None, an empty list, a computed value)."""
        if self.about.unset or self.default in (None, (), "", NODEFAULT):
            return self.about.unset
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)


def declared(kind: type[Struct]) -> dict[str, Declared]:
    """The fields of a struct, by name and in order."""
    return {field.name: _declared(field) for field in fields(kind)}


def _declared(field: FieldInfo) -> Declared:
    extras = getattr(field.type, "__metadata__", ())
    about = next((extra for extra in extras if isinstance(extra, About)), About(description_of(field.type)))
    return Declared(
        name=field.name,
        kind=field.type,
        description=about.description,
        default=field.default,
        about=about,
    )


def description_of(kind: TypeForm) -> str:
    """The outermost description of an annotated type; empty if it has none."""
    return next((meta.description for meta in reversed(metas_of(kind)) if meta.description), "")


def metas_of(kind: TypeForm) -> tuple[Meta, ...]:
    """The `Meta`s of an annotated type."""
    return tuple(extra for extra in getattr(kind, "__metadata__", ()) if isinstance(extra, Meta))


def members(kind: TypeForm) -> tuple[TypeForm, ...]:
    """The members of a union; for any other type, the type itself."""
    base = _unannotated(kind)
    origin: Any = typing.get_origin(base)
    if origin in (typing.Union, types.UnionType):
        return tuple(part for member in typing.get_args(base) for part in members(member))
    return (kind,)


def choices_of(kind: TypeForm) -> tuple[str, ...]:
    """The values of the Literals in a type."""
    parts = [_unannotated(part) for part in members(kind)]
    return tuple(str(item) for part in parts if typing.get_origin(part) is Literal for item in typing.get_args(part))


def _unannotated(kind: TypeForm) -> TypeForm:
    return kind.__origin__ if hasattr(kind, "__metadata__") else kind
