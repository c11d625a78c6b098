"""MotionVLA: a scene image and an instruction to motion tokens, with a vision-language model as the one and only network.

    [image] Generate motion for: walk to the red box  Duration: 4.0 s   →   <mot_bos> Base… <mot_sep> Phys… <mot_eos>

The tokens are DSFT's, as published, or those of any discrete tokenizer of vadis. A grammar keeps every row well-formed and
exactly as long as asked for. The head is computed at motion rows only.

Shapes: B prompts, R rows (prompts times samples), L ids of the longest prompt, H width, U motion ids.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from vadis.cancel import stop_if_cancelled
from vadis.errors import ModelError, VadisError, about
from vadis.generators.sampling import RowNoise, Seed, check_sampling, choose
from vadis.images import Image
from vadis.language.add_motion import MotionVocabulary, extend
from vadis.language.checkpoints import load_language_model, save_language_model
from vadis.language.grammar import MotionGrammar
from vadis.language.layout import MotionLayout
from vadis.language.vla.backbone import SceneBackbone
from vadis.language.vla.prompts import Prompt, ScenePacker, collate
from vadis.tokenizers.dsft.codec import IntegerBPE
from vadis.tokenizers.dsft.sequence import Encoded

IGNORED = -100
"""Label of a position that no loss is computed at."""


class MotionVLA:
    """A vision-language model with a motion vocabulary, and the motion tokenizer that belongs to it.

    Args:
        model: a transformers model with a head, of the families of `VisionFacts`; a text model works without images.
        text_tokenizer: the model's.
        vocabulary: made by `extend` or loaded.
        motion_tokenizer: DSFT or another discrete tokenizer.
        packer: how images and instructions become prompts; by default with 256 visual tokens at most.
    """

    def __init__(
        self,
        model: Any,
        text_tokenizer: Any,
        vocabulary: MotionVocabulary,
        motion_tokenizer: Any,
        packer: ScenePacker | None = None,
    ) -> None:
        self.backbone = SceneBackbone(model)
        self.model, self.text_tokenizer, self.vocabulary = model, text_tokenizer, vocabulary
        self.motion_tokenizer = motion_tokenizer
        vocabulary.layout.check(motion_tokenizer)
        rows = self.backbone.model.get_input_embeddings().weight.shape[0]
        if rows != vocabulary.size:
            raise ModelError(
                f"the model has {rows:,} rows, its motion vocabulary {vocabulary.size:,}: another model's."
            )
        self.packer = packer or ScenePacker(text_tokenizer, self.backbone.facts)

    @classmethod
    def build(cls, model: Any, text_tokenizer: Any, motion_tokenizer: Any, **options: Any) -> Self:
        """Give a vision-language model a motion vocabulary; `options` are those of `extend`. Changes model and tokenizer."""
        packer = options.pop("packer", None)
        layout = MotionLayout.of(motion_tokenizer)
        vocabulary = extend(model, text_tokenizer, layout, motion_tokenizer, multiple=128, **options)
        return cls(model, text_tokenizer, vocabulary, motion_tokenizer, packer)

    @property
    def two_streams(self) -> bool:
        """The tokens are DSFT's."""
        return self.vocabulary.layout.kind == "two_stream"

    @property
    def fps(self) -> float:
        return float(self.motion_tokenizer.fps)

    # ---- prompts and rows

    def prompt(self, text: str, image: Image | None = None, seconds: float | None = None) -> Prompt:
        """The prompt of an instruction, as MotionVLA words it; `seconds` adds a line that says how long the motion is."""
        words = text if isinstance(text, str) else ""
        request = f"Generate motion for: {words}" + ("" if seconds is None else f"\nDuration: {seconds:.1f} s")
        return self.packer.prompt(request if words.strip() else "", image)

    def answer(self, tokens: Any) -> list[int]:
        """Ids of a motion's tokens between the markers, and the end of the turn."""
        end = getattr(self.text_tokenizer, "eos_token_id", None)
        return self.vocabulary.ids(tokens) + ([] if end is None else [int(end)])

    def batch(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]] | None = None) -> dict[str, Tensor]:
        """A batch on the model's device; for training (with answers) padded on the right, else on the left."""
        end = getattr(self.text_tokenizer, "pad_token_id", None)
        side = "left" if answers is None else "right"
        made = collate(prompts, self.vocabulary.end if end is None else int(end), side, answers)
        return {k: v.to(self.backbone.device) for k, v in made.items()}

    def loss(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], motion_only: bool = False) -> Tensor:
        """Mean cross-entropy of the answers' ids given their prompts; the head is computed there only.

        With `motion_only` the softmax runs over motion ids (and the end of the turn is left out).
        """
        batch = self.batch(prompts, answers)
        positions, _ = self.backbone.positions(batch)
        states = self.backbone.hidden(batch, positions).last_hidden_state
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            start = len(prompt.ids)
            labels[row, start : start + len(answer)] = batch["input_ids"][row, start : start + len(answer)]
        if not motion_only:
            wanted = labels[:, 1:] != IGNORED
            return functional.cross_entropy(self.backbone.logits(states[:, :-1][wanted]).float(), labels[:, 1:][wanted])
        rows = self.vocabulary.new_ids().to(labels.device)
        wanted = (labels[:, 1:] != IGNORED) & self.vocabulary.is_motion(labels[:, 1:].clamp_min(0))
        targets = torch.searchsorted(rows, labels[:, 1:][wanted])
        return functional.cross_entropy(self.backbone.logits(states[:, :-1][wanted], rows).float(), targets)

    # ---- generation

    def length(self, frames: int) -> int:
        """A motion's length as the grammar counts it: frames for DSFT, else token steps that cover them."""
        if self.two_streams:
            return int(frames)
        return -(-int(frames) // int(self.motion_tokenizer.frames_per_token))

    def most_ids(self, frames: int) -> int:
        """Ids that a motion of so many frames takes at most, markers included."""
        if self.two_streams:
            return 4 + sum(k * d for k, d in self.motion_tokenizer.integer_shapes(frames))
        return 2 + self.vocabulary.layout.length(self.length(frames))

    def generate(
        self, prompts: Sequence[Prompt], frames: int | Sequence[int] | None, samples: int = 1, **settings: Any
    ) -> list[list[int]]:
        """Ids of `samples` motions of each prompt, markers included, the samples of a prompt together; see `stream`."""
        *_, made = self.stream(prompts, frames, samples, **settings)
        return made

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[Prompt],
        frames: int | Sequence[int] | None,
        samples: int = 1,
        *,
        temperature: float = 1.0,
        top_p: float | None = 0.95,
        top_k: int | None = None,
        guidance_scale: float = 1.0,
        seed: Seed = None,
        longest: int = 2048,
    ) -> Iterator[list[list[int]]]:
        """The ids of all rows so far, after every step; the last value is whole.

        Args:
            frames: length of all or each; None where the model says it (length tokens, or no DSFT).
            samples: motions of each prompt.
            temperature, top_p, top_k: of the draw; temperature 0 takes the likeliest id.
            guidance_scale: above 1 leads away from what the model would do without the image.
            seed: a row's draws depend on its seed and sample number only, not on its companions.
            longest: ids at most where no length is asked for.

        Raises VadisError for lengths that can't be met and for prompts beyond the model's context.
        """
        check_sampling(temperature, top_k, top_p)
        rows = [prompt for prompt in prompts for _ in range(samples)]
        wanted = self._frames(frames, len(prompts), samples)
        self._check_context(rows, wanted)
        guided = guidance_scale != 1 and any(prompt.pixels is not None for prompt in rows)
        if guidance_scale < 0:
            raise VadisError(f"guidance_scale {guidance_scale:g} must be 0 or more; 1 is none.")
        noise = RowNoise(seed, len(prompts), samples)
        grammar = self._grammar(len(rows), wanted, longest)
        states, cache, mask, where = self._begin([*rows, *(p.without_image() for p in rows)] if guided else rows)
        made: list[list[int]] = [[] for _ in rows]
        while not bool(grammar.done.all()):
            stop_if_cancelled()
            logits = self.backbone.logits(states, grammar.slot_ids).float()
            if guided:
                seen, blind = logits.chunk(2)
                logits = blind + guidance_scale * (seen - blind)
            logits = logits.masked_fill(~grammar.allowed(), -torch.inf)
            slots = choose(logits, noise.draw(1)[:, 0].to(logits.device), temperature, top_k, top_p)
            going = ~grammar.done
            grammar.advance_slots(slots)
            ids = grammar.slot_ids[slots]
            for row, (id_, goes) in enumerate(zip(ids.tolist(), going.tolist(), strict=True)):
                if goes:
                    made[row].append(id_)
            yield made
            if bool(grammar.done.all()):
                break
            ids, mask = (torch.cat([ids, ids]) if guided else ids), functional.pad(mask, (0, 1), value=1)
            states = self.backbone.step(ids, where, mask, cache)
            where = where + 1

    def tokens(self, ids: Sequence[int], frames: int | None = None) -> Any:
        """The motion tokens of a row of ids; strict."""
        return self.vocabulary.tokens(ids, frames if self.two_streams else None)

    def features(self, ids: Sequence[int], frames: int | None = None) -> Tensor:
        """Features `(T, D)` of a whole row of ids, cut to `frames`. Never repairs: raises what decoding raises."""
        made = self.motion_tokenizer.decode(self.tokens(ids, frames))
        return made[:frames].float().cpu()

    def preview(self, ids: Sequence[int], frames: int) -> Tensor | None:
        """Features `(T, D)` of a row that has its Base stream but not all of Phys, whose missing integers count as 0 (the
        mean); None before the separator."""
        if not self.two_streams:
            raise VadisError("only DSFT's tokens have a Base stream that can be looked at before the rest.")
        row = [int(i) for i in ids]
        if self.vocabulary.sep not in row:
            return None
        cut = row.index(self.vocabulary.sep)
        first = 1 + (self.vocabulary.length_ids is not None)
        base = self.vocabulary.symbols(row[first:cut])
        rest = [i for i in row[cut + 1 :] if i != self.vocabulary.end]
        phys = (
            self.vocabulary.symbols(rest) - self.vocabulary.layout.codes if rest else torch.zeros(0, dtype=torch.long)
        )
        return self.motion_tokenizer.decode(Encoded(base, phys, frames), on_error="repair")

    def said_frames(self, ids: Sequence[int]) -> int | None:
        """Frames that a row's length token says; None without one."""
        if self.vocabulary.length_ids is None or len(ids) < 2:
            return None
        return self.vocabulary.frames(int(ids[1]))

    # ---- inside

    def _frames(self, frames: int | Sequence[int] | None, prompts: int, samples: int) -> list[int] | None:
        if frames is None:
            if self.two_streams and self.vocabulary.length_ids is None:
                raise VadisError("this model's tokens don't say how long a motion is: give seconds or frames.")
            return None
        each = [int(frames)] * prompts if isinstance(frames, int) else [int(f) for f in frames]
        if len(each) != prompts:
            raise VadisError(f"{len(each)} lengths for {prompts} prompts: give one, or one for each.")
        return [f for f in each for _ in range(samples)]

    def _grammar(self, rows: int, frames: list[int] | None, longest: int) -> MotionGrammar:
        two = {"tokenizer": self.motion_tokenizer} if self.two_streams else {}
        if frames is not None:
            length: Any = torch.tensor([self.length(f) for f in frames])
            return MotionGrammar(self.vocabulary, rows, length=length, device=self.backbone.device, **two)
        most = None if self.two_streams else max(1, longest // self.vocabulary.layout.groups)
        return MotionGrammar(self.vocabulary, rows, longest=most, device=self.backbone.device, **two)

    def _check_context(self, rows: Sequence[Prompt], frames: list[int] | None) -> None:
        room = self.backbone.context
        for i, prompt in enumerate(rows):
            needs = 0 if frames is None else self.least_ids(frames[i])
            if len(prompt.ids) + needs > room:
                raise VadisError(
                    f"a prompt of {len(prompt.ids)} ids and a motion of at least {needs} pass the model's context of "
                    f"{room}: shorten the instruction or the motion, or use a smaller image."
                )

    def least_ids(self, frames: int) -> int:
        """Ids that a motion of so many frames takes at least, markers included."""
        if not self.two_streams:
            return self.most_ids(frames)
        shapes = self.motion_tokenizer.integer_shapes(frames)
        longest = [int(c.lengths.max()) if isinstance(c, IntegerBPE) else 1 << 20 for c in self.motion_tokenizer.codecs]
        return 3 + sum(-(-k * d // most) for (k, d), most in zip(shapes, longest, strict=True))

    def _begin(self, rows: Sequence[Prompt]) -> tuple[Tensor, Any, Tensor, Tensor]:
        """The prompts read: hidden states (R, H) at their ends, the cache, the mask (R, L) and the next positions (R,)."""
        self.model.eval()
        batch = self.batch(rows)
        positions, where = self.backbone.positions(batch)
        out = self.backbone.hidden(batch, positions, keep=True)
        return out.last_hidden_state[:, -1], out.past_key_values, batch["attention_mask"], where

    # ---- files

    def save(self, folder: str | Path) -> None:
        """Write the language model, its vocabulary and how images are packed, as a folder that transformers opens too."""
        from vadis.component_files import write_json

        save_language_model(folder, self.model, self.text_tokenizer, self.vocabulary)
        write_json(Path(folder) / "scene_packer.json", self.packer.settings())

    @classmethod
    def load(cls, folder: str | Path, motion_tokenizer: Any, **options: Any) -> Self:
        """Read a folder written by `save`. Raises ModelError where the parts don't belong together."""
        from vadis.records import read_json

        model, text_tokenizer, vocabulary = load_language_model(folder, motion_tokenizer, **options)
        path = Path(folder) / "scene_packer.json"
        settings = read_json(path) if path.is_file() else {}
        with about(folder):
            facts = SceneBackbone(model).facts
        packer = ScenePacker.from_settings(text_tokenizer, facts, settings, str(path))
        return cls(model.eval(), text_tokenizer, vocabulary, motion_tokenizer, packer)
