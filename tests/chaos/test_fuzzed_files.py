"""Damaged files of a model: each is read, or refused by an error that names it, and never by another exception."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bei_core.checkpoint import Checkpoint
from bei_core.checkpoint.archives import unpack
from bei_core.checkpoint.tensors import entries
from bei_core.engines.manifest import Manifest, parse_manifest
from bei_core.engines.openvino.graph import build_graph
from bei_core.errors import StartError
from bei_core.models.spec import read_spec
from bei_core.text.files import open_tokenizer
from tests.corpus import ARCHIVES, CONFIGURATIONS, HEADER, MANIFEST, MANIFESTS, SAFETENSORS, TOKENIZER, TOKENIZERS, kept
from tests.golden.cases import GOLDEN
from tests.golden.chat_templates import FOLDERS

few = settings(
    max_examples=settings().max_examples * 3 // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

JSON_LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**30, 1e308, -0.5, float("inf"), float("nan")])
    | st.sampled_from(["", "a", "[PAD]", "F32", "(", "[a", "\ud800", "x" * 10_000])
)
JSON = st.recursive(
    JSON_LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def paths_of(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where the values of a JSON document are."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in paths_of(item, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, document: Mapping[str, object] | list[object]) -> bytes:
    """The document with some of its values replaced or removed, or with damaged bytes."""
    value = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in paths_of(value) if path]) if paths_of(value)[1:] else st.just(()))
        if not path:
            break
        owner = value
        for key in path[:-1]:
            owner = owner[key]
        if draw(st.booleans()):
            owner[path[-1]] = draw(JSON)
        else:
            del owner[path[-1]]
    return damaged(draw, json.dumps(value).encode())


def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes, sometimes cut or with another byte."""
    kind = draw(st.sampled_from(["whole", "whole", "cut", "byte"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "cut":
        return content[:place]
    if kind == "byte":
        return content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
    return content


def refusal(read: Callable[[], object]) -> str | None:
    """The error for the operator; None if the file is read."""
    try:
        read()
    except StartError as fault:
        return str(fault)
    return None


def check(path: Path, content: bytes, read: Callable[[Path], object]) -> None:
    """Writes a file. It has to be read, or refused by one line that names it."""
    path.write_bytes(content)
    message = refusal(lambda: read(path))
    assert message is None or (path.name in message and "\n" not in message)


def read_manifest(path: Path) -> Manifest:
    return parse_manifest(path.read_bytes(), str(path))


@few
@given(header=mutated(HEADER), size=st.none() | st.sampled_from([0, 1, 2**20, 2**63 - 1, 2**64 - 1]))
def test_a_header_of_tensors(tmp_path: Path, header: bytes, size: int | None) -> None:
    content = struct.pack("<Q", len(header) if size is None else size) + header + bytes(8)
    check(tmp_path / "model.safetensors", content, entries)


@kept(SAFETENSORS)
def test_a_kept_file_of_tensors(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "model.safetensors", content, entries)


@few
@given(content=mutated(TOKENIZER))
def test_a_tokenizer(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "tokenizer.json", content, open_tokenizer)


@kept(TOKENIZERS)
def test_a_kept_tokenizer(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "tokenizer.json", content, open_tokenizer)


@few
@given(content=mutated(MANIFEST))
def test_a_manifest(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "manifest.json", content, read_manifest)


@kept(MANIFESTS)
def test_a_kept_manifest(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "manifest.json", content, read_manifest)


MODELS = (
    *("bert-modern-dense-gelu", "bert-rerank-pad7", "deberta-v2-conv-biased", "embedding-gemma", "nomic-v2-moe"),
    *("gemma3-rope-by-layer-type", "gte-multilingual-ntk-f16", "modernbert-mean-parameters", "qwen3-logit-score"),
    "sentence-t5-dense-f16",
)


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """(name of a golden model, path of one of its JSON files, damaged content)."""
    folder = GOLDEN / draw(st.sampled_from(MODELS))
    files = [path for path in sorted(folder.rglob("*.json")) if path.name != "tokenizer.json"]
    file = draw(st.sampled_from(files))
    return folder.name, str(file.relative_to(folder)), draw(mutated(json.loads(file.read_bytes())))


def check_configuration(folder: Path, name: str, file: str, content: bytes) -> None:
    """Writes the file of a golden model. The model has to be built, or refused by one line."""
    shutil.copytree(GOLDEN / name, folder, copy_function=os.symlink)
    (folder / file).unlink()
    (folder / file).write_bytes(content)
    checkpoint = Checkpoint(folder=folder, source=name, revision="0" * 40)
    message = refusal(lambda: build_graph(read_spec(checkpoint), checkpoint))
    assert message is None or "\n" not in message


@few
@given(case=configurations())
@example(case=("bert-modern-dense-gelu", "1_Pooling/config.json", b'{"pooling_mode": []}'))
def test_a_configuration(tmp_path_factory: pytest.TempPathFactory, case: tuple[str, str, bytes]) -> None:
    check_configuration(tmp_path_factory.mktemp("model") / "model", *case)


@pytest.mark.parametrize(("name", "changes"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_kept_configuration(tmp_path: Path, name: str, changes: dict[str, object]) -> None:
    config = json.loads((GOLDEN / name / "config.json").read_bytes())
    check_configuration(tmp_path / "model", name, "config.json", json.dumps({**config, **changes}).encode())


CHAT = FOLDERS["one-of-several"]


@st.composite
def chat_settings(draw: st.DrawFn) -> tuple[str, bytes]:
    """(name of a JSON file of a reranker with a chat template, damaged content)."""
    file = draw(st.sampled_from(["tokenizer_config.json", "sentence_bert_config.json"]))
    return file, draw(mutated(CHAT.files[file]))


@few
@given(case=chat_settings())
@example(case=("tokenizer_config.json", b"[]"))
@example(case=("tokenizer_config.json", b'{"tokenizer_class": "Qwen2Tokenizer", "chat_template": "\\ud800"}'))
def test_the_settings_of_a_chat_template(tmp_path_factory: pytest.TempPathFactory, case: tuple[str, bytes]) -> None:
    folder = CHAT.write(tmp_path_factory.mktemp("chat") / "model")
    (folder / case[0]).write_bytes(case[1])
    message = refusal(lambda: read_spec(Checkpoint(folder=folder, source="chat", revision="0" * 40)))
    assert message is None or "\n" not in message


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A tar archive with members of any kind and name, sometimes damaged."""
    stream = io.BytesIO()
    style = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=stream, mode="w", format=style) as tar:
        for _ in range(draw(st.integers(0, 3))):
            name = st.sampled_from(
                ["config.json", "m/config.json", "../config.json", "/etc/x", "a/" * 40 + "config.json", "é", "m"]
            )
            member = tarfile.TarInfo(draw(name))
            kinds = [
                tarfile.REGTYPE,
                tarfile.DIRTYPE,
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.CHRTYPE,
                tarfile.FIFOTYPE,
            ]
            member.type = draw(st.sampled_from(kinds))
            member.linkname = "../../x" if member.type in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
            content = draw(st.binary(max_size=600)) if member.type == tarfile.REGTYPE else b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return damaged(draw, stream.getvalue())


@few
@given(content=archives())
def test_an_archive(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    check_archive(tmp_path_factory, content)


@kept(ARCHIVES)
def test_a_kept_archive(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    check_archive(tmp_path_factory, content)


def check_archive(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("archive")
    (folder / "m.tar").write_bytes(content)
    outside = set(folder.parent.iterdir())
    message = refusal(lambda: unpack(folder / "m.tar", folder / "unpacked", "bucket/m.tar"))
    assert message is None or ("m.tar" in message and "\n" not in message)
    assert set(folder.parent.iterdir()) == outside, "nothing is written outside"
