"""Short spellings of JSON Schema, in which routes say what they reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

JsonSchema: TypeAlias = Mapping[str, Any]

ANY: JsonSchema = {}
NUMBER, INTEGER, STRING, BOOLEAN, OBJECT = (
    {"type": name} for name in ("number", "integer", "string", "boolean", "object")
)


def nullable(schema: JsonSchema) -> JsonSchema:
    """What `schema` allows, which has one type, and null."""
    return {**schema, "type": [schema["type"], "null"]}


def array_of(items: JsonSchema) -> JsonSchema:
    """A list of such items."""
    return {"type": "array", "items": items}


def map_of(values: JsonSchema) -> JsonSchema:
    """An object with any names and such values."""
    return {"type": "object", "additionalProperties": values}


def object_of(optional: Sequence[str] = (), /, **properties: JsonSchema) -> JsonSchema:
    """An object that has all of these properties but the `optional` ones, and maybe others."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


def any_of(*schemas: JsonSchema) -> JsonSchema:
    """What any of the schemas allows."""
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
