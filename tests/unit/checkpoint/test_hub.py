"""Repositories fetched from a hub on loopback."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bei_core.checkpoint import Checkpoint, resolve
from bei_core.errors import CheckpointError, UnsupportedModelError
from bei_core.storage.errors import TransientError
from bei_core.text.published import check_tokenizer
from tests import hub as hubs
from tests.hub import Hub, as_bytes, f32, pack, write

ROOT = Path(__file__).parents[3]
WEIGHTS = pack({"a": f32(1, 2), "b": f32(3)})
MODEL: dict[str, object] = {
    "config.json": {"architectures": ["BertModel"]},
    "tokenizer.json": {},
    "model.safetensors": WEIGHTS,
}
REPO = "owner/name"
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
WANTED: dict[str, object] = {
    **MODEL,
    "tokenizer.json": {"file": "tokenizer"},  # no two files alike: a client fetches the same bytes once
    "tokenizer_config.json": {"file": "tokenizer_config"},
    "special_tokens_map.json": {"file": "special_tokens_map"},
    "sentence_bert_config.json": {"max_seq_length": 128},
    "config_sentence_transformers.json": {"prompts": {}},
    "modules.json": [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}],
    "1_Pooling/config.json": {"pooling_mode": "mean"},
    "2_Dense/config.json": {"bias": False},
    "2_Dense/model.safetensors": pack({"linear.weight": f32(7)}),
}
UNWANTED = dict.fromkeys(
    [
        "pytorch_model.bin",
        "2_Dense/pytorch_model.bin",
        "model.onnx",
        "onnx/model.onnx",
        "modeling.py",
        "tf_model.h5",
        "README.md",
        "training_args.pt",
        "model.fp16.safetensors",
        "checkpoint-500/model.safetensors",
    ],
    b"not wanted",
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with Hub() as server:
        yield server


def fetch(
    hub: Hub, cache: Path, revision: str | None = None, *, token: str | None = None, offline: bool = False
) -> Checkpoint:
    return resolve(REPO, revision, token=token, offline=offline, endpoint=hub.endpoint, cache_dir=cache)


def test_a_branch_is_pinned_to_its_commit_and_fetched_whole(hub: Hub, tmp_path: Path) -> None:
    sha = hub.add(REPO, as_bytes({**WANTED, **UNWANTED}))
    checkpoint = fetch(hub, tmp_path)
    assert (checkpoint.source, checkpoint.revision) == (REPO, sha)
    asked = [path for _, path in hub.requests if path.endswith("/main")]
    assert len(asked) == 1  # a branch that moves in the middle would mix two commits
    assert checkpoint.tensors().names() == ["a", "b"]
    assert float(checkpoint.tensors("2_Dense").f32("linear.weight")[0]) == 7
    assert checkpoint.read_json("sentence_bert_config.json") == {"max_seq_length": 128}

    later = hub.add(REPO, as_bytes({**WANTED, "config.json": {"architectures": ["Other"]}}))
    assert fetch(hub, tmp_path).revision == later != sha
    assert fetch(hub, tmp_path, sha).read_json("config.json") == MODEL["config.json"]
    assert checkpoint.read_json("config.json") == MODEL["config.json"]  # a pinned folder does not move


def test_only_what_is_needed_is_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, as_bytes({**WANTED, **UNWANTED}))
    fetch(hub, tmp_path)
    assert hub.files_read() == set(WANTED)


def test_the_files_of_a_vocabulary_are_fetched(hub: Hub, tmp_path: Path) -> None:
    names = ("added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model")
    vocabulary = {name: name.encode() for name in (*names, "spiece.model", "spm.model", "tokenizer.model")}
    hub.add(REPO, as_bytes({**WANTED, **vocabulary, **UNWANTED}))
    fetch(hub, tmp_path)
    assert hub.files_read() == {*WANTED, *vocabulary}


def test_no_weight_is_fetched_of_a_tokenizer_that_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, as_bytes({name: content for name, content in MODEL.items() if name != "tokenizer.json"}))
    with pytest.raises(UnsupportedModelError, match=r"has no tokenizer\.json, nor vocab\.txt for BertTokenizer"):
        resolve(REPO, offline=False, endpoint=hub.endpoint, cache_dir=tmp_path, check=check_tokenizer)
    assert hub.files_read() == {"config.json"}


def test_the_shards_of_an_index_are_fetched(hub: Hub, tmp_path: Path) -> None:
    files = {SHARDS[0]: pack({"a": f32(1)}), SHARDS[1]: pack({"b": f32(2)}), "other.safetensors": pack({"c": f32(3)})}
    hub.add(
        REPO,
        as_bytes(
            {
                "config.json": {},
                "model.safetensors.index.json": {"weight_map": dict(zip("ab", SHARDS, strict=True))},
                **files,
            }
        ),
    )
    assert fetch(hub, tmp_path).tensors().names() == ["a", "b"]
    assert hub.files_read() == {"config.json", "model.safetensors.index.json", *SHARDS}


def test_what_was_fetched_once_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, as_bytes(WANTED))
    first = fetch(hub, tmp_path)
    asked = len(hub.requests)
    assert fetch(hub, tmp_path, offline=True) == first
    assert len(hub.requests) == asked
    hub.stop()
    assert fetch(hub, tmp_path) == first  # although the network is down and HF_HUB_OFFLINE is not set
    assert fetch(hub, tmp_path, first.revision) == first
    with pytest.raises(CheckpointError, match=r"owner/name: revision v2 is not completely cached"):
        fetch(hub, tmp_path, "v2")


def test_the_log_has_a_line_only_if_files_were_fetched(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sha = hub.add(REPO, as_bytes(MODEL))
    with caplog.at_level(logging.INFO, logger="bei_core"):
        fetch(hub, tmp_path)
        fetch(hub, tmp_path)
    lines = [record.message for record in caplog.records if record.name.startswith("bei_core")]
    assert lines[0] == f"fetching {REPO} at {sha} from the hub"
    assert [line.partition(" in ")[0] for line in lines[1:]] == [f"fetched {REPO}: {len(WEIGHTS)} B"]


def test_an_empty_cache_without_a_hub_says_so(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="fetch it once, or use a local folder"):
        fetch(hub, tmp_path, offline=True)
    hub.stop()
    with pytest.raises(CheckpointError, match="cannot be reached"):
        fetch(hub, tmp_path)


def test_only_a_hub_that_does_not_answer_is_worth_another_try(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, as_bytes(MODEL))

    def error_of(revision: str | None = None, *, offline: bool = False) -> CheckpointError:
        with pytest.raises(CheckpointError) as raised:
            fetch(hub, tmp_path, revision, offline=offline)
        return raised.value

    assert not isinstance(error_of(offline=True), TransientError)
    assert not isinstance(error_of("none"), TransientError)
    for status, is_transient in ((404, False), (403, False), (429, True), (503, True)):
        monkeypatch.setattr(hubs._Handler, "_answer", lambda handler, status=status: handler.send_error(status))
        assert isinstance(error_of(), TransientError) == is_transient, status
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not isinstance(error_of(), TransientError)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.stop()
    assert isinstance(error_of(), TransientError)


def test_an_unknown_repository_and_an_unknown_revision_have_different_errors(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"owner/name: no such repository on the hub, or a private one.*HF_TOKEN"):
        fetch(hub, tmp_path)
    hub.add(REPO, as_bytes(WANTED))
    with pytest.raises(CheckpointError, match="owner/name: it has no branch, tag or commit v2"):
        fetch(hub, tmp_path, "v2")


def test_a_tag_is_pinned_too(hub: Hub, tmp_path: Path) -> None:
    sha = hub.add(REPO, as_bytes(WANTED))
    hub.repositories[REPO].refs["v1"] = sha
    hub.add(REPO, as_bytes(MODEL))
    assert fetch(hub, tmp_path, "v1").revision == sha


def test_a_private_and_a_gated_repository_need_a_token(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, as_bytes(WANTED))
    hub.repositories[REPO].gate_token = "hf_good"
    for token in (None, "hf_bad"):
        with pytest.raises(CheckpointError, match=r"is gated; accept its terms.*HF_TOKEN") as refused:
            fetch(hub, tmp_path, token=token)
        assert "hf_bad" not in str(refused.value)
    hub.repositories[REPO].token = "hf_good"
    with pytest.raises(CheckpointError, match="a private one, which needs a token"):
        fetch(hub, tmp_path / "fresh")
    assert fetch(hub, tmp_path / "fresh", token="hf_good").tensors().names() == ["a", "b"]


def test_a_repository_of_pickles_is_refused_unread(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, {"config.json": b"{}", "model.pt": b"pickle", "training_args.bin": b"pickle"})
    with pytest.raises(
        CheckpointError,
        match=r"no model\.safetensors and no pytorch_model\.bin but model\.pt, training_args\.bin\. .*other formats",
    ):
        fetch(hub, tmp_path)
    assert hub.files_read() == {"config.json"}


def test_the_hubs_own_environment_is_respected(hub: Hub, tmp_path: Path) -> None:
    sha = hub.add(REPO, as_bytes(MODEL))
    code = f"from bei_core.checkpoint import resolve; print(resolve({REPO!r}).revision)"
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "packages"),
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": hub.endpoint,
    }

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environ | more, capture_output=True, text=True, check=False)

    assert "HF_HUB_OFFLINE" in run(HF_HUB_OFFLINE="1").stderr
    assert hub.requests == []
    assert run(HF_HUB_OFFLINE="0").stdout.strip() == sha
    asked = len(hub.requests)
    assert run(HF_HUB_OFFLINE="1").stdout.strip() == sha
    assert len(hub.requests) == asked


def test_a_local_folder_needs_no_hub_client(tmp_path: Path) -> None:
    code = "import sys; from bei_core.checkpoint import resolve; resolve(sys.argv[1]); print(*sys.modules)"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "packages")}
    command = [sys.executable, "-c", code, str(write(tmp_path, MODEL))]
    loaded = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()
    assert "bei_core.checkpoint" in loaded
    assert "huggingface_hub" not in loaded
