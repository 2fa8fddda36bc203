"""Inputs that broke a reader once, or that are known to break such readers; tests read each of them.

To keep an input that a fuzzer found, add it to the inputs of its kind under a name that says what is wrong with it.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from typing import Any

import pytest

TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    },
    "added_tokens": [
        {
            "id": 0,
            "content": "[PAD]",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": {
        "type": "Sequence",
        "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}],
    },
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\s"}, "behavior": "Isolated", "invert": False},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[PAD]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[PAD]": {"id": "[PAD]", "ids": [0], "tokens": ["[PAD]"]}},
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece",
        "unk_token": "[PAD]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 9,
        "vocab": {"[PAD]": 0, "a": 1},
    },
}

HEADER: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
    "__metadata__": {"format": "pt"},
}
MANIFEST: dict[str, Any] = {
    "engine": "fake",
    "precision": "int8",
    "source": "owner/name",
    "revision": "0" * 40,
    "artifact": "a" * 32,
    "files": {"model.bin": {"size": 1, "blake2b": "0" * 64}},
}

_TENSOR: dict[str, Any] = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}


def _dumped(value: dict[str, Any], **changes: object) -> bytes:
    """A JSON document with some fields replaced."""
    return json.dumps({**value, **changes}).encode()


def _safetensors(header: dict[str, Any] | bytes, data: bytes = bytes(8), size: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if size is None else size) + content + data


def _tar(*members: tuple[str, dict[str, Any]], style: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of members with these names and attributes; `content` is one of these."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=style) as tar:
        for name, attributes in members:
            member, content = tarfile.TarInfo(name), attributes.pop("content", b"")
            member.size = len(content)
            for key, value in attributes.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


SAFETENSORS: dict[str, bytes] = {
    "half-a-surrogate-pair-as-a-name": _safetensors(b'{"a":{"\\ud800":1}}'),
    "half-a-surrogate-pair-as-a-dtype": _safetensors({"a": {**_TENSOR, "dtype": "\ud800"}}),
    "header-longer-than-the-file": _safetensors(HEADER, size=2**63 - 1),
    "header-of-2-to-the-64": _safetensors(HEADER, size=2**64 - 1),
    "shape-that-numpy-refuses-despite-a-0": _safetensors(
        {"a": {**_TENSOR, "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, b""
    ),
    "shape-below-0": _safetensors({"a": {**_TENSOR, "shape": [-2, -1]}}),
    "offsets-that-overlap": _safetensors({"a": _TENSOR, "b": _TENSOR}),
    "name-twice": _safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(_TENSOR).encode(),) * 2)),
    "nested-too-deeply": _safetensors(b'{"a":' + b"[" * 5000),
    "offsets-as-text": _safetensors({"a": {**_TENSOR, "data_offsets": ["0", "8"]}}),
    "33-dimensions": _safetensors({"a": {**_TENSOR, "shape": [1] * 33 + [2]}}),
    "number-of-5000-digits": _safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'),
    "git-lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}

MANIFESTS: dict[str, bytes] = {
    "nested-too-deeply": _dumped(MANIFEST)[:-1] + b',"x":' + b"[" * 5000,
    "half-a-surrogate-pair": _dumped({**MANIFEST, "source": "\ud800"}),
    "byte-that-is-not-utf-8": _dumped(MANIFEST).replace(b"owner", b"own\xff"),
    "file-outside-the-folder": _dumped({**MANIFEST, "files": {"../x": MANIFEST["files"]["model.bin"]}}),
    "schema-of-30-digits": _dumped({**MANIFEST, "schema": 10**30}),
}

TOKENIZERS: dict[str, bytes] = {
    "stride-as-long-as-the-limit": _dumped(
        TOKENIZER, truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    ),
    "padding-to-a-multiple-of-0": _dumped(TOKENIZER, padding={**TOKENIZER["padding"], "pad_to_multiple_of": 0}),
    "regex-that-is-not-closed": _dumped(
        TOKENIZER, pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": False}
    ),
    "regex-that-backtracks": _dumped(
        TOKENIZER, normalizer={"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}
    ),
    "empty-pattern": _dumped(
        TOKENIZER, pre_tokenizer={"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False}
    ),
    "half-a-surrogate-pair": _dumped(TOKENIZER, model={**TOKENIZER["model"], "vocab": {"[PAD]": 0, "\ud800": 1}}),
    "id-beyond-32-bits": _dumped(TOKENIZER, model={**TOKENIZER["model"], "vocab": {"[PAD]": 0, "a": 2**33}}),
    "unknown-token-that-is-not-there": _dumped(TOKENIZER, model={**TOKENIZER["model"], "unk_token": "[UNK]"}),
    "template-of-a-token-that-is-not-there": _dumped(
        TOKENIZER, post_processor={**TOKENIZER["post_processor"], "special_tokens": {}}
    ),
    "no-vocabulary": _dumped(TOKENIZER, model={**TOKENIZER["model"], "vocab": {}}),
    "nested-too-deeply": b'{"model":' + b"[" * 5000,
    "sequence-in-a-sequence": _dumped(
        TOKENIZER, normalizer=json.loads('{"type":"Sequence","normalizers":[' * 60 + "]}" * 60)
    ),
    "half-of-the-file": _dumped(TOKENIZER)[:600],
}

# The name of a golden model, and the values of its config.json that are replaced.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "theta-of-1-with-yarn": ("qwen3-embedding", {"rope_theta": 1, "rope_scaling": {"rope_type": "yarn", "factor": 2}}),
    "scaling-that-is-a-text": ("qwen3-embedding", {"rope_scaling": "linear"}),
    "parameters-of-a-layer-type-that-are-a-number": ("qwen3-embedding", {"rope_parameters": {"full_attention": 1}}),
    "epsilon-that-is-an-object": ("bert-rerank-pad7", {"layer_norm_eps": {}}),
    "epsilon-that-is-null": ("qwen3-embedding", {"rms_norm_eps": None}),
    "positions-without-end": ("bert-rerank-pad7", {"max_position_embeddings": float("inf")}),
    "problem-that-is-a-list": ("bert-topics-bf16-sharded", {"problem_type": []}),
    "activation-that-is-an-object": ("nomic-mean-bf16", {"activation_function": {}}),
    "prenorm-that-is-an-object": ("nomic-mean-bf16", {"prenorm": {}}),
    "types-of-fewer-layers": ("modernbert-mean-parameters", {"layer_types": ["full_attention"]}),
    "window-without-end": ("gemma3-rope-by-layer-type", {"sliding_window": float("inf")}),
    "kinds-of-attention-as-a-number": ("deberta-v2-conv-biased", {"pos_att_type": 5}),
    "buckets-as-a-text": ("deberta-v2-conv-biased", {"position_buckets": "x"}),
    "padding-id-of-30-digits": ("qwen3-rerank-seq-cls", {"pad_token_id": 10**30}),
}

ARCHIVES: dict[str, bytes] = {
    "path-outside": gzip.compress(_tar(("../config.json", {"content": b"{}"}))),
    "absolute-path": gzip.compress(_tar(("/etc/x/config.json", {"content": b"{}"}))),
    "link-then-a-file-behind-it": gzip.compress(
        _tar(("m", {"type": tarfile.SYMTYPE, "linkname": "../.."}), ("m/config.json", {"content": b"{}"}))
    ),
    "hard-link-outside": gzip.compress(_tar(("m/config.json", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}))),
    "device": gzip.compress(_tar(("m/config.json", {"type": tarfile.CHRTYPE}))),
    "same-name-twice": gzip.compress(
        _tar(("m/config.json", {"content": b"{}"}), ("m/config.json", {"content": b"[]"}))
    ),
    "folder-where-a-file-is": gzip.compress(
        _tar(("m/config.json", {"content": b"{}"}), ("m/config.json/tokenizer.json", {"content": b"{}"}))
    ),
    "file-where-a-folder-is": gzip.compress(
        _tar(("m/config.json/tokenizer.json", {"content": b"{}"}), ("m/config.json", {"content": b"{}"}))
    ),
    "name-of-300-bytes": gzip.compress(_tar(("m/" + "a" * 300 + "/config.json", {"content": b"{}"}))),
    "path-of-6000-bytes": gzip.compress(_tar(("a/" * 3000 + "config.json", {"content": b"{}"}))),
    "name-that-is-not-utf-8": gzip.compress(
        _tar(("m/\udcff.json", {"content": b"{}"}), ("m/config.json", {"content": b"{}"}), style=tarfile.GNU_FORMAT)
    ),
    "size-below-0": gzip.compress(_tar(("m/config.json", {"content": b"{}", "pax_headers": {"size": "-1"}}))),
    "size-of-2-to-the-70": gzip.compress(
        _tar(("m/config.json", {"content": b"{}", "pax_headers": {"size": str(2**70)}}))
    ),
    "sparse-map": gzip.compress(
        _tar(
            (
                "m/model.safetensors",
                {
                    "content": b"{}",
                    "pax_headers": {
                        "GNU.sparse.major": "1",
                        "GNU.sparse.minor": "0",
                        "GNU.sparse.name": "m/config.json",
                        "GNU.sparse.realsize": str(2**60),
                    },
                },
            )
        )
    ),
    "old-sparse-member": gzip.compress(
        _tar(("m/config.json", {"type": tarfile.GNUTYPE_SPARSE}), style=tarfile.GNU_FORMAT)
    ),
    "end-inside-a-member": _tar(("m/config.json", {"content": b"{}" * 300}))[:700],
    "end-inside-gzip": gzip.compress(_tar(("m/config.json", {"content": b"{}"})))[:-12],
    "two-gzip-streams": gzip.compress(_tar(("m/config.json", {"content": b"{}"}))) * 2,
    "checksum-of-the-header-wrong": b"m/config.json" + bytes(499) + bytes(512),
}

BODIES: dict[str, bytes] = {
    "half-a-surrogate-pair": rb'{"inputs":["\ud800"]}',
    "surrogate-pair-the-wrong-way-round": rb'{"inputs":["\ude00\ud83d"]}',
    "surrogate-in-utf-8": b'{"inputs":["\xed\xa0\x80"]}',
    "overlong-utf-8": b'{"inputs":["\xc0\x80"]}',
    "beyond-unicode": b'{"inputs":["\xf4\x90\x80\x80"]}',
    "escape-that-is-cut": rb'{"inputs":["\u12"]}',
    "escaped-backslash-before-u": rb'{"inputs":["\\u0041\\\u0041\\\\u"]}',
    "backslashes-to-the-end": b'{"inputs":["' + b"\\" * 31,
    "nul-in-a-text": rb'{"inputs":["a\u0000b"]}',
    "nul-outside-a-text": b'{"inputs":["a"]\x00}',
    "nan": b'{"inputs":["a"],"x":NaN}',
    "infinity": b'{"inputs":["a"],"x":[-Infinity,1e999]}',
    "number-of-5000-digits": b'{"inputs":[' + b"9" * 5000 + b"]}",
    "exponent-of-5000-digits": b'{"x":1e' + b"9" * 5000 + b"}",
    "minus-0": b'{"x":[-0,-0.0,0e0]}',
    "leading-0": b'{"x":[01]}',
    "number-cut": b'{"x":[1.,2]}',
    "comma-too-many": b'{"inputs":["a",]}',
    "comma-alone": b"[,]",
    "colon-missing": b'{"inputs" ["a"]}',
    "quote-missing": b'{"inputs":["a]}',
    "bracket-of-another-kind": b'{"inputs":["a"}]',
    "name-twice": b'{"inputs":["a"],"inputs":["b"]}',
    "name-with-an-escape": rb'{"in\u0070uts":["a"]}',
    "name-empty": b'{"":["a"],"inputs":["b"]}',
    "name-that-is-a-number": b'{1:["a"]}',
    "two-values": b'{"inputs":["a"]}{"inputs":["b"]}',
    "nested-64-deep": b"[" * 64 + b"]" * 64,
    "nested-5000-deep": b"[" * 5000 + b"]" * 5000,
    "byte-order-mark-twice": b'\xef\xbb\xbf\xef\xbb\xbf{"inputs":["a"]}',
    "utf-16": '{"inputs":["a"]}'.encode("utf-16"),
    "line-breaks-in-a-text": b'{"inputs":["a\r\nb"]}',
    "spaces-of-unicode": b'{"inputs":\xc2\xa0["a"]}',
    "spaces-in-an-empty-list": b'{"inputs":["a"],"x":[' + b" " * 100 + b'],"y":{' + b"\r\n" * 50 + b"}}",
    "only-spaces": b" " * 100,
    "nothing": b"",
    "emoji-after-ascii": ('{"inputs":["' + "a" * 100 + '😀"]}').encode(),
}

_POST = b"POST /embed HTTP/1.1\r\nhost: a\r\n"
_CHUNKED = _POST + b"transfer-encoding: chunked\r\n\r\n"

REQUESTS: dict[str, bytes] = {
    "length-twice-and-different": _POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "length-twice-and-equal": _POST + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "length-and-chunked": _POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "length-with-a-sign": _POST + b"content-length: +5\r\n\r\nhello",
    "length-of-30-digits": _POST + b"content-length: " + b"9" * 30 + b"\r\n\r\nhello",
    "length-as-a-list": _POST + b"content-length: 5, 5\r\n\r\nhello",
    "length-empty": _POST + b"content-length:\r\n\r\n",
    "chunked-twice": _POST + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked-not-last": _POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunk-of-2-to-the-64": _CHUNKED + b"10000000000000000\r\n",
    "chunk-below-0": _CHUNKED + b"-1\r\n",
    "chunk-with-extensions": _CHUNKED + b'2;a="\\"";b\r\n{}\r\n0;c\r\ntrailer: x\r\n\r\n',
    "chunk-extension-with-a-bare-line-feed": _CHUNKED + b"2;\n{}\r\n0\r\n\r\n",
    "chunk-longer-than-said": _CHUNKED + b"1\r\n{}\r\n0\r\n\r\n",
    "folded-header": b"GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n",
    "space-before-the-colon": _POST + b"content-length : 5\r\n\r\nhello",
    "nul-in-a-header": b"GET / HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n",
    "bare-line-feeds": b"GET / HTTP/1.1\nhost: a\n\n",
    "bare-carriage-returns": b"GET / HTTP/1.1\rhost: a\r\r",
    "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls": bytes.fromhex("16030100f8010000f4030300"),
    "version-1.2": b"GET / HTTP/1.2\r\nhost: a\r\n\r\n",
    "version-0.9": b"GET /\r\n\r\n",
    "url-with-a-byte-beyond-ascii": b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
    "url-absolute": b"GET http://b/health HTTP/1.1\r\nhost: a\r\n\r\n",
    "url-of-60000-bytes": b"GET /?" + b"a=b&" * 15_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    "formats-60000": b"GET /health HTTP/1.1\r\nhost: a\r\naccept: " + b"," * 60_000 + b"\r\n\r\n",
    "url-without-a-path": b"GET http://b HTTP/1.1\r\nhost: a\r\n\r\n",
    "url-empty": b"GET  HTTP/1.1\r\nhost: a\r\n\r\n",
    "method-unknown": b"HELLO / HTTP/1.1\r\nhost: a\r\n\r\n",
    "offer-of-another-protocol-with-a-body": _POST
    + b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 5\r\n\r\nhelloGET / HTTP/1.1\r\n\r\n",
}


def kept(inputs: dict[str, bytes]) -> pytest.MarkDecorator:
    """Runs a test, named after the input, for each of the inputs: its parameter `content`."""
    return pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in inputs.items()])
