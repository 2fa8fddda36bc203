"""The service with a fake engine: admission, prompts and health."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from bei_core.checkpoint import Checkpoint
from bei_core.config.settings import Settings
from bei_core.engines.manifest import Manifest
from bei_core.engines.open import Opened
from bei_core.errors import (
    ConfigError,
    DeadlineExceededError,
    EmptyInputError,
    EngineError,
    OverloadedError,
    RequestError,
    UnhealthyError,
    ValidationError,
)
from bei_core.http.schemas.common import Common
from bei_core.metrics import Timings
from bei_core.models.spec import ModelSpec, read_spec
from bei_core.serving.service import Result, Service
from bei_core.tasks import Embed, EncodeOptions, Rows, Text, TruncationSide, l2_normalize
from tests.fakes import SAFETY_S, WIDTH, FakeEngine, at_rest, ended, entered, rows_of
from tests.golden.cases import GOLDEN

FOLDER = GOLDEN / "bert-cls-normalize"
PROMPTS = {"query": "query: ", "document": "passage: "}
BAD = 4  # [MASK]: no text here has it, so only token ids that are sent do

MakeService = Callable[..., Service]


@pytest.fixture
def make_service() -> Iterator[MakeService]:
    """Starts services over fake engines, past their warm-up, and closes them."""
    made: list[tuple[FakeEngine, Service]] = []

    def make(engine: FakeEngine | None = None, *, spec: ModelSpec | None = None, **flags: object) -> Service:
        engine = engine or FakeEngine(max_seq_len=48)
        service = Service(opened(engine, spec), Settings.load({"model_id": "owner/name", **flags}, {}))
        made.append((engine, service))
        service.start()
        engine.batches.clear()
        while engine.entered.acquire(blocking=False):
            pass
        return service

    yield make
    for engine, service in made:
        engine.release()
        service.close(SAFETY_S)


def spec_of(**changes: object) -> ModelSpec:
    spec = read_spec(Checkpoint(folder=FOLDER, source="owner/name", revision="1" * 40))
    return msgspec.structs.replace(spec, **changes)


def opened(engine: FakeEngine, spec: ModelSpec | None) -> Opened:
    manifest = Manifest(engine="fake", precision="f32", source="owner/name", revision="1" * 40, artifact="0" * 32)
    return Opened(engine, spec or spec_of(), FOLDER / "tokenizer.json", manifest)


def embed(*inputs: Text, options: EncodeOptions | None = None) -> Embed:
    return Embed(list(inputs), options or EncodeOptions(), normalize=False)


def expected(service: Service, *inputs: Text, options: EncodeOptions | None = None) -> Rows:
    return rows_of(service.tokenizer.encode_now(list(inputs), options or EncodeOptions()))


# --- Results


async def test_rows_are_those_of_the_texts_in_their_order(make_service: MakeService) -> None:
    service = make_service()
    reply = await service.run(embed("one", "two", [5, 6, 7], "three"))
    assert np.array_equal(reply.rows, expected(service, "one", "two", [5, 6, 7], "three"))


async def test_the_tasks_own_options_are_applied_to_the_rows(make_service: MakeService) -> None:
    service = make_service()
    reply = await service.run(Embed(["one", "two"], normalize=True, dimensions=3))
    assert np.array_equal(reply.rows, l2_normalize(expected(service, "one", "two")[:, :3]))


async def test_requests_with_other_options_share_a_batch(make_service: MakeService) -> None:
    engine = FakeEngine(max_seq_len=48)
    service = make_service(engine)
    with engine.held():
        tasks = [asyncio.create_task(service.run(embed("first")))]
        await entered(engine)
        for task in (Embed(["a"]), Embed(["b"], dimensions=2), Embed(["c"], EncodeOptions(side=TruncationSide.LEFT))):
            tasks.append(asyncio.create_task(service.run(task)))
        await at_rest()
    assert all(isinstance(reply, Result) for reply in await ended(*tasks))
    assert [len(batch) for batch in engine.batches] == [1, 3]


async def test_the_timings_split_the_time_of_a_request_into_its_stages(make_service: MakeService) -> None:
    service = make_service()
    given = Timings()
    reply = await service.run(embed("one", "two words", [5, 6, 7]), timings=given)
    assert reply.timings is given
    tokens = service.tokenizer.encode_now(["one", "two words", [5, 6, 7]], EncodeOptions())
    assert (given.num_inputs, given.num_characters) == (3, len("one") + len("two words"))
    assert given.num_tokens == sum(map(len, tokens))


@pytest.mark.parametrize("served", ["model", None])
def test_its_name_is_the_served_one_or_the_sources(make_service: MakeService, served: str | None) -> None:
    service = make_service(served_model_name=served)
    assert service.name == (served or "owner/name")
    assert service.engine.compute_type == "cpu+f32"


def test_no_text_is_longer_than_a_batch_may_be(make_service: MakeService) -> None:
    assert make_service(max_batch_tokens=20).tokenizer.max_seq_len == 20
    assert make_service().tokenizer.max_seq_len == 48


# --- Admission


async def test_more_requests_than_allowed_are_refused_and_take_nothing(make_service: MakeService) -> None:
    engine = FakeEngine(max_seq_len=48)
    service = make_service(engine, max_concurrent_requests=3)
    with engine.held():
        tasks = [asyncio.create_task(service.run(embed("text" * number))) for number in (1, 2, 3)]
        await at_rest()
        for _ in range(2):
            with pytest.raises(OverloadedError, match="3 requests are in progress"):
                await service.run(embed("one more"))
    assert all(isinstance(reply, Result) for reply in await ended(*tasks))
    assert len(engine.seen) == 3


async def test_more_inputs_than_allowed_are_refused(make_service: MakeService) -> None:
    service = make_service(max_client_batch_size=2)
    with pytest.raises(ValidationError, match="batch size 3 > maximum allowed batch size 2") as refusal:
        await service.run(embed("a", "b", "c"))
    assert refusal.value.param == "inputs"
    await service.run(embed("a", "b"))


async def test_tokens_that_do_not_fit_in_the_queue_are_refused(make_service: MakeService) -> None:
    engine = FakeEngine(max_seq_len=48)
    service = make_service(engine, max_queue_tokens=10)
    with engine.held():
        tasks = [asyncio.create_task(service.run(embed([1] * 5)))]
        await entered(engine)  # computed now, so no longer waiting
        tasks += [asyncio.create_task(service.run(embed([2] * 6))), asyncio.create_task(service.run(embed([3] * 4)))]
        await at_rest()
        with pytest.raises(OverloadedError, match="10 tokens are waiting"):
            await service.run(embed([4]))
    assert all(isinstance(reply, Result) for reply in await ended(*tasks))
    await service.run(embed([4]))


async def test_a_request_larger_than_the_queue_runs_where_nothing_waits(make_service: MakeService) -> None:
    service = make_service(max_queue_tokens=10)
    assert (await service.run(embed([1] * 40, [2] * 40))).rows.shape == (2, WIDTH)


async def refused(service: Service, kind: type[RequestError], task: Embed, deadline: float | None = None) -> None:
    with pytest.raises(kind):
        await service.run(task, deadline=deadline)


async def test_every_way_in_which_a_request_ends_gives_its_place_back(make_service: MakeService) -> None:
    engine = FakeEngine(max_seq_len=48, raises_on=[BAD])
    service = make_service(engine, max_concurrent_requests=1, max_client_batch_size=2)
    for _ in range(3):
        await refused(service, EmptyInputError, embed(""))
        await refused(service, EmptyInputError, embed())
        await refused(service, ValidationError, embed("a", "b", "c"))
        await refused(service, ValidationError, embed([10**6]))
        await refused(service, ValidationError, embed("word " * 100, options=EncodeOptions(truncate=False)))
        await refused(service, EngineError, embed([BAD]))
        await refused(service, ValidationError, Embed(["a"], dimensions=WIDTH + 1))
        await refused(service, DeadlineExceededError, embed("late"), deadline=0.0)
        await leave(service, engine)
        await service.run(embed("fine"))


async def leave(service: Service, engine: FakeEngine) -> None:
    """Cancel a request while it is computed."""
    while engine.entered.acquire(blocking=False):
        pass
    with engine.held():
        task = asyncio.create_task(service.run(embed("leaving")))
        await entered(engine)
        task.cancel()
        assert isinstance((await ended(task))[0], asyncio.CancelledError)


async def test_the_queue_is_empty_after_everything_has_ended(make_service: MakeService) -> None:
    engine = FakeEngine(max_seq_len=48, raises_on=[BAD])
    service = make_service(engine)
    inputs: list[list[int]] = [[number % 7 + 1, number + 10] for number in range(70)]
    results = await ended(*(asyncio.create_task(service.run(embed(ids))) for ids in inputs))
    assert [isinstance(result, EngineError) for result in results] == [BAD in ids for ids in inputs]
    assert b"te_queue_size 0.0" in service.metrics.render()


# --- Prompts


@pytest.mark.parametrize(
    ("name", "prompt"), [("query", "query: "), ("document", "passage: "), (None, None), ("plain", "")]
)
async def test_a_prompt_goes_before_the_text(make_service: MakeService, name: str | None, prompt: str | None) -> None:
    service = make_service(spec=spec_of(prompts={**PROMPTS, "plain": ""}))
    reply = await service.run(embed("find it", options=Common(prompt_name=name).encode_options(service.model)))
    assert np.array_equal(reply.rows, expected(service, f"{prompt or ''}find it"))


def test_an_unknown_prompt_is_refused_with_the_known_ones(make_service: MakeService) -> None:
    with pytest.raises(ValidationError, match="unknown `prompt_name` 'q'; this model has: document, query") as refusal:
        Common(prompt_name="q").encode_options(make_service(spec=spec_of(prompts=PROMPTS)).model)
    assert refusal.value.param == "prompt_name"
    with pytest.raises(ValidationError, match="this model has: none"):
        Common(prompt_name="query").encode_options(make_service(spec=spec_of(prompts={})).model)


@pytest.mark.parametrize(
    ("models", "flags", "prompt"),
    [
        (None, {}, None),
        ("query", {}, "query: "),
        ("query", {"default_prompt": "ours: "}, "ours: "),
        ("query", {"default_prompt": ""}, ""),
        ("query", {"default_prompt_name": "document"}, "passage: "),
        ("missing", {}, None),
    ],
)
def test_the_default_prompt_is_the_settings_or_else_the_models(
    make_service: MakeService, models: str | None, flags: dict[str, str], prompt: str | None
) -> None:
    service = make_service(spec=spec_of(prompts=PROMPTS, default_prompt_name=models), **flags)
    assert service.model.default_options.prompt == prompt
    assert Common(prompt_name="document").encode_options(service.model).prompt == "passage: "


def test_a_default_prompt_that_the_model_does_not_have_is_refused_at_the_start() -> None:
    settings = Settings.load({"default_prompt_name": "q"}, {})
    with pytest.raises(ConfigError, match="default_prompt_name 'q' is not a prompt of the model; it has: document, "):
        Service(opened(FakeEngine(), spec_of(prompts=PROMPTS)), settings)


@pytest.mark.parametrize("auto", [True, False])
def test_truncation_is_the_servers_unless_the_request_says(make_service: MakeService, auto: bool) -> None:
    service = make_service(auto_truncate=auto)
    assert Common().encode_options(service.model).truncate is auto
    assert Common(truncate=not auto).encode_options(service.model).truncate is not auto


# --- Health


async def test_health_is_proved_by_the_engine_once_and_then_believed_for_a_while(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(max_seq_len=48)
    service = make_service(engine)
    await service.check()
    assert len(engine.batches) == 1
    monkeypatch.setattr("bei_core.serving.service._PROVEN_S", 1e9)
    await service.check()
    assert len(engine.batches) == 1
    monkeypatch.setattr("bei_core.serving.service._PROVEN_S", -1.0)
    await service.check()
    assert len(engine.batches) == 2


async def test_health_runs_the_engine_if_the_last_row_is_old_and_reports_its_error(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bei_core.serving.service._PROVEN_S", -1.0)
    engine = FakeEngine(max_seq_len=48)
    service = make_service(engine)
    engine.num_failures = 1
    with pytest.raises(UnhealthyError, match="fails on everything"):
        await service.check()
    await service.check()


async def test_health_does_not_wait_for_a_busy_engine(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bei_core.serving.service._PROVEN_S", -1.0)
    engine = FakeEngine(max_seq_len=48)
    service = make_service(engine)
    with engine.held():
        tasks = [asyncio.create_task(service.run(embed(*["word " * 100] * 50))) for _ in range(4)]
        await entered(engine)
        for _ in range(3):
            await asyncio.wait_for(service.check(), SAFETY_S)
    assert all(isinstance(reply, Result) for reply in await ended(*tasks))
    assert len(engine.seen) <= 4 * 50 + 3, "a probe without a waiting caller is not run again"


async def test_an_engine_that_fails_on_everything_is_unhealthy_though_it_is_busy(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bei_core.serving.service._PROVEN_S", -1.0)
    engine = FakeEngine(max_seq_len=48)
    service = make_service(engine)
    engine.num_failures = 1
    await refused(service, EngineError, embed("text"))
    with engine.held():
        task = asyncio.create_task(service.run(embed("text")))
        await entered(engine)
        with pytest.raises(UnhealthyError, match="fails on everything"):
            await service.check()
    await ended(task)
    await service.check()


async def test_the_warm_up_tells_how_long_batches_take(make_service: MakeService) -> None:
    service = make_service()
    assert service._runner.admission.expected_s(10_000) > 0


async def test_a_bad_request_does_not_make_the_server_unhealthy(make_service: MakeService) -> None:
    service = make_service(FakeEngine(max_seq_len=48, raises_on=[BAD]))
    await refused(service, EngineError, embed([BAD]))
    await service.check()


async def test_a_draining_server_is_unhealthy_and_still_answers(make_service: MakeService) -> None:
    service = make_service()
    await service.check()
    service.drain()
    with pytest.raises(UnhealthyError, match="shutting down"):
        await service.check()
    assert (await service.run(embed("accepted"))).rows.shape == (1, WIDTH)


async def test_a_broken_engine_is_unhealthy(make_service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug of the queue")

    service = make_service()
    monkeypatch.setattr("bei_core.serving.queue.Pending.take", fail)
    with pytest.raises(RequestError):
        await service.run(embed("text"))
    for _ in range(2):
        with pytest.raises(UnhealthyError):
            await service.check()
        with pytest.raises(UnhealthyError):
            await service.run(embed("text"))


# --- Start and end


async def test_close_answers_what_was_accepted_then_frees_the_engine(make_service: MakeService) -> None:
    engine = FakeEngine(max_seq_len=48)
    service = make_service(engine)
    with engine.held():
        tasks = [asyncio.create_task(service.run(embed(f"text {number}"))) for number in range(5)]
        await entered(engine)
        closing = asyncio.create_task(asyncio.to_thread(service.close, SAFETY_S))
        await at_rest()
        assert not engine.is_closed
    await closing
    assert all(isinstance(reply, Result) for reply in await ended(*tasks))
    assert engine.is_closed
    with pytest.raises(UnhealthyError):
        await service.run(embed("late"))


async def test_an_engine_that_does_not_come_back_is_not_freed_under_its_thread(make_service: MakeService) -> None:
    engine = FakeEngine(max_seq_len=48)
    service = make_service(engine)
    with engine.held():
        task = asyncio.create_task(service.run(embed("text")))
        await entered(engine)
        service.close(0)
        assert not engine.is_closed
        assert isinstance((await ended(task))[0], EngineError)
