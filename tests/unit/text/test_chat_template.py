"""Chat templates: those that a rerank template equals are read, and all others are refused with the reason."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.text import sandbox
from bei_core.text.chat_template import MessageFormat, read_chat_template
from bei_core.text.sandbox import SandboxError
from bei_core.text.templates import RerankTemplate, with_instruction
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


def test_named_special_tokens_are_variables_of_the_template(tmp_path: Path) -> None:
    """As special_tokens_map of transformers 5.23 has them."""
    named = {
        "extra_special_tokens": {"query_token": "<q>", "image_mark": {"content": "<i>", "special": True}},
        "model_specific_special_tokens": {"end_token": "<e>"},
        "document_token": "<d>",
        "add_bos_token": False,
    }
    text = f"{{{{ query_token }}}}{Q}{{{{ document_token }}}}{D}{{{{ image_mark }}}}{{{{ end_token }}}}"
    assert read(tmp_path, text, config={**QWEN, **named}).fill("q", "d").text == "<q>q<d>d<i><e>"


def test_what_does_not_read_a_text_is_allowed(tmp_path: Path) -> None:
    for test in ("is iterable", "is sequence", "is string", "!= none", "is not none", "is defined"):
        assert read(tmp_path, f"{Q}{{% if messages[1].content {test} %}}{D}{{% endif %}}").fill("q", "d").text == "qd"
    text = f"{{% set query = {Q[2:-2]} %}}{{% if query != '' %}}{{{{ query }}}}{{% endif %}}{D}"
    assert read(tmp_path, text).fill("", "d").text == "d"
    text = "{{ messages | map(attribute='content') | join(': ') }}"
    assert read(tmp_path, text).fill("q", "d").text == "q: d"
    text = "{% generation %}{{ messages | join('|', attribute='content') }}{% endgeneration %}"
    assert read(tmp_path, text).fill("q", "d").text == "q|d"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (f"{Q} {D}", ""),
        (
            f"{{% if messages[0].role == 'system' %}}{{{{ raise_exception('no system') }}}}{{% endif %}}{Q} {D}",
            "with an instruction, the chat template cannot be rendered: TemplateError: no system",
        ),
        (
            f"{{% if messages[0].role == 'system' %}}{{{{ messages[0].content | trim }}}}{{% endif %}}{Q} {D}",
            "with an instruction, the chat template changes the text of a message of the role system, or",
        ),
    ],
)
def test_a_template_that_takes_no_instruction_keeps_the_reason(tmp_path: Path, template: str, reason: str) -> None:
    found = read(tmp_path, template)
    assert not found.takes_instruction
    assert found.uninstructed.startswith(reason)
    assert bool(found.uninstructed) is bool(reason)
    with pytest.raises(
        UnsupportedModelError, match=re.escape(f"{{instruction}}; {reason}" if reason else "{instruction}")
    ):
        with_instruction(found, "Find", "file")


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
        (f"{Q} {{{{ messages[1].content | tojson }}}}", "of which it asks for tojson"),
        (f"{Q} {D}{{{{ messages | tojson }}}}", "of which it asks for tojson"),
        (f"{Q}{{% if (messages[1].content | safe).startswith('x') %}}{{% endif %}}{D}", "of which it asks for safe"),
        (f"{Q}{{% if (messages[1].content | e) | length > 9 %}}{{% endif %}}{D}", "of which it asks for e"),
        (f"{Q}{{% if [messages[1].content] | join | length > 9 %}}{{% endif %}}{D}", "of which it asks for len"),
        (f"{Q}{{{{ '%s' | format(messages[1].content) }}}}", "of which it asks for format"),
        (f"{Q}{{% if 'yes no' | replace(messages[1].content, '') %}}{{% endif %}}{D}", "asks for replace"),
        (f"{Q}{{% if 'yes no'.replace(messages[1].content, '') %}}{{% endif %}}{D}", "asks for replace"),
        (f"{Q}{{{{ '%.2000s' % messages[1].content }}}}", "of which it asks for rmod"),
        (f"{Q}{{{{ ('Document: ' ~ messages[1].content)[:2000] }}}}", "changes the text"),
        (f"{Q}{{% set text %}}{D}{{% endset %}}{{{{ text[:9000] }}}}", "changes the text"),
        (f"{{{{ ('' ~ messages[0].content)[:9000] }}}}{D}", "changes the text"),
        (f"{Q}{D}{{% if ('' ~ messages[1].content) | length > 900 %}}long{{% endif %}}", "changes the text"),
        (f"{Q}{D}{{{{ '\\ud800' }}}}", "cannot be rendered: UnicodeEncodeError"),
        (f"{Q}{{% if messages[1].content == messages[0].content %}}{{% endif %}}{D}", "of which it asks for eq"),
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
        ("{% for a in range(99999) %}0123456789{% endfor %}", "more than 131072 characters"),
        ("{{ 'aaaa' * 1000000000 }}", "MemoryError"),
        # The pages that it asks for may take a slow machine all of the processor time.
        ("{% set x = 'aaaa' %}" + "{% set x = x ~ x %}" * 40 + "{{ x }}", "MemoryError|in 2 s of processor time"),
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


LIMITED = """
import json, os, resource, sys
sys.path[:] = {path!r}
from bei_core.text.sandbox import limit_process
sys.stdin.read()
limit_process()
said = []
for attempt in (lambda: open(os.devnull), os.pipe, lambda: bytearray(1 << 30)):
    try:
        attempt()
    except (OSError, MemoryError) as fault:
        said.append(type(fault).__name__)
print(json.dumps([[str([*said, *map(resource.getrlimit, (resource.RLIMIT_CPU, resource.RLIMIT_NPROC))]), str()]]))
"""


def test_the_process_of_a_template_opens_nothing_and_takes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_PROGRAM", LIMITED)
    assert sandbox.render("", [{}])[0].text == "['OSError', 'OSError', 'MemoryError', (2, 3), (0, 0)]"


@pytest.mark.parametrize(
    ("program", "kind", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", SandboxError, "was ended by SIGKILL"),
        ("import os; os.kill(os.getpid(), 24)", UnsupportedModelError, r"2 s of processor time .* \(SIGXCPU\)"),
        (
            "import sys; sys.stdin.read(); print('x' * 5_000_000)",
            UnsupportedModelError,
            "puts out more than 4194304 bytes",
        ),
        ("print('{{}}')", SandboxError, "did not answer: Expected `array`"),
        ("print('[[')", SandboxError, "did not answer: Input data was truncated"),
    ],
)
def test_a_failure_of_the_process_is_no_fault_of_the_template(
    monkeypatch: pytest.MonkeyPatch, program: str, kind: type[Exception], said: str
) -> None:
    monkeypatch.setattr(sandbox, "_PROGRAM", program)
    with pytest.raises(UnsupportedModelError, match=said) as raised:
        sandbox.render("x" * 1_000_000, [{}])  # more than a pipe takes of a process that does not read
    assert raised.type is kind


def test_a_process_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_PROGRAM", "import time; time.sleep(600)")
    monkeypatch.setattr(sandbox, "_WALL_S", 0.1)
    with pytest.raises(SandboxError, match=r"was ended by SIGKILL, after at most 0\.1 s"):
        sandbox.render("", [{}])


def test_a_process_that_cannot_be_started_is_no_fault_of_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(SandboxError, match="FileNotFoundError"):
        sandbox.render("", [{}])


def test_the_process_of_a_template_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """An escape from Jinja's sandbox finds no token in the environment."""
    program = "import json, os, sys; sys.stdin.read(); print(json.dumps([[repr(sorted(os.environ)), str()]]))"
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(sandbox, "_PROGRAM", program)
    assert "HF_TOKEN" not in sandbox.render("", [{}])[0].text


def test_a_process_that_fails_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_PROGRAM", "import no_such_module")
    with pytest.raises(SandboxError, match="ended with 1, ModuleNotFoundError: No module named 'no_such_mod"):
        sandbox.render("", [{}])


def test_a_folder_without_a_chat_template_has_none(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path, "flat", {}) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**QWEN, "chat_template": None}))
    assert read_chat_template(tmp_path, "flat", {}) is None


def test_a_malformed_chat_template_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**QWEN, "chat_template": 3}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template is neither a text nor a list"):
        read_chat_template(tmp_path, "flat", {})
    for content, said in (
        ([], "is not a JSON object"),
        ({"chat_template": "\ud800"}, "the chat template cannot be read"),
        ({"chat_template": [{"name": [1]}]}, "neither a text nor a list of named texts: Expected `str`, got `array`"),
        ({"chat_template": [{"name": "default"}]}, "Object missing required field `template`"),
        (
            {"chat_template": CHATML, "extra_special_tokens": {"query_token": 3}},
            "a token of the tokenizer's files is 3",
        ),
        ({"chat_template": CHATML, "eos_token": [3]}, "a token of the tokenizer's files is"),
        ({"chat_template": CHATML, "added_tokens_decoder": 3}, "the tokenizer's JSON files are malformed"),
        ({"chat_template": CHATML, "added_tokens_decoder": {"x": "<x>"}}, "the tokenizer's JSON files are malformed"),
        ({"chat_template": CHATML, "additional_special_tokens": 3}, "the tokenizer's JSON files are malformed"),
    ):
        config = [] if not isinstance(content, dict) else {**QWEN, **content}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=said):
            read_chat_template(tmp_path, "flat", {})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(QWEN))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="the chat template cannot be read"):
        read_chat_template(tmp_path, "flat", {})


def test_a_template_in_the_config_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**QWEN, "chat_template": "{{ bos_token }}"}))
    with pytest.raises(UnsupportedModelError, match=r"^tokenizer_config\.json: the chat template has the content"):
        read_chat_template(tmp_path, "flat", {})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**QWEN, "chat_template": CHATML}))
    assert read_chat_template(tmp_path, "flat", {}) is not None
