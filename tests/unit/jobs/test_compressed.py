"""Compressed files: read as a stream in bounded memory; what is damaged is named, and the published parts stay."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from bei_core.errors import CheckpointError, ConfigError
from bei_core.jobs import JobOptions, compressed, embed
from bei_core.jobs.compressed import open_decompressed
from bei_core.jobs.compute import Worker
from bei_core.jobs.inputs import Reader, open_input
from tests.unit.cli.fake_model import opens
from tests.unit.jobs.test_job import contents


def lz4(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zst,
    ".lz4": lz4,
}
LINES = b"".join(b"the text %06d\n" % number for number in range(20_000))


def texts_of(path: Path, **options: Any) -> list[object]:  # noqa: ANN401
    chosen = JobOptions(**options)
    data, reader = open_input(str(path), chosen), Reader(str(path))
    found = [text for part in data.parts for text in reader.read(part, chosen, data.schema).texts[0]]
    reader.close()
    return found


@pytest.mark.parametrize("end", COMPRESS)
def test_several_frames_are_one_file(tmp_path: Path, end: str) -> None:
    (tmp_path / f"a.txt{end}").write_bytes(COMPRESS[end](b"one\ntw") + COMPRESS[end](b"o\nthree\n"))
    assert texts_of(tmp_path / f"a.txt{end}", rows_per_part=2) == ["one", "two", "three"]


@pytest.mark.parametrize("end", COMPRESS)
def test_the_end_of_a_name_has_any_case(tmp_path: Path, end: str) -> None:
    (tmp_path / f"A.TXT{end.upper()}").write_bytes(COMPRESS[end](b"one\n"))
    assert texts_of(tmp_path / f"A.TXT{end.upper()}") == ["one"]


@pytest.mark.parametrize("end", COMPRESS)
def test_any_position_can_be_read(end: str) -> None:
    file = open_decompressed(f"a.txt{end}", io.BytesIO(COMPRESS[end](LINES)))
    for position in (0, 150_000, 30, 30, len(LINES) - 5, 0, len(LINES) + 10):
        file.seek(position)
        assert file.read(17) == LINES[position : position + 17]


def broken(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    return {
        "cut": content[:middle],
        "cut at the end": content[:-1],
        "changed": content[:middle]
        + bytes(byte ^ 255 for byte in content[middle : middle + 9])
        + content[middle + 9 :],
        "not compressed": b"not compressed at all",
    }[how]


DAMAGES = ["cut", "cut at the end", "changed", "not compressed"]


@pytest.mark.parametrize(
    ("end", "how"),
    # pyarrow writes lz4 without a checksum, so other bytes may be another content
    [(end, how) for end in COMPRESS for how in DAMAGES if (end, how) != (".lz4", "changed")],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, end: str, how: str) -> None:
    path = tmp_path / f"a.txt{end}"
    path.write_bytes(broken(COMPRESS[end](LINES), how))
    with pytest.raises(CheckpointError, match=rf"a\.txt\{end} cannot be read: ") as refused:
        open_input(str(path), JobOptions())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("end", COMPRESS)
def test_the_memory_does_not_grow_with_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str) -> None:
    path, options = tmp_path / f"a.txt{end}", JobOptions(rows_per_part=100_000)
    path.write_bytes(COMPRESS[end]((b"x" * 99 + b"\n") * 10_000) * 100)
    readinto, before, of_pyarrow = compressed._Decompressed.readinto, pa.total_allocated_bytes(), list[int]()

    def measured(self: compressed._Decompressed, buffer: memoryview) -> int:
        size = readinto(self, buffer)
        of_pyarrow.append(pa.total_allocated_bytes() - before)  # tracemalloc does not see it
        return size

    monkeypatch.setattr(compressed._Decompressed, "readinto", measured)
    tracemalloc.start()
    try:
        data = open_input(str(path), options)
        assert [part.split.num_rows for part in data.parts] == [100_000] * 10
        assert tracemalloc.get_traced_memory()[1] < 40_000_000  # the file has 100 MB
    finally:
        tracemalloc.stop()
    assert bool(of_pyarrow) == (end in {".zst", ".lz4"})
    assert max(of_pyarrow, default=0) < 10_000_000
    reader = Reader(str(path))
    assert len(reader.read(data.parts[9], options, data.schema).texts[0]) == 100_000
    reader.close()


@pytest.mark.parametrize("end", COMPRESS)
def test_what_is_published_stays_if_a_file_is_damaged_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str
) -> None:
    opens(monkeypatch)
    path, finish, count = tmp_path / f"a.txt{end}", Worker.finish, 0
    path.write_bytes(whole := COMPRESS[end](b"the of\n" * 100))

    def damaging(*arguments: Any) -> Any:  # noqa: ANN401
        nonlocal count
        count += 1
        if count == 2:
            path.write_bytes(whole[: len(whole) // 2])
        return finish(*arguments)

    options = JobOptions(rows_per_part=10)
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "finish", damaging)
        with pytest.raises((CheckpointError, ConfigError), match=rf"a\.txt\{end} "):
            embed(path, tmp_path / "out", settings={"model_id": "owner/name"}, options=options)
    published = contents(tmp_path / "out")
    assert "part-00000.parquet" in published
    assert "_manifest.json" not in published
