"""MotionVLA: prompts, exact lengths, images that count, streaming, the pipeline and its bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import procedural_walk

import vadis
from vadis.errors import ModelError, VadisError
from vadis.representations import representation
from vadis.representations.consistency import consistent, disagreement

pytest.importorskip("transformers")
pytest.importorskip("PIL")

from vadis.language.backbones import load_backbone
from vadis.language.vla.model import MotionVLA
from vadis.pipelines.motionvla import MotionVLAPipeline, SceneGenerationConfig
from vadis.tokenizers.dsft import DSFTTokenizer


def clips() -> list[torch.Tensor]:
    rep = representation("vimogen276")
    return [rep.encode(procedural_walk(frames, 20.0, turn)) for frames, turn in ((41, 0.0), (33, 0.5), (49, -0.4))]


@pytest.fixture(scope="module")
def dsft() -> DSFTTokenizer:
    return DSFTTokenizer.fit(clips(), "vimogen276", K=(2, 3), scale=(1.0, 1.0), vocab=(256, 256))


@pytest.fixture(scope="module")
def vla(dsft: DSFTTokenizer) -> MotionVLA:
    return MotionVLA.build(*load_backbone("tiny-qwen3_5-vision"), dsft)


@pytest.fixture(scope="module")
def pipe(vla: MotionVLA) -> MotionVLAPipeline:
    return MotionVLAPipeline(vla)


def room(seed: int, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    return coarse.repeat(16, 0).repeat(16, 1)


# ---- the model


def test_prompt_and_answer_are_motionvlas(vla: MotionVLA) -> None:
    encoded = vla.motion_tokenizer.encode(clips()[0])
    answer = vla.text_tokenizer.decode(vla.answer(encoded))
    assert answer == vla.motion_tokenizer.to_text(encoded) + "<|im_end|>"
    prompt = vla.text_tokenizer.decode(vla.prompt("walk", seconds=2.04).ids)
    assert "user\nGenerate motion for: walk\nDuration: 2.0 s<|im_end|>" in prompt


def last_logits(vla: MotionVLA, prompt: Any) -> torch.Tensor:
    with torch.no_grad():
        states, *_ = vla._begin([prompt])
    return vla.backbone.logits(states)[0]


def test_logits_change_with_the_image(vla: MotionVLA) -> None:
    first, second = (last_logits(vla, vla.prompt("walk to the red box", room(seed))) for seed in (0, 1))
    assert (first - second).abs().max() > 1e-4
    assert torch.equal(first, last_logits(vla, vla.prompt("walk to the red box", room(0))))


def test_a_call_with_an_image_leaves_no_trace(vla: MotionVLA) -> None:
    prompt = vla.prompt("walk to the red box")
    before = last_logits(vla, prompt)
    last_logits(vla, vla.prompt("walk", room(0, (320, 320))))
    assert torch.equal(before, last_logits(vla, prompt))


def test_features_of_an_image_can_be_kept(vla: MotionVLA) -> None:
    prompt = vla.prompt("walk to the red box", room(0))
    kept = vla.backbone.look(prompt)
    assert kept.pixels is not None and kept.pixels.features is not None and vla.backbone.look(kept) is kept
    assert torch.allclose(last_logits(vla, prompt), last_logits(vla, kept), atol=1e-5)


def test_positions_are_those_of_transformers(vla: MotionVLA) -> None:
    """The same logits as the model's own road, with and without an image, alone and in a padded batch."""
    prompts = [vla.prompt("walk to the red box", room(0)), vla.prompt("sit down")]
    states, *_ = vla._begin(prompts)
    for row, prompt in enumerate(prompts):
        batch = vla.batch([prompt])
        if "image_grid_thw" not in batch:
            batch.pop("mm_token_type_ids")
        vla.model.model.rope_deltas = None
        with torch.no_grad():
            alone = vla.model(**batch).logits[0, -1]
        assert torch.allclose(vla.backbone.logits(states[row]), alone, atol=2e-4)


def test_the_cache_gives_what_a_whole_pass_gives(vla: MotionVLA) -> None:
    """Greedy ids, made step by step in a padded batch, are the likeliest allowed ones of one pass over the whole row."""
    prompts = [vla.prompt("walk to the red box", room(0)), vla.prompt("sit down")]
    rows = vla.generate(prompts, [20, 24], temperature=0)
    for prompt, row, frames in zip(prompts, rows, (20, 24), strict=True):
        batch = vla.batch([prompt], [row])
        positions, _ = vla.backbone.positions(batch)
        with torch.no_grad():
            states = vla.backbone.hidden(batch, positions).last_hidden_state[0, len(prompt.ids) - 1 : -1]
        grammar = vla._grammar(1, [frames], 0)
        logits = vla.backbone.logits(states, grammar.slot_ids)
        for step, id_ in enumerate(row):
            allowed = logits[step].masked_fill(~grammar.allowed()[0], -torch.inf)
            own = allowed[(grammar.slot_ids == id_).nonzero()[0, 0]]
            assert own >= allowed.max() - 1e-4, f"step {step}"
            grammar.advance(torch.tensor([id_]))


@pytest.mark.parametrize("image", [True, False])
def test_what_is_generated_decodes_without_repair(vla: MotionVLA, image: bool) -> None:
    prompt = vla.prompt("walk to the red box", room(3) if image else None)
    rows = vla.generate([prompt], 25, samples=3, seed=0)
    assert len(rows) == 3 and rows[0] != rows[1]
    for row in rows:
        assert row[0] == vla.vocabulary.begin and row[-1] == vla.vocabulary.end
        parsed = vla.motion_tokenizer.parse(vla.text_tokenizer.decode(row), 25)
        assert [str(i) for i in parsed.issues if i.issue != "clipped"] == []
        features = vla.features(row, 25)
        assert features.shape == (25, 276) and torch.isfinite(features).all()


def test_a_row_does_not_depend_on_its_companions(vla: MotionVLA) -> None:
    prompts = [vla.prompt("walk to the red box", room(0)), vla.prompt("a person sits down and waves")]
    together = vla.generate(prompts, [20, 22], seed=[5, 6])
    assert together[0] == vla.generate(prompts[:1], 20, seed=5)[0]
    assert together[1] == vla.generate(prompts[1:], 22, seed=6)[0]


def test_guidance_of_one_is_none_and_more_leads_away(vla: MotionVLA) -> None:
    prompt = vla.prompt("walk", room(0))
    plain = vla.generate([prompt], 20, seed=1)
    assert vla.generate([prompt], 20, seed=1, guidance_scale=1.0) == plain
    assert vla.generate([prompt], 20, seed=1, guidance_scale=9.0) != plain
    blind = vla.prompt("walk")
    assert prompt.without_image().ids == blind.ids
    assert vla.generate([prompt], 20, seed=1, guidance_scale=0.0) == vla.generate([blind], 20, seed=1)


def test_length_tokens_say_the_length(dsft: DSFTTokenizer) -> None:
    vla = MotionVLA.build(*load_backbone("tiny-qwen3_5-vision"), dsft, length_tokens=True)
    (row,) = vla.generate([vla.prompt("walk")], 24, seed=0)
    assert vla.said_frames(row) == 24 and vla.features(row).shape == (24, 276)
    pipe = MotionVLAPipeline(vla)
    assert pipe("walk", seconds=1.1, seed=0).features.shape == (22, 276)  # of 24
    with pytest.raises(VadisError, match="at most"):
        MotionVLAPipeline(vla, SceneGenerationConfig(max_seconds=600))("walk", seconds=51.4)


def test_training_overfits_two_rooms(dsft: DSFTTokenizer) -> None:
    """Phase 1 as published trains embedding and head; here all of a tiny model: same words, the image decides."""
    model, text_tokenizer = load_backbone("tiny-qwen3_5-vision")
    vla = MotionVLA.build(model, text_tokenizer, dsft)
    codes = [vla.answer(dsft.encode(clip[:24])) for clip in clips()[:2]]
    cut = min(next(i for i, (a, b) in enumerate(zip(*codes, strict=False)) if a != b) + 6, 40)
    answers = [code[:cut] for code in codes]
    prompts = [vla.prompt("walk", room(seed, (64, 64))) for seed in (0, 1)]
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = vla.loss(prompts, answers, motion_only=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        model.eval()
        right, wrong = vla.loss(prompts, answers), vla.loss(prompts[::-1], answers)
    assert right < wrong


def test_other_tokenizers(walk: Any) -> None:
    from vadis.tokenizers.vqvae import VQTokenizer, VQTokenizerConfig

    config = VQTokenizerConfig(
        feature_dim=272, representation="ms272", fps=30.0, width=16, code_dim=16, codebook_size=32
    )
    tokenizer = VQTokenizer(config).eval()
    vla = MotionVLA.build(*load_backbone("tiny-qwen3_5-vision"), tokenizer)
    out = MotionVLAPipeline(vla)("walk to the red box", image=room(0), seconds=1.1, seed=0)
    assert out.features.shape == (33, 272) and out.motion.num_frames == 33
    with pytest.raises(VadisError, match="Base stream"):
        vla.preview([1, 2], 10)


def small_relative(family: str) -> tuple[Any, Any]:
    """A tiny random model of another family of Qwen."""
    import transformers

    from vadis.language.backbones import tiny_tokenizer

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    text = dict(vocab_size=1024, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, rope_parameters=rope)  # fmt: skip
    vision: dict[str, Any] = dict(depth=2, num_heads=4, spatial_merge_size=2, temporal_patch_size=2)
    vision |= {
        "Qwen3VL": dict(hidden_size=32, intermediate_size=64, patch_size=16, out_hidden_size=64, num_position_embeddings=64,
                        deepstack_visual_indexes=[0]),
        "Qwen2_5_VL": dict(hidden_size=32, intermediate_size=64, patch_size=14, out_hidden_size=64,
                           fullatt_block_indexes=[1], window_size=112),
        "Qwen2VL": dict(embed_dim=32, hidden_size=64, patch_size=14, mlp_ratio=2),
    }[family]  # fmt: skip
    words = tiny_tokenizer()
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad", "vision_start_token_id": "vision_start",
             "vision_end_token_id": "vision_end"}  # fmt: skip
    ids = {key: words.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision, **ids)
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForConditionalGeneration")(config).eval(), words


@pytest.mark.parametrize("family", ["Qwen3VL", "Qwen2_5_VL", "Qwen2VL"])
def test_other_families(dsft: DSFTTokenizer, family: str) -> None:
    vla = MotionVLA.build(*small_relative(family), dsft)
    prompts = [vla.prompt("walk", room(0)), vla.prompt("sit down")]
    first, second = vla.generate(prompts, 20, seed=0)
    assert vla.features(first, 20).shape == vla.features(second, 20).shape == (20, 276)
    states, *_ = vla._begin(prompts)
    vla.model.model.rope_deltas = None
    with torch.no_grad():
        alone = vla.model(**vla.batch(prompts[:1])).logits[0, -1]
    assert torch.allclose(vla.backbone.logits(states[0]), alone, atol=1e-5)
    assert (last_logits(vla, vla.prompt("walk", room(1))) - alone).abs().max() > 1e-5
    if family == "Qwen3VL":
        with pytest.raises(ModelError, match="deeper layers"):
            vla.backbone.look(prompts[0])


# ---- what can be wrong


def test_bad_calls(pipe: MotionVLAPipeline, tmp_path: Path) -> None:
    for text in ("", "   ", 7):
        with pytest.raises(VadisError, match="empty|is a int"):
            pipe(text)  # type: ignore[arg-type]
    with pytest.raises(VadisError, match="special token"):
        pipe("walk <mot_bos>")
    with pytest.raises(VadisError, match="no image at"):
        pipe("walk", image=tmp_path / "missing.png")
    for settings in (
        {"seconds": 0}, {"seconds": float("nan")}, {"seconds": 1e6}, {"seconds": 61}, {"samples": 0}, {"samples": 2},
        {"temperature": -1.0}, {"top_p": 0.0}, {"guidance_scale": -1.0}, {"trust": "both"}, {"frames": 20},
    ):  # fmt: skip
        with pytest.raises(VadisError, match=next(iter(settings))):
            pipe("walk", **{"seconds": 1.0} | settings)
    with pytest.raises(VadisError, match="2 images for 1 prompts"):
        pipe("walk", image=[room(0), room(1)])
    with pytest.raises(VadisError, match="context"):
        pipe.vla.generate([pipe.vla.prompt("walk " * 2100)], 20)


def test_models_without_eyes(dsft: DSFTTokenizer) -> None:
    vla = MotionVLA.build(*load_backbone("tiny-qwen3_5"), dsft)
    with pytest.raises(VadisError, match="text only"):
        vla.prompt("walk", room(0))
    (row,) = vla.generate([vla.prompt("walk")], 20, seed=0)
    assert vla.features(row, 20).shape == (20, 276)


def test_another_tokenizer_is_refused(vla: MotionVLA) -> None:
    other = DSFTTokenizer.fit(clips(), "vimogen276", K=(2, 3), scale=(1.5, 1.0), vocab=(300, 256))
    with pytest.raises(ModelError):
        MotionVLA(vla.model, vla.text_tokenizer, vla.vocabulary, other)


# ---- the pipeline


def test_pipeline_makes_motions(pipe: MotionVLAPipeline) -> None:
    out = pipe(["walk to the red box", "sit"], image=[room(0), None], seconds=1.2, seed=3)
    assert [m.num_frames for m in out.motion] == [24, 24] and out.motion[0].fps == 20
    assert all(d["disagreement"] > 0 for d in out.details) and out.motion[0].meta["prompt"] == "walk to the red box"
    again = pipe("walk to the red box", image=room(0), seconds=1.2, seed=3)
    assert torch.equal(again.features, out.features[0]) and torch.equal(again.features, out[0].features)


def test_streaming_shows_the_base_first(pipe: MotionVLAPipeline) -> None:
    seen = list(pipe.preview("walk", image=room(0), seconds=1.2, every=8, seed=4))
    whole = pipe("walk", image=room(0), seconds=1.2, seed=4)
    assert seen[-1].done and torch.equal(seen[-1].motion.positions, whole.motion.positions)
    shown = [p for p in seen[:-1] if p.motion is not None]
    assert seen[0].motion is None and shown and all(not p.done for p in seen[:-1])
    assert torch.allclose(shown[0].motion.root, whole.motion.root, atol=1e-5)  # the Base stream holds the places
    assert [p.ids for p in seen] == sorted(p.ids for p in seen)


def test_bundle(pipe: MotionVLAPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "bundle", card="# A test\n")
    loaded = vadis.load(tmp_path / "bundle")
    assert isinstance(loaded, MotionVLAPipeline)
    assert (tmp_path / "bundle" / "README.md").read_text() == "# A test\n"
    state, own = loaded.vla.model.state_dict(), pipe.vla.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in own.items())
    first, second = (p("walk", image=room(0), seconds=1.0, seed=0) for p in (pipe, loaded))
    assert torch.equal(first.tokens.base_ids, second.tokens.base_ids)
    assert torch.allclose(first.features, second.features, atol=1e-5)
    pipe.save_pretrained(tmp_path / "bundle")  # replaces a bundle, but nothing else
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(VadisError, match="other files"):
        pipe.save_pretrained(tmp_path / "mine")
    page = tmp_path / "bundle" / "language_model" / "config.json"
    config = page.read_text()
    page.write_text(json.dumps(json.loads(config) | {"image_token_id": -1}))
    with pytest.raises(ModelError, match="language_model: the config's tokens for images are -1"):
        vadis.load(tmp_path / "bundle")
    page.write_text(config)
    page = tmp_path / "bundle" / "language_model" / "scene_packer.json"
    page.write_text('{"max_visual_tokens": "many"}')
    with pytest.raises(ModelError, match="scene_packer"):
        vadis.load(tmp_path / "bundle")
    (tmp_path / "bundle" / "language_model" / "motion_vocabulary.json").unlink()
    with pytest.raises(ModelError):
        vadis.load(tmp_path / "bundle")


def test_the_verb_takes_an_image(pipe: MotionVLAPipeline, tmp_path: Path, capsys: Any) -> None:
    from PIL import Image

    from vadis.cli.generate import Generate

    pipe.save_pretrained(tmp_path / "model")
    Image.fromarray(room(0)).save(tmp_path / "room.png")
    made = Generate(("walk to the red box",), (str(tmp_path / "a.npz"),), str(tmp_path / "model"),
                    image=str(tmp_path / "room.png"), seconds=1.0)  # fmt: skip
    made.run()
    assert vadis.load_motion(tmp_path / "a.npz").num_frames == 20
    with pytest.raises(VadisError, match="no image at"):
        Generate(("walk",), (str(tmp_path / "b.npz"),), str(tmp_path / "model"), image="nowhere.png").run()
    with pytest.raises(ModelError, match="can't see images: leave the image out"):
        Generate(("walk",), (str(tmp_path / "b.npz"),), image=str(tmp_path / "room.png")).run()


# ---- consistency


@pytest.mark.parametrize("name", ["vimogen276", "ms272"])
def test_real_features_agree_already(name: str) -> None:
    rep = representation(name)
    features = rep.encode(procedural_walk(60, rep.fps))
    assert disagreement(features, name) < 1e-2
    for trust in ("base", "phys"):
        assert torch.allclose(consistent(features, name, trust), features, atol=2e-3)


@pytest.mark.parametrize("trust", ["base", "phys"])
@pytest.mark.parametrize("name", ["vimogen276", "ms272"])
def test_streams_agree_afterwards(name: str, trust: Any) -> None:
    rep = representation(name)
    features = rep.encode(procedural_walk(60, rep.fps))
    noisy = features.clone()
    noisy[:, rep.slices["joint_velocities"]] += 0.003 * torch.randn(60 - (name == "vimogen276"), 66)
    if name == "vimogen276":
        noisy[:, rep.slices["translation_velocity"]] += 0.01
    assert disagreement(noisy, name) > 2
    made = consistent(noisy, name, trust)
    assert disagreement(made, name) < 1e-3
    moved = (rep.positions(made) - rep.positions(noisy)).norm(dim=-1).max()
    assert (moved < 1e-5) == (trust == "base")
    if name == "vimogen276" and trust == "phys":  # a centimetre a frame in each direction, over 58 frames
        assert torch.allclose(made[-1, 270:273] - features[-1, 270:273], torch.full((3,), 0.58), atol=1e-3)


def test_consistency_needs_both(pipe: MotionVLAPipeline) -> None:
    with pytest.raises(VadisError, match="can"):
        disagreement(torch.zeros(4, 263), "hml263")
    kept = pipe("walk", seconds=1.0, seed=0)
    base = pipe("walk", seconds=1.0, seed=0, trust="base")
    assert (
        disagreement(base.features, "vimogen276") < 1e-3 < base.details["disagreement"] == kept.details["disagreement"]
    )
    assert disagreement(torch.zeros(1, 272), "ms272") == 0
