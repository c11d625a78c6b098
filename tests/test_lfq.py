"""LFQ by itself and its tokenizers: bit orders, entropies, lengths, pieces, parts, precision, the perceptual loss."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import procedural_walk
from torch import Tensor, nn

import vadis
from vadis.data.corpus import CorpusWriter
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.evaluators.base import Evaluator
from vadis.evaluators.guo import GuoConfig, GuoEvaluator
from vadis.evaluators.tmr import TMRConfig, TMREvaluator
from vadis.representations import representation
from vadis.tokenizers import (
    LFQ,
    LFQ2DTokenizer,
    LFQ2DTokenizerConfig,
    LFQTokenizer,
    LFQTokenizerConfig,
    Tokenizer,
)
from vadis.tokenizers.parts import MIRRORED, part_columns
from vadis.training import train

RECIPES = Path(__file__).parent.parent / "src/vadis/recipes"


def tiny(kind: str, **changes: Any) -> Any:
    """A small model of one family with statistics of its own."""
    torch.manual_seed(0)
    if kind == "1d":
        fields = dict(width=16, code_dim=16, depth=2, bits=5, groups=2, inv_temperature=1.0)
        tokenizer: Tokenizer = LFQTokenizer(LFQTokenizerConfig(**(fields | changes)))
    else:
        fields = dict(width=12, depth=2, bits=6, inv_temperature=1.0)
        tokenizer = LFQ2DTokenizer(LFQ2DTokenizerConfig(**(fields | changes)))
    dim = tokenizer.config.feature_dim
    tokenizer.set_statistics(torch.linspace(-1, 1, dim), torch.linspace(0.5, 2, dim))
    return tokenizer.eval()


families = pytest.mark.parametrize("kind", ["1d", "2d"])


# ---- the quantiser


@pytest.mark.parametrize("order", ["msb", "lsb"])
def test_every_token_survives_the_round_trip(order: Any) -> None:
    quantizer = LFQ(5, groups=2, bit_order=order)
    every = torch.cartesian_prod(torch.arange(32), torch.arange(32))
    codes = quantizer.codes_from_tokens(every)
    assert codes.shape == (1024, 10) and bool((codes.abs() == 1).all())
    assert torch.equal(quantizer.tokens_from_codes(codes), every)
    vectors, tokens, _ = quantizer(codes)
    assert torch.equal(vectors, codes) and torch.equal(tokens, every)


def test_bit_orders_are_reversals_and_zero_is_negative() -> None:
    z = torch.tensor([[0.5, 0.0, -0.0, -2.0]])
    assert LFQ(4, bit_order="msb")(z).tokens.tolist() == [8]
    assert LFQ(4, bit_order="lsb")(z).tokens.tolist() == [1]


@pytest.mark.parametrize(("bits", "groups"), [(1, 1), (6, 1), (5, 2)])
def test_entropies_are_those_of_the_list_of_all_codes(bits: int, groups: int) -> None:
    quantizer = LFQ(bits, groups=groups, inv_temperature=1.5, diversity_gamma=0.7)
    clamped = LFQ(bits, groups=groups, inv_temperature=1.5, diversity_gamma=0.7, clamped_entropy=True)
    z = (0.2 * torch.randn(300, bits * groups, generator=torch.Generator().manual_seed(0))).requires_grad_()
    signs = LFQ(bits).codes_from_tokens(torch.arange(2**bits))
    p = torch.softmax(3.0 * z.unflatten(-1, (groups, bits)) @ signs.T, dim=-1)  # (N, G, codes)
    rows = -(p * p.log()).sum(-1).mean()
    mean = -(p.mean(0) * p.mean(0).log()).sum(-1).mean()
    torch.testing.assert_close(quantizer.row_entropy(z), rows, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clamped.row_entropy(z), rows, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(quantizer.mean_entropy(z), mean, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(rows - 0.7 * mean, z)[0]
    torch.testing.assert_close(torch.autograd.grad(quantizer.entropy(z), z)[0], wanted, atol=1e-6, rtol=1e-4)


def test_the_entropy_of_a_published_batch_keeps_no_list_of_codes() -> None:
    """24,576 rows times 16,384 codes would be 1.6 GB a copy; 31 MB are kept."""
    z = torch.randn(24576, 14, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        penalty = LFQ(14).entropy(z)
    penalty.backward()
    assert sum(kept.values()) < 40e6 and bool(z.grad is not None and z.grad.isfinite().all())


def test_the_quantiser_stays_in_float32_under_autocast() -> None:
    quantizer, x = LFQ(8, dim=16), torch.randn(2, 40, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors, tokens, losses = quantizer(x)
    plain = quantizer(x)
    assert vectors.dtype == torch.float32 and torch.equal(tokens, plain.tokens) and torch.equal(vectors, plain.vectors)
    assert torch.equal(losses["entropy"], plain.losses["entropy"])


# ---- both tokenizers


def test_sizes_are_the_published_ones() -> None:
    def size(tokenizer: nn.Module) -> int:
        return sum(p.numel() for p in tokenizer.parameters())

    with torch.device("meta"):
        one, two = LFQTokenizer(), LFQ2DTokenizer()
        small = LFQ2DTokenizer(LFQ2DTokenizerConfig(width=192))
    assert (size(one), size(two), size(small)) == (19_451_669, 108_116_821, 7_283_221)
    assert (one.bits_per_second, two.bits_per_second) == (70.0, 420.0)
    assert one.vocab_size == two.vocab_size == 16384 and two.tokens_per_step == 6 and two.frames_per_token == 4


@families
def test_a_batch_of_unequal_clips_equals_the_clips_one_by_one(kind: str) -> None:
    tokenizer = tiny(kind)
    features, lengths = torch.randn(4, 31, 263), [31, 12, 31, 21]
    tokens = tokenizer.encode(features, lengths)
    steps = [n // 4 for n in lengths]
    decoded = tokenizer.decode(tokens, steps)
    for row, (length, count) in enumerate(zip(lengths, steps, strict=True)):
        alone = tokenizer.encode(features[row, :length])
        assert alone.shape == (count, tokenizer.tokens_per_step)
        assert torch.equal(tokens[row, :count], alone) and bool((tokens[row, count:] == -1).all())
        torch.testing.assert_close(decoded[row, : 4 * count], tokenizer.decode(alone), atol=1e-5, rtol=1e-5)
        assert not decoded[row, 4 * count :].any()


@families
@pytest.mark.parametrize("frames", [333, 402])
def test_pieces_of_a_long_clip_are_those_of_the_whole(kind: str, frames: int) -> None:
    tokenizer = tiny(kind)
    features = torch.randn(frames, 263)
    whole = tokenizer.encode(features, chunk_frames=10_000)
    assert torch.equal(whole, tokenizer.encode(features, chunk_frames=64))
    decoded = tokenizer.decode(whole, chunk_frames=10_000)
    torch.testing.assert_close(tokenizer.decode(whole, chunk_frames=64), decoded, atol=1e-5, rtol=1e-5)


@families
@pytest.mark.parametrize("changes", [{}, {"down_t": 1}, {"depth": 3}])
def test_gradients_reach_as_far_as_the_context_says(kind: str, changes: dict[str, int]) -> None:
    """No further, since pieces would differ from the whole; no less, since that would be wasted work."""
    tokenizer = tiny(kind, **changes)
    for parameter in tokenizer.parameters():  # no ReLU may close: all paths count
        nn.init.constant_(parameter, 0.01)
    step, steps = tokenizer.frames_per_token, 80
    middle = steps // 2
    x = torch.ones(1, steps * step, 263, requires_grad=True)
    (seen,) = torch.autograd.grad(tokenizer.latent(x)[:, middle].sum(), x)
    frames = seen[0].abs().sum(-1).nonzero()[:, 0] // step
    before, after = tokenizer.encoder_context
    assert middle - int(frames.min()) == before and int(frames.max()) - middle == after
    latent = tokenizer.latent(x).detach()
    vectors = torch.ones_like(latent).requires_grad_()
    reached = torch.zeros(steps, dtype=torch.bool)
    decoded = tokenizer._decode_vectors(vectors)
    for frame in range(step):
        (seen,) = torch.autograd.grad(decoded[0, middle * step + frame].sum(), vectors, retain_graph=True)
        reached |= seen[0].flatten(1).abs().sum(-1) > 0
    where = reached.nonzero()[:, 0]
    before, after = tokenizer.decoder_context
    assert (middle - int(where.min()), int(where.max()) - middle) == (before, after)


@families
def test_saved_and_loaded_is_the_same_model(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny(kind, bit_order="lsb")
    tokenizer.set_perceptual(nn.Linear(263, 4))
    tokenizer.save_pretrained(tmp_path / "model")
    again = vadis.load(tmp_path / "model")
    assert type(again) is type(tokenizer) and again.config == tokenizer.config
    features = torch.randn(2, 24, 263)
    tokens = tokenizer.encode(features)
    assert torch.equal(again.encode(features), tokens) and torch.equal(again.decode(tokens), tokenizer.decode(tokens))
    assert set(again.state_dict()) == set(tokenizer.state_dict())


@families
def test_gradients_reach_every_parameter_and_training_lowers_the_loss(kind: str) -> None:
    tokenizer = tiny(kind).train()
    tokenizer.set_perceptual(nn.Linear(263, 8))
    x = torch.randn(4, 16, 263)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    totals = []
    for _ in range(30):
        terms, output = tokenizer.loss(x, commitment_weight=0.25, entropy_weight=0.1, perceptual_weight=0.1)
        optimizer.zero_grad()
        terms["total"].backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in tokenizer.parameters())
        optimizer.step()
        totals.append(terms["total"].item())
    assert totals[-1] < totals[0] and output.reconstruction.shape == x.shape
    assert set(output.losses) == {"commitment", "entropy", "perceptual"}
    parts = terms["features"] + 0.5 * terms["positions"] + 0.25 * terms["commitment"]
    torch.testing.assert_close(terms["total"], parts + 0.1 * terms["entropy"] + 0.1 * terms["perceptual"])


@families
def test_forward_and_coding_agree(kind: str) -> None:
    tokenizer = tiny(kind)
    features = torch.randn(2, 24, 263)
    output = tokenizer((features - tokenizer.mean) / tokenizer.std)
    assert torch.equal(tokenizer.encode(features), output.tokens)
    decoded = (tokenizer.decode(output.tokens) - tokenizer.mean) / tokenizer.std
    torch.testing.assert_close(decoded, output.reconstruction, atol=1e-5, rtol=1e-5)


@families
def test_half_precision_leaves_the_quantiser_in_float32(kind: str) -> None:
    tokenizer = tiny(kind)
    half = copy.deepcopy(tokenizer).to(torch.bfloat16)
    assert {p.dtype for p in half.quantizer.parameters()} == {torch.float32} and half.mean.dtype == torch.float32
    assert next(half.encoder.parameters()).dtype == torch.bfloat16
    features = torch.randn(2, 32, 263)
    tokens, plain = half.encode(features), tokenizer.encode(features)
    assert float((tokens == plain).float().mean()) > 0.3  # a bit flips where a value is near 0
    decoded = half.decode(plain)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, tokenizer.decode(plain), atol=0.1, rtol=0.1)


@families
def test_bad_input_is_refused(kind: str) -> None:
    tokenizer = tiny(kind)
    with pytest.raises(ShapeError, match="272 values look like ms272: convert"):
        tokenizer.encode(torch.zeros(8, 272))
    with pytest.raises(VadisError, match="20: resample"):
        tokenizer.encode(torch.zeros(8, 263), fps=30)
    with pytest.raises(ShapeError, match="3 frames, fewer than the 4"):
        tokenizer.encode(torch.zeros(3, 263))
    broken = torch.zeros(8, 263)
    broken[5, 3] = torch.nan
    with pytest.raises(VadisError, match="frame 5 of clip 0"):
        tokenizer.encode(broken)
    groups = tokenizer.tokens_per_step
    with pytest.raises(VadisError, match=f"token {tokenizer.vocab_size} in clip 0 is outside"):
        tokenizer.decode(torch.full((4, groups), tokenizer.vocab_size))
    with pytest.raises(ShapeError, match=rf"\(S, {groups}\)"):
        tokenizer.decode(torch.zeros(4, groups + 1, dtype=torch.long))


@pytest.mark.parametrize("fields", [{"bits": 0}, {"bits": 40}, {"bit_order": "big"}, {"groups": 0}, {"codes": 3}])
def test_impossible_configs_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        LFQTokenizerConfig(**fields)


# ---- the perceptual loss


class Watcher(Evaluator):
    """A small evaluator: reads normalised features with lengths."""

    config = type("Config", (), {"representation": "hml263"})

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(263, 4)

    def normalize(self, features: Tensor) -> Tensor:
        return features / 2

    def encode_motion(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.layer(features).sum(1) / lengths[:, None]

    def encode_text(self, texts: Any) -> Tensor:
        raise AssertionError("no text is compared")

    dim = 4


@families
def test_the_perceptual_loss_compares_what_a_frozen_encoder_sees(kind: str) -> None:
    tokenizer, watcher = tiny(kind), Watcher().train()
    x = torch.randn(2, 18, 263)  # two frames more than whole tokens
    assert "perceptual" not in tokenizer(x).losses
    with pytest.raises(ModelError, match="no perceptual loss"):
        tokenizer.loss(x, perceptual_weight=0.1)
    names = set(tokenizer.state_dict())
    tokenizer.set_perceptual(watcher)
    output = tokenizer(x)
    seen = [
        watcher.layer(((f * tokenizer.std + tokenizer.mean) / 2).mean(1)) for f in (x[:, :16], output.reconstruction)
    ]
    torch.testing.assert_close(output.losses["perceptual"], (seen[0] - seen[1]).abs().mean(), atol=1e-5, rtol=1e-5)
    output.losses["perceptual"].backward()
    assert next(tokenizer.encoder.parameters()).grad is not None
    assert not watcher.training and all(p.grad is None and not p.requires_grad for p in watcher.parameters())
    assert set(tokenizer.state_dict()) == names
    tokenizer.set_perceptual(lambda features: features[..., 4:67])
    assert tokenizer(x).losses["perceptual"] > 0
    tokenizer.set_perceptual(None)
    assert "perceptual" not in tokenizer(x).losses
    with pytest.raises(ModelError, match="can't be called"):
        tokenizer.set_perceptual(3)
    watcher.config = type("Config", (), {"representation": "ms272"})
    with pytest.raises(ModelError, match="the evaluator reads ms272, the tokenizer hml263"):
        tokenizer.set_perceptual(watcher)


def test_evaluators_compare_motions() -> None:
    """The vectors of Guo et al.'s movements, embeddings of others; gradients reach the tokenizer through them."""
    guo = GuoEvaluator(GuoConfig(movement_width=8, motion_width=8, text_width=8, embedding_dim=8))
    tmr = TMREvaluator(TMRConfig(width=8, layers=1, heads=2, ff=8, text_encoder="minilm", decoder=False))
    for evaluator, changes in ((guo, {}), (tmr, {"representation": "ms272", "feature_dim": 272})):
        tokenizer = tiny("2d", **changes)
        tokenizer.set_perceptual(evaluator)
        x = torch.randn(2, 32, evaluator.config.feature_dim)
        output = tokenizer(x)
        wanted, made = (
            evaluator.normalize(f * tokenizer.std + tokenizer.mean) for f in (x, output.reconstruction.detach())
        )
        if evaluator is guo:
            error = guo.movement_encoder(wanted[..., :-4]) - guo.movement_encoder(made[..., :-4])
        else:
            error = tmr.encode_motion(wanted, torch.tensor([32, 32])) - tmr.encode_motion(made, torch.tensor([32, 32]))
        torch.testing.assert_close(output.losses["perceptual"], error.abs().mean(), atol=1e-6, rtol=1e-5)
        output.losses["perceptual"].backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in tokenizer.parameters())


@families
def test_a_recipe_trains_with_an_evaluator(kind: str, tmp_path: Path) -> None:
    rep = representation("ms272")
    with CorpusWriter(tmp_path / "corpus") as writer:
        for i in range(4):
            features = rep.encode(procedural_walk(50 + 5 * i, turn=0.1 * i))
            writer.add(
                f"w{i}", features, [], split=("train", "val")[i == 3], group=f"g{i}", source="test", licence="CC0-1.0"
            )
    tmr = TMREvaluator(TMRConfig(width=8, layers=1, heads=2, ff=8, text_encoder="minilm", decoder=False))
    tmr.save_pretrained(tmp_path / "evaluator")
    model = {"width": 8, "depth": 1, "bits": 4} | ({"code_dim": 8} if kind == "1d" else {})
    settings = [f"model.{name}={value}" for name, value in model.items()]
    run = {"data.corpus": tmp_path / "corpus", "run": tmp_path / "run", "device": "cpu", "validation_batches": 1}
    run |= {"data.window": 32, "data.batch": 2, "steps": 3, "perceptual": tmp_path / "evaluator"}
    settings += [f"{name}={value}" for name, value in run.items()] + ["loss.perceptual_weight=0.1"]
    tokenizer = vadis.load(train(RECIPES / f"lfq-{kind}-small.yaml", settings))
    assert tokenizer.encode(procedural_walk(40)).shape == (10, 6)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    checks = next(row for row in rows if "validation/perceptual" in row)
    assert checks["validation/perceptual"] > 0 and checks["validation/entropy"] < 1
    with pytest.raises(ModelError, match="a fsq tokenizer has no perceptual loss"):
        train(RECIPES / "motionmillion-fsq.yaml", settings[len(model) :])


# ---- parts


@pytest.mark.parametrize("name", ["hml263", "ms272", "vimogen276", "smpl135"])
@pytest.mark.parametrize("split", ["body", "kind"])
def test_parts_are_every_column_once(name: str, split: str) -> None:
    columns = part_columns(name, split)
    assert sorted(sum(columns.values(), ())) == list(range(representation(name).dim))
    assert next(iter(columns)) == "root" and all(columns.values())


def test_parts_of_263_are_the_published_ones() -> None:
    body = part_columns("hml263", "body")
    sizes = {"root": 7, "left_leg": 50, "right_leg": 50, "torso": 60, "left_arm": 48, "right_arm": 48}
    assert {name: len(columns) for name, columns in body.items()} == sizes
    assert body["root"] == (0, 1, 2, 3, 193, 194, 195) and body["left_leg"][:6] == (4, 5, 6, 13, 14, 15)
    assert body["left_leg"][-2:] == (259, 260) and body["right_leg"][-2:] == (261, 262)
    kind = {"root": 4, "positions": 63, "rotations": 126, "velocities": 66, "contacts": 4}
    assert {name: len(columns) for name, columns in part_columns("hml263", "kind").items()} == kind


@pytest.mark.parametrize("name", ["hml263", "ms272", "vimogen276", "smpl135"])
def test_mirrored_parts_have_the_same_columns_in_the_same_order(name: str) -> None:
    rep = representation(name)
    features = torch.randn(6, rep.dim, generator=torch.Generator().manual_seed(0))
    mirrored, parts = rep.mirror(features), part_columns(name)
    for part, other in MIRRORED.items():
        torch.testing.assert_close(mirrored[:, parts[part]].abs(), features[:, parts[other]].abs())


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(ModelError, match="use one of body, kind"):
        part_columns("hml263", "limbs")
    with pytest.raises(ModelError, match="22-joint skeleton: use the split kind"):
        part_columns("kit251", "body")
    assert len(part_columns("kit251", "kind")) == 5
    with pytest.raises(ValueError, match="hml263 has 263 features, feature_dim is 272"):
        LFQ2DTokenizerConfig(feature_dim=272)


@pytest.mark.parametrize(("name", "dim", "split", "count"), [("ms272", 272, "body", 6), ("vimogen276", 276, "kind", 4)])
def test_other_representations_and_splits_are_coded(name: str, dim: int, split: Any, count: int) -> None:
    tokenizer = tiny("2d", representation=name, feature_dim=dim, fps=30.0, parts=split)
    tokens = tokenizer.encode(torch.randn(2, 16, dim))
    assert tokens.shape == (2, 4, count) and tokenizer.decode(tokens).shape == (2, 16, dim)


def test_a_part_goes_through_its_own_stem_and_head() -> None:
    tokenizer = tiny("2d")
    columns = list(tokenizer.part_columns["left_arm"])
    features = torch.zeros(1, 16, 263)
    features[..., columns] = 1.0
    sorted_features = features[..., tokenizer._order].split(tokenizer.encoder.sizes, dim=-1)
    means = [float(part.mean()) for part in sorted_features]
    assert means == [float(name == "left_arm") for name in tokenizer.parts]
    assert torch.equal(features[..., tokenizer._order][..., tokenizer._back], features)


def test_replacing_a_part_changes_its_tokens_alone() -> None:
    tokenizer = tiny("2d", depth=1)
    tokens, other = torch.randint(0, 64, (2, 60, 6)), torch.randint(0, 64, (2, 60, 6))
    arm = tokenizer.part_index("left_arm")
    swapped = tokenizer.replace_part(tokens, other, part="left_arm")
    rest = [i for i in range(6) if i != arm]
    assert torch.equal(swapped[..., arm], other[..., arm]) and torch.equal(swapped[..., rest], tokens[..., rest])
    assert torch.equal(tokenizer.replace_part(tokens, other, tokenizer.parts), other)
    legs = tokenizer.replace_part(tokens[0], other[0], ("left_leg", "right_leg"))
    assert torch.equal(legs[:, 1:3], other[0, :, 1:3]) and torch.equal(legs[:, 3:], tokens[0, :, 3:])
    late = tokens.clone()
    late[:, 50:] = swapped[:, 50:]
    moved = (tokenizer.decode(late) != tokenizer.decode(tokens)).any(-1).any(0)
    first = 4 * (50 - tokenizer.decoder_context[1])
    assert not moved[:first].any() and moved[200:].all()


def test_a_part_is_encoded_and_decoded_by_name() -> None:
    tokenizer = tiny("2d")
    features = torch.randn(2, 24, 263)
    tokens = tokenizer.encode(features)
    torso = tokenizer.part_index("torso")
    assert tokenizer.parts[torso] == "torso"
    assert torch.equal(tokenizer.encode_part(features, "torso"), tokens[..., torso])
    decoded = tokenizer.decode_part(tokens, "torso")
    assert torch.equal(decoded, tokenizer.decode(tokens)[..., list(tokenizer.part_columns["torso"])])


def test_wrong_parts_are_refused() -> None:
    tokenizer = tiny("2d")
    tokens = torch.zeros(4, 6, dtype=torch.long)
    listed = "no part 'tail': this tokenizer's parts are root, left_leg, right_leg, torso, left_arm, right_arm"
    for call in (
        lambda: tokenizer.replace_part(tokens, tokens, "tail"),
        lambda: tokenizer.replace_part(tokens, tokens, ("root", "tail")),
        lambda: tokenizer.encode_part(torch.zeros(8, 263), "tail"),
        lambda: tokenizer.decode_part(tokens, "tail"),
    ):
        with pytest.raises(ModelError, match=listed):
            call()
    with pytest.raises(ShapeError, match=r"\(4, 6\), the others \(3, 6\): cut both"):
        tokenizer.replace_part(tokens, tokens[:3], "root")
