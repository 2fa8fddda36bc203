"""The pages at `/` and `/docs` in a real browser: what they show, by keyboard too, and what axe finds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect, sync_playwright

from tests.conftest import MINILM
from tests.e2e.server import Server, cache_of
from tests.fakes import SAFETY_S
from tests.golden.cases import GOLDEN

pytestmark = pytest.mark.page

CHROMIUM = os.environ.get("BEI_CHROMIUM", "/usr/bin/chromium")
KEY = "s3cret"
PHONE: ViewportSize = {"width": 360, "height": 740}
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
MODELS: dict[str, dict[str, Any]] = {
    "minilm": {},
    "locked": {"api_key": KEY},
    "ranker": {"model_id": GOLDEN / "bert-rerank-pad7"},
    "classifier": {"model_id": GOLDEN / "bert-topics-bf16-sharded"},
    "tagger": {"model_id": GOLDEN / "bert-ner"},
    "sparse": {"model_id": GOLDEN / "splade-distilbert-modules"},
    "pair": {
        "model_id": None,
        "served_model_name": None,
        "models": (f"a={MINILM}", f"b={GOLDEN / 'bert-rerank-pad7'}"),
    },
}


class Servers(dict[str, Server]):
    """The servers of MODELS by name, each started when it is first asked for."""

    def __init__(self, start: Callable[[str], Server]) -> None:
        self._start = start

    def __missing__(self, name: str) -> Server:
        self[name] = self._start(name)
        return self[name]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder, cache = tmp_path_factory.mktemp("page"), cache_of(tmp_path_factory)
    with ExitStack() as stack:
        yield Servers(lambda name: stack.enter_context(Server(folder / name, cache, dtype="float32", **MODELS[name])))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab of its own; the test fails if the page logs an error or asks another host for anything."""
    context = browser.new_context()
    tab = context.new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on(
        "console", lambda line: faults.append(line.text) if line.type == "error" and "401" not in line.text else None
    )
    yield tab
    context.close()
    assert [fault for fault in faults if "401" not in fault] == []  # Chromium logs each reply that asks for a key


def run(page: Page, tab: str, button: str) -> str:
    """The text of the result of a form, after its button was pressed."""
    page.get_by_role("tab", name=tab).click()
    form = page.locator("form", has=page.get_by_role("button", name=button, exact=True))
    form.get_by_role("button", name=button, exact=True).click()
    expect(form.locator(".result > *").first).to_be_visible()
    return str(form.locator(".result").inner_text())


def test_two_texts_are_compared(page: Page, servers: Servers) -> None:
    page.goto(servers["minilm"].url)
    a, b = servers["minilm"].post("/embed", {"inputs": [page.input_value("#left"), page.input_value("#right")]}).json()
    cosine = sum(x * y for x, y in zip(a, b, strict=True))
    assert run(page, "Embed", "Compare") == f"Cosine similarity {cosine:.4f}, 384 dimensions"


def test_a_list_is_drawn_with_the_nearest_of_each(page: Page, servers: Servers) -> None:
    page.goto(servers["minilm"].url)
    shown = run(page, "Embed", "Draw")
    assert page.locator("svg circle").count() == 6
    assert "A cat sleeps on the sofa.\tA kitten naps on the couch." in shown


def test_texts_are_ranked(page: Page, servers: Servers) -> None:
    server = servers["ranker"]
    page.goto(server.url)
    texts = page.input_value("#documents").split("\n")
    ranks = server.post("/rerank", {"query": page.input_value("#query"), "texts": texts}).json()
    rows = run(page, "Rerank", "Rerank").split("\n")[2:]
    assert [row.split("\t")[0] for row in rows if row.strip()] == [texts[rank["index"]] for rank in ranks]


def test_a_text_is_classified(page: Page, servers: Servers) -> None:
    server = servers["classifier"]
    page.goto(server.url)
    best = server.post("/predict", {"inputs": page.input_value("#classified")}).json()[0]
    assert f"{best['label']}\t{best['score']:.4f}" in run(page, "Classify", "Classify")


def test_entities_are_marked(page: Page, servers: Servers) -> None:
    server = servers["tagger"]
    page.goto(server.url)
    text = page.input_value("#tagged")
    body = {"inputs": [[text]], "aggregation_strategy": "simple"}
    found = [entity["entity_group"] for entity in server.post("/predict_tokens", body).json()[0]]
    run(page, "Entities", "Find entities")
    assert page.locator("mark small").all_inner_texts() == found


def test_the_heaviest_terms_are_shown(page: Page, servers: Servers) -> None:
    server = servers["sparse"]
    page.goto(server.url)
    weights = server.post("/embed_sparse", {"inputs": [page.input_value("#weighed")]}).json()[0]
    rows = [row.split("\t") for row in run(page, "Terms", "Weigh").split("\n")[2:] if row.strip()]
    heaviest = max(weights, key=lambda weight: weight["value"])
    assert int(rows[0][1]) == heaviest["index"]
    assert float(rows[0][2]) == pytest.approx(heaviest["value"], abs=1e-4)


def test_one_of_two_models_is_chosen(page: Page, servers: Servers) -> None:
    page.goto(servers["pair"].url)
    assert "384 dimensions" in run(page, "Embed", "Compare")
    page.locator("#served").select_option("b")
    expect(page.get_by_role("tab", name="Embed")).to_have_count(0)
    assert "Most relevant first" in run(page, "Rerank", "Rerank")
    expect(page.locator("#model")).to_contain_text("reranker")


def test_the_live_view_goes_on_after_a_restart(
    browser: Browser, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    page, cache = browser.new_page(), cache_of(tmp_path_factory)
    with Server(tmp_path / "first", cache, dtype="float32") as server:
        page.goto(server.url)
        page.get_by_role("tab", name="Live").click()
        server.post("/embed", {"inputs": ["a", "b"]})
        expect(page.get_by_role("cell", name="Inputs in the queue")).to_be_visible()
        port = server.port
    expect(page.get_by_role("alert")).to_have_text("the server does not answer")
    with Server(tmp_path / "second", cache, dtype="float32", port=port):
        expect(page.get_by_role("alert")).to_be_empty(timeout=1000 * SAFETY_S)
        assert "-" not in page.locator("#live").inner_text()
    page.close()


def test_tokens_are_shown(page: Page, servers: Servers) -> None:
    page.goto(servers["minilm"].url)
    assert "[CLS]" in run(page, "Tokens", "Tokenize")


def test_text_of_a_user_is_never_markup(page: Page, servers: Servers) -> None:
    page.goto(servers["minilm"].url)
    page.fill("#list", "<img src=x onerror=alert(1)>\nb\nc")
    run(page, "Embed", "Draw")
    assert page.locator("main img").count() == 0


def test_an_error_of_the_server_is_shown(page: Page, servers: Servers) -> None:
    page.goto(servers["minilm"].url)
    page.fill("#list", "a\nb")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_role("alert")).to_have_text("give at least three texts, one a line")


def test_the_model_and_the_live_view(page: Page, servers: Servers) -> None:
    page.goto(servers["minilm"].url)
    page.get_by_role("tab", name="Model").click()
    expect(page.get_by_role("cell", name="max_input_length")).to_be_visible()
    page.get_by_role("tab", name="Live").click()
    expect(page.get_by_role("cell", name="Inputs in the queue")).to_be_visible()


def test_tabs_are_chosen_with_the_keyboard(page: Page, servers: Servers) -> None:
    page.goto(servers["minilm"].url)
    page.get_by_role("tab", name="Embed").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Tokens")).to_be_focused()
    expect(page.locator("#tokens")).to_be_visible()
    page.keyboard.press("End")
    expect(page.locator("#live")).to_be_visible()


def test_the_page_asks_for_a_key_once(page: Page, servers: Servers) -> None:
    page.goto(servers["locked"].url)
    expect(page.get_by_label("This server needs an API key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("the API key is missing or wrong")
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    assert "384 dimensions" in run(page, "Embed", "Compare")
    page.reload()
    assert "384 dimensions" in run(page, "Embed", "Compare")


@pytest.mark.parametrize("at", ["http://proxy.test/model/abc/sync", "http://proxy.test/model/abc/sync/"])
def test_it_works_under_a_path_of_a_proxy(page: Page, servers: Servers, at: str) -> None:
    def forward(route: Route) -> None:
        path = route.request.url.removeprefix("http://proxy.test/model/abc/sync")
        route.fulfill(response=route.fetch(url=servers["minilm"].url + (path or "/")))

    page.route("http://proxy.test/model/abc/sync**", forward)
    page.route("http://proxy.test/model/abc/sync/**", forward)
    page.goto(at)
    assert "384 dimensions" in run(page, "Embed", "Compare")
    page.get_by_role("link", name="API reference").click()
    expect(page.get_by_text("POST /v1/embeddings")).to_be_visible()


def test_every_route_is_described(page: Page, servers: Servers) -> None:
    page.goto(servers["minilm"].url + "/docs")
    paths = servers["minilm"].get("/openapi.json").json()["paths"]
    operations = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    expect(page.locator("summary").first).to_be_visible()
    assert set(page.locator("summary code").all_inner_texts()) == operations


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("model", "path"), [(name, "/") for name in MODELS] + [("minilm", "/docs")])
def test_axe_finds_nothing(
    browser: Browser, servers: Servers, model: str, path: str, scheme: Literal["light", "dark"]
) -> None:
    page = browser.new_page(color_scheme=scheme, viewport=PHONE)
    page.goto(servers[model].url + path)
    page.wait_for_load_state("networkidle")
    for button in page.locator("form[data-run] button").all():
        if button.is_visible():
            button.click()
    page.wait_for_load_state("networkidle")
    tabs = page.get_by_role("tab").all()
    for tab in tabs or [None]:
        if tab is not None:
            tab.click()
        found = Axe().run(page, options={"runOnly": WCAG})
        assert found.response["violations"] == [], found.generate_report()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], "the page is wider than a phone"
    page.close()


def test_without_the_page_its_path_takes_only_bodies(
    servers: Servers, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Server(tmp_path / "server", cache_of(tmp_path_factory), dtype="float32", ui="false") as server:
        reply = server.get("/")
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
        assert server.get("/docs").status_code == 404
    assert servers["minilm"].get("/").headers["content-type"] == "text/html; charset=utf-8"
