"""Generation of latents, one after the other, for models of `vadis.generators.motionstreamer`: offline and live.

Several streams share a batch. Each row has its own text, position, history and random numbers, may begin, change its text
or leave at any latent, and what it makes does not depend on its companions.

Shapes: B or R rows, C numbers of a latent, H width of the state, A heads, N columns, E = width of a head.
"""

import secrets
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from vadis.cancel import stop_if_cancelled
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.generators.diffusion import Sampler
from vadis.generators.sampling import Seed

StoppedBy = Literal["end", "cap", "length"]
"""The end latent; `max_latents`; or the requested `num_latents`."""


CALM = 4
"""Latents after a change of text that `max_step` holds for."""


class RowCache:
    """Keys and values of every layer; column p of a row belongs to position p, so every row writes where it stands."""

    def __init__(self, layers: int, rows: int, heads: int, columns: int, head_dim: int, like: Tensor) -> None:
        self.data = like.new_zeros(layers, 2, rows, heads, columns, head_dim)
        self.rows = torch.arange(rows, device=like.device)
        self._positions, self._stop = self.rows[:, None], 0

    def enter(self, positions: Tensor) -> Tensor:
        """Announce what is written next, positions `(R, n)` of the chosen `rows`; which columns each may see `(R, 1, n, M)`."""
        self._positions, self._stop = positions, int(positions.max()) + 1
        column = torch.arange(self._stop, device=positions.device)
        return (column <= positions[..., None])[:, None]

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write `(R, A, n, E)` at the announced positions; return all columns up to the last of them."""
        both = []
        for table, new in zip(self.data[layer], (key, value), strict=True):
            table[self.rows[:, None], :, self._positions] = new.transpose(1, 2)
            both.append(table[self.rows, :, : self._stop])
        return both[0], both[1]


class LatentStreams:
    """Live rows of one model: `start` or `set_text`, then `step` for the next latent of each.

    Args:
        model: a MotionStreamer.
        rows: how many streams there is room for.
        null_text: (text_dim,) vector of the empty string; needed unless `guidance_scale` is 1.
        sampler, steps, temperature: of the diffusion head.
        keep: latents that stay when a row is full or its text changes (default: half the block); the rest of the history is
            forgotten and the row is read again.
        max_step: largest distance from a latent to the next for the first four after a change of text (or of those that go on
            from a given history); one that jumps farther is drawn back along its way.
    """

    def __init__(
        self,
        model: Any,
        rows: int = 1,
        *,
        null_text: Tensor | None = None,
        guidance_scale: float = 4.0,
        sampler: Sampler = "ancestral",
        steps: int | None = None,
        temperature: float = 1.0,
        keep: int | None = None,
        max_step: float | None = None,
    ) -> None:
        c = self.config = model.config
        self.model, self.rows, self.scale = model, rows, float(guidance_scale)
        self.sampler, self.steps, self.temperature = sampler, steps, temperature
        self.keep = c.block_size // 2 if keep is None else keep
        if not 0 <= self.keep <= c.block_size - 2:
            raise VadisError(f"keep {keep}: between 0 and {c.block_size - 2} latents of history fit a row.")
        if max_step is not None and not max_step > 0:
            raise VadisError(f"max_step {max_step}: a distance greater than 0, or None.")
        self.max_step = max_step
        if rows < 1:
            raise VadisError(f"there must be at least one stream, not {rows}.")
        times = model.head.schedule.times(sampler, steps)  # refuses impossible ones
        self.draws = 1 + len(times) if sampler == "ancestral" else 1
        self.branches = 1 if self.scale == 1 else 2
        if self.branches == 2 and null_text is None:
            raise ModelError("guidance needs null_text, the vector of the empty string: give it, or guidance_scale=1.")
        self.null = None if null_text is None else self._text(null_text)
        like = model.out_proj.weight
        self.cache = RowCache(
            c.n_layer, self.branches * rows, c.n_head, c.block_size, c.n_embd // c.n_head, like.new_zeros(())
        )
        self.state = like.new_zeros(self.branches, rows, c.n_embd)
        self.texts: list[Tensor | None] = [None] * rows
        self.history = [like.new_zeros(0, c.latent_dim, dtype=torch.float32) for _ in range(rows)]
        self._since = [CALM] * rows  # latents made since the last change
        self._read = [0] * rows  # positions of the row in the cache; 0: all is to be read
        self._noise: list[np.random.Generator | None] = [None] * rows

    # ---- joining, changing, leaving

    def start(self, row: int, text: Tensor, history: Tensor | None = None, seed: int | None = None) -> None:
        """Begin a stream in `row` with a text vector `(text_dim,)`, after the last `keep` of `history` (S, C) if given."""
        if not 0 <= row < self.rows:
            raise VadisError(f"row {row}: there is room for rows 0 … {self.rows - 1}.")
        latents = torch.zeros(0, self.config.latent_dim) if history is None else torch.as_tensor(history)
        if latents.ndim != 2 or latents.shape[-1] != self.config.latent_dim:
            raise ShapeError(f"history must be (S, {self.config.latent_dim}); this is {tuple(latents.shape)}.")
        if not bool(torch.isfinite(latents).all()):
            raise VadisError("the history holds values that are not finite: encode the motion again.")
        self.texts[row] = self._text(text)
        self.history[row] = latents.to(self.state.device, torch.float32)
        self._forget(row)
        self._since[row] = 0 if len(latents) else CALM
        self._noise[row] = np.random.default_rng(secrets.randbits(64) if seed is None else [seed, 1])

    def set_text(self, row: int, text: Tensor) -> None:
        """Change the text of a running stream; it goes on from its last `keep` latents."""
        if self.texts[row] is None:
            raise VadisError(f"there is no stream in row {row}: start one.")
        self.texts[row], self._since[row] = self._text(text), 0
        self._forget(row)

    def undo(self, row: int) -> None:
        """Forget the latent that `row` made last, as if it had not been drawn (its random numbers are used up)."""
        if not 0 < self._read[row] <= len(self.history[row]):
            raise VadisError(f"row {row} has made no latent since its last change: there is nothing to undo.")
        self.history[row] = self.history[row][:-1]
        self._since[row] -= 1

    def leave(self, row: int) -> None:
        """End the stream in `row`; another may start there."""
        self.texts[row], self._noise[row], self.history[row] = None, None, self.history[row][:0]

    def saved(self, rows: list[int]) -> list[tuple[Any, ...]]:
        """What `restore` needs to take back whatever is done to these rows from now on."""
        sources = [cast(np.random.Generator, self._noise[row]) for row in rows]
        return [(row, self.texts[row], self.history[row], self._since[row], source, source.bit_generator.state)
                for row, source in zip(rows, sources, strict=True)]  # fmt: skip

    def restore(self, saved: list[tuple[Any, ...]]) -> None:
        """Put rows back to where they were `saved`; they are read again as a whole at the next step."""
        for row, text, history, since, source, state in saved:
            self.texts[row], self.history[row], self._noise[row], self._read[row] = text, history, source, 0
            self._since[row] = since
            source.bit_generator.state = state

    @property
    def running(self) -> list[int]:
        """Rows with a stream."""
        return [row for row, text in enumerate(self.texts) if text is not None]

    def _text(self, text: Tensor) -> Tensor:
        text = torch.as_tensor(text).to(self.model.out_proj.weight.device, torch.float32)
        if text.shape != (self.config.text_dim,):
            raise ShapeError(
                f"a text vector has {self.config.text_dim} numbers; this array has shape {tuple(text.shape)}."
            )
        if not bool(torch.isfinite(text).all()):
            raise VadisError("the text vector holds values that are not finite.")
        return text

    # ---- one latent

    @torch.no_grad()
    def step(self, rows: list[int] | None = None, noise: Tensor | None = None) -> Tensor:
        """The next latents `(R, C)` float32 of `rows` (default: all that run).

        `noise` (R, 1 + S, C) takes the place of the rows' own random numbers. A row that is full forgets all but its last
        `keep` latents first.
        """
        rows = self.running if rows is None else rows
        if not rows or not set(rows) <= set(self.running) or len(set(rows)) < len(rows):
            raise VadisError(f"rows {rows}: each must be named once and have a stream; running are {self.running}.")
        self._catch_up(rows)
        if noise is None:
            shape = (self.draws, self.config.latent_dim)
            sources = [cast(np.random.Generator, self._noise[row]) for row in rows]
            noise = torch.from_numpy(np.stack([s.standard_normal(shape, dtype=np.float32) for s in sources]))
        latents = self.model.head.sample(
            self.state[:, rows].flatten(0, 1),
            noise.to(self.state.device, torch.float32),
            guidance_scale=self.scale,
            sampler=self.sampler,
            steps=self.steps,
            temperature=self.temperature,
        )
        latents = self._calmed(rows, latents)
        for row, latent in zip(rows, latents, strict=True):
            self.history[row] = torch.cat([self.history[row], latent[None]])
            self._since[row] += 1
        return latents

    def _calmed(self, rows: list[int], latents: Tensor) -> Tensor:
        """The latents, those soon after a change of text no farther than `max_step` from the one before."""
        soon = [i for i, row in enumerate(rows) if self._since[row] < CALM and len(self.history[row])]
        if self.max_step is None or not soon:
            return latents
        before = torch.stack([self.history[rows[i]][-1] for i in soon])
        step = latents[soon] - before
        latents[soon] = before + step * (self.max_step / step.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1)
        return latents

    def _catch_up(self, rows: list[int]) -> None:
        """Bring what the cache lacks of these rows into it, and their states up to date."""
        lacking: dict[int, list[int]] = {}
        for row in rows:
            if len(self.history[row]) >= self.config.block_size:
                self._forget(row)
            length = len(self.history[row]) + 1
            if self._read[row] < length:  # rows with one latent to read go together wherever they stand
                lacking.setdefault(0 if self._read[row] else length, []).append(row)
        for length, group in lacking.items():
            self._feed(group, length or 1)

    def _forget(self, row: int) -> None:
        """Leave the last `keep` latents of a row, to be read again."""
        self.history[row] = self.history[row][max(0, len(self.history[row]) - self.keep) :]
        self._read[row] = 0

    def _feed(self, rows: list[int], new: int) -> None:
        """Read the last `new` positions of each row."""
        chosen = torch.tensor(rows, device=self.state.device)
        starts = torch.tensor([self._read[row] for row in rows], device=self.state.device)
        known = bool(self._read[rows[0]])
        latents = torch.stack([self.history[row][-1:] if known else self.history[row] for row in rows])
        texts = [cast(Tensor, self.texts[row]) for row in rows]
        texts += [cast(Tensor, self.null)] * (len(rows) if self.branches == 2 else 0)
        embed = self.model.embed_latents if known else self.model.embed
        x = embed(torch.stack(texts), latents.repeat(self.branches, 1, 1))
        self.cache.rows = torch.cat([chosen + branch * self.rows for branch in range(self.branches)])
        positions = (starts[:, None] + torch.arange(new, device=starts.device)).repeat(self.branches, 1)
        states = self.model.trunk(x, positions, self.cache)[:, -1]
        self.state[:, chosen] = states.unflatten(0, (self.branches, -1))
        for row in rows:
            self._read[row] = len(self.history[row]) + 1


class Generating(nn.Module):
    """`generate` and `streams` of a model with `embed`, `trunk`, `head` and an end latent."""

    config: Any
    end_latent: Tensor

    def streams(self, rows: int = 1, **options: Any) -> LatentStreams:
        """Room for `rows` live streams; options as in LatentStreams."""
        return LatentStreams(self, rows, **options)

    @torch.no_grad()
    def generate(
        self,
        text: Tensor,
        *,
        null_text: Tensor | None = None,
        num_latents: int | list[int] | None = None,
        max_latents: int | None = None,
        min_latents: int = 0,
        stop_threshold: float | None = None,
        history: Tensor | list[Tensor] | None = None,
        seed: Seed = None,
        noise: Tensor | None = None,
        **options: Any,
    ) -> tuple[list[Tensor], list[StoppedBy]]:
        """Latents `(S, C)` of every text and why each stopped.

        Args:
            text: (B, text_dim).
            num_latents: exactly so many, for all or each; the end latent is not looked for. More than the model has room for
                are made on a sliding history.
            max_latents: at most so many (default: what fits a row); `min_latents`: no end before these.
            stop_threshold: distance to the end latent below which a row ends, without that latent (default: the config's).
            history: earlier latents to go on from, (B, S, C) or a list of (S, C), of which the last `keep` are read; not
                returned.
            seed: one for all rows, one a row, a generator, or None. One seed gives a row the same latents in any batch.
            noise: (steps, B, 1 + S, C) recorded numbers instead.
            options: null_text, guidance_scale, sampler, steps, temperature, keep, max_step as in LatentStreams.

        Raises ShapeError, VadisError or ModelError for what doesn't fit the model.
        """
        text = torch.as_tensor(text)
        if text.ndim != 2 or not len(text):
            raise ShapeError(f"text must be (B, {self.config.text_dim}); this array has shape {tuple(text.shape)}.")
        rows = len(text)
        training = self.training
        self.eval()
        try:
            streams = LatentStreams(self, rows, null_text=null_text, **options)
            seeds = _seeds(seed, rows)
            past = [None] * rows if history is None else list(history)
            if len(past) != rows:
                raise ShapeError(f"{len(past)} histories for {rows} texts: give one a text.")
            for row in range(rows):
                streams.start(row, text[row], past[row], seeds[row])
            limits = self._limits(streams, num_latents, max_latents)
            reach = self.config.stop_threshold if stop_threshold is None else stop_threshold
            reach = -1.0 if num_latents is not None else reach
            made: list[list[Tensor]] = [[] for _ in range(rows)]
            stopped: list[StoppedBy] = ["cap" if num_latents is None else "length"] * rows
            step = 0
            while alive := [row for row in streams.running if len(made[row]) < limits[row]]:
                stop_if_cancelled()
                latents = streams.step(alive, None if noise is None else noise[step][alive])
                ended = ((latents - self.end_latent.to(latents)).norm(dim=-1) < reach) & (step >= min_latents)
                for row, latent, end in zip(alive, latents, ended.tolist(), strict=True):
                    if end:
                        stopped[row] = "end"
                        streams.leave(row)
                    else:
                        made[row].append(latent)
                step += 1
        finally:
            self.train(training)
        empty = text.new_zeros(0, self.config.latent_dim)
        return [torch.stack(latents) if latents else empty for latents in made], stopped

    def _limits(
        self, streams: LatentStreams, num_latents: int | list[int] | None, max_latents: int | None
    ) -> list[int]:
        if num_latents is not None:
            counts = [num_latents] * streams.rows if isinstance(num_latents, int) else [int(n) for n in num_latents]
        elif max_latents is not None:
            counts = [max_latents] * streams.rows
        else:
            counts = [self.config.block_size - len(history) for history in streams.history]
        if len(counts) != streams.rows or min(counts) < 1:
            raise VadisError(f"{counts} latents for {streams.rows} texts: give one number >= 1, or one for each text.")
        return counts


def _seeds(seed: Seed, rows: int) -> list[int | None]:
    """One seed a row."""
    if seed is None:
        return [None] * rows
    if isinstance(seed, torch.Generator):
        return torch.randint(2**62, (rows,), generator=seed, device=seed.device).tolist()
    seeds = [seed] * rows if isinstance(seed, int) else [int(value) for value in seed]
    if len(seeds) != rows or min(seeds) < 0:
        raise VadisError(f"seeds {seeds} must be {rows} numbers >= 0, one a text.")
    return list(seeds)
