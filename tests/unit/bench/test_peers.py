"""What of benchmarks/peers needs no server: ratios, tables, command lines, requests, checkpoints, agreement."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from bei_core.checkpoint import resolve
from bei_core.models.spec import read_spec
from benchmarks.peers import checkpoints
from benchmarks.peers.agreement import agreement, why_no_peer
from benchmarks.peers.catalogue import OURS, PEERS, chosen, fill, ours, why_missing
from benchmarks.peers.checkpoints import SHAPES, Shape
from benchmarks.peers.forms import FormError, Forms, processor
from benchmarks.peers.loops import looping
from benchmarks.peers.results import Result, Sample, Timing, our_precision, ratios
from benchmarks.peers.run import Plan
from benchmarks.peers.servers import PeerError, running
from benchmarks.peers.table import table
from benchmarks.peers.workloads import WORKLOADS, calls, http_requests, questions

ROUTER = next(peer for peer in PEERS if peer.name == "text-embeddings-inference" and peer.precision == "int8")
FAKE_ROUTER = '''#!/usr/bin/env python3
"""Answers /v1/embeddings of text-embeddings-inference with the lengths of the texts."""
import base64, http.server, json, struct, sys

flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors = [[float(len(text)), 1.0] for text in texts]
        if body["encoding_format"] == "base64":
            vectors = [base64.b64encode(struct.pack("<2f", *each)).decode() for each in vectors]
        data = [{"embedding": each, "index": index} for index, each in enumerate(vectors)]
        reply = json.dumps({"data": data, "usage": {"total_tokens": 1, "prompt_tokens": 1}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *args):
        pass


assert flags["--model-id"] and flags["--dtype"] == "float32", flags
http.server.ThreadingHTTPServer.request_queue_size = 128  # else clients who connect at once try again for a minute
http.server.ThreadingHTTPServer((flags["--hostname"], int(flags["--port"])), Handler).serve_forever()
'''


def sample(peer: str, precision: str, turn: int, texts_per_s: float, workload: str = "mixed") -> Sample:
    timing = Timing(texts_per_s=texts_per_s, latency_ms=(1.0, 2.0, 3.0), cpu_ms=4.0, rss_mb=500.0, others_share=0.02)
    return Sample(
        model="minilm",
        workload=workload,
        peer=peer,
        precision=precision,
        turn=turn,
        agreement=0.99999,
        timing=timing,
    )


SAMPLES = [
    sample(OURS, "f32", 0, 200.0),
    sample(OURS, "int8", 0, 400.0),
    sample("Infinity", "f32", 0, 100.0),
    sample("Infinity", "int8", 0, 80.0),
    sample("llama.cpp", "f16", 0, 50.0),
    sample(OURS, "f32", 1, 300.0),
    sample("Infinity", "f32", 1, 100.0),
]


def of(peer: str, precision: str) -> list[Sample]:
    return [each for each in SAMPLES if each.who == (peer, precision)]


def test_a_ratio_is_within_a_turn_and_to_ours_of_the_same_precision() -> None:
    found = ratios(SAMPLES, of("Infinity", "f32"))
    assert found is not None
    assert (found.median, found.low, found.high) == (2.5, 2.0, 3.0)
    assert found.show(".2f") == "2.50 (2.00-3.00)"
    int8 = ratios(SAMPLES, of("Infinity", "int8"))
    assert int8 is not None
    assert int8.show(".2f") == "5.00"


def test_16_bits_are_compared_with_our_bf16_if_there_is_one_else_with_our_f32() -> None:
    assert our_precision("f16", ["f32", "bf16", "int8"]) == "bf16"
    assert our_precision("bf16", ["f32", "int8"]) == "f32"
    assert our_precision("int8", ["f32", "int8"]) == "int8"
    found = ratios(SAMPLES, of("llama.cpp", "f16"))
    assert found is not None
    assert found.median == 4.0


def test_a_turn_without_ours_gives_no_ratio() -> None:
    assert ratios(SAMPLES, [sample("Infinity", "f32", 7, 100.0)]) is None


def test_the_table_has_ratios_with_spreads_and_says_what_was_left_out() -> None:
    result = Result(
        machine={"cpu": "AMD EPYC"},
        peaks=[{"f32": 100.0, "int8": 210.0}, {"f32": 120.0, "int8": 200.0}],
        versions={"ours": "bei-core 0.1.0"},
        missing={"fastembed f32": "run `scripts/peer_envs.sh fastembed`"},
        refused={"x int8, minilm, long": "its least cosine to our f32 is 0.5000, below 0.95"},
        samples=SAMPLES,
    )
    text = table(result)
    assert "| minilm | Infinity | f32 | 2.50 (2.00-3.00) |" in text
    assert "f32 110 (100-120), int8 205 (200-210)" in text
    assert "run `scripts/peer_envs.sh fastembed`" in text
    assert "x int8, minilm, long: its least cosine" in text
    assert "| Infinity | f32 | 100.0 | 1.0 / 2.0 / 3.0 | 4.00 | 500 | 2.50 (2.00-3.00) | 1.0000 |" in text
    assert msgspec.json.decode(msgspec.json.encode(result), type=Result) == result


def test_command_lines_have_no_place_left_to_fill_in() -> None:
    for peer in (*PEERS, ours("f32"), ours("int8")):
        command = fill(peer, "minilm", Path("/model"), Path("/envs"), 1234, rerank=False)
        assert not [part for part in command if "{" in part or "}" in part]
        assert any("/model" in part for part in command)
        assert not peer.server or any("1234" in part for part in command)


def test_peers_are_chosen_by_parts_of_their_names() -> None:
    assert {peer.label for peer in chosen("infinity f32, llama")} == {"Infinity f32", "llama.cpp f16", "llama.cpp int8"}
    assert chosen("all") == list(PEERS)
    assert not chosen("none")


def test_a_missing_environment_is_named_with_its_command(tmp_path: Path) -> None:
    infinity = PEERS[0]
    assert "scripts/peer_envs.sh infinity" in why_missing(infinity, tmp_path)
    python = tmp_path / ".venv-peer-infinity" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert not why_missing(infinity, tmp_path)
    (tmp_path / ".venv-peer-infinity" / "unavailable").touch()
    assert why_missing(infinity, tmp_path)


def test_a_decoder_is_not_given_to_peers_for_encoders() -> None:
    llama = chosen("llama.cpp")[0]
    assert llama.takes("bert-base", rerank=True)
    assert not llama.takes("qwen2-0.5b", rerank=False)
    assert not chosen("fastembed")[0].takes("minilm", rerank=True)


def test_questions_follow_each_other_without_repeating() -> None:
    mixed, rerank = WORKLOADS["mixed"], WORKLOADS["rerank"]
    assert questions(mixed, 0, 10) == questions(mixed, 0, 4) + questions(mixed, 4, 6)
    asked = questions(rerank, 1, 2)
    assert [len(each) for each in asked] == [101, 101]
    assert len({text for each in asked for text in each}) == 202
    assert calls(mixed, [["a"], ["b"]]) == [["a", "b"]]
    assert calls(WORKLOADS["one-client"], [["a"], ["b"]]) == [["a"], ["b"]]


def test_rerank_requests_name_documents_as_the_peer_does() -> None:
    request = http_requests(WORKLOADS["rerank"], ours("f32"), "localhost:1", [["query", "one", "two"]])[0]
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /rerank HTTP/1.1")
    assert b"content-length: %d" % len(body) in head
    assert json.loads(body) == {"model": "bench", "query": "query", "documents": ["one", "two"]}


def test_larger_models_get_fewer_requests_and_the_time_is_said_in_advance() -> None:
    mixed = WORKLOADS["mixed"]
    assert mixed.num_requests("minilm", 2000) == 2000
    assert 200 < mixed.num_requests("bert-base", 2000) < 300
    assert mixed.num_requests("bert-large", 1000) == mixed.fewest
    one = Plan(peers=PEERS, models=["minilm"], workloads=[mixed], rounds=1, requests=1000)
    two = Plan(peers=PEERS, models=["minilm"], workloads=[mixed], rounds=2, requests=1000)
    assert two.estimate_s(100) == 2 * one.estimate_s(100) > 60


def test_agreement_is_the_least_cosine_or_the_rank_correlation() -> None:
    assert agreement([[1, 0], [0, 2]], [[2, 0], [0, 1]], rerank=False) == pytest.approx(1)
    assert agreement([[1, 0], [0, 1]], [[1, 0], [1, 0]], rerank=False) == 0
    assert agreement([[1, 0]], [[1, 0, 0]], rerank=False) == 0
    assert agreement([[0.1, 0.5, 0.9]], [[-3, 0, 8]], rerank=True) == pytest.approx(1)
    assert not why_no_peer("int8", 0.96, rerank=False)
    assert "0.9600, below 0.9999" in why_no_peer("f32", 0.96, rerank=False)


@pytest.mark.parametrize(
    ("flags", "name"), [("avx2", "avx2"), ("avx2 avx512f", "avx512"), ("avx512f avx512_vnni", "avx512_vnni")]
)
def test_onnx_is_quantised_for_the_processor(flags: str, name: str) -> None:
    assert processor(flags) == name


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of MiniLM's tokenizer; the shapes are made small."""
    small = Shape(layers=2, hidden=64, inner=128, heads=4, vocab=100)
    monkeypatch.setitem(SHAPES, "bert-base", small)
    monkeypatch.setitem(SHAPES, "qwen2-0.5b", replace(small, kv_heads=2, pooling="last"))
    folder = tmp_path / "minilm"
    folder.mkdir()
    for name in checkpoints._TOKENIZER:
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(("name", "rerank"), [("bert-base", False), ("bert-base", True), ("qwen2-0.5b", False)])
def test_a_random_checkpoint_is_one_that_we_read(tiny: Path, tmp_path: Path, name: str, rerank: bool) -> None:
    checkpoints.write(name, tiny, tmp_path / "model", rerank)
    spec = read_spec(resolve(str(tmp_path / "model")))
    assert (spec.config["num_hidden_layers"], spec.config["hidden_size"], spec.normalize) == (2, 64, not rerank)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert all(np.isfinite(each).all() for each in tensors.values())
    assert (("classifier.weight" in tensors), json.loads((tiny / "tokenizer_config.json").read_text())) == (rerank, {})


def test_a_form_whose_exporter_fails_says_why_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    python = tmp_path / ".venv-peer-sentence-transformers" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho no memory >&2; exit 3\n")
    python.chmod(0o755)
    forms = Forms(tmp_path / "forms", tiny, tmp_path)
    with pytest.raises(FormError, match=r"export\.py ended with 3: no memory"):
        forms.path("bert-base", False, "onnx-int8")
    assert not (tmp_path / "forms" / "bert-base" / "onnx-int8").exists()


def test_a_router_on_the_path_is_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert "text-embeddings-router" in why_missing(ROUTER, tmp_path)
    router = tmp_path / "text-embeddings-router"
    router.write_text(FAKE_ROUTER)
    router.chmod(0o755)
    assert not why_missing(ROUTER, tmp_path)
    monkeypatch.setattr("benchmarks.peers.servers.wait_for_quiet", lambda: None)
    monkeypatch.setattr("benchmarks.peers.machine.wait_for_quiet", lambda: None)
    monkeypatch.setattr("benchmarks.peers.machine.MAX_OTHERS_SHARE", 2.0)
    with running(ROUTER, "minilm", tmp_path, tmp_path, rerank=False) as server:
        assert server.ask(["one", "three"], rerank=False) == [[3.0, 1.0], [5.0, 1.0]]
        timing = server.measure(WORKLOADS["mixed"], 200)  # processor time is counted in steps of 10 ms
    assert timing.texts_per_s > 0
    assert timing.latency_ms is not None
    assert timing.cpu_ms > 0


def test_a_server_that_ends_says_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    router = tmp_path / "text-embeddings-router"
    router.write_text("#!/bin/sh\necho no such model >&2; exit 7\n")
    router.chmod(0o755)
    with pytest.raises(PeerError, match=r"exit status 7\): no such model"):  # noqa: SIM117
        with running(ROUTER, "minilm", tmp_path, tmp_path, rerank=False):
            pass


def test_a_loop_that_ends_says_its_status(tmp_path: Path) -> None:
    fastembed = chosen("fastembed")[0]
    python = tmp_path / ".venv-peer-fastembed" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 4\n")
    python.chmod(0o755)
    with (
        looping(fastembed, "minilm", tmp_path, tmp_path, rerank=False) as loop,
        pytest.raises(PeerError, match="the loop ended with 4"),
    ):
        loop.ask(["text"], rerank=False)
