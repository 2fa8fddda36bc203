"""Helpers that build JSON Schema; routes use them to describe their replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

JsonSchema: TypeAlias = Mapping[str, Any]

ANY: JsonSchema = {}
NUMBER, INTEGER, STRING, BOOLEAN, OBJECT = (
    {"type": name} for name in ("number", "integer", "string", "boolean", "object")
)


def nullable(schema: JsonSchema) -> JsonSchema:
    """Returns `schema`, which must have a single type, extended to also allow null."""
    return {**schema, "type": [schema["type"], "null"]}


def array_of(items: JsonSchema) -> JsonSchema:
    """Returns the schema of a list whose elements match `items`."""
    return {"type": "array", "items": items}


def map_of(values: JsonSchema) -> JsonSchema:
    """Returns the schema of an object with any property names, whose values match `values`."""
    return {"type": "object", "additionalProperties": values}


def object_of(optional: Sequence[str] = (), /, **properties: JsonSchema) -> JsonSchema:
    """Returns the schema of an object with these properties; all are required except those in `optional`.

    Other properties are allowed.
    """
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


_SAMPLES = {"number": 0.5, "integer": 1, "string": "text", "boolean": True, "object": {}}


def sample(schema: JsonSchema) -> Any:  # noqa: ANN401 - JSON
    """Returns a value that matches a schema which these helpers made, to show its shape."""
    schema = schema["anyOf"][0] if "anyOf" in schema else schema
    if "items" in schema:
        return [sample(schema["items"])]
    if "properties" in schema:
        return {name: sample(schema["properties"][name]) for name in schema["required"]}
    if "additionalProperties" in schema:
        return {"name": sample(schema["additionalProperties"])}
    kind = schema.get("type")
    return _SAMPLES.get(kind[0] if isinstance(kind, list) else kind or "")


def any_of(*schemas: JsonSchema) -> JsonSchema:
    """Returns a schema that allows everything that at least one of the schemas allows."""
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
