"""Which representation is this array? By its width, then by what its columns must satisfy."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vadis import rotation
from vadis.representations.hml263 import HumanML
from vadis.representations.ms272 import MS272
from vadis.representations.vimogen276 import REST_PELVIS, SLICES


@dataclass(frozen=True)
class Guess:
    """One candidate: its name, a confidence in [0, 1] and why, in a sentence."""

    name: str
    confidence: float
    reason: str


FPS_NOTE = "The frame rate isn't stored in features."
_WIDTHS = (272, 263, 251, 276, 135)


def guess(features: Tensor | np.ndarray) -> list[Guess]:
    """Candidates for an array `(T, D)`, the likeliest first; empty when nothing of that shape is known.

    Frame rates can't be recognised: velocities are per frame, so a 60 frames/s clip looks like a slow one.
    """
    x = torch.as_tensor(features)
    if x.ndim == 3 and x.shape[1] > 3:
        x = x.flatten(0, 1) if x.shape[-1] in _WIDTHS else x
    if x.ndim != 2 or len(x) == 0:
        return []
    x, width = x.double(), x.shape[1]
    bad = int((~torch.isfinite(x)).any(1).sum())
    note = f" {bad} frames hold NaN or infinite values." if bad else ""
    x = x[torch.isfinite(x).all(1)]
    if len(x) == 0:
        return []
    if width == 272:
        found = _guess_272(x)
    elif width in (263, 251):
        found = _guess_hml(x, HumanML("hml263" if width == 263 else "kit251"))
    elif width == 276:
        found = _guess_276(x)
    elif width == 135:
        found = _guess_135(x)
    else:
        return []
    found = [Guess(g.name, g.confidence, f"{g.reason}{note} {FPS_NOTE}") for g in found]
    return sorted(found, key=lambda g: -g.confidence)


def _triples_off(six: Tensor) -> float:
    """Mean distance from 1 of the lengths of the two triples in 6D values `(T, 6 J)`."""
    return float((six.unflatten(-1, (-1, 3)).norm(dim=-1) - 1).abs().mean())


def _guess_272(x: Tensor) -> list[Guess]:
    off = _triples_off(x[:, 140:])
    if off > 0.15:
        text = f"272 columns, but rotation rows are {off:.2f} off unit length: normalised, apply x * std + mean."
        return [Guess("ms272", 0.5, text), Guess("ms272_absroot", 0.2, text)]
    flat = float(x[:, [8, 10, 74, 76]].abs().max())
    exact = flat < 1e-3 and off < 1e-3
    kind = "encoded motion" if exact else f"rotations {off:.3f} from orthonormal: a network's output"
    turn = torch.atan2(x[:, 4].neg(), x[:, 2])
    large = float(turn.abs().quantile(0.9))
    top = 0.95 if exact else 0.8
    if large > 0.35:
        text = f"272 columns, {kind}; headings of {turn.abs().max().rad2deg():.0f} degrees are no frame's turn."
        return [Guess("ms272_absroot", top, text), Guess("ms272", 1 - top, "272 columns.")]
    slide = {root: _slide(x, MS272(root)) for root in ("delta", "absolute")}
    if abs(slide["delta"] - slide["absolute"]) < 0.05 * max(slide.values()):
        text = f"272 columns, {kind}; the body hardly turns, so delta and absolute headings look alike."
        return [Guess("ms272", 0.65, text), Guess("ms272_absroot", 0.35, text)]
    names = ["ms272", "ms272_absroot"]
    if slide["absolute"] < slide["delta"]:
        names.reverse()
    return [
        Guess(names[0], top, f"272 columns, {kind}; feet slide less than with {names[1]} headings."),
        Guess(names[1], 1 - top, "272 columns."),
    ]


def _slide(x: Tensor, representation: MS272) -> float:
    """Mean step in metres of the slower foot: small when headings are read rightly."""
    feet = representation.positions(x)[:, [7, 8, 10, 11]]
    return float(torch.diff(feet, dim=0).norm(dim=-1).amin(-1).mean()) if len(x) > 1 else 0.0


def _guess_hml(x: Tensor, representation: HumanML) -> list[Guess]:
    name, width = representation.name, representation.dim
    off = _triples_off(x[:, representation.slices["joint_rotations"]])
    if off > 0.15:
        text = f"{width} columns, but 6D columns are {off:.2f} off unit length: normalised, apply x * std + mean."
        return [Guess(name, 0.5, text)]
    height = float(x[:, 3].median())
    metre = representation.layout.metre
    if not 0.05 < height / metre < 3:
        unit = "metres" if metre == 1 else "millimetres"
        text = f"{width} columns, but a root height of {height:.2f} doesn't fit {unit}."
        return [Guess(name, 0.4, text)]
    contacts = x[:, representation.slices["foot_contacts"]]
    if bool(((contacts == 0) | (contacts == 1)).all()) and off < 1e-3:
        return [Guess(name, 0.97, f"{width} columns, unit 6D columns, contacts 0 or 1: encoded motion.")]
    return [Guess(name, 0.85, f"{width} columns, nearly unit 6D columns: a network's output.")]


def _six_off(six: Tensor, layout: rotation.SixD) -> float:
    """Mean distance of 6D values `(T, 6 J)`, read in this layout, from two orthogonal unit vectors."""
    pairs = six.unflatten(-1, (-1, 6))
    a, b = (pairs[..., 0::2], pairs[..., 1::2]) if layout == "columns_interleaved" else (pairs[..., :3], pairs[..., 3:])
    off = (a.norm(dim=-1) - 1).abs() + (b.norm(dim=-1) - 1).abs() + (a * b).sum(-1).abs()
    return float(off.mean() / 3)


def _guess_276(x: Tensor) -> list[Guess]:
    off = _six_off(x[:, SLICES["joint_rotations"]], "columns_interleaved")
    if off > 0.15:
        text = f"276 columns, but 6D columns are {off:.2f} off orthonormal: normalised, apply x * std + mean."
        return [Guess("vimogen276", 0.5, text)]
    pelvis = x[:, 126:129] - torch.tensor(REST_PELVIS).to(x)
    apart = float((x[:, SLICES["translation"]] - pelvis).norm(dim=-1).mean())
    if off < 1e-3 and apart < 1e-3:
        return [
            Guess("vimogen276", 0.97, "276 columns, unit 6D columns, translation and pelvis agree: encoded motion.")
        ]
    text = f"276 columns, 6D columns {off:.3f} off orthonormal, translation and pelvis {apart:.3f} m apart"
    return [Guess("vimogen276", 0.85, f"{text}: a network's output.")]


def _guess_135(x: Tensor) -> list[Guess]:
    layouts: dict[str, rotation.SixD] = {"smpl135": "columns_interleaved", "motionclip135": "columns"}
    off = {name: _six_off(x[:, 3:], layout) for name, layout in layouts.items()}
    best, other = sorted(off, key=lambda name: off[name])
    if off[best] > 0.15:
        text = f"135 columns, but 6D columns are {off[best]:.2f} off orthonormal: normalised, or another 135."
        return [Guess("smpl135", 0.4, text), Guess("motionclip135", 0.3, text)]
    top = 0.95 if off[other] > 3 * off[best] + 1e-3 else 0.55
    text = (
        f"135 columns, orthonormal when read as {layouts[best].replace('_', ' ')}; rows would look the same as columns"
    )
    return [Guess(best, top, f"{text}."), Guess(other, 1 - top, "135 columns.")]
