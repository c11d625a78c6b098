"""The clip store: what goes in comes out, the same bytes every time, and damage is named."""

import json

import numpy as np
import pytest
import torch

from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.errors import FileError, ShapeError, VadisError

D = 272


def clip(seed: int, frames: int) -> torch.Tensor:
    return torch.randn(frames, D, generator=torch.Generator().manual_seed(seed))


def fill(writer: CorpusWriter, lengths=(40, 70, 20, 90), first: int = 0) -> None:
    for i, frames in enumerate(lengths, start=first):
        captions = [Caption(f"a person does thing {i}", 0.0, frames / 30, "whole"), Caption("walk", 0.0, 0.5, "label")]
        writer.add(
            f"clip{i}", clip(i, frames), captions, split="train" if i % 4 != 3 else "val", group=f"g{i // 2}",
            source="test", licence="CC0-1.0", weight=1.0 + i, take=i,
        )  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    # 50 kB shards: the four clips spread over three files
    with CorpusWriter(tmp_path / "c", about={"made": "by a test"}, shard_bytes=50_000) as writer:
        fill(writer)
        writer.reject("bad", "too short")
    return Corpus.open(tmp_path / "c")


def test_what_goes_in_comes_out(corpus):
    assert len(corpus) == 4 and len(corpus._shards) == 3
    assert [c.id for c in corpus] == ["clip0", "clip1", "clip2", "clip3"]
    for i, c in enumerate(corpus):
        assert c.features.dtype == torch.float32
        torch.testing.assert_close(c.features, clip(i, corpus.frames[i]).half().float(), atol=0, rtol=0)
        assert c.extra == {"take": i} and c.weight == 1.0 + i and c.licence == "CC0-1.0"
        assert c.captions[0] == Caption(f"a person does thing {i}", 0.0, corpus.frames[i] / 30, "whole")
    assert corpus.find("clip2").id == "clip2" and corpus[-1].id == "clip3"
    assert corpus.about["rejected"] == {"too short": 1} and corpus.about["splits"] == {"train": 3, "val": 1}
    with pytest.raises(VadisError, match="no clip 'nobody'"):
        corpus.find("nobody")
    with pytest.raises(IndexError):
        corpus[4]


def test_statistics_are_those_of_the_train_split(corpus):
    from vadis.representations import representation

    mean, std = representation("ms272").statistics([c.features for c in corpus.subset("train")])
    torch.testing.assert_close(corpus.mean, torch.as_tensor(mean).float())
    torch.testing.assert_close(corpus.std, torch.as_tensor(std).float())


def test_subset(corpus):
    train = corpus.subset(split="train")
    assert train.ids == ["clip0", "clip1", "clip2"] and train[2].id == "clip2"
    assert corpus.subset(split="val").ids == ["clip3"]
    assert corpus.subset(group="g1").ids == ["clip2", "clip3"]
    with pytest.raises(VadisError, match=r"no clip with split 'test'.*train, val"):
        corpus.subset(split="test")


def test_same_calls_same_bytes(tmp_path):
    for name in ("a", "b"):
        with CorpusWriter(tmp_path / name, shard_bytes=50_000) as writer:
            fill(writer)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["corpus.json", "index.parquet", "shard-00000.npy", "shard-00001.npy", "shard-00002.npy"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_windows_are_cut_from_clips_in_proportion(corpus):
    length = 30
    batch = corpus.windows(600, length, torch.Generator().manual_seed(0))
    assert batch.shape == (600, length, D) and batch.dtype == torch.float32
    again = corpus.windows(600, length, torch.Generator().manual_seed(0))
    assert torch.equal(batch, again)
    clips = [c.features for c in corpus]
    where = torch.zeros(4)
    for window in batch:
        for i, features in enumerate(clips):
            starts = (features[:, 0] == window[0, 0]).nonzero().flatten().tolist()
            if any(torch.equal(features[s : s + length], window) for s in starts):
                where[i] += 1
    assert where.sum() == 600 and where[2] == 0  # clip2 has only 20 frames
    share = torch.tensor([11 * 1.0, 41 * 2.0, 0, 61 * 4.0])
    torch.testing.assert_close(where / 600, share / share.sum(), atol=0.05, rtol=0)
    with pytest.raises(VadisError, match="no clip of .* has 100 frames"):
        corpus.windows(1, 100)


def test_an_interrupted_build_leaves_nothing_or_resumes_to_the_same_bytes(tmp_path):
    with CorpusWriter(tmp_path / "whole", shard_bytes=50_000) as writer:
        fill(writer)
        writer.reject("bad", "too short")
    with pytest.raises(RuntimeError), CorpusWriter(tmp_path / "gone") as writer:
        fill(writer, (40,))
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole"]

    with pytest.raises(RuntimeError), CorpusWriter(tmp_path / "again", shard_bytes=50_000, resume=True) as writer:
        fill(writer, (40, 70))
        writer.reject("bad", "too short")
        raise RuntimeError
    assert not (tmp_path / "again").exists()
    with next(tmp_path.rglob("journal.jsonl")).open("ab") as journal:  # as a power failure leaves it
        journal.write(b'{"rejected": 3}\n\x00\xff\n')
    with CorpusWriter(tmp_path / "again", shard_bytes=50_000, resume=True) as writer:
        assert "clip1" in writer and "bad" in writer and "clip2" not in writer and len(writer) == 2
        fill(writer, (20, 90), first=2)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_bad_clips_are_refused(tmp_path):
    facts = {"split": "train", "group": "g", "source": "s", "licence": "l"}
    with CorpusWriter(tmp_path / "c") as writer:
        writer.add("a", clip(0, 10), **facts)
        with pytest.raises(VadisError, match="'a' was added before"):
            writer.add("a", clip(0, 10), **facts)
        with pytest.raises(ShapeError, match=r"expected \(T, 272\)"):
            writer.add("b", torch.zeros(10, 263), **facts)
        with pytest.raises(ShapeError, match="not finite"):
            writer.add("b", torch.full((10, D), 1e6), **facts)
        with pytest.raises(VadisError, match="weight 0"):
            writer.add("b", clip(0, 10), **facts, weight=0)
        for start, end in ((-1.0, 0.0), (3.0, 2.0), (float("nan"), 1.0), (0.0, float("inf"))):
            with pytest.raises(VadisError, match=f"clip 'b': a caption from {start} to {end} s"):
                writer.add("b", clip(0, 10), [Caption("x", start, end)], **facts)
    with pytest.raises(VadisError, match="would be empty"), CorpusWriter(tmp_path / "empty") as writer:
        writer.reject("a", "too short")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(FileError, match="has no corpus.json"), CorpusWriter(tmp_path / "home"):
        pass
    assert (tmp_path / "home" / "letter.txt").exists()


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("clip", lambda rows: ["clip0", *rows[:-1]], "the clip 'clip0' is there twice"),
        ("captions", lambda rows: [[{"text": "x", "start": -1.0, "end": 2.0, "kind": "k"}], *rows[1:]],
         "clip 'clip0': a caption from -1 to 2 s"),
        ("captions", lambda rows: [*rows[:-1], [*rows[-1], {"text": "x", "start": 3.0, "end": 2.0, "kind": "k"}]],
         "clip 'clip3': a caption from 3 to 2 s"),
    ],
)  # fmt: skip
def test_rows_that_can_t_be_are_named(corpus, column, change, said):
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = corpus.path / "index.parquet"
    table = pq.read_table(index)
    place = table.column_names.index(column)
    made = pa.array(change(table.column(column).to_pylist()), table.schema.field(column).type)
    pq.write_table(table.set_column(place, column, made), index)
    with pytest.raises(FileError, match=rf"index\.parquet.*{said}"):
        _ = Corpus.open(corpus.path).ids


def test_damage_is_named(corpus, tmp_path):
    path = corpus.path
    with pytest.raises(FileError, match="no corpus at"):
        Corpus.open(tmp_path / "nowhere")
    page = json.loads((path / "corpus.json").read_text())
    (path / "corpus.json").write_text(json.dumps({**page, "version": 99}))
    with pytest.raises(FileError, match="version 99"):
        Corpus.open(path)
    (path / "corpus.json").write_text("{")
    with pytest.raises(FileError, match="corpus.json .*JSON"):
        Corpus.open(path)
    (path / "corpus.json").write_text(json.dumps(page))
    shard = path / "shard-00001.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1000])
    with pytest.raises(FileError, match="shard-00001.npy .*cut off"):
        Corpus.open(path)
    shard.unlink()
    with pytest.raises(FileError, match="shard-00001.npy is missing"):
        Corpus.open(path)
    shard.write_bytes(whole)
    assert np.load(shard).dtype == np.float16
    index = path / "index.parquet"
    index.write_bytes(index.read_bytes()[:200])
    with pytest.raises(FileError, match="index.parquet is damaged"):
        Corpus.open(path)
    index.unlink()
    with pytest.raises(FileError, match="no index.parquet"):
        Corpus.open(path)
