"""Safe extraction of untrusted archives, fetched from a URL: what is refused, by name, and what it may cost."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from bei_core.errors import CheckpointError
from tests.stores import MODEL, WEIGHTS
from tests.unit.checkpoint.test_urls import PATH, fetch, sized, special, tar, web
from tests.web import File, Web

__all__ = ["web"]


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (special("/etc/model", tarfile.DIRTYPE), "has '/etc/model', which is outside the archive's folder"),
        (special("../model", tarfile.DIRTYPE), "has '../model', which is outside the archive's folder"),
        (special("a/../../model", tarfile.DIRTYPE), "which is outside the archive's folder"),
        (special("..\\model", tarfile.DIRTYPE), "which is outside the archive's folder"),
        (special("a", tarfile.SYMTYPE, "/etc"), "has 'a', which is a link; pack the files themselves"),
        (special("a", tarfile.LNKTYPE, "config.json"), "has 'a', which is a link"),
        (special("a", tarfile.CHRTYPE), "has 'a', which is neither a file nor a folder"),
        (special("a", tarfile.FIFOTYPE), "has 'a', which is neither a file nor a folder"),
        (sized("config.json", b""), "has config.json twice"),
        (sized("./config.json", b""), "has config.json twice"),
    ],
)
def test_a_tar_that_does_more_than_hold_files_is_refused(
    web: Web, tmp_path: Path, member: tarfile.TarInfo, said: str
) -> None:
    web.files[PATH] = File(tar(MODEL, member))
    with pytest.raises(CheckpointError) as refused:
        fetch(web, tmp_path / "cache")
    assert said in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_more_than_a_megabyte_is_refused_before_it_is_read(
    web: Web, tmp_path: Path, kind: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = special("header", kind)
    header.size = 7 << 30  # it is refused by what it says, so the archive need not hold it
    reads: list[int] = []
    real = gzip.GzipFile.read

    def note(file: gzip.GzipFile, size: int | None = -1) -> bytes:
        reads.append(size or 0)
        return real(file, size)

    monkeypatch.setattr(gzip.GzipFile, "read", note)
    web.files[PATH] = File(gzip.compress(header.tobuf() + bytes(2048)))
    with pytest.raises(CheckpointError, match=r"m\.tar\.gz: 'header' has an extended header of more than 1048576"):
        fetch(web, tmp_path)
    assert all(0 <= count <= 1 << 20 for count in reads)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_a_negative_size_is_refused(web: Web, tmp_path: Path, kind: bytes) -> None:
    header = special("config.json", kind)
    header.size = -512
    web.files[PATH] = File(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048)))
    with pytest.raises(CheckpointError, match=r"m\.tar\.gz: 'config\.json' has a negative size"):
        fetch(web, tmp_path)


def test_a_negative_size_in_a_pax_record_is_refused(web: Web, tmp_path: Path) -> None:
    member = sized("config.json", b"")
    member.pax_headers = {"size": "-512"}
    web.files[PATH] = File(gzip.compress(member.tobuf(tarfile.PAX_FORMAT) + bytes(2048)))
    with pytest.raises(CheckpointError, match=r"m\.tar\.gz: 'config\.json' has a negative size"):
        fetch(web, tmp_path)


@pytest.mark.parametrize("of_all", [True, False], ids=["of the whole archive", "of one member"])
def test_many_headers_of_less_than_a_megabyte_are_refused_too(web: Web, tmp_path: Path, of_all: bool) -> None:
    header = special("header", tarfile.XGLTYPE if of_all else tarfile.XHDTYPE)
    header.size = 600 << 10
    record = b"%d comment=" % header.size
    content = record.ljust(header.size - 1, b"x") + b"\n"
    config = sized("config.json", b"").tobuf() if of_all else b""
    web.files[PATH] = File(gzip.compress((header.tobuf() + content + config) * 2 + bytes(2048)))
    with pytest.raises(CheckpointError, match=r"m\.tar\.gz: 'header' has an extended header of more than 1048576"):
        fetch(web, tmp_path)


def test_long_names_of_files_are_read(web: Web, tmp_path: Path) -> None:
    data = tar({**{f"{'long/' * 100}{number}.txt": b"" for number in range(50)}, **MODEL})
    web.files[PATH] = File(data)
    assert fetch(web, tmp_path).tensors().names() == ["a", "b"]


@pytest.mark.parametrize("version", ["0.1", "1.0", "gnu"])
def test_sparse_files_are_refused(web: Web, tmp_path: Path, version: str) -> None:
    member = sized("config.json", b"")
    if version == "gnu":
        member.type = tarfile.GNUTYPE_SPARSE
        data = member.tobuf(tarfile.GNU_FORMAT)
    else:
        major, minor = version.split(".")
        headers = {"GNU.sparse.major": major, "GNU.sparse.minor": minor, "GNU.sparse.name": "config.json"}
        member.pax_headers = headers | ({"GNU.sparse.map": "0,1"} if version == "0.1" else {})
        data = member.tobuf(tarfile.PAX_FORMAT)
    web.files[PATH] = File(gzip.compress(data + b"9" * 4096 + bytes(2048)))
    with pytest.raises(CheckpointError, match=r"sparse|neither a file nor a folder"):
        fetch(web, tmp_path)


def test_a_chain_of_headers_without_end_is_refused(web: Web, tmp_path: Path) -> None:
    header = special("header", tarfile.XHDTYPE)
    header.size = 0
    web.files[PATH] = File(gzip.compress(header.tobuf() * 5000 + bytes(2048)))
    with pytest.raises(CheckpointError, match="is not a tar, or is truncated or damaged"):
        fetch(web, tmp_path)


def test_names_that_lead_out_write_nothing(web: Web, tmp_path: Path) -> None:
    web.files[PATH] = File(tar({"../../../../config.json": b"{}", **MODEL}))
    with pytest.raises(CheckpointError, match="is outside the archive's folder"):
        fetch(web, tmp_path / "a" / "b" / "cache")
    assert not list(tmp_path.rglob("config.json"))


def test_a_bomb_is_refused_before_it_is_unpacked(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bei_core.checkpoint.archives._FREE_BYTES", 1000)
    web.files[PATH] = File(tar({**MODEL, "other.safetensors": bytes(10_000_000)}))
    with pytest.raises(CheckpointError, match=r"unpacks to more than .* bytes.*: a tar bomb"):
        fetch(web, tmp_path)
    monkeypatch.setattr("bei_core.checkpoint.archives._MAX_MEMBERS", 3)
    web.files[PATH] = File(tar({**MODEL, "README.md": b""}))
    with pytest.raises(CheckpointError, match="or 3 files: a tar bomb"):
        fetch(web, tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PK\x03\x04" + bytes(600), "is not a tar, or is truncated or damaged"),
        (b"", "is not a tar, or is truncated or damaged"),
        (gzip.compress(b"not a tar"), "is not a tar, or is truncated or damaged"),
        (tar(MODEL)[:-40], "is not a tar, or is truncated or damaged"),
        (tar(MODEL)[:-8] + b"wrong" + tar(MODEL)[-3:], "is not a tar, or is truncated or damaged: CRC check failed"),
        (tar(MODEL, mode="w:bz2")[:200] + bytes(40), "is not a tar, or is truncated or damaged"),
        (tar(MODEL, mode="w")[:1200], "is not a tar, or is truncated or damaged"),
        (tar(MODEL, mode="w")[:3072], "is not a tar, or is truncated or damaged: the end is missing"),
        (tar({}), "has no config.json; there is nothing"),
        (tar({"x.txt": b""}), "has no config.json; there is x.txt"),
        (
            tar({**{f"a/{n}": d for n, d in MODEL.items()}, **{f"b/{n}": d for n, d in MODEL.items()}}),
            "several models: a, b",
        ),
        (
            tar({"config.json": b"{}", "model.pt": b""}),
            "no model.safetensors and no pytorch_model.bin but model.pt. BEI reads no",
        ),
        (tar({**MODEL, "model.safetensors": WEIGHTS[:-1]}), "model.safetensors is truncated"),
        (tar({"config.json": b"{}", "pytorch_model.bin": b"pickle"}), "pytorch_model.bin cannot be read: it is no zip"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # an archive has the time in it, and each worker its own
)
def test_what_is_no_model_is_refused_by_name(web: Web, tmp_path: Path, data: bytes, said: str) -> None:
    web.files[PATH] = File(data, sized=False)
    with pytest.raises(CheckpointError) as refused:
        fetch(web, tmp_path)
    assert said in str(refused.value)
    assert not list(tmp_path.rglob("*.safetensors")) + list(tmp_path.rglob("*.bin"))
