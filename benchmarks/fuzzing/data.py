"""Readers of data: captions, manifests, corpora of features and of tokens, rows of instructions, and evaluations."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzzing.motions import walk
from fuzzing.parts import small_dsft, small_tokenizer, words
from fuzzing.run import Reader
from fuzzing.values import expect
from vadis.data.babel_stream import PairText, format_pair, read_babel_stream
from vadis.data.build import read_captions, read_manifest
from vadis.data.corpus import Caption, Corpus, CorpusWriter
from vadis.data.encoded_corpus import EncodedCorpus, encode_corpus
from vadis.data.latent_corpus import LatentCorpus, extract_latents
from vadis.evaluation.leaderboard import find_reports, merge
from vadis.evaluation.protocol import load_protocol, protocol_names
from vadis.evaluation.reference import from_corpus, from_folder, from_prompts
from vadis.evaluation.report import METRICS, Report, Value
from vadis.evaluation.sources import FolderSource
from vadis.language.instruction_sampler import InstructionData, Instructions, TokenSource
from vadis.language.ms_swift import SwiftRow, import_rows, read_names, read_rows, write_names, write_rows
from vadis.language.token_corpus import TokenCorpus, source_names, tokenize_corpus
from vadis.representations import representation

MS272 = representation("ms272")


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# ---- captions and manifests


def _make_captions(root: Path) -> None:
    plain = [
        {"clip": f"c{i}", "start_s": 0.0, "end_s": 2.5, "text": "a person walks", "kind": "whole"} for i in range(4)
    ]
    described = {
        "clip": "d",
        "start_s": 0.5,
        "end_s": 2.0,
        "whole": ["he walks", "a walk"],
        "detailed": "slowly",
        "upper": "arms swing",
    }
    _lines(root / "rows" / "captions.jsonl", [*plain, described])


def _read_captions(folder: Path) -> Any:
    found = read_captions([folder / "captions.jsonl"])
    for caption in (c for captions in found.values() for c in captions):
        expect(
            0 <= caption.start < 1e8 and (caption.end == 0 or caption.start <= caption.end < 1e8),
            f"a caption from {caption.start} to {caption.end} s",
        )
    return found


def _make_manifest(root: Path) -> None:
    rows = [
        {"clip": f"c{i}", "source": "studio", "licence": "CC0-1.0", "fps": 30.0, "split": "train", "weight": 1.0}
        for i in range(4)
    ]
    _lines(root / "rows" / "manifest.jsonl", rows)


def _read_manifest(folder: Path) -> Any:
    return read_manifest(folder / "manifest.jsonl")


# ---- corpora


def small_corpus(path: Path, clips: int = 4) -> Corpus:
    """A corpus of walks with captions."""
    with CorpusWriter(path) as writer:
        for i in range(clips):
            frames = 48 + 4 * i
            captions = [
                Caption("a person walks", 0, frames / 30),
                Caption("slowly", 0, 1.0, "label"),
                Caption("arms", 0, 1.0, "upper"),
            ]
            facts = {"split": "val" if i == 3 else "train", "group": f"g{i}", "source": "studio", "licence": "CC0-1.0"}
            writer.add(f"w{i}", MS272.encode(walk(frames, seed=i)), captions, weight=2.0, **facts)
    return Corpus.open(path)


def _make_corpus(root: Path) -> None:
    small_corpus(root / "four")


def _read_corpus(folder: Path) -> Any:
    corpus = Corpus.open(folder)
    clips = list(corpus)
    windows = corpus.windows(4, 16, torch.Generator().manual_seed(0))
    part = corpus.subset("train")
    return {"clips": clips, "windows": windows, "train": part.ids, "hours": corpus.hours, "mean": corpus.mean, "std": corpus.std,
            "features": [asdict(c) for c in clips], "about": corpus.about}  # fmt: skip


def _plan(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([features[:, 1].mean(), features[:, 1].amax()])[None], torch.tensor([[True, False]])


def _make_encoded(root: Path) -> None:
    corpus = small_corpus(root / "corpus")
    encode_corpus(corpus, small_tokenizer("fsq groups"), words(), root / "planned", _plan, progress=False)
    encode_corpus(corpus, small_tokenizer("vq"), words(), root / "plain", progress=False)
    _remove(root / "corpus")


def _read_encoded(folder: Path) -> Any:
    corpus = EncodedCorpus.open(folder)
    generator = torch.Generator().manual_seed(0)
    batch = corpus.batch(corpus.draw(4, generator), generator)
    everything = corpus.batch(range(len(corpus)), generator)
    tokens = everything["tokens"]
    expect(bool((tokens >= -1).all()) and int(tokens.max()) < corpus.vocab_size, "tokens beyond the vocabulary")
    said = [corpus.sentences(row) for row in range(len(corpus))]
    plans = corpus.plans() if corpus.plan_shape else None
    return {"batch": batch, "all": everything, "said": said, "seconds": corpus.seconds, "plans": plans, "about": corpus.about,
            "train": len(corpus.subset("train"))}  # fmt: skip


def _make_latents(root: Path) -> None:
    small_corpus(root / "corpus")
    tae = small_tokenizer("causal_tae")
    extract_latents({str(root / "corpus"): 1.0}, tae, words(), root / "planned", plan_seconds=1.0, progress=False)
    extract_latents({str(root / "corpus"): 1.0}, tae, words(), root / "plain", progress=False)
    _remove(root / "corpus")


def _read_latents(folder: Path) -> Any:
    corpus = LatentCorpus.open(folder)
    rows = range(len(corpus))
    segments = [np.array(corpus.latents[corpus.first[r] : corpus.stop[r]]) for r in rows]
    expect(all(len(s) for s in segments), "a segment without latents")
    vectors = [np.array(corpus.vectors[corpus.sentence(r, 0.5, {})]) for r in rows]
    return {"segments": segments, "vectors": vectors, "end": corpus.end_latent, "null": corpus.null_vector, "weights": corpus.weights,
            "plans": np.array(corpus.plans), "kept": len(corpus.subset(corpus.splits == "train")), "about": corpus.about}  # fmt: skip


def _make_token_corpora(root: Path) -> None:
    corpus = small_corpus(root / "corpus")
    for name in ("rvq", "lfq2d", "dsft"):
        tokenizer = small_dsft() if name == "dsft" else small_tokenizer(name)
        tokenize_corpus(corpus, tokenizer, root / name, progress=False)
    encode_corpus(corpus, small_tokenizer("fsq"), words(), root / "encoded", progress=False)
    _remove(root / "corpus")


def _read_token_corpus(folder: Path) -> Any:
    corpus = TokenCorpus.open(folder)
    rows = range(len(corpus))
    tokens = [corpus.tokens(row) for row in rows]
    data = InstructionData(corpora=(TokenSource(str(folder)),), tasks={"text_to_motion": 1.0, "motion_to_text": 1.0})
    items = Instructions(data).at(0, 0, 4)
    return {"tokens": tokens, "said": [corpus.sentences(row) for row in rows], "facts": corpus.facts, "parts": corpus.parts,
            "items": items, "about": corpus.about}  # fmt: skip


def _make_swift(root: Path) -> None:
    dsft = small_dsft()
    encoded = [dsft.encode(MS272.encode(walk(n, seed=n))) for n in (24, 32)]
    rows = [
        SwiftRow(f"a person walks {n}", e, image, e.T / 30).page()
        for n, (e, image) in enumerate(zip(encoded, (None, "room.png"), strict=True))
    ]
    for name in ("rows", "import"):
        (root / name).mkdir(parents=True)
        write_rows(root / name / "train.jsonl", rows)
    write_names(root / "rows" / "motion_tokens.txt")


def _read_swift(folder: Path) -> Any:
    if folder.name == "import":
        corpus = import_rows({"train": folder / "train.jsonl"}, folder / "made", small_dsft())
        return [corpus.tokens(row) for row in range(len(corpus))]
    return {"rows": list(read_rows(folder / "train.jsonl", fps=30)), "names": read_names(folder / "motion_tokens.txt")}


def _make_babel(root: Path) -> None:
    for number in range(2):
        text = format_pair(PairText((("walk", "turn left"), ("he walks", "he turns")), 20))
        for folder, content in (("val_stream_text", text), ("val_stream", None)):
            (root / "pairs" / folder).mkdir(parents=True, exist_ok=True)
            if content:
                (root / "pairs" / folder / f"seq{number}.txt").write_text(content)
        np.save(root / "pairs" / "val_stream" / f"seq{number}.npy", MS272.encode(walk(48, seed=number)).numpy())


def _read_babel(folder: Path) -> Any:
    return [asdict(clip) for clip in read_babel_stream(folder, folder / "made")]


def _make_sources(root: Path) -> None:
    (root / "list").mkdir()
    (root / "list" / "sources.txt").write_text("# held out\nstudio\nstreet\n")


def _read_sources(folder: Path) -> Any:
    return sorted(source_names(folder / "sources.txt"))


# ---- evaluation


def _make_protocols(root: Path) -> None:
    for name in protocol_names():
        (root / name).mkdir()
        source = Path(load_protocol.__code__.co_filename).parent / "protocols" / f"{name}.yaml"
        (root / name / "protocol.yaml").write_bytes(source.read_bytes())


def _read_protocol(folder: Path) -> Any:
    return load_protocol(folder / "protocol.yaml")


def _make_references(root: Path) -> None:
    """A corpus, folders in the three published layouts, prompts, and predictions for them."""
    small_corpus(root / "corpus" / "data", 6)
    for layout in ("texts", "lines", "predictions"):
        data = root / layout / "data"
        data.mkdir(parents=True)
        for number in range(3):
            np.save(data / f"{number:06d}.npy", MS272.encode(walk(72, seed=number)).numpy())
            if layout == "texts":
                (data / f"{number:06d}.txt").write_text(
                    "a person walks#a/DET person/NOUN walk/VERB#0.0#0.0\nhe walks#he/PRON walk/VERB#0.5#2.0\n"
                )
        if layout != "texts":
            _lines(
                data / "captions.jsonl",
                [{"id": f"{n:06d}", "text": "a person walks", "start": 0.0, "end": 0.0} for n in range(3)],
            )
    made = root / "predictions" / "made"
    made.mkdir()
    for number in range(3):
        np.save(made / f"{number:06d}.npy", MS272.encode(walk(72, seed=9 + number)).numpy())
    _lines(
        made / "prompts.jsonl",
        [{"id": f"{n:06d}", "text": "a person walks", "frames": 68, "first": 0} for n in range(3)],
    )
    prompts = [
        {"prompt": "a person walks", "global_id": f"p{n}", "motion_duration": 2.5, "dimension": "x"} for n in range(3)
    ]
    for name in ("prompts.json", "prompts.jsonl"):
        (root / name.replace(".", "-")).mkdir()
    (root / "prompts-json" / "prompts.json").write_text(json.dumps(prompts))
    _lines(root / "prompts-jsonl" / "prompts.jsonl", prompts)


def _read_reference(folder: Path) -> Any:
    if folder.name.startswith("prompts"):
        return from_prompts(folder / folder.name.replace("-", "."), load_protocol("mbench")).items
    protocol = load_protocol("ms272")
    data = folder / "data"
    reference = (
        from_corpus(Corpus.open(data), protocol, "all")
        if (data / "corpus.json").exists()
        else from_folder(data, protocol)
    )
    draws = reference.draws(protocol, 0)
    found = {
        "items": reference.items,
        "features": [reference.features(draw) for draw in draws],
        "notes": reference.notes,
    }
    if folder.name == "predictions":
        source = FolderSource(folder / "made", protocol, reference)
        found["made"] = source.predict(source.prepare(draws, 0), 0, 0)
    return found


def _make_reports(root: Path) -> None:
    keys = list(METRICS)[:6]
    for name in ("one", "two"):
        for model in ("first", "second"):
            values = {key: Value.of([0.5, 0.75]) for key in keys}
            report = Report(model, asdict(load_protocol("ms272")), "judge", "data", 30, values, dict(values), {"fid": "too few"}, ("a note",),
                            {"protocol": "a", "evaluator": "b", "data": "c", "model": model}, {"seed": 0}, {"all": 1.5},
                            {"id": ["a", "b"], "jitter": [0.5, 0.25]})  # fmt: skip
            report.save(root / name / model)
            (root / name / model / "report.md").unlink()


def _read_reports(folder: Path) -> Any:
    reports = merge(find_reports(folder))
    for report in reports:
        expect(all(key in METRICS for key in report.result), "a figure that no metric has")
    return {"reports": reports, "pages": [report.markdown() for report in reports]}


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()


READERS = {
    "captions": Reader(_make_captions, _read_captions),
    "manifest": Reader(_make_manifest, _read_manifest),
    "corpus": Reader(_make_corpus, _read_corpus),
    "encoded-corpus": Reader(_make_encoded, _read_encoded),
    "latents": Reader(_make_latents, _read_latents),
    "token-corpus": Reader(_make_token_corpora, _read_token_corpus),
    "rows": Reader(_make_swift, _read_swift),
    "babel-stream": Reader(_make_babel, _read_babel),
    "sources": Reader(_make_sources, _read_sources),
    "protocol": Reader(_make_protocols, _read_protocol),
    "reference": Reader(_make_references, _read_reference),
    "reports": Reader(_make_reports, _read_reports),
}
