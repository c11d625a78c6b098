"""Rows of MotionVLA and ms-swift: the original's files to the letter, there and back, and files that are no such rows."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.errors import FileError, VadisError
from vadis.language.ms_swift import (
    SwiftRow,
    export_corpus,
    export_list,
    import_rows,
    in_folder,
    read_names,
    read_rows,
    write_names,
    write_rows,
)  # fmt: skip
from vadis.language.token_corpus import TokenCorpus, tokenize_corpus
from vadis.tokenizers.dsft import DSFTTokenizer
from vadis.tokenizers.dsft.sequence import Encoded, token_names


def encoded(base: list[int], phys: list[int], frames: int = 0) -> Encoded:
    return Encoded(torch.tensor(base, dtype=torch.long), torch.tensor(phys, dtype=torch.long), frames)


@pytest.fixture(scope="module")
def dsft(tmp_path_factory: pytest.TempPathFactory) -> tuple[DSFTTokenizer, TokenCorpus]:
    """A small DSFT tokenizer and a corpus of 20 clips in its tokens."""
    folder, generator = tmp_path_factory.mktemp("dsft"), torch.Generator().manual_seed(0)
    with CorpusWriter(folder / "corpus", "ms272", 30) as writer:
        for i in range(20):
            features = torch.randn(40 + 7 * i, 272, generator=generator).cumsum(0) * 0.01
            captions = [
                Caption(f'clip {i} with "quotes", {{braces}} and ünïcode', 0, 99),
                Caption("again", 0, 99, "label"),
            ]
            writer.add(
                f"c{i:02d}", features, captions[: 0 if i == 3 else 2], split="val" if i > 16 else "train", group=f"g{i}",
                source="drawn", licence="none",
            )  # fmt: skip
    corpus = Corpus.open(folder / "corpus")
    tokenizer = DSFTTokenizer.fit([clip.features for clip in corpus], "ms272", K=(3, 4), vocab=(400, 400))
    return tokenizer, tokenize_corpus(corpus, tokenizer, folder / "tokens", progress=False)


def test_the_original_rows_and_order(parity_root: Path, tmp_path: Path) -> None:
    folder = parity_root / "dsft" / "sequence"
    page, data = json.loads((folder / "manifest.json").read_text(encoding="utf-8")), np.load(folder / "data.npz")
    (tmp_path / "tok").mkdir()
    for name in sorted({key.split("/")[0] for key in data.files if key.endswith("/seq")}):
        frames, base, phys = data[f"{name}/meta"].tolist()
        sequence = torch.from_numpy(data[f"{name}/seq"])
        torch.save({"T": frames, "seq": sequence, "base_len": base, "phys_len": phys}, tmp_path / f"tok/{name}.pt")
    listed, options = tmp_path / "list.json", page["prepare_args"]
    listed.write_text(json.dumps(page["tokenized_json"]), encoding="utf-8")
    written = export_list(
        listed, tmp_path / "out", root=tmp_path, image_root=options["image_output_dir"], share=options["split"],
        seed=options["seed"],
    )  # fmt: skip
    assert (written.train, written.val, written.dropped) == (2, 2, {})
    for split in ("train", "val"):
        lines = (tmp_path / f"out/{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == page[f"{split}_rows"]
        assert lines == [json.dumps(row, ensure_ascii=False) for row in page[f"{split}_rows"]]
        assert all(
            row.image is None or row.image.startswith("IMGROOT/") for row in read_rows(tmp_path / f"out/{split}.jsonl")
        )
    names = (tmp_path / "out/motion_tokens.txt").read_text(encoding="utf-8")
    facts = page["motion_tokens"]
    assert names.split("\n")[:5] == facts["first5"] and len(names.split("\n")) == facts["lines"]
    assert names.endswith(facts["last"])


def test_listed_clips_that_cannot_be_read_are_dropped_after_the_shuffle(tmp_path: Path) -> None:
    good = {"T": 8, "seq": torch.tensor([0, 32101, 32099, 36196, 1]), "base_len": 1, "phys_len": 1}
    entries: list[Any] = []
    for i in range(20):
        torch.save(good if i % 4 else {"T": 8}, tmp_path / f"{i}.pt")
        entries.append({"id": str(i), "text": f"text {i}", "motion_path": f"{i}.pt"})
    entries += [
        {"text": " ", "motion_path": "1.pt"},
        {"text": "no file", "motion_path": "x.pt"},
        "text",
        {"text": "no path"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    written = export_list(tmp_path / "list.json", tmp_path / "out", root=tmp_path)
    assert written.train + written.val == 15 and sum(written.dropped.values()) == 9
    mixed = list(entries)
    random.Random(42).shuffle(mixed)
    kept = [e["text"] for e in mixed[: int(24 * 0.9)] if isinstance(e, dict) and e.get("id") and int(e["id"]) % 4]
    assert [row.text for row in read_rows(tmp_path / "out/train.jsonl")] == kept
    for content in ("{}", "[1", "[" * 5000):
        (tmp_path / "list.json").write_text(content)
        with pytest.raises(FileError, match="list"):
            export_list(tmp_path / "list.json", tmp_path / "none", root=tmp_path)
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())


def test_rows_there_and_back(tmp_path: Path) -> None:
    rows = [
        SwiftRow('say "ünï" <mot_eos>\nDuration: soon', encoded([1, 2], [3]), None, None),
        SwiftRow("{x}", encoded([0], [4095, 7], 44), "a/b.png", 1.5),
        SwiftRow("nothing", encoded([], [])),
    ]
    assert write_rows(tmp_path / "rows.jsonl", (row.page() for row in rows)) == 3
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert "ünï" in text and text.count("\n") == 3
    made = list(read_rows(tmp_path / "rows.jsonl", fps=30, image_root="/pictures/"))
    for row, back in zip(rows, made, strict=True):
        assert (back.text, back.seconds) == (row.text, row.seconds)
        assert torch.equal(back.encoded.base_ids, row.encoded.base_ids)
        assert torch.equal(back.encoded.phys_ids, row.encoded.phys_ids)
    assert made[1].image == "/pictures/b.png" and made[1].encoded.T == 45 and made[0].encoded.T == 0
    long = SwiftRow("x", encoded([1], [2], 64)).page(length_token=True)
    write_rows(tmp_path / "long.jsonl", [long])
    assert next(read_rows(tmp_path / "long.jsonl")).encoded.T == 64


GOOD = SwiftRow("walk", encoded([1], [2])).page()


def changed(user: Any = None, assistant: Any = None) -> str:
    page = json.loads(json.dumps(GOOD))
    if user is not None:
        page["messages"][0]["content"] = user
    if assistant is not None:
        page["messages"][1]["content"] = assistant
    return json.dumps(page)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2"),
        ("[" * 100_000, "line 2"),
        ("17", "expected"),
        ('{"messages": 3}', "expected"),
        ('{"messages": [{"role": "user"}, 5]}', "expected"),
        (changed(user=5), "neither a text"),
        (changed(user=[{"type": "image", "image": "x.png"}]), "no text"),
        (changed(user=[{"type": "video", "video": "x"}, {"type": "text", "text": "x"}]), "neither a text"),
        (changed(user=[{"type": "image", "image": ["x"]}, {"type": "text", "text": "x"}]), "neither a text"),
        (changed(user="walk"), "does not begin"),
        (changed(user="Generate motion for: \ud800"), "surrogate"),
        (changed(assistant=["x"]), "not text"),
        (changed(assistant="<mot_bos><mot_b_0001><mot_sep><mot_p_0002>"), "missing_eos"),
        (changed(assistant="<mot_bos><mot_b_0001><mot_q_0002><mot_sep><mot_p_0002><mot_eos>"), "foreign_token"),
        (changed(assistant="<mot_bos><mot_b_4096><mot_sep><mot_p_0002><mot_eos>"), "foreign_token"),
        (changed(assistant="<mot_bos><mot_p_0001><mot_sep><mot_p_0002><mot_eos>"), "phys_before_sep"),
        (changed(assistant="hello"), "missing_bos"),
    ],
)  # fmt: skip
def test_lines_that_are_no_rows(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n", encoding="utf-8", errors="surrogatepass")
    rows = read_rows(path)
    assert next(rows).text == "walk"
    with pytest.raises(FileError, match="line 2") as caught:
        next(rows)
    assert said in str(caught.value) and len(str(caught.value)) < 500


def test_other_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="can't read"):
        next(read_rows(tmp_path / "none.jsonl"))
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(FileError, match="line 1"):
        next(read_rows(tmp_path / "bytes.jsonl"))
    (tmp_path / "wide.jsonl").write_bytes(b"\n" + b" " * 4_000_001)
    with pytest.raises(FileError, match="line 2: longer"):
        next(read_rows(tmp_path / "wide.jsonl"))
    with pytest.raises(VadisError, match="surrogate"):
        write_rows(tmp_path / "half.jsonl", [SwiftRow("\ud800", encoded([1], [2])).page()])
    assert not (tmp_path / "half.jsonl").exists()
    with pytest.raises(FileError, match="line 1: the motion"):
        list(read_rows(_one(tmp_path, encoded([9], [2])), vocab_sizes=(9, 9)))


def _one(folder: Path, motion: Encoded) -> Path:
    write_rows(folder / "one.jsonl", [SwiftRow("x", motion).page()])
    return folder / "one.jsonl"


@pytest.mark.parametrize("path", ["a/b.png", "a\\b.png", "/x/../b.png", "b.png"])
def test_images_move_to_one_folder(path: str) -> None:
    assert in_folder(path, "root") == "root/b.png"
    for bad in ("", "a/..", "/"):
        with pytest.raises(VadisError, match="names no image"):
            in_folder(bad, "root")


def test_the_list_of_names(tmp_path: Path) -> None:
    path = tmp_path / "motion_tokens.txt"
    for lengths in (False, True):
        write_names(path, lengths)
        assert read_names(path) == token_names(lengths)
    write_names(path)
    text = path.read_text(encoding="utf-8")
    assert len(text.split("\n")) == 8195 and not text.endswith("\n")
    for line, said in (("<mot_b_0007>", "second time"), ("<mot_b_7>", "not a motion token"), ("walk", "line 8196")):
        path.write_text(f"{text}\n{line}\n", encoding="utf-8")
        with pytest.raises(FileError, match=said):
            read_names(path)
    path.write_text("<mot_bos>\n<mot_sep>\n", encoding="utf-8")
    with pytest.raises(FileError, match="lacks <mot_eos>"):
        read_names(path)


def test_a_corpus_as_rows_and_rows_as_a_corpus(dsft: tuple[DSFTTokenizer, TokenCorpus], tmp_path: Path) -> None:
    tokenizer, corpus = dsft
    written = export_corpus(corpus, tmp_path / "rows")
    assert (written.train, written.val, written.dropped) == (18, 1, {"no caption": 1})
    order = list(range(20))
    random.Random(42).shuffle(order)
    rows = list(read_rows(tmp_path / "rows/train.jsonl", fps=30))
    assert [row.text for row in rows] == [corpus.sentences(i)[0][1] for i in order[:18] if corpus.sentences(i)]
    files = {split: tmp_path / f"rows/{split}.jsonl" for split in ("train", "val")}
    back = import_rows(files, tmp_path / "back", tokenizer)
    assert len(back) == 19 and back.facts == corpus.facts and set(back.column("split")) == {"train", "val"}
    originals = [i for i in order if corpus.sentences(i)]
    for row, original in enumerate(originals):
        one, other = back.tokens(row), corpus.tokens(original)
        assert torch.equal(one.base_ids, other.base_ids) and torch.equal(one.phys_ids, other.phys_ids)
        assert one.T == other.T and back.sentences(row) == corpus.sentences(original)[:1]
    assert tokenizer.decode(back.tokens(0)).shape == (back.tokens(0).T, 272)
    every = export_corpus(corpus, tmp_path / "all", every_caption=True, own_splits=True, durations=False)
    assert (every.train, every.val) == (32, 6)
    assert all(row.encoded.T == 0 for row in read_rows(tmp_path / "all/val.jsonl"))


def test_rows_of_another_tokenizer_are_refused(dsft: tuple[DSFTTokenizer, TokenCorpus], tmp_path: Path) -> None:
    tokenizer, _ = dsft
    path = _one(tmp_path, encoded([4000], [2]))
    with pytest.raises(FileError, match="line 1"):
        import_rows({"train": path}, tmp_path / "out", tokenizer)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(VadisError, match="no clips"):
        import_rows({"train": tmp_path / "empty.jsonl"}, tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()
