"""Writes tests/data/published_tokenizers: folders as published, and the ids that transformers makes with them.

Run it twice, in environments of their own (no torch is needed):

    pip install 'transformers>=4.57,<5' sentencepiece protobuf   ->  make_golden_tokenizers.py folders
    pip install 'transformers>=5.24,<6' sentencepiece protobuf   ->  make_golden_tokenizers.py compare

The first run trains tiny vocabularies, lets transformers write each class's files for them, puts the published
tokenizer_config.json beside them, and records what transformers reads. The second records it again, and which texts the
two versions differ on; of a folder that transformers 5 published, its ids are the expected ones.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers.processors import TemplateProcessing

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from scripts.golden_tokenizers.folders import FOLDERS  # noqa: E402
from scripts.golden_tokenizers.table import Folder  # noqa: E402
from scripts.golden_tokenizers.vocabulary import vocabulary  # noqa: E402

OUT = REPOSITORY / "tests" / "data" / "published_tokenizers"
SHARED = OUT / "shared.json.gz"
MIXED = REPOSITORY / "tests" / "data" / "texts" / "mixed.jsonl"
CUT = 12  # tokens of the texts that are cut

# What a text may hold that a tokenizer knows by name, and spaces and letters that normalizers change.
ODD = (
    "[CLS] [MASK] [SEP]",
    "a <mask> b<mask>c  <mask>",
    "<s>hello</s> <pad><unk> world",
    "<|endoftext|>done<|im_start|> now",
    "the [DOC] marker[DOC] and <query> or <QUERY>",
    "Ünïcödé Straße ÅNGSTRÖM İstanbul naïve",
    "東京タワー 中文 テスト café CAFÉ",
    "  two  spaces   three\tTabs\nlines  ",
    "1,000 items, 2, 3. \u201cquoted\u201d ``old'' don't we'll I'M",
    "\ufb01ne \u2460 \u00bd \uff21\uff22\uff23 \u200bzero\u00adwidth",
    "\U0001f600 emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 a\u0301e\u0308",
    "<extra_id_0> and<extra_id_1> end",
)


class OwnQwen2(transformers.Qwen2TokenizerFast):  # type: ignore[misc]
    """What gte-Qwen2's own tokenization_qwen.Qwen2TokenizerFast does, which runs only where its code is trusted."""

    def __init__(self, *args: Any, add_eos_token: bool = False, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        if add_eos_token:
            end = self.eos_token
            self._tokenizer.post_processor = TemplateProcessing(
                single=f"$A:0 {end}:0",
                pair=f"$A:0 {end}:0 $B:1 {end}:1",
                special_tokens=[(end, self.eos_token_id)],
            )


def main() -> None:
    """Runs the command."""
    commands: Mapping[str, Callable[[], None]] = {"folders": write_folders, "compare": compare}
    commands[sys.argv[1]]()


def texts() -> list[str]:
    """40 texts."""
    with MIXED.open(encoding="utf-8", newline="\n") as lines:
        known = [json.loads(line)["text"] for line in lines]
    short = sorted(
        (text for text in known if len(text) <= 40), key=lambda text: sum(map(str.isascii, text)) / len(text)
    )
    return [*ODD, *short[: 40 - len(ODD)]]


def pairs() -> list[tuple[str, str]]:
    """20 pairs."""
    known = texts()
    return [(known[index], known[-1 - index]) for index in range(20)]


def write_folders() -> None:
    """Makes every folder anew, with what this version of transformers reads of it."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    inputs = {"texts": texts(), "pairs": pairs(), "cut": CUT}
    (OUT / "inputs.json").write_text(json.dumps(inputs, ensure_ascii=True, indent=0) + "\n")
    known: dict[str, Any] = {}
    make("4", known)
    save_shared(known)


def make(made_in: str, known: dict[str, Any]) -> None:
    """Makes the folders that one version of transformers writes, with what it reads of them."""
    for each in FOLDERS:
        if each.made_in == made_in:
            with tempfile.TemporaryDirectory() as folder:
                files = published_files(each, Path(folder))
            found = {"covers": each.covers, "published_with": each.by, "files": shared(files, known)}
            save(each.name, {**found, f"transformers_{version()}": expectations(files)})


def compare() -> None:
    """Adds the folders that this version writes, and what it reads of all."""
    known = json.loads(gzip.decompress(SHARED.read_bytes()))
    make("5", known)
    for path in sorted(OUT.glob("*.json")):
        if path.stem != "inputs":
            found = json.loads(path.read_text())
            found["transformers_5"] = expectations(whole(found["files"], known))
            four, five = found.pop("transformers_4", None), found.pop("transformers_5")
            expected = four if found["published_with"] == "4" else five
            found["expected"] = {key: keep(value, known) for key, value in expected.items()}
            found["other_version"] = "written by 5" if four is None else difference(four, five)
            print(f"{path.stem}: {found['other_version']}")
            save(path.stem, found)
    save_shared(known)


def version() -> str:
    """The first number of this version of transformers."""
    return str(transformers.__version__).split(".")[0]


def difference(four: Any, five: Any) -> str:  # noqa: ANN401
    """In words, how far the two versions differ."""
    if isinstance(four, str) or isinstance(five, str):
        return f"4: {four if isinstance(four, str) else 'reads it'}; 5: {five if isinstance(five, str) else 'reads it'}"
    counts = {
        key: sum(a != b for a, b in zip(four[key], five[key], strict=True)) for key in ("texts", "pairs", "types")
    }
    return (
        "the same"
        if not any(counts.values())
        else "differs in " + ", ".join(f"{n} {k}" for k, n in counts.items() if n)
    )


def published_files(each: Folder, folder: Path) -> dict[str, Any]:
    """The files of a folder by name: JSON as it is, text, or bytes in base64."""
    made, saved = folder / "made", folder / "saved"
    made.mkdir()
    for name, content in vocabulary(each.vocabulary).items():
        (made / name).write_bytes(content)
    (made / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (made / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": each.made_by, **each.made_with}))
    transformers.AutoTokenizer.from_pretrained(made).save_pretrained(saved)
    for path in made.iterdir():
        if not (saved / path.name).exists():
            shutil.copyfile(path, saved / path.name)
    (saved / "config.json").write_text(json.dumps(each.model))
    found = {path.name: packed(path) for path in sorted(saved.iterdir()) if each.keeps(path.name)}
    return {**each.changed(found), **each.files}


def packed(path: Path) -> Any:  # noqa: ANN401
    """What a file holds, as JSON can hold it."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    data = path.read_bytes()
    return {"base64": base64.b64encode(data).decode()} if path.suffix == ".model" else {"text": data.decode()}


def unpack(files: Mapping[str, Any], folder: Path) -> None:
    """Writes the files of a folder."""
    for name, content in files.items():
        if isinstance(content, dict) and set(content) == {"base64"}:
            (folder / name).write_bytes(base64.b64decode(content["base64"]))
        elif isinstance(content, dict) and set(content) == {"text"}:
            (folder / name).write_text(content["text"])
        else:
            (folder / name).write_text(json.dumps(content))


def expectations(files: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """What transformers makes of the texts and pairs; its error where it does not read the folder."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(files, Path(folder))
        try:
            reader = OwnQwen2 if version() == "4" and "auto_map" in files.get("tokenizer_config.json", {}) else None
            tokenizer = (reader or transformers.AutoTokenizer).from_pretrained(folder)
        except Exception as fault:
            return f"{type(fault).__name__}: {str(fault).partition(chr(10))[0][:80]}".replace(folder, "FOLDER")
    read = [tokenizer(first, second) for first, second in pairs()]
    types = [each.get("token_type_ids") or [0] * len(each["input_ids"]) for each in read]
    return {
        "texts": [tokenizer(text)["input_ids"] for text in texts()],
        "cut": [tokenizer(text, truncation=True, max_length=CUT)["input_ids"] for text in texts()[:10]],
        "pairs": [each["input_ids"] for each in read],
        "types": ["".join(map(str, each)) for each in types],
    }


def keep(content: Any, known: dict[str, Any]) -> dict[str, str]:  # noqa: ANN401
    """Keeps what several folders have alike in `known`; how to find it there."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    known[digest] = content
    return {"shared": digest}


def save(name: str, content: Mapping[str, Any]) -> None:
    """Writes a file of the test data."""
    (OUT / f"{name}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")


def save_shared(known: Mapping[str, Any]) -> None:
    """Writes what several files have in common, compressed: mostly vocabularies."""
    SHARED.write_bytes(gzip.compress(json.dumps(known, separators=(",", ":")).encode(), 9, mtime=0))


def whole(files: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The files with their vocabularies: the reverse of `shared`."""

    def fill(content: Any) -> Any:  # noqa: ANN401
        if isinstance(content, dict) and set(content) == {"shared"}:
            return known[content["shared"]]
        return content

    found = {name: fill(content) for name, content in files.items()}
    if "tokenizer.json" in found:
        found["tokenizer.json"] = {**found["tokenizer.json"], "model": fill(found["tokenizer.json"]["model"])}
    return found


def shared(files: Mapping[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The files with the vocabularies, which several folders have alike, kept apart in `known` by their digest."""
    found = {}
    for name, content in files.items():
        if name == "tokenizer.json":
            content = {**content, "model": keep(content["model"], known)}
        elif not name.endswith(".json") or name == "vocab.json":
            content = keep(content, known)
        found[name] = content
    return found


if __name__ == "__main__":
    main()
