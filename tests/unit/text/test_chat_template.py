"""Chat templates: those that a rerank template equals are read, and all others are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.text import sandbox
from bei_core.text.chat_template import MessageFormat, read_chat_template
from bei_core.text.templates import RerankTemplate
from tests.golden.chat_templates import AS_TURNS, BY_ROLE, CHATML, QWEN, STRUCTURED

Q = "{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}"
D = "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
FIRST, SECOND = "{{ messages[0].content }}", "{{ messages[1].content }}"


def read(
    folder: Path, template: str, form: MessageFormat = "flat", config: dict[str, object] | None = None, **given: object
) -> RerankTemplate:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config or QWEN))
    found = read_chat_template(folder, form, given)
    assert found is not None
    return found


def test_an_instruction_replaces_the_text_that_stands_for_it(tmp_path: Path) -> None:
    template = read(tmp_path, BY_ROLE)
    assert "Task: Search\nQuery: q\nDocument: d<|im_end|>" in template.fill("q", "d").text
    assert "Task: Find\nQuery: q\n" in template.fill("q", "d", "Find").text
    assert template.takes_instruction
    assert not template.add_special_tokens


def test_a_document_may_come_first_and_the_instruction_only_if_there_is_one(tmp_path: Path) -> None:
    template = read(tmp_path, STRUCTURED, "structured")
    assert template.fill("q", "d").text == "Document: d\nQuery: q ??"
    assert template.fill("q", "d", "do").text == "Document: d\nQuery: q do ??"


def test_arguments_and_special_tokens_are_variables_of_the_template(tmp_path: Path) -> None:
    template = read(tmp_path, f"{{{{ bos_token }}}}{Q}{{{{ eos_token }}}}{D}{{{{ style }}}}", style="short")
    assert template.fill("q", "d").text == "q<|endoftext|>dshort"
    assert read(tmp_path, AS_TURNS, add_generation_prompt=True).template.endswith("<|im_start|>assistant\n")


def test_a_template_without_a_place_for_a_system_message_takes_no_instruction(tmp_path: Path) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    for text in (f"{Q} {D}", f"{refuses}{FIRST} {SECOND}"):
        assert not read(tmp_path, text).takes_instruction


def test_texts_are_trimmed_where_the_template_trims_them(tmp_path: Path) -> None:
    template = read(tmp_path, f"{{{{ messages[-2].content | trim }}}}|{D.replace('first', 'first | trim')}")
    assert template.fill(" q\n", "\td ").text == "q|d"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (f"{Q} {D.replace('first', 'first | upper')}", "depends on the text of a message, of which it asks for upper"),
        (f"{Q} {D.replace('first', 'first | replace(1, 2)')}", "depends on the text of a message"),
        (f"{Q}{{% if 'x' in messages[1].content %}}{D}{{% endif %}}", "of which it asks for contains"),
        (f"{Q}{{% if messages[1].content.startswith('x') %}}{{% endif %}}{D}", "of which it asks for startswith"),
        (f"{Q}{{% if messages[1].content | length > 9 %}}{{% endif %}}{D}", "of which it asks for len"),
        (f"{Q}{{% if messages[1].content == 'x' %}}{{% endif %}}{D}", "of which it asks for eq"),
        (
            f"{Q} {{{{ messages[1].content ~ '' | upper }}}} {{{{ (messages[1].content ~ '') | upper }}}}",
            "changes the text",
        ),
        (f"{Q} {D.replace('first', 'first | trim(1)')}", "of which it asks for strip"),
        (f"{Q}{{% if messages[1].content | wordcount > 9 %}}{{% endif %}}{D}", "No filter named 'wordcount'"),
        (f"{Q}{{% if messages[1].content is upper %}}{{% endif %}}{D}", "of which it asks for isupper"),
        (f"{Q} {{{{ messages[1].content | tojson }}}}", "changes the text of the query or of the document"),
        (f"{Q} {{{{ messages[1].content | trim }}}}", "changes the text of the query or of the document"),
        (f"{Q} {{% if messages[1].content %}}with {D}{{% else %}}{D}{{% endif %}}", "changes the text"),
        (Q, "has the content of the role query 1 times and that of the role document 0 times"),
        (f"{Q} {D} {D}", "that of the role document 2 times"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "role query 0 times"),
        (f"{{{{ '{{query}}' }}}} {Q} {D}", "has {instruction} or {query} or {document} in its own text"),
        (f"{Q} {D} {{% for %}}", "cannot be rendered: TemplateSyntaxError: Expected an expression"),
        (f"{Q} {D} {{{{ raise_exception('two\nlines') }}}}", "cannot be rendered: TemplateError: two lines"),
        (f"{Q} {D} {{{{ strftime_now('%Y') }}}}", "it puts out the date"),
        (f"{Q} {D} {{{{ messages[9].content }}}}", "cannot be rendered: UndefinedError"),
    ],
)
def test_a_template_that_no_rerank_template_equals_is_refused(tmp_path: Path, template: str, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"^chat_template\.jinja: the chat template ") as raised:
        read(tmp_path, template)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "in 2 s of processor time"),
        ("{% for a in range(99999) %}0123456789{% endfor %}", "more than 65536 characters"),
        ("{% set x = 'aaaa' %}" + "{% set x = x ~ x %}" * 40 + "{{ x }}", "MemoryError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{# " + "x" * 200_000 + " #}", "has more than 131072 bytes"),
    ],
)
def test_a_hostile_template_costs_little_and_is_refused(tmp_path: Path, template: str, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        read(tmp_path, template + Q + D)


def test_the_process_of_a_template_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An escape from Jinja's sandbox finds no token in the environment."""
    program = "import json, os, sys; sys.stdin.read(); print(json.dumps([[repr(sorted(os.environ)), str()]]))"
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(sandbox, "_PROGRAM", program)
    assert "HF_TOKEN" not in sandbox.render("", [{}])[0].text


def test_a_process_that_fails_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_PROGRAM", "import no_such_module")
    with pytest.raises(UnsupportedModelError, match="ended with 1, ModuleNotFoundError: No module named 'no_such_mod"):
        sandbox.render("", [{}])


def test_a_folder_without_a_chat_template_has_none(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path, "flat", {}) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**QWEN, "chat_template": None}))
    assert read_chat_template(tmp_path, "flat", {}) is None


def test_a_malformed_chat_template_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**QWEN, "chat_template": 3}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template is neither a text nor a list"):
        read_chat_template(tmp_path, "flat", {})
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="the chat template cannot be read"):
        read_chat_template(tmp_path, "flat", {})


def test_a_template_in_the_config_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**QWEN, "chat_template": "{{ bos_token }}"}))
    with pytest.raises(UnsupportedModelError, match=r"^tokenizer_config\.json: the chat template has the content"):
        read_chat_template(tmp_path, "flat", {})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**QWEN, "chat_template": CHATML}))
    assert read_chat_template(tmp_path, "flat", {}) is not None
