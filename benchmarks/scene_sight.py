"""Pictures of rooms without any motion, and what a small vision tower learns on them: where the thing of each colour stands.

MotionVLA starts from a vision-language model that has seen the world; a model of a few million parameters for one CPU core
has not. Its vision tower is therefore taught first, by a direct regression of places, on pictures whose rooms are laid out at
random. Used by
`benchmarks/motionvla_scenes.py`. Times are processor time.
"""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vadis.data.scenes.layout import COLOURS, SIZES, Thing, somewhere
from vadis.data.scenes.render import Camera, Look, SceneRenderer
from vadis.motion import Motion

NAMES = [name for name in COLOURS if name != "grey"]
PATCH, MERGE, RATE = 16, 2, 2e-3


def draw_pictures(
    path: Path, bodies: list[Motion], count: int, size: tuple[int, int], minutes: float, seed: int = 1
) -> None:
    """Add pictures to `path` (.npz) until there are `count` or time is up: images (N, H, W, 3) uint8 and places (N, 6, 2) in
    metres, forward and left, NaN for a colour that is not there."""
    images, places = [], []
    if path.is_file():
        stored = np.load(path)
        images, places = list(stored["images"]), list(stored["places"])
    if len(images) >= count:
        return
    started = time.process_time()
    with SceneRenderer(*size) as renderer:
        while len(images) < count and time.process_time() - started < 60 * minutes:
            rng = random.Random(f"sight-{seed}-{len(images)}")
            things, look = random_room(rng, size)
            images.append(renderer.draw(things, rng.choice(bodies), Camera(), look))
            row = np.full((len(NAMES), 2), np.nan, dtype=np.float32)
            for thing in things:
                if thing.colour in NAMES:
                    row[NAMES.index(thing.colour)] = thing.place
            places.append(row)
    np.savez(path, images=np.stack(images), places=np.stack(places))
    print(f"{len(images)} pictures, {time.process_time() - started:.0f} s", flush=True)


def random_room(rng: random.Random, size: tuple[int, int]) -> tuple[list[Thing], Look]:
    """Two to four coloured things in view and up to two obstacles."""
    base, wall = rng.uniform(0.5, 0.8), rng.uniform(0.6, 0.9)

    def tint(v: float) -> tuple[float, float, float]:
        return (v + rng.uniform(-0.05, 0.05), v, v + rng.uniform(-0.07, 0.03))

    look = Look(tint(base), tint(wall), rng.uniform(5.2, 7.0), rng.uniform(3.8, 5.0), rng.uniform(0.6, 0.9))
    colours = rng.sample(NAMES, rng.randint(2, 4)) + ["grey"] * rng.randint(0, 2)
    things: list[Thing] = []
    for colour in colours:
        for _ in range(30):
            shape = rng.choice(list(SIZES) if colour != "grey" else ["box", "cylinder"])
            thing = somewhere(rng, shape, colour, look.front - 1, look.side - 0.7)
            column, row = Camera().project(np.array([[*thing.place, thing.half_height]]), *size)[0]
            seen = 4 < column < size[0] - 4 and 4 < row < size[1] - 2
            if seen and thing.distance > 0.9 and all(thing.apart_from(other) for other in things):
                things.append(thing)
                break
    return things, look


def places_of(things: list[dict[str, Any]]) -> NDArray[np.float32]:
    """Places (6, 2) of the coloured things of a scene clip."""
    row = np.full((len(NAMES), 2), np.nan, dtype=np.float32)
    for thing in things:
        if thing["colour"] in NAMES:
            row[NAMES.index(thing["colour"])] = (thing["forward"], thing["left"])
    return row


def patches(images: NDArray[np.uint8]) -> Tensor:
    """Pictures (B, H, W, 3) as the processor of `ScenePacker` cuts them, (B * patches, 768): it repeats each frame once."""
    x = torch.from_numpy(images).float().permute(0, 3, 1, 2) / 127.5 - 1
    b, c, h, w = x.shape
    x = x.view(b, c, h // PATCH // MERGE, MERGE, PATCH, w // PATCH // MERGE, MERGE, PATCH)
    return x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(b * h * w // PATCH**2, -1)


class QuickPatches(nn.Module):
    """The tower's embedding of patches as one product: the same numbers, several times faster on a CPU than a convolution
    over two equal frames."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.proj = embed.proj

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.proj.weight.sum(2).flatten(1), self.proj.bias)


def see(tower: nn.Module, images: NDArray[np.uint8]) -> Tensor:
    """Visual tokens (B, N, H) of pictures."""
    grid = torch.tensor([[1, images.shape[1] // PATCH, images.shape[2] // PATCH]]).expand(len(images), -1)
    plain = tower.patch_embed
    tower.patch_embed = QuickPatches(plain)  # type: ignore[arg-type]
    try:
        made: Any = tower(patches(images), grid_thw=grid)
    finally:
        tower.patch_embed = plain
    return made.pooler_output.view(len(images), -1, made.pooler_output.shape[-1])


class Places(nn.Module):
    """Each visual token says which colours' things stand on its piece of the picture, and where on the floor that is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, 3 * len(NAMES))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, H) -> (B, N, 6, 3): presence, forward, left."""
        return self.out(tokens).unflatten(-1, (len(NAMES), 3))


def cells(places: NDArray[np.float32], size: tuple[int, int]) -> Tensor:
    """The visual token (B, 6) that shows the middle of each thing, -1 for none or one out of the picture."""
    side, (width, height) = PATCH * MERGE, size
    flat = np.concatenate([places.reshape(-1, 2), np.full((places.size // 2, 1), 0.3)], axis=1)
    column, row = Camera().project(flat.astype(np.float64), width, height).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)  # false for NaN
    cell = np.where(inside, np.nan_to_num(row) // side * (width // side) + np.nan_to_num(column) // side, -1)
    return torch.from_numpy(cell).long().view(places.shape[:2])


def mirrored(images: NDArray[np.uint8], places: NDArray[np.float32], flip: NDArray[np.bool_]) -> tuple[Any, Any]:
    """Some pictures and their places with left and right exchanged."""
    images, places = images.copy(), places.copy()
    images[flip] = images[flip, :, ::-1]
    places[flip, :, 1] *= -1
    return images, places


def teach(
    tower: nn.Module,
    images: NDArray[np.uint8],
    places: NDArray[np.float32],
    held: tuple[Any, Any],
    minutes: float,
    folder: Path,
) -> dict[str, float]:
    """Train the tower until time is up (of all sessions together); how well it sees on the `held` pictures and places."""
    head = Places(tower.config.out_hidden_size)  # type: ignore[union-attr]
    both = nn.ModuleList([tower, head])
    optimizer = torch.optim.AdamW(both.parameters(), lr=RATE, weight_decay=0.02, betas=(0.9, 0.98))
    path, spent, step = folder / "sight.pt", 0.0, 0
    if path.is_file():
        state = torch.load(path)
        both.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        spent, step = state["spent"], state["step"]
    size = (images.shape[2], images.shape[1])
    count, since, saved = len(images), time.process_time(), time.process_time()
    while (now := spent + time.process_time() - since) < 60 * minutes:
        rng = np.random.default_rng(step)
        chosen = rng.integers(count, size=32)
        batch, where = mirrored(images[chosen], places[chosen], rng.random(32) < 0.5)
        lr = RATE * min(1.0, step / 50) * max(0.02, 1 - now / 60 / minutes)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = _loss(head(see(tower, batch)), where, size)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0:
            print(f"sight step {step}: loss {loss.item():.3f}, {now:.0f} s", flush=True)
        if time.process_time() - saved > 30:
            saved = time.process_time()
            torch.save(
                {"model": both.state_dict(), "optimizer": optimizer.state_dict(), "spent": now, "step": step}, path
            )
            print(sight(tower, head, *held), flush=True)
    torch.save(
        {"model": both.state_dict(), "optimizer": optimizer.state_dict(), "spent": 60 * minutes, "step": step}, path
    )
    return sight(tower, head, *held) | {"steps": step}


def _loss(made: Tensor, places: NDArray[np.float32], size: tuple[int, int]) -> Tensor:
    cell = cells(places, size)
    row, colour = (cell >= 0).nonzero(as_tuple=True)
    at = (row, cell[row, colour], colour)
    truth = torch.zeros(made.shape[:-1])
    truth[at] = 1
    presence = functional.binary_cross_entropy_with_logits(made[..., 0], truth, pos_weight=torch.tensor(8.0))
    return 4 * presence + functional.smooth_l1_loss(made[at][:, 1:], torch.from_numpy(places)[row, colour], beta=0.2)


@torch.no_grad()
def sight(
    tower: nn.Module, head: nn.Module, images: NDArray[np.uint8], places: NDArray[np.float32]
) -> dict[str, float]:
    """Median error of place (m) and direction (degrees) of things in view, read where a colour is likeliest."""
    made = torch.cat([head(see(tower, images[i : i + 50])) for i in range(0, len(images), 50)])
    cell = cells(places, (images.shape[2], images.shape[1]))
    row, colour = (cell >= 0).nonzero(as_tuple=True)
    found = made[..., 0].argmax(1)[row, colour]
    a, b = made[row, found, colour, 1:], torch.from_numpy(places)[row, colour]
    turn = torch.atan2(a[:, 1], a[:, 0]) - torch.atan2(b[:, 1], b[:, 0])
    turn = torch.rad2deg(torch.atan2(turn.sin(), turn.cos()).abs())
    return {"metres": float((a - b).norm(dim=1).median()), "degrees": float(turn.median()),
            "within_30": float((turn < 30).float().mean()), "found": float((found == cell[row, colour]).float().mean())}  # fmt: skip
