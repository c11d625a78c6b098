"""Small motion tokenizers and language models that speak them, for tests of layouts, vocabularies and files."""

from typing import Any

import torch
from torch import Tensor

from vadis.language.add_motion import MotionTokenizerFacts, MotionVocabulary, extend
from vadis.language.backbones import load_backbone
from vadis.language.layout import MotionLayout
from vadis.loading import component_classes
from vadis.tokenizers.dsft import DSFTTokenizer

SMALL = dict(representation="ms272", feature_dim=272, fps=30.0, width=16)
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vq": ("vq", dict(code_dim=16, codebook_size=32), {}),
    "fsq": ("fsq", dict(code_dim=16, levels=(5, 5, 5)), {}),
    "fsq groups": ("fsq", dict(code_dim=16, levels=(5, 5, 5, 5), groups=2), {}),
    "lfq": ("lfq1d", dict(code_dim=16, bits=6), {}),
    "lfq groups": ("lfq1d", dict(code_dim=16, bits=5, groups=3), {"order": "part"}),
    "lfq2d by time": ("lfq2d", dict(bits=6), {}),
    "lfq2d by part": ("lfq2d", dict(bits=6), {"order": "part"}),
    "lfq2d, symbols of its own each": ("lfq2d", dict(bits=4), {"order": "part", "shared": False}),
    "rvq": ("rvq", dict(code_dim=16, codebook_size=16, num_quantizers=3), {}),
    "rvq delayed": ("rvq", dict(code_dim=16, codebook_size=16, num_quantizers=3), {"kind": "delayed"}),
    "rvq delayed, shared": (
        "rvq",
        dict(code_dim=16, codebook_size=16, num_quantizers=3, shared_codebook=True),
        {"kind": "delayed"},
    ),
    "rvq of one level": ("rvq", dict(code_dim=16, codebook_size=16, num_quantizers=1), {}),
    "mg_vq": ("mg_vq", dict(code_dim=16, groups=4, codebook_size=16), {}),
}


def motion_tokenizer(family: str) -> Any:
    torch.manual_seed(0)
    kind, fields, _ = FAMILIES[family]
    cls = component_classes()[kind]
    tokenizer = cls(cls.config_class(**(SMALL | fields)))
    for name, buffer in tokenizer.named_buffers():
        if name.endswith("codebook"):
            buffer.copy_(torch.randn(buffer.shape) * 0.2)
    return tokenizer.eval()


def layout_of(family: str) -> MotionLayout:
    return MotionLayout.of(motion_tokenizer(family), **FAMILIES[family][2])


LAYOUTS = {family: layout_of(family) for family in FAMILIES}
HOSTILE = "walk <mot><mot_3></mot> <|im_end|> then <mot_31> and <|endoftext|>"
CAPTIONS = ["a person walks forward", "he jumps and turns left", "someone waves with the right hand"]
FACTS = MotionTokenizerFacts("vq", "0" * 64, "ms272", 30.0, 4)


def small_dsft() -> DSFTTokenizer:
    noise = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, 272, generator=noise).cumsum(0) / 5 for n in (40, 60, 52)]
    return DSFTTokenizer.fit(clips, "ms272", vocab=(200, 200))


def tokens_for(layout: MotionLayout, steps: int, seed: int) -> Tensor:
    shape = (steps, layout.groups) if layout.grouped or layout.groups > 1 else (steps,)
    return torch.randint(layout.codes, shape, generator=torch.Generator().manual_seed(seed))


def made(backbone: str = "tiny-gpt2", family: str = "vq", **options: Any) -> tuple[Any, Any, MotionVocabulary]:
    model, text_tokenizer = load_backbone(backbone)
    vocabulary = extend(model, text_tokenizer, LAYOUTS[family], motion_tokenizer(family), **options)
    return model, text_tokenizer, vocabulary
