"""The spec in an engine folder: that of an earlier version of BEI, and the versions that separate their engines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bei_core.engines.openvino import build as openvino
from bei_core.engines.torch import build as torch
from bei_core.models.spec import ModelSpec, load_spec

SPEC: dict[str, Any] = {
    "architecture": "BertForSequenceClassification",
    "config": {},
    "modules": [],
    "normalize": False,
    "max_seq_len": 8,
}


@pytest.mark.parametrize(
    ("fields", "has_fault"),
    [
        ({}, False),
        ({"reads_messages": False, "template": None}, False),
        ({"reads_messages": True, "template": {"name": "custom", "template": "{query} {document}"}}, False),
        ({"reads_messages": True, "template": None}, True),
    ],
)
def test_an_earlier_spec_of_a_model_that_needs_a_template_is_not_served_without_one(
    fields: dict[str, Any], has_fault: bool, tmp_path: Path
) -> None:
    """It says that the model reads messages, and not why it has no template."""
    (tmp_path / "spec.json").write_text(json.dumps({**SPEC, **fields}))
    assert ("build it again" in load_spec(tmp_path / "spec.json").template_fault) == has_fault


def test_the_versions_of_engines_rise_with_the_form_of_a_spec() -> None:
    """Then no version of BEI finds an engine whose spec it would read in another way."""
    forms = msgspec.json.schema_components([ModelSpec])[1]
    names = {name: [*form.get("properties", ())] for name, form in sorted(forms.items())}
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
    assert (openvino.VERSION, torch.VERSION, digest) == (17, 11, "5d83d96c"), "increment both versions"
