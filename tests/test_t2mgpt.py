"""T2M-GPT's transformer by itself: cache, batches, lengths, END, int8, loss, files, CLIP, a pipeline and a training run."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import procedural_walk
from torch import Tensor

import vadis
from vadis.config import build_config
from vadis.data.corpus import Caption, CorpusWriter
from vadis.data.encoded_corpus import encode_corpus
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.generators import T2MGPT, T2MGPTConfig
from vadis.generators.t2mgpt import position_table
from vadis.pipelines.text_to_motion import GenerationConfig, TextToMotionPipeline
from vadis.representations import representation
from vadis.tokenizers import VQTokenizer, VQTokenizerConfig
from vadis.training import train

RECIPES = Path(__file__).parent.parent / "src/vadis/recipes"
TINY = dict(n_layer=2, n_head=2, n_embd=32, mlp_ratio=2, block_size=21, clip_dim=12, nb_code=25)
WORDS = ["a", "person", "walks", "forward", "and", "waves", "someone", "jumps", "walk"]


def tiny(spread: float = 10.0, **changes: object) -> T2MGPT:
    """A random model; `spread` makes its choices differ from step to step."""
    torch.manual_seed(1)
    model = T2MGPT(T2MGPTConfig(**(TINY | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(spread)
    return model


def texts(rows: int = 3) -> Tensor:
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def uncached(model: T2MGPT, text: Tensor, steps: int) -> Tensor:
    made = torch.zeros(1, 0, dtype=torch.long)
    for _ in range(steps):
        made = torch.cat([made, model(text, made)[:, -1, : model.end_id].argmax(-1, keepdim=True)], dim=1)
    return made[0]


# ---- generation


def test_cached_and_batched_equal_uncached_and_single() -> None:
    model, text, steps = tiny(), texts(), [20, 3, 11]
    rows, stopped = model.generate(text, num_tokens=steps)
    assert stopped == ["length"] * 3
    for i, row in enumerate(rows):
        assert torch.equal(row, uncached(model, text[i : i + 1], steps[i]))
        assert torch.equal(row, model.generate(text[i : i + 1, None], num_tokens=steps[i])[0][0])
    assert len({tuple(row.tolist()) for row in rows}) == 3 and len(rows[0].unique()) > 2


def test_rows_end_by_themselves_and_the_cap_is_the_published_one() -> None:
    model, text = tiny(), texts(12)
    rows, stopped = model.generate(text, temperature=2.0, seed=list(range(12)))
    assert {"end", "cap"} >= set(stopped) and "end" in stopped
    for row, why in zip(rows, stopped, strict=True):
        assert 1 <= len(row) <= 20 and (why == "cap") == (len(row) == 20) and int(row.max()) < 25
    alone = model.generate(text[5:6], temperature=2.0, seed=5)[0][0]
    assert torch.equal(alone, rows[5])


def test_end_is_no_first_token_unless_it_may_be() -> None:
    model, text = tiny(block_size=51), texts(2)
    with torch.no_grad():
        model.norm.bias.copy_(F.normalize(torch.ones(32), dim=0) * 100)
        model.logits.weight.add_(-1e-3)
        model.logits.weight[model.end_id] = 1.0
    rows, stopped = model.generate(text)
    assert [len(row) for row in rows] == [1, 1] and stopped == ["end", "end"]
    rows, stopped = model.generate(text, may_be_empty=True)
    assert [len(row) for row in rows] == [0, 0]
    assert [row.tolist() for row in model.generate(text, compat=True)[0]] == [[1], [1]]
    rows, stopped = model.generate(text, num_tokens=7)
    assert [len(row) for row in rows] == [7, 7] and stopped == ["length", "length"]


def test_history_goes_on_where_a_motion_stopped() -> None:
    model, text = tiny(), texts()
    whole, _ = model.generate(text, num_tokens=[18, 12, 9])
    rest, _ = model.generate(
        text, history=[row[:n] for row, n in zip(whole, (5, 9, 2), strict=True)], num_tokens=[13, 3, 7]
    )
    for row, n, tail in zip(whole, (5, 9, 2), rest, strict=True):
        assert torch.equal(row[n:], tail)


def test_int8_is_close_and_neither_saved_nor_lowered_elsewhere(tmp_path: Path) -> None:
    model, small, text = tiny(), tiny(), texts()
    small.lower_precision("int8")
    small.lower_precision("int8")  # no second time
    tokens = torch.randint(25, (3, 20))
    with torch.no_grad():
        exact, near = model(text, tokens), small(text, tokens)
    assert (exact - near).abs().mean() < 0.05 * exact.std()
    rows, stopped = small.generate(text, num_tokens=[20, 3, 11])
    assert [len(row) for row in rows] == [20, 3, 11] and stopped == ["length"] * 3
    with pytest.raises(ModelError, match="save the float32 model"):
        small.save_pretrained(tmp_path / "small")
    with pytest.raises(VadisError, match="only float32 weights on the CPU"):
        tiny().to(torch.bfloat16).lower_precision("int8")
    with pytest.raises(VadisError, match="int4 on cpu"):
        tiny().lower_precision("int4")  # type: ignore[arg-type]


def test_half_precision_stays_close() -> None:
    model, text, tokens = tiny(spread=3.0), texts(), torch.randint(25, (3, 20))
    with torch.no_grad():
        exact, near = model(text, tokens), tiny(spread=3.0).to(torch.bfloat16)(text, tokens)
    assert near.dtype == torch.bfloat16 and (exact - near.float()).abs().mean() < 0.05 * exact.std()


# ---- training


def test_the_loss_is_the_mean_of_the_rows_means_up_to_end() -> None:
    model, text = tiny(), texts()
    tokens, lengths = torch.randint(25, (3, 9)), torch.tensor([9, 1, 4])
    terms = model.loss({"text": text[:, None], "tokens": tokens, "lengths": lengths})
    expected, hits = [], []
    for i, n in enumerate(lengths.tolist()):
        target = torch.cat([tokens[i, :n], torch.tensor([25])])
        logits = model(text[i : i + 1], tokens[i : i + 1, :n])[0]
        expected.append(F.cross_entropy(logits, target))
        hits.append(logits.argmax(-1) == target)
    torch.testing.assert_close(terms["total"], torch.stack(expected).mean())
    assert terms["accuracy"].item() == pytest.approx(torch.cat(hits).float().mean().item())
    filled = torch.where(torch.arange(9) < lengths[:, None], tokens, -1)
    assert torch.equal(
        model.loss({"text": text[:, None], "tokens": filled, "lengths": lengths})["total"], terms["total"]
    )


def test_corruption_changes_inputs_at_its_rate_and_not_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny(nb_code=1000, block_size=51), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda text, tokens: (seen.append(tokens), forward(text, tokens))[1])
    tokens = torch.full((60, 50), 3)
    batch = {"text": texts(60)[:, None], "tokens": tokens, "lengths": torch.full((60,), 50)}
    for fixed in (True, False):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            model.loss(batch, corrupt=0.5, corrupt_fixed=fixed, generator=generator)
        share = (seen[-1] != 3).float().mean(1)
        assert share.mean().item() == pytest.approx(0.5 if fixed else 0.25, abs=0.06)
        assert (share.std() < 0.1) == fixed
    assert bool((tokens == 3).all())


def test_gradients_reach_every_parameter() -> None:
    model = tiny(spread=1.0).train()
    batch = {"text": texts()[:, None], "tokens": torch.randint(25, (3, 9)), "lengths": torch.tensor([9, 1, 4])}
    model.loss(batch, corrupt=0.5, corrupt_fixed=True)["total"].backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


# ---- files


def test_saved_and_loaded_equals_the_original(tmp_path: Path) -> None:
    model, text, tokens = tiny(), texts(), torch.randint(25, (3, 7))
    model.save_pretrained(tmp_path / "gpt")
    again = vadis.load(tmp_path / "gpt")
    assert isinstance(again, T2MGPT) and again.config == model.config
    with torch.no_grad():
        assert torch.equal(model(text, tokens), again(text, tokens))
    assert vadis.load(tmp_path / "gpt", dtype="bf16").logits.weight.dtype == torch.bfloat16


def published(model: T2MGPT, base: int = 1) -> dict[str, Tensor]:
    """The state dict under the published names."""
    c, state = model.config, {}
    names = {"token_embedding.weight": "trans_base.tok_emb.weight", "norm": "trans_head.ln_f", "norm_1": "ln1",
             "logits.weight": "trans_head.head.weight", "norm_2": "ln2", "out": "attn.proj", "mlp_in": "mlp.0",
             "mlp_out": "mlp.2"}  # fmt: skip
    for name, value in model.state_dict().items():
        part, _, end = name.rpartition(".")
        if name.startswith("blocks."):
            _, layer, inner = part.split(".")
            where = f"trans_base.blocks.{layer}" if int(layer) < base else f"trans_head.blocks.{int(layer) - base}"
            if inner == "qkv":
                state |= {
                    f"{where}.attn.{n}.{end}": v for n, v in zip(("query", "key", "value"), value.chunk(3), strict=True)
                }
                state[f"{where}.attn.mask"] = torch.ones(c.block_size, c.block_size).tril()[None, None]
            else:
                state[f"{where}.{names[inner]}.{end}"] = value
        elif part == "text_projection":
            state[f"trans_base.cond_emb.{end}"] = value
        else:
            state[names.get(name, f"{names.get(part)}.{end}")] = value
    state["trans_base.pos_embed.embed"] = position_table(c.block_size, c.n_embd)[:, None]
    state["trans_base.pos_embedding.weight"] = torch.zeros(c.block_size, c.n_embd)
    return state


def test_a_published_file_is_read(tmp_path: Path) -> None:
    model = tiny()
    torch.save({"trans": published(model)}, tmp_path / "net_best_fid.pth")
    again = vadis.import_checkpoint("t2mgpt-gpt", tmp_path / "net_best_fid.pth", n_head=2)
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(
            again(texts(), torch.ones(3, 4, dtype=torch.long)), model(texts(), torch.ones(3, 4, dtype=torch.long))
        )
    state = published(model)
    with pytest.raises(ModelError, match="give n_head"):
        vadis.import_checkpoint("t2mgpt-gpt", state)
    with pytest.raises(ModelError, match="attn.mask is not the published constant"):
        mask = {"trans_head.blocks.0.attn.mask": torch.ones(1, 1, 21, 21)}
        vadis.import_checkpoint("t2mgpt-gpt", state | mask, n_head=2)
    with pytest.raises(ModelError, match="not a T2M-GPT transformer"):
        vadis.import_checkpoint("t2mgpt-gpt", {"encoder.weight": torch.zeros(2, 2)})


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (torch.zeros(2, 13), {}, r"must be \(B, 12\), one vector a prompt; these are \(2, 13\)"),
        (torch.zeros(2, 3, 12), {}, "one vector a prompt"),
        (torch.zeros(0, 12), {}, "one vector a prompt"),
        (torch.full((2, 12), torch.nan), {}, "not finite"),
        (None, {}, "no null prompt"),
        (torch.zeros(2, 12), {"num_tokens": 22}, "this model can make 1 … 21"),
        (torch.zeros(2, 12), {"num_tokens": [3]}, "num_tokens must be one number or 2"),
        (torch.zeros(2, 12), {"temperature": -1.0}, "temperature -1.0 must be"),
        (torch.zeros(2, 12), {"guidance_scale": 2.0}, "guidance_scale must be 1"),
        (torch.zeros(2, 12), {"history": [torch.tensor([25])] * 2}, "history holds ids outside 0 … 24"),
    ],
)
def test_bad_input_of_generate(text: Tensor | None, options: dict[str, object], message: str) -> None:
    with pytest.raises(VadisError, match=message):
        tiny().generate(text, **options)


def test_bad_input_elsewhere() -> None:
    model = tiny()
    with pytest.raises(ShapeError, match="with S < 21; these are"):
        model(texts(), torch.zeros(3, 21, dtype=torch.long))
    with pytest.raises(VadisError, match="must be codes 0 … 24 within lengths"):
        model.loss({"text": texts(1), "tokens": torch.tensor([[3, 25]]), "lengths": torch.tensor([2])})
    with pytest.raises(ModelError, match="must be even and a multiple of n_head"):
        build_config(T2MGPTConfig, {"n_embd": 30, "n_head": 4})


# ---- text, pipeline, training


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> object:
    """CLIP's text side with random weights, tiny: all words are known, features have 12 numbers."""
    pytest.importorskip("transformers", reason="needs transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from vadis.text_encoders import ClipEncoder

    folder = tmp_path_factory.mktemp("clip")
    ids = {word: i for i, word in enumerate([*WORDS, "<unk>", "<start>", "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<start>", ids["<start>"]), ("<end>", ids["<end>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=12)
    config = CLIPTextConfig(vocab_size=len(ids), eos_token_id=ids["<end>"], bos_token_id=ids["<start>"], **sizes)
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return ClipEncoder(folder)


def test_clip_gives_one_projected_vector_a_prompt_whatever_is_beside_it(clip: object) -> None:
    prompts = ["a person walks forward and waves", "someone jumps"]
    features, lengths = clip.encode(prompts)
    assert features.shape == (2, 1, 12) and lengths.tolist() == [1, 1] and clip.dim == 12
    end = clip.tokenizer.token_to_id("<end>")
    for prompt, feature in zip(prompts, features, strict=True):
        ids = clip.tokenizer.encode(prompt).ids
        assert ids[-1] == end
        padded = torch.tensor([ids + [end] * (77 - len(ids))])  # the published program fills up to 77
        with torch.no_grad():
            expected = clip.model(input_ids=padded).text_embeds
        torch.testing.assert_close(feature, expected, atol=1e-5, rtol=1e-5)
    assert abs(float(features[0].norm()) - 1) > 1e-3  # not normalised
    with pytest.warns(UserWarning, match="longer than 77 tokens"):
        long, _ = clip.encode("walk " * 100)
    assert torch.equal(long, clip.encode("walk " * 75)[0])


def test_the_authors_folder_of_clip_holds_a_pickle_that_is_read_with_care(clip: object, tmp_path: Path) -> None:
    from vadis.text_encoders import ClipEncoder

    clip.model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    clip.tokenizer.save(str(tmp_path / "tokenizer.json"))
    torch.save(clip.model.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(ClipEncoder(tmp_path).encode("someone jumps")[0], clip.encode("someone jumps")[0])


def tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    rep = representation("hml263")
    made = VQTokenizer(VQTokenizerConfig(width=16, code_dim=8, depth=1, codebook_size=25))
    clips = [rep.encode(procedural_walk(80, fps=20.0, turn=turn)) for turn in (0.0, 0.5)]
    mean, std = rep.statistics(clips)
    made.set_statistics(torch.as_tensor(mean), torch.as_tensor(std).clamp_min(1e-3))
    return made.eval()


def test_a_bundle_makes_motions_of_sentences(clip: object, tmp_path: Path) -> None:
    config = GenerationConfig(
        text_encoder="clip-vit-b32", seconds=None, temperature=1.0, max_seconds=3.6, source="positions"
    )
    TextToMotionPipeline(tokenizer(), tiny(), config=config).save_pretrained(tmp_path / "bundle")
    pipe = vadis.load(tmp_path / "bundle", text_encoder=clip)
    out = pipe("a person walks", seed=3)
    assert out.stopped_by in ("end", "cap") and out.motion.fps == 20
    assert out.motion.num_frames == 4 * len(out.tokens) and 1 <= len(out.tokens) <= 18
    assert torch.equal(pipe("a person walks", seed=3).features, out.features)
    asked = pipe(["a person walks", "someone jumps"], seconds=[2.0, 6.35], seed=3)  # the second in two windows
    assert [m.num_frames for m in asked.motion] == [40, 127] and asked.stopped_by == ["length", "length"]
    prompts = ["a person walks", "someone jumps", "a person waves"]
    for length in (None, [1.0, 3.0, 2.5]):
        many = pipe(prompts, seconds=length, seed=7)  # one call of the generator
        for i, prompt in enumerate(prompts):
            alone = pipe(prompt, seconds=length and length[i], seed=7 + i)
            assert torch.equal(alone.tokens, many.tokens[i]) and alone.stopped_by == many.stopped_by[i]
    streamed = torch.cat([c.features for c in pipe.stream("a person walks", seconds=2.0, seed=3)])
    torch.testing.assert_close(streamed, asked.features[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(VadisError, match="a stream needs a length"):
        next(iter(pipe.stream("a person walks")))
    pipe.generator.lower_precision("int8")
    assert pipe("a person walks", seconds=1.0, seed=3).motion.num_frames == 20


def test_a_codebook_of_another_size_is_refused() -> None:
    with pytest.raises(ModelError, match="they don't belong together"):
        TextToMotionPipeline(tokenizer(), tiny(nb_code=24))


def test_the_published_recipe_trains_at_tiny_size(clip: object, tmp_path: Path) -> None:
    rep = representation("hml263")
    with CorpusWriter(tmp_path / "corpus", representation="hml263", fps=20) as writer:
        for i in range(5):
            features = rep.encode(procedural_walk(40 + 4 * i, fps=20.0, turn=0.2 * i))
            split = "val" if i == 4 else "train"
            captions = [Caption(["a person walks", "someone jumps"][i % 2], 0, 10)]
            writer.add(f"w{i}", features, captions, split=split, group=f"g{i}", source="test", licence="CC0-1.0")
    encoded = encode_corpus(
        vadis.data.corpus.Corpus.open(tmp_path / "corpus"), tokenizer(), clip, tmp_path / "encoded", progress=False
    )
    assert encoded.text_dim == 12 and encoded.about["longest_text"] == 1
    overrides = [f"data.corpus={tmp_path / 'encoded'}", f"run={tmp_path / 'run'}", "device=cpu", "steps=30", "seed=1",
                 "validate_every=30", "validation_batches=1", "checkpoint_every=30", "log_every=5", "data.batch=4",
                 "optimizer.lr=3e-3", *(f"model.{name}={value}" for name, value in TINY.items())]  # fmt: skip
    model = vadis.load(train(RECIPES / "t2mgpt-gpt.yaml", overrides))
    assert isinstance(model, T2MGPT)
    batch = encoded.batch(range(4), torch.Generator().manual_seed(0))
    batch["lengths"] = batch["token_lengths"]
    new = T2MGPT(model.config).eval()
    with torch.no_grad():
        assert model.loss(batch)["total"] < 0.9 * new.loss(batch)["total"]
    for setting, message in (
        ("data.text_dropout=0.1", "needs model.null_text"),
        ("data.length_dropout=0.1", "needs model.length_conditioning"),
        ("model.nb_code=24", "the data need 25"),
    ):
        with pytest.raises(VadisError, match=message):
            train(RECIPES / "t2mgpt-gpt.yaml", [*overrides, setting])
