"""The documents list exactly the routes, errors, metrics and log lines of the code."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

import pytest
import yaml

from bei_core.config.settings import Settings
from bei_core.engines.tensorrt_llm import limits
from bei_core.errors import RequestError
from bei_core.http import openapi
from bei_core.http.routes import ROUTES
from bei_core.http.ui import PAGES
from bei_core.metrics import Metrics
from bei_core.models.families import FAMILIES
from bei_core.truss import init
from scripts import make_routes_doc
from tests.docs.documents import ROOT, code_in, inline_code, table_rows
from tests.golden.checkpoints import descriptions

OPERATIONS = ROOT / "docs" / "operations.md"
MODELS = ROOT / "docs" / "models.md"
ROUTES_PAGE = ROOT / "docs" / "routes.md"
LIBRARY = ROOT / "packages" / "bei_core"

_PLACEHOLDER = re.compile(r"%[-\d.]*[sdfrg]|\0")  # of a log line's format, or of an f-string
_LOGS = {"debug", "info", "warning", "error", "exception", "log", "_give_up"}  # methods that log an argument
_TELLING = 8  # characters of a message besides what is filled in; fewer would match any line

# The first cell of each row of the table of families: the names in FAMILIES, and the files of tests/data/checkpoints.
# The folders of static embeddings are in tests/golden/sentence.py.
_FAMILY_ROWS = {
    "Bert": ("Bert HF_ColBERT Contriever", "bert"),
    "ERNIE": ("Ernie", "ernie"),
    "Roberta, XLM-Roberta": ("Roberta XLMRoberta", "roberta xlm-roberta"),
    "DistilBert": ("DistilBert", "distilbert"),
    "Camembert": ("Camembert", "camembert"),
    "MPNet": ("MPNet", "mpnet"),
    "Electra": ("Electra", "electra"),
    "ModernBert": ("ModernBert", "modernbert"),
    "Deberta-v2, -v3": ("DebertaV2", "deberta-v2"),
    "GTE": ("New Gte", "new gte"),
    "NomicBert": ("NomicBert", "nomic_bert"),
    "NomicBert with experts": ("NomicBert", "nomic_moe"),
    "JinaBert": ("JinaBert", "jina_bert"),
    "XLM-Roberta with the tensor names of flash attention": ("XLMRobertaFlash", "xlm-roberta-flash"),
    "Jina embeddings v3": ("JinaEmbeddingsV3", "jina_embeddings_v3"),
    "T5 and mT5 encoders": ("T5 T5Encoder MT5 MT5Encoder", "t5"),
    "Llama (llama3, linear and yarn rope), Mistral": ("Llama Mistral", "llama mistral"),
    "EuroBert": ("EuroBert", "eurobert"),
    "LlamaBidirectional": ("LlamaBidirectional", "llama_bidirec"),
    "Qwen2": ("Qwen2", "qwen2 qwen_mean"),
    "Qwen3": ("Qwen3", "qwen3"),
    "Qwen3 bidirectional, with a projection": ("Qwen3Bidirectional", "qwen3_bidirectional"),
    "Gemma": ("Gemma", ""),
    "Gemma2": ("Gemma2", "gemma2"),
    "Gemma3 text": ("Gemma3", "gemma3_text"),
    "Static embeddings": ("StaticEmbedding Model2Vec", ""),
}
_OTHER_PROOFS = {"Gemma": {"embedding", "classification"}}  # tests/golden/test_gemma.py
_COLUMNS = ("embedding", "classification", "token_classification", "sparse", "colbert")


def test_routes() -> None:
    rows = table_rows(ROUTES_PAGE, "All routes")
    listed = {path for row in rows for code in code_in(row[0]) for path in code.split() if path.startswith("/")}
    assert listed == {*openapi.document()["paths"], *(route.path for route in (*openapi.DESCRIPTION, *PAGES))}


def test_the_table_of_routes_is_made_from_the_routes() -> None:
    written = make_routes_doc.PAGE.read_text(encoding="utf-8")
    assert written == make_routes_doc.page(written), "run .venv/bin/python -m scripts.make_routes_doc"


def test_fields() -> None:
    schemas = openapi.document()["components"]["schemas"]
    refs = {route.schema.__name__ for route in ROUTES if route.schema}
    fields = {name for ref in refs for name in schemas[ref]["properties"]}
    listed = {name for row in table_rows(ROUTES_PAGE, "Fields") for name in code_in(row[0])}
    assert listed == fields


def test_the_table_of_families_has_a_row_of_each() -> None:
    rows = [re.sub(r" \([^)]*\)$", "", row[0]) for row in table_rows(MODELS, "Architectures")]
    assert rows == [*_FAMILY_ROWS]
    assert {name for names, _ in _FAMILY_ROWS.values() for name in names.split()} == FAMILIES.keys()


@pytest.mark.parametrize("row", table_rows(MODELS, "Architectures"), ids=lambda row: row[0])
def test_what_a_family_gives_is_what_its_heads_and_goldens_say(row: list[str]) -> None:
    name = re.sub(r" \([^)]*\)$", "", row[0])
    names, files = (part.split() for part in _FAMILY_ROWS[name])
    proven = {each.kind for each in descriptions() if each.family in files and each.group != "reference"}
    cells = dict(zip(_COLUMNS, row[1:6], strict=True))
    expected = _OTHER_PROOFS.get(name) or proven & set(_COLUMNS) or {"embedding"}
    assert {kind for kind, cell in cells.items() if cell} == expected
    assert ("yes or no" in cells["classification"]) == ("yes_no" in proven)
    for family in (FAMILIES[name] for name in names):
        heads = {"classification": family.heads.sequence, "token_classification": family.heads.token}
        assert all(head for kind, head in {**heads, "sparse": family.heads.vocabulary}.items() if cells[kind])
        assert (row[7] == "stand-in") == limits.runs(family)


def test_limits_are_settings() -> None:
    listed = {name for row in table_rows(OPERATIONS, "Limits") for name in code_in(row[0])}
    assert listed
    assert listed <= set(Settings.__struct_fields__)


def test_errors() -> None:
    listed = {(code_in(row[1])[0], int(row[0])) for row in table_rows(OPERATIONS, "Errors that clients get")}
    kinds = {(kind.kind, kind.status) for kind in RequestError.__subclasses__()}
    assert kinds <= listed
    # The server itself answers requests that do not reach a route.
    sources = [path.read_text(encoding="utf-8") for path in (LIBRARY / "http" / "server").glob("*.py")]
    statuses = {int(status) for source in sources for status in re.findall(r"(?:HttpError|refuse)\((\d{3})", source)}
    assert {408, 431, 500} <= statuses
    assert {status for _, status in listed - kinds} == statuses - {status for _, status in kinds}


def test_metrics() -> None:
    listed = {name.partition("{")[0] for row in table_rows(OPERATIONS, "Metrics") for name in code_in(row[0])}
    assert listed == {line.split()[2] for line in Metrics().render().decode().splitlines() if line.startswith("# TYPE")}


@pytest.mark.parametrize(("page", "heading"), [("operations", "Log lines"), ("engines", "What the log says")])
def test_log_lines_are_written_so(page: str, heading: str) -> None:
    """`<…>` in a document, or `...`, stands for what the program fills in."""
    parts = [_PLACEHOLDER.split(text) for text in log_messages()]
    written = [re.compile(".+".join(map(re.escape, texts))) for texts in parts if len("".join(texts)) >= _TELLING]
    rows = table_rows(ROOT / "docs" / f"{page}.md", heading)
    listed = [line for row in rows if len(row) == 3 for line in code_in(row[0])]
    assert listed
    assert [line for line in listed if not any(pattern.fullmatch(line) for pattern in written)] == []


def test_alerts_quote_log_lines_and_panels() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    texts = [rule["annotations"]["description"] for group in rules["groups"] for rule in group["rules"]]
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "bei.json").read_text(encoding="utf-8"))
    panels = {panel["title"] for panel in dashboard["panels"]}
    quoted = {quote for text in texts for quote in re.findall(r'"([^"]+)"', text)}
    assert quoted & panels
    lines = quoted - panels
    assert lines
    assert [line for line in lines if not any(line in message for message in log_messages())] == []


def test_paths_without_a_key() -> None:
    """The page about security lists all of them."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    listed = code_in(text.partition("- **Without a key** these paths answer anyone: ")[2].partition(". ")[0])
    assert sorted(listed) == sorted(
        route.path for route in (*ROUTES, *openapi.documents(with_pages=True)) if route.public
    )


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architectures.md"])
def test_names_for_contributors_are_those_of_the_code(page: str) -> None:
    files = (path for folder in (LIBRARY, ROOT / "tests", ROOT / "scripts") for path in folder.rglob("*.py"))
    known = {word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    named = {code for code in inline_code(ROOT / page) if re.fullmatch(r"[A-Za-z_][\w.]*", code)}
    assert named
    assert [code for code in sorted(named) if code.rpartition(".")[2] not in known] == []


def log_messages() -> Iterator[str]:
    """The message of every call that logs one, with logging's placeholders, or `\\0` for each value in an f-string."""
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LOGS:
                said = node.args[1:2] if node.func.attr == "log" else node.args[:1]  # after the level
                parts = [part for part in said if isinstance(part, (ast.Constant, ast.JoinedStr))]
                yield from map(text_of, parts)


def text_of(node: ast.Constant | ast.JoinedStr) -> str:
    """The text of a literal or of an f-string."""
    parts = [node] if isinstance(node, ast.Constant) else node.values
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in parts)


def test_the_gpu_page_installs_what_the_image_of_tensorrt_llm_lacks() -> None:
    needed = {pinned.partition("==")[0] for pinned in (*init.REQUIREMENTS, *init.SERVER_REQUIREMENTS)}
    commands = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").partition("## First run with TensorRT-LLM")[2]
    listed = next(line for line in commands.splitlines() if line.startswith("pip install"))
    packages = [each.strip("'").partition(">=")[0] for each in listed.partition("#")[0].split()[2:]]
    assert packages == sorted(needed - init.IN_THE_GPU_IMAGE - {"openvino"})
