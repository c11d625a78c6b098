"""The tokenizers with learned codebooks: VQ, RVQ and MG-VQ by themselves."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import vadis
from vadis.errors import FileError, ModelError, ShapeError, VadisError
from vadis.metrics.reconstruction import reconstruction_errors
from vadis.representations import representation
from vadis.tokenizers import (
    MGVQTokenizer,
    MGVQTokenizerConfig,
    MotionVQVAE,
    RVQTokenizer,
    RVQTokenizerConfig,
    Tokenizer,
    VQTokenizer,
    VQTokenizerConfig,
)
from vadis.tokenizers.codebook import EMACodebook
from vadis.tokenizers.pca_init import init_from_pca
from vadis.tokenizers.rvqvae import ResidualVQ

SMALL = {"width": 16, "code_dim": 16, "depth": 2, "codebook_size": 24}


def vq(**changes: object) -> VQTokenizer:
    return _ready(VQTokenizer(VQTokenizerConfig(**SMALL | changes)))


def rvq(**changes: object) -> RVQTokenizer:
    return _ready(RVQTokenizer(RVQTokenizerConfig(**SMALL | {"num_quantizers": 3} | changes)))


def mg_vq(**changes: object) -> MGVQTokenizer:
    return _ready(MGVQTokenizer(MGVQTokenizerConfig(**SMALL | {"groups": 4} | changes)))


MAKERS = [vq, rvq, mg_vq]


def _ready(tokenizer: Tokenizer) -> Tokenizer:
    """Weights of a fixed seed under which codes vary from step to step, codes as spread as the latents."""
    generator = torch.Generator().manual_seed(3)
    for name, value in tokenizer.state_dict().items():
        if name.endswith("weight"):
            x = torch.randn(value.shape, generator=generator)
            value.copy_(1.2 * (x - x.mean(1, keepdim=True)) / math.sqrt(value[0].numel()))
        elif name.endswith("bias"):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        elif name.endswith("codebook"):
            value.copy_(0.5 * torch.randn(value.shape, generator=generator))
    for module in tokenizer.modules():
        if isinstance(module, EMACodebook):
            module.restart_means()
            module.initialised.fill_(True)
    width = tokenizer.config.feature_dim
    tokenizer.set_statistics(torch.linspace(-1, 1, width), torch.linspace(0.5, 2, width))
    return tokenizer.eval()


def clip(tokenizer: Tokenizer, *shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*shape, tokenizer.config.feature_dim, generator=torch.Generator().manual_seed(seed))
    return x * tokenizer.std + tokenizer.mean


# ---- the common interface


@pytest.mark.parametrize("make", MAKERS)
def test_a_batch_of_unequal_clips_equals_the_clips_one_by_one(make) -> None:
    tokenizer = make()
    features, lengths = clip(tokenizer, 4, 47), [47, 12, 47, 22]
    tokens = tokenizer.encode(features, lengths)
    assert int(tokens.unique().numel()) > 6
    steps = [n // 4 for n in lengths]
    decoded = tokenizer.decode(tokens, steps)
    for row, (length, count) in enumerate(zip(lengths, steps, strict=True)):
        alone = tokenizer.encode(features[row, :length])
        assert torch.equal(tokens[row, :count], alone) and bool((tokens[row, count:] == -1).all())
        again = tokenizer.decode(alone)
        assert again.shape == (4 * count, tokenizer.config.feature_dim)
        torch.testing.assert_close(decoded[row, : 4 * count], again, atol=1e-5, rtol=1e-5)
    listed = tokenizer.encode([features[row, :n] for row, n in enumerate(lengths)])
    assert all(torch.equal(part, tokens[row, : len(part)]) for row, part in enumerate(listed))


@pytest.mark.parametrize("make", MAKERS)
def test_a_long_clip_in_pieces_equals_the_whole(make) -> None:
    tokenizer = make()
    features = clip(tokenizer, 403)
    whole = tokenizer.encode(features, chunk_frames=10_000)
    assert torch.equal(tokenizer.encode(features, chunk_frames=40), whole)
    torch.testing.assert_close(
        tokenizer.decode(whole, chunk_frames=40), tokenizer.decode(whole, chunk_frames=10_000), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("make", MAKERS)
def test_saved_and_loaded_is_the_same_model(make, tmp_path: Path) -> None:
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = vadis.load(tmp_path / "model")
    assert type(loaded) is type(tokenizer) and loaded.config == tokenizer.config
    features = clip(tokenizer, 2, 40)
    tokens = tokenizer.encode(features)
    assert torch.equal(loaded.encode(features), tokens)
    assert torch.equal(loaded.decode(tokens), tokenizer.decode(tokens))
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FileError, match="not a whole safetensors file"):
        vadis.load(tmp_path / "model")


@pytest.mark.parametrize("make", MAKERS)
def test_half_precision_keeps_the_codebooks(make) -> None:
    tokenizer = make()
    tokens = tokenizer.encode(clip(tokenizer, 2, 40))
    plain = tokenizer.decode(tokens)
    half = make().to(torch.bfloat16)
    assert half.encoder.model[0].weight.dtype == torch.bfloat16
    assert all(v.dtype in (torch.float32, torch.bool) for n, v in half.state_dict().items() if "quantizer" in n)
    made = half.decode(tokens)
    assert made.dtype == torch.float32 and float((made - plain).std() / plain.std()) < 0.05


@pytest.mark.parametrize(
    "make", [*MAKERS, lambda: rvq(shared_codebook=True), lambda: vq(update="gradient"), lambda: mg_vq(update="ema")]
)
def test_gradients_reach_every_parameter_and_training_lowers_the_loss(make) -> None:
    tokenizer = make().train()
    torch.manual_seed(0)
    for module in tokenizer.modules():
        if isinstance(module, EMACodebook):
            module.initialised.fill_(False)  # codes come from the first batch
    x = torch.randn(6, 32, tokenizer.config.feature_dim)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    totals = []
    for _ in range(25):
        terms, output = tokenizer.loss(x, commitment_weight=0.02)
        optimizer.zero_grad()
        terms["total"].backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in tokenizer.parameters())
        optimizer.step()
        totals.append(terms["total"].item())
        assert int(output.tokens.max()) < 24 and float(terms["perplexity"]) <= 24.001
    assert totals[-1] < totals[0]


@pytest.mark.parametrize("make", MAKERS)
def test_wrong_input_is_refused(make) -> None:
    tokenizer = make()
    features, name = clip(tokenizer, 16), tokenizer.representation
    with pytest.raises(ShapeError, match=f"{name} features have {tokenizer.config.feature_dim} values"):
        tokenizer.encode(features[:, :-1])
    with pytest.raises(ShapeError, match="3 frames, fewer than the 4 of one token"):
        tokenizer.encode(features[:3])
    with pytest.raises(VadisError, match="not finite"):
        tokenizer.encode(torch.where(torch.arange(16)[:, None] == 5, math.nan, features))
    with pytest.raises(VadisError, match=f"needs {name}: convert with `vadis convert --to {name}`"):
        tokenizer.encode(features, representation="smpl135")
    with pytest.raises(VadisError, match="resample"):
        tokenizer.encode(features, fps=60)
    tokens = tokenizer.encode(features)
    with pytest.raises(VadisError, match="token 24 in clip 0 is outside 0 … 23"):
        tokenizer.decode(tokens.flatten().index_fill(0, torch.tensor([3]), 24).view_as(tokens))
    with pytest.raises(VadisError, match="token -2"):
        tokenizer.decode(tokens.flatten().index_fill(0, torch.tensor([-1]), -2).view_as(tokens))
    with pytest.raises(VadisError, match="must be integers"):
        tokenizer.decode(tokens.float())
    with pytest.raises(ShapeError, match="tokens must be"):
        tokenizer.decode(tokens[None, None])


# ---- codebooks


def test_many_groups_at_once_equal_one_at_a_time() -> None:
    x = torch.randn(3, 20, 12)
    together = EMACodebook(7, 4, groups=3).train()
    for _ in range(3):
        output = together(x)
    for group in range(3):
        alone = EMACodebook(7, 4).train()
        for _ in range(3):
            one = alone(x[..., 4 * group : 4 * group + 4])
        assert torch.equal(output.tokens[..., group], one.tokens)
        torch.testing.assert_close(together.codebook[group], alone.codebook)
    assert together.dequantize(output.tokens).shape == (3, 20, 12)


def test_a_token_is_the_nearest_code_however_many_rows_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    book = EMACodebook(9, 2, groups=5).eval()
    book.codebook.normal_()
    x = torch.randn(4, 30, 10)
    tokens = book(x).tokens
    distance = (x.unflatten(-1, (5, 1, 2)) - book.codebook).square().sum(-1)  # (B, S, G, K)
    assert torch.equal(tokens, distance.argmin(-1))
    monkeypatch.setattr("vadis.tokenizers.codebook._PIECE", 100)  # two rows at a time
    assert torch.equal(book(x).tokens, tokens)


@pytest.mark.parametrize("update", ["ema_reset", "ema"])
def test_codes_that_are_not_used_are_replaced_only_with_reset(update: str) -> None:
    book = EMACodebook(4, 3, update=update).train()
    book(torch.randn(1, 4, 3))
    before = book.codebook.clone()
    book(before[:1].repeat(1, 50, 1) + 0.01)  # all rows are near code 0
    moved = (book.codebook - before).abs().amax(-1) > 1e-6
    assert moved.tolist() == ([True] * 4 if update == "ema_reset" else [True, False, False, False])
    book.code_count[1:], book.code_sum[1:] = 1e-30, 1e-30  # as after a long time
    book(before[:1].repeat(1, 50, 1) + 0.01)
    assert bool(torch.isfinite(book.codebook).all())
    if update == "ema":
        assert torch.equal(book.codebook[1:], before[1:])
    still = book.eval().codebook.clone()
    book(torch.randn(1, 8, 3))
    book.frozen = True
    book.train()(torch.randn(1, 8, 3))
    assert torch.equal(book.codebook, still)


def test_the_gradient_of_residual_levels_adds_up() -> None:
    quantizer = ResidualVQ(3, 8, 4, temperature=0.0, dropout=0.0).train()
    x = torch.randn(2, 10, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(quantizer(x).vectors.sum(), x)
    assert torch.allclose(slope, torch.full_like(slope, 3.0))


def test_levels_are_dropped_in_training_and_codes_are_drawn() -> None:
    torch.manual_seed(0)
    quantizer = ResidualVQ(4, 8, 4, dropout=0.5, temperature=0.5).train()
    x = torch.randn(2, 40, 4)
    kept = [int((quantizer(x).tokens >= 0).sum(-1).float().mean()) for _ in range(200)]
    share = sum(n < 4 for n in kept) / len(kept)
    assert (
        set(kept) == {1, 2, 3, 4} and 0.25 < share < 0.5
    )  # half of the batches keep 1 to 4 levels, a quarter of them 4
    quantizer.dropout = 0.0
    book = quantizer.layers[0]
    drawn = torch.cat([book._nearest(x.reshape(1, -1, 4), 0.5) for _ in range(300)])
    distance = (x.reshape(-1, 1, 4) - book.codebook).square().sum(-1)
    wanted = torch.softmax(-distance / 0.5, dim=-1)
    found = torch.stack([(drawn == code).float().mean(0) for code in range(8)], dim=-1)
    assert float((found - wanted).abs().max()) < 0.12


def test_absent_levels_are_decoded_as_nothing() -> None:
    tokenizer = rvq()
    features = clip(tokenizer, 40)
    tokens = tokenizer.encode(features)
    coarse = tokenizer.encode(features, levels=2)
    assert torch.equal(coarse[:, :2], tokens[:, :2]) and bool((coarse[:, 2] == -1).all())
    assert torch.equal(tokenizer.decode(coarse), tokenizer.decode(tokens[:, :2]))
    with pytest.raises(VadisError, match="step 4 of clip 0 has no token of level 0: if that is padding, give lengths"):
        tokenizer.decode(tokens.index_fill(0, torch.tensor([4]), -1))
    with pytest.raises(VadisError, match="levels=4: this tokenizer has 1 to 3"):
        tokenizer.encode(features, levels=4)
    with pytest.raises(ShapeError, match="with 1 to 3 levels"):
        tokenizer.decode(torch.zeros(8, 4, dtype=torch.long))
    one = rvq(num_quantizers=1)
    assert one.encode(features).shape == (10, 1) and one.decode(one.encode(features)).shape == (40, 263)


@pytest.mark.parametrize("make", MAKERS)
def test_training_resumes_exactly_from_a_saved_state(make, tmp_path: Path) -> None:
    tokenizer = make(quantize_dropout=0.0, sample_temperature=0.0, dropout=0.0) if make is rvq else make()
    batches = [torch.randn(3, 32, tokenizer.config.feature_dim) for _ in range(4)]
    tokenizer.train()
    for x in batches[:2]:
        tokenizer(x)
    tokenizer.save_pretrained(tmp_path)
    resumed = vadis.load(tmp_path).train()
    for x in batches[2:]:
        tokenizer(x), resumed(x)
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not torch.equal(tokenizer.state_dict()["mean"], torch.zeros_like(tokenizer.mean))


@pytest.mark.slow
def test_processes_share_one_codebook(tmp_path: Path) -> None:
    """Two processes with half the rows each learn what one learns from all rows."""
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    x = _rows()
    alone = EMACodebook(6, 4).train()
    alone.codebook.copy_(x[0, :6])
    alone.restart_means()
    alone.initialised.fill_(True)
    for _ in range(2):
        alone(x)
    torch.testing.assert_close(states[0]["book.codebook"], alone.codebook)


def _rows() -> torch.Tensor:
    return torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))


def _process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    x = _rows()[rank : rank + 1]
    book, residual = EMACodebook(6, 4).train(), ResidualVQ(3, 100, 4, dropout=0.9, temperature=0.0).train()
    for _ in range(2):
        book(x)
        residual(x)
    state = {f"book.{n}": v for n, v in book.state_dict().items()}
    torch.save(state | {f"residual.{n}": v for n, v in residual.state_dict().items()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_a_pca_start_is_a_linear_code(walk) -> None:
    rep = representation("ms272")
    features = rep.encode(walk)
    shape = {
        "representation": "ms272",
        "fps": 30.0,
        "feature_dim": 272,
        "down_t": 0,
        "use_patcher": True,
        "patch_size": 4,
    }
    windows = torch.stack([features[i : i + 32] for i in range(0, 56, 2)])
    for make, changes in ((vq, {}), (rvq, {"num_quantizers": 3, "dropout": 0.0}), (mg_vq, {"groups": 4})):
        model = make(**SMALL | {"width": 64, "code_dim": 32, "codebook_size": 64} | shape | changes)
        model.set_statistics(features.mean(0), rep.statistics([features])[1])
        assert init_from_pca(model, windows) == pytest.approx(1, abs=0.01)  # this walk repeats itself
        made = model.decode(model.encode(features[None, :88]))
        assert reconstruction_errors(features[None, :88], made)["pose_mm"] < 30
        assert not model.quantizer.training and getattr(model.quantizer, "temperature", 0.5) == 0.5
    with pytest.raises(ModelError, match="init: pca needs down_t 0"):
        init_from_pca(vq(**shape | {"down_t": 1}), windows)


# ---- published files


def _published(tokenizer: Tokenizer, prefix: str = "") -> dict[str, torch.Tensor]:
    skip = ("mean", "std", "code_sum", "code_count", "initialised")
    return {prefix + n: v.clone() for n, v in tokenizer.state_dict().items() if n.split(".")[-1] not in skip}


def _statistics(folder: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    mean, std = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(0.5, 2, width, dtype=np.float32)
    np.save(folder / "mean.npy", mean)
    np.save(folder / "std.npy", std)
    return mean, std


@pytest.mark.parametrize("prefix", ["vqvae.", ""])
def test_a_t2mgpt_file_is_imported_with_what_lies_beside_it(prefix: str, tmp_path: Path) -> None:
    tokenizer = vq()
    file = tmp_path / "net_last.pth"
    torch.save({"net": _published(tokenizer, prefix)}, file)
    with pytest.warns(UserWarning, match="holds no mean and std"):
        bare = vadis.import_checkpoint("t2mgpt-vqvae", file)
    assert bool((bare.mean == 0).all())
    _statistics(tmp_path / "meta", 263)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = vadis.import_checkpoint("t2mgpt-vqvae", file)
    features = clip(tokenizer, 40)
    assert torch.equal(found.encode(features), tokenizer.encode(features))
    book, before = found.quantizer, found.quantizer.codebook.clone()
    output = found.train()(torch.randn(1, 32, 263))
    used = torch.bincount(output.tokens.flatten(), minlength=24) > 0
    assert torch.allclose(book.codebook[~used], before[~used], atol=1e-6)  # training goes on from the imported codes
    moved = (book.codebook - before).norm(dim=-1) / (output.latent.norm(dim=-1).max() + before.norm(dim=-1))
    assert bool((moved[used] > 0).all()) and float(moved.detach().max()) < 0.02
    state = _published(tokenizer, prefix)
    with pytest.raises(ModelError, match="unexpected encoder.model.9.weight"):
        vadis.import_checkpoint("t2mgpt-vqvae", state | {f"{prefix}encoder.model.9.weight": torch.zeros(2)})
    with pytest.raises(ModelError, match="codebook .K, C. is missing"):
        vadis.import_checkpoint("t2mgpt-vqvae", {n: v for n, v in state.items() if "quantizer" not in n})
    with pytest.raises(ModelError, match="decoder.model.6.bias"):
        vadis.import_checkpoint(
            "t2mgpt-vqvae", {n: v for n, v in state.items() if not n.endswith("decoder.model.6.bias")}
        )


def test_kit_features_make_a_kit_tokenizer() -> None:
    found = vadis.import_checkpoint("t2mgpt-vqvae", _published(vq(feature_dim=251)))
    assert (found.representation, found.fps, found.config.feature_dim) == ("kit251", 12.5, 251)


def test_a_momask_folder_is_imported_with_its_options(tmp_path: Path) -> None:
    tokenizer = rvq(shared_codebook=True, dilation_growth_rate=2)
    (tmp_path / "model").mkdir()
    torch.save({"vq_model": _published(tokenizer), "ep": 7}, tmp_path / "model" / "net_best_fid.tar")
    torch.save({"vq_model": {}, "ep": 7}, tmp_path / "model" / "latest.tar")
    options = {"batch_size": 256, "dilation_growth_rate": 2, "mu": 0.9, "shared_codebook": True, "vq_norm": None}
    lines = [f"{name}: {value}" for name, value in options.items()]
    (tmp_path / "opt.txt").write_text("\n".join(["------- Options -------", *lines, "------- End -------"]))
    _statistics(tmp_path / "meta", 263)
    found = vadis.import_checkpoint("momask-rvq", tmp_path)
    c = found.config
    assert (c.decay, c.dilation_growth_rate, c.shared_codebook, c.quantize_dropout) == (0.9, 2, True, 0.2)
    assert found.quantizer.layers[0] is found.quantizer.layers[2]
    features = clip(tokenizer, 40)
    assert torch.equal(found.encode(features), tokenizer.encode(features))
    with pytest.raises(ModelError, match="codebooks of the checkpoint differ"):
        vadis.import_checkpoint("momask-rvq", _published(rvq()), shared_codebook=True)
    gap = {n.replace("layers.1", "layers.5"): v for n, v in _published(rvq()).items()}
    with pytest.raises(ModelError, match=r"quantizer.layers.N are \[0, 2, 5\]"):
        vadis.import_checkpoint("momask-rvq", gap)


@pytest.mark.parametrize("layout", ["one", "flat", "many"])
def test_a_motion_vqvae_folder_is_imported_whatever_its_names(layout: str, tmp_path: Path) -> None:
    tokenizer = mg_vq(activation="gelu", fps=20.0)
    state = {f"model.vqvae.{n}": v for n, v in _published(tokenizer).items()}
    codes = state.pop("model.vqvae.quantizer.codebook")
    state["model.vqvae.quantizer.code_count"] = torch.ones(4, 24)
    if layout == "many":
        state |= {f"model.vqvae.quantizer.quantizers.{g}.codebook": codes[g].clone() for g in range(4)}
        state |= {f"model.vqvae.quantizer.quantizers.{g}.code_sum": codes[g].clone() for g in range(4)}
    else:
        state["model.vqvae.quantizer.codebooks"] = codes if layout == "one" else codes.flatten(0, 1)
    torch.save(state, tmp_path / "pytorch_model.bin")
    page = {"input_dim": 272, "width": 16, "depth": 2, "code_dim": 4, "num_groups": 4, "fps": 20, "activation": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(page | {"author": "a person"}))
    mean, _ = _statistics(tmp_path, 272)
    with pytest.warns(UserWarning) as caught:
        model = MotionVQVAE.from_pretrained(tmp_path)
    texts = " ".join(str(w.message) for w in caught)
    assert "ignoring author" in texts and "does not say dilation_growth_rate 3: these are assumed" in texts
    found = model.tokenizer
    assert (found.fps, found.config.activation) == (20, "gelu")
    assert np.array_equal(found.mean.numpy(), mean)
    features = clip(tokenizer, 40)
    assert torch.equal(found.encode(features), tokenizer.encode(features))
    with pytest.raises(ModelError, match=r"must be codebooks.*vqvae.extra \(3,\)"):
        vadis.import_checkpoint("motion-vqvae", state | {"vqvae.extra": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"options and tensors differ: width 32 \(the tensors say 16\)"):
        vadis.import_checkpoint("motion-vqvae", state, width=32)
    found.save_pretrained(tmp_path / "ours")
    assert MotionVQVAE.from_pretrained(tmp_path / "ours").tokenizer.config == found.config


def test_the_published_names_give_groups_first() -> None:
    model = MotionVQVAE(mg_vq())
    features = clip(model.tokenizer, 40)
    tokens = model.encode(features.numpy())
    assert tokens.shape == (4, 1, 10) and torch.equal(tokens[:, 0].T, model.tokenizer.encode(features))
    assert model.decode(tokens).shape == (1, 40, 272)
    reconstruction, again = model(features[None])
    assert torch.equal(again, tokens) and torch.equal(reconstruction, model.decode(tokens))
    clips = [features, features[:21]]
    batch, lengths = model.encode_batch(clips)
    assert batch.shape == (4, 2, 10) and lengths.tolist() == [10, 5] and bool((batch[:, 1, 5:] == -1).all())
    for row, one in enumerate(clips):
        alone = model.encode(one)
        assert torch.equal(batch[:, row, : lengths[row]], alone[:, 0])
        made = model.decode_batch(batch, lengths)[row, : 4 * lengths[row]]
        torch.testing.assert_close(made, model.decode(alone)[0], atol=1e-5, rtol=1e-5)
    assert model.get_codebook_embeddings().shape == (4, 24, 4)
    with pytest.raises(ShapeError, match="groups first"):
        model.decode(tokens[:, 0])
    with pytest.raises(ShapeError, match="go through encode_batch"):
        model.encode(clips)


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="code_dim 16 can't be split into 5 equal groups"):
        mg_vq(groups=5)
    with pytest.raises(ValueError, match="codebook_size"):
        vq(codebook_size=1)
