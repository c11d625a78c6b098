"""Small models with random weights that other inputs are made with."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from fuzzing.motions import walk
from vadis.generators.planner import KinematicPlanner, KinematicPlannerConfig
from vadis.kinematics import ATTRIBUTES, PLAN_ROWS
from vadis.loading import component_classes
from vadis.representations import representation
from vadis.tokenizers.dsft import DSFTTokenizer

TOKENIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vq": ("vq", dict(code_dim=16, codebook_size=32)),
    "fsq": ("fsq", dict(code_dim=16, levels=(5, 5, 5))),
    "fsq groups": ("fsq", dict(code_dim=8, levels=(5, 5, 5, 5), groups=2)),
    "lfq1d": ("lfq1d", dict(code_dim=16, bits=6)),
    "lfq2d": ("lfq2d", dict(bits=6)),
    "rvq": ("rvq", dict(code_dim=16, codebook_size=16, num_quantizers=3)),
    "mg_vq": ("mg_vq", dict(code_dim=16, groups=4, codebook_size=16)),
    "causal_tae": ("causal_tae", dict(latent_dim=4)),
}


def features(frames: int = 96, seed: int = 0) -> torch.Tensor:
    """272 features of a walk."""
    return representation("ms272").encode(walk(frames, seed=seed))


@cache
def small_tokenizer(name: str) -> Any:
    """A tokenizer of TOKENIZERS, its statistics those of a walk."""
    torch.manual_seed(0)
    kind, fields = TOKENIZERS[name]
    cls = component_classes()[kind]
    common = (
        dict(width=16) if kind == "causal_tae" else dict(representation="ms272", feature_dim=272, fps=30.0, width=16)
    )
    tokenizer = cls(cls.config_class(**(common | fields)))
    for label, buffer in tokenizer.named_buffers():
        if label.endswith("codebook"):
            buffer.copy_(torch.randn(buffer.shape) * 0.2)
    x = features()
    tokenizer.set_statistics(x.mean(0), x.std(0).clamp_min(0.01))
    return tokenizer.eval()


@cache
def small_dsft(name: str = "ms272") -> DSFTTokenizer:
    """A DSFT tokenizer fitted to noise that is as smooth as motion."""
    noise, width = torch.Generator().manual_seed(0), representation(name).dim
    clips = [torch.randn(n, width, generator=noise).cumsum(0) / 5 for n in (40, 60, 52)]
    return DSFTTokenizer.fit(clips, name, vocab=(200, 200))


class _Words:
    """A text encoder without weights: vectors that the text decides."""

    name, dim, sentence_dim, max_tokens = "words", 6, 6, 64

    def encode_each(self, texts: Any) -> Any:
        for number, text in enumerate(texts):
            draw = torch.Generator().manual_seed(sum(map(ord, text)))
            yield number, torch.randn(1 + len(text.split()), self.dim, generator=draw)

    def encode(self, texts: Any) -> Any:
        found = [hidden for _, hidden in self.encode_each([texts] if isinstance(texts, str) else texts)]
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True), torch.tensor([len(hidden) for hidden in found])

    def sentence(self, texts: Any) -> torch.Tensor:
        texts = [texts] if isinstance(texts, str) else list(texts)
        return torch.stack([hidden.mean(0) for _, hidden in self.encode_each(texts)])

    def null_sentence(self) -> torch.Tensor:
        return torch.zeros(self.dim)


def words() -> Any:
    """A text encoder without weights."""
    return _Words()


GENERATORS: dict[str, dict[str, Any]] = {
    "motionmillion": dict(n_layer=1, n_head=2, n_embd=16, block_size=64, clip_dim=6, nb_code=25, groups=2,
                          length_conditioning=True, null_text=True, plan_dim=len(ATTRIBUTES), plan_tokens=PLAN_ROWS),
    "t2mgpt": dict(n_layer=2, n_head=2, n_embd=16, block_size=24, clip_dim=6, nb_code=32),
    "motionstreamer": dict(n_layer=2, n_head=2, n_embd=16, block_size=14, text_dim=6, latent_dim=4, head_layers=1, head_width=16),
}  # fmt: skip


@cache
def small_generator(name: str) -> Any:
    """A generator of GENERATORS with random weights."""
    torch.manual_seed(0)
    cls = component_classes()[name]
    return cls(cls.config_class(**GENERATORS[name])).eval()


@cache
def small_planner() -> Any:
    """A planner of eight text features."""
    torch.manual_seed(0)
    return KinematicPlanner(KinematicPlannerConfig(text_dim=6, width=16, layers=1, heads=2)).eval()


@cache
def small_evaluator(name: str) -> Any:
    """An evaluator with random weights: "tmr" or "guo"."""
    from vadis.evaluators import GuoConfig, GuoEvaluator, TMRConfig, TMREvaluator
    from vadis.evaluators.tmr import DistilBertConfig

    torch.manual_seed(0)
    if name == "guo":
        sizes = dict(movement_width=8, motion_width=8, text_width=8, embedding_dim=6, word_dim=4)
        return GuoEvaluator(GuoConfig(vocabulary=("sos", "eos", "unk", "a", "walk"), **sizes)).eval()
    bert = DistilBertConfig(vocab_size=50, positions=12, width=16, ff=16, layers=1, heads=2)
    return TMREvaluator(
        TMRConfig(width=16, layers=1, heads=2, ff=16, min_frames=8, max_frames=120, distilbert=bert)
    ).eval()


def language_model(folder: Path, form: str, backbone: str = "tiny-llama") -> None:
    """A tiny language model that speaks the tokens of the small vq tokenizer: "full", with an "adapter", or a "delta"."""
    from vadis.language.add_motion import extend
    from vadis.language.backbones import load_backbone
    from vadis.language.checkpoints import save_delta, save_language_model
    from vadis.language.layout import MotionLayout

    torch.manual_seed(0)
    tokenizer = small_tokenizer("vq")
    model, text = load_backbone(backbone)
    vocabulary = extend(model, text, MotionLayout.of(tokenizer), tokenizer)
    if form == "adapter":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
        ).eval()
    if form == "delta":
        save_delta(folder, model, text, vocabulary, backbone)
    else:
        save_language_model(folder, model, text, vocabulary)
