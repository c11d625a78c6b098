"""Does MotionVLA use the picture? A small Qwen3.5 is trained on a scene corpus and asked to walk to coloured things.

    vadis data scenes CORPUS SCENES --rooms 800 --walk 1 --around 0 --turn 0 --sit 0
    python benchmarks/motionvla_scenes.py --scenes SCENES --bodies CORPUS --tokenizer TOKENIZER --run RUN

Stages, each taken up again where it was left: pictures of random rooms; the vision tower learns where things stand; the
language model learns to say it in words; then motions. The judge compares held-out rooms with the right picture, the picture
of another room, and none. Everything is of CPU size and trained from nothing.
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scene_sight import NAMES, draw_pictures, places_of, see, teach

import vadis
from vadis.data.corpus import Corpus
from vadis.data.scenes import walks_to
from vadis.data.scenes.pieces import Library
from vadis.language.vla.model import MotionVLA
from vadis.language.vla.prompts import Pixels, Prompt, ScenePacker, VisionFacts
from vadis.pipelines.motionvla import MotionVLAPipeline, SceneGenerationConfig
from vadis.representations import representation

WIDTH, LAYERS = 128, 4
MARKS = ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

KINDS = ("walk", "around")
"""Tasks that end where they are to lead, so that a direction can be judged."""


@dataclass(frozen=True, eq=False)
class Row:
    """One motion of a room; `picture` is its number among all pictures, mirrored ones in the second half."""

    text: tuple[str, ...]
    picture: int
    tokens: Any
    frames: int
    place: tuple[float, float]
    room: str


# ---- model


def text_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE learned on the instructions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=MARKS[1], pad_token=MARKS[0],
                                   additional_special_tokens=list(MARKS[2:]))  # fmt: skip


def small_model(tokenizer: Any, size: tuple[int, int], seed: int = 0) -> Any:
    """Qwen3.5 with a vision tower, two layers of linear and two of full attention."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    start, end, image, video = tokenizer.convert_tokens_to_ids(list(MARKS[2:]))
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2],
            "mrope_interleaved": True}  # fmt: skip
    text = dict(
        vocab_size=-(-len(tokenizer) // 64) * 64, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
        layer_types=["full_attention", "linear_attention"] * (LAYERS // 2), num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, linear_key_head_dim=32, linear_value_head_dim=32, linear_num_key_heads=4, linear_num_value_heads=4,
        rope_parameters=rope, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    grid = (size[0] // 16) * (size[1] // 16)
    vision = dict(depth=2, hidden_size=96, intermediate_size=192, num_heads=4, patch_size=16, spatial_merge_size=2,
                  temporal_patch_size=2, out_hidden_size=WIDTH, num_position_embeddings=round(math.sqrt(grid)) ** 2)  # fmt: skip
    torch.manual_seed(seed)
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end, tie_word_embeddings=True,
    ))  # fmt: skip


# ---- data


def first_levels(tokenizer: Any, levels: int) -> Any:
    """A residual tokenizer of its first levels only: fewer tokens, coarser motion."""
    if not levels or tokenizer.config.type != "rvq" or levels >= tokenizer.config.num_quantizers:
        return tokenizer
    short = type(tokenizer)(replace(tokenizer.config, num_quantizers=levels))
    state = tokenizer.state_dict()
    short.load_state_dict({name: state[name] for name in short.state_dict()})
    return short.eval()


def scene_rows(corpus: Corpus, tokenizer: Any, split: str, mirror: bool) -> tuple[list[Row], Any, Any]:
    """Motions of a split, its pictures and what stands where in them; mirrored ones too where asked for."""
    from PIL import Image

    rep = representation(corpus.representation)
    clips = [clip for clip in corpus.subset(split) if clip.extra["task"] in KINDS]
    names = sorted({clip.extra["image"] for clip in clips})
    images = np.stack([np.asarray(Image.open(corpus.path / name).convert("RGB")) for name in names])
    things = {clip.extra["image"]: places_of(clip.extra["things"]) for clip in clips}
    places = np.stack([things[name] for name in names])
    rows = []
    for flip in (False, True) if mirror else (False,):
        features = [rep.mirror(clip.features) if flip else clip.features for clip in clips]
        for clip, tokens in zip(clips, tokenizer.encode([torch.as_tensor(f) for f in features]), strict=True):
            forward, left = clip.extra["target"]
            frames = len(tokens) * tokenizer.frames_per_token
            picture = names.index(clip.extra["image"]) + flip * len(names)
            texts = tuple(c.text for c in clip.captions)
            rows.append(Row(texts, picture, tokens, frames, (forward, -left if flip else left), clip.group))
    if mirror:
        images, places = both_ways(images, places)
    return rows, images, places


def both_ways(images: NDArray[np.uint8], places: NDArray[np.float32]) -> tuple[Any, Any]:
    """Pictures and places, then all of them mirrored."""
    flipped = places * np.array([1, -1], dtype=np.float32)
    return np.concatenate([images, images[:, :, ::-1]]), np.concatenate([places, flipped])


def place_words(place: tuple[float, float]) -> str:
    """A place in words: direction to 10 degrees, distance to half a metre."""
    angle = round(math.degrees(math.atan2(place[1], place[0])) / 10) * 10
    side = "left" if angle > 0 else "right" if angle < 0 else "ahead"
    return f" {abs(angle)} {side} , {round(math.hypot(*place) * 2) / 2:.1f} metres"


class Eyes:
    """Visual tokens of pictures, seen once by the frozen tower."""

    def __init__(self, model: Any, images: NDArray[np.uint8]) -> None:
        tower, self.merge = model.model.visual.eval(), 2
        self.grid = torch.tensor([[1, images.shape[1] // 16, images.shape[2] // 16]])
        with torch.no_grad():
            self.tokens = torch.cat([see(tower, images[i : i + 50]) for i in range(0, len(images), 50)])

    def pixels(self, number: int) -> Pixels:
        return Pixels(torch.empty(0), self.grid, self.merge, self.tokens[number])


class Desk:
    """Makes rows to learn from."""

    def __init__(self, vla: MotionVLA, eyes: Eyes, rows: list[Row], sight: Eyes, places: NDArray[np.float32]) -> None:
        self.vla, self.eyes, self.rows, self.sight, self.places = vla, eyes, rows, sight, places
        self.stop = vla.text_tokenizer.eos_token_id

    def motion(self, rng: random.Random, count: int, blind: float = 0.1) -> tuple[list[Prompt], list[list[int]]]:
        prompts, answers = [], []
        for row in rng.sample(self.rows, count):
            prompt = motion_prompt(self.vla, rng.choice(row.text), self.eyes.pixels(row.picture), row.frames)
            prompts.append(prompt.without_image() if rng.random() < blind else prompt)
            answers.append(self.vla.answer(row.tokens))
        return prompts, answers

    def words(self, rng: random.Random, count: int) -> tuple[list[Prompt], list[list[int]]]:
        """Where is the red thing? From random rooms, and from the instructions of real ones."""
        prompts, answers = [], []
        for _ in range(count):
            if rng.random() < 0.35:
                row = rng.choice(self.rows)
                pixels, place, text = self.eyes.pixels(row.picture), row.place, rng.choice(row.text)
            else:
                number = rng.randrange(len(self.places))
                colour = int(rng.choice(np.flatnonzero(~np.isnan(self.places[number, :, 0])).tolist()))
                pixels, text = self.sight.pixels(number), f"the {NAMES[colour]} thing"
                place = tuple(self.places[number, colour].tolist())
            prompts.append(self.vla.packer.prompt(f"Where to: {text}", pixels))
            answers.append([*self.vla.text_tokenizer(place_words(place))["input_ids"], self.stop])
        return prompts, answers


def motion_prompt(vla: MotionVLA, text: str, pixels: Pixels | None, frames: int) -> Prompt:
    return vla.prompt(text, pixels, frames / vla.fps)


# ---- training


def learn(
    vla: MotionVLA, desk: Desk, folder: Path, minutes: tuple[float, float], batch: int, rate: float = 1e-3
) -> None:
    """Words, then motions with some words among them; stops when the minutes (processor time) of all sessions are spent."""
    model = vla.model
    model.model.visual.requires_grad_(False)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    path, spent, step = folder / "language.pt", 0.0, 0
    if path.is_file():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        spent, step = state["spent"], state["step"]
    since = saved = time.process_time()
    sums: dict[str, list[float]] = {"words": [], "motion": []}
    log = (folder / "log.jsonl").open("a", encoding="utf-8")
    first, whole = 60 * minutes[0], 60 * sum(minutes)
    while (now := spent + time.process_time() - since) < whole:
        rng = random.Random(step)
        kind = "words" if now < first or step % 6 == 0 else "motion"
        part = now / first if now < first else (now - first) / max(whole - first, 1)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 60) * (1 - 0.7 * part if now < first else max(0.03, 1 - part))
        model.train()
        prompts, answers = desk.words(rng, 2 * batch) if kind == "words" else desk.motion(rng, batch)
        loss = vla.loss(prompts, answers)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        sums[kind].append(float(loss))
        if step % 25 == 0:
            line = {"step": step, "seconds": round(now)} | {
                k: round(float(np.mean(v)), 4) for k, v in sums.items() if v
            }
            print(line, flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
            sums = {"words": [], "motion": []}
        if time.process_time() - saved > 45:
            saved = time.process_time()
            _save(path, model, optimizer, now, step)
    _save(path, model, optimizer, now, step)


def _save(path: Path, model: Any, optimizer: Any, spent: float, step: int) -> None:
    from vadis.files import atomic_write

    with atomic_write(path) as temporary:
        page = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "spent": spent, "step": step}
        torch.save(page, temporary)


# ---- judging


@torch.no_grad()
def said_places(vla: MotionVLA, desk: Desk, eyes: Eyes, rows: list[Row]) -> dict[str, float]:
    """How often the words for the right picture name the right direction, greedily, on held-out rooms."""
    vla.model.eval()
    hits = 0
    for row in rows:
        prompt = vla.packer.prompt(f"Where to: {row.text[0]}", eyes.pixels(row.picture))
        states, cache, mask, where = vla._begin([prompt])
        ids: list[int] = []
        while len(ids) < 16 and (not ids or ids[-1] != desk.stop):
            ids.append(int(vla.backbone.logits(states)[0].argmax()))
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            states = vla.backbone.step(torch.tensor(ids[-1:]), where, mask, cache)
            where = where + 1
        words = vla.text_tokenizer.decode(ids, skip_special_tokens=True).split()
        angle = float(words[0]) * (-1 if words[1:2] == ["right"] else 1) if words and words[0].isdigit() else 180.0
        truth = math.degrees(math.atan2(row.place[1], row.place[0]))
        hits += abs(math.remainder(angle - truth, 360)) < 30
    return {"words_within_30": hits / len(rows)}


def judge(vla: MotionVLA, eyes: Eyes, rows: list[Row], settings: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Direction and distance of generated walks with the right picture, another room's and none."""
    rep = representation(vla.motion_tokenizer.representation)
    pictures = sorted({row.picture for row in rows})
    shift = {p: pictures[(i + len(pictures) // 2) % len(pictures)] for i, p in enumerate(pictures)}
    table: dict[str, Any] = {}
    for name in ("right", "shuffled", "none"):
        errors, lefts = [], []
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            prompts = []
            for row in part:
                picture = (
                    None if name == "none" else eyes.pixels(row.picture if name == "right" else shift[row.picture])
                )
                prompts.append(motion_prompt(vla, row.text[0], picture, row.frames))
            made = vla.generate(prompts, [r.frames for r in part], seed=[seed + start + i for i in range(len(part))],
                                **settings if name == "right" or name == "shuffled" else settings | {"guidance_scale": 1.0})  # fmt: skip
            for row, ids in zip(part, made, strict=True):
                arrival = walks_to(rep.decode(vla.features(ids, row.frames)), row.place)
                errors.append(math.degrees(arrival.direction_error))
                lefts.append(arrival.distance_left)
        table[name] = summary(np.array(errors), np.array(lefts)) | {
            "by_direction": by_direction(np.array(errors), rows)
        }
        print(name, table[name], flush=True)
    return table


def summary(errors: NDArray[np.float64], lefts: NDArray[np.float64]) -> dict[str, float]:
    """Share within 30 degrees and distances, with standard errors."""
    hit, n = errors < 30, len(errors)
    return {
        "clips": n,
        "within_30": round(float(hit.mean()), 3),
        "within_30_se": round(float(math.sqrt(hit.mean() * (1 - hit.mean()) / n)), 3),
        "median_degrees": round(float(np.median(errors)), 1),
        "metres_left": round(float(lefts.mean()), 2),
        "metres_left_se": round(float(lefts.std() / math.sqrt(n)), 2),
    }


def by_direction(errors: NDArray[np.float64], rows: list[Row]) -> dict[str, str]:
    """Hits of targets ahead, aside and behind, in degrees from straight ahead."""
    angles = np.array([abs(math.degrees(math.atan2(row.place[1], row.place[0]))) for row in rows])
    found = {}
    for low, high in ((0, 45), (45, 90), (90, 180)):
        inside = (angles >= low) & (angles < high)
        found[f"{low}-{high}"] = f"{int((errors[inside] < 30).sum())} of {int(inside.sum())}"
    return found


def ceiling(tokenizer: Any, corpus: Corpus, rows: list[Row]) -> dict[str, float]:
    """The same figures of the recorded walks after the tokenizer: nothing better can be generated."""
    rep = representation(corpus.representation)
    made = [walks_to(rep.decode(tokenizer.decode(row.tokens)), row.place) for row in rows]
    degrees = np.array([math.degrees(a.direction_error) for a in made])
    return summary(degrees, np.array([a.distance_left for a in made]))


# ---- all of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("scenes", "bodies", "tokenizer", "run"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=2400)
    parser.add_argument(
        "--minutes", type=float, nargs=4, default=(10, 1.5, 2.5, 8), help="pictures, sight, words, motions"
    )
    parser.add_argument("--levels", type=int, default=1, help="levels of a residual tokenizer that are used; 0: all")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=0, help="held-out clips that are judged; 0: all")
    parser.add_argument("--split", default="test")
    a = parser.parse_args()
    torch.set_num_threads(1)
    a.run.mkdir(parents=True, exist_ok=True)
    corpus, tokenizer = Corpus.open(a.scenes), first_levels(vadis.load(a.tokenizer), a.levels)
    rows, images, seen = scene_rows(corpus, tokenizer, "train", mirror=True)
    held, held_images, held_seen = scene_rows(corpus, tokenizer, a.split, mirror=False)
    held = held[: a.rows or None]
    size = (images.shape[2], images.shape[1])
    bodies = [piece.motion for piece in Library(Corpus.open(a.bodies)).starts][:60]
    draw_pictures(a.run / "pictures.npz", bodies, a.pictures, size, a.minutes[0])
    stored = np.load(a.run / "pictures.npz")
    texts = [f"Generate motion for: {t}\nDuration: {r.frames / 30:.1f} s\n" for r in rows for t in r.text]
    texts += [f"Where to: the {n} thing\n{place_words(r.place)}" for r, n in zip(rows, NAMES * len(rows), strict=False)]
    words = text_tokenizer(texts)
    model = small_model(words, size)
    facts = VisionFacts.of(model.config)
    vla = MotionVLA.build(model, words, tokenizer, packer=ScenePacker(words, facts, min_visual_tokens=1))
    report: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "rows": len(rows)}
    pictures, places = both_ways(stored["images"], stored["places"])
    taught = np.concatenate([pictures, images]), np.concatenate([places, seen])
    report["sight"] = teach(model.model.visual, *taught, (held_images, held_seen), a.minutes[1], a.run)
    desk = Desk(vla, Eyes(model, images), rows, Eyes(model, pictures), places)
    print(report, flush=True)
    learn(vla, desk, a.run, (a.minutes[2], a.minutes[3]), a.batch)
    eyes = Eyes(model, held_images)
    report |= said_places(vla, desk, eyes, held[:100])
    report["ceiling"] = ceiling(tokenizer, corpus, held)
    settings = {"temperature": a.temperature, "top_p": a.top_p, "guidance_scale": a.guidance_scale}
    report |= {"settings": settings} | judge(vla, eyes, held, settings)
    print(json.dumps(report, indent=1))
    (a.run / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    MotionVLAPipeline(vla, SceneGenerationConfig(**settings)).save_pretrained(a.run / "model")


if __name__ == "__main__":
    main()
