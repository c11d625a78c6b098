"""`vadis data encode CORPUS OUT --tokenizer MODEL`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, output_folder, say
from vadis.cli.writing import Out, Target

if TYPE_CHECKING:
    from torch import Tensor

    from vadis.data.encoded_corpus import PlanFunction


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Turn a corpus into what a generator trains on: motion tokens, text features and kinematic plans, computed once.

    vadis data encode corpora/cmu corpora/cmu-tokens --tokenizer runs/tokenizer/model
    """

    corpus: Annotated[Positional[str], arg(metavar="CORPUS")]
    """Folder of the corpus."""
    target: Target = None
    """Folder to write; an existing one is replaced once everything is done."""
    out: Out = ()
    """The same as OUT."""
    tokenizer: str
    """The trained tokenizer: a folder, a bundled model or a Hub id."""
    text_encoder: str = "minilm"
    """minilm, flan-t5-xl, sentence-t5-xxl or clip-vit-b32."""
    text_encoder_source: str | None = None
    """A folder or Hub id of the text encoder's weights, instead of the usual one."""
    plan: bool = True
    """Also measure the kinematic plan of every stretch."""
    min_seconds: float = 0.4
    """Shorter stretches are left out."""
    max_seconds: float | None = None
    """Longer stretches are left out."""
    device: str = "cpu"
    """cpu or cuda."""
    allow_download: bool = False
    """Fetch from the Hub what a file in the model's folder names there."""

    def run(self) -> None:
        out = output_folder(self.target, self.out, "vadis data encode")
        path = check_input(self.corpus)
        from vadis.data.corpus import Corpus
        from vadis.data.encoded_corpus import encode_corpus
        from vadis.pipelines.load import load_tokenizer
        from vadis.text_encoders import text_encoder

        corpus = Corpus.open(path)
        tokenizer = load_tokenizer(self.tokenizer, device=self.device, allow_download=self.allow_download)
        encoder = text_encoder(self.text_encoder, self.text_encoder_source, self.device)
        plan = _plan_function(corpus) if self.plan else None
        limits: dict[str, Any] = {"min_seconds": self.min_seconds, "max_seconds": self.max_seconds}
        encoded = encode_corpus(corpus, tokenizer, encoder, out, plan, about={"tokenizer": self.tokenizer}, **limits)
        say(f"{len(encoded)} captioned stretches")
        print(out)


def _plan_function(corpus: Any) -> "PlanFunction":
    """Features `(T, D)` to the plan `(P, A)` of their motion, everything known."""
    import torch

    from vadis.kinematics import kinematic_plan
    from vadis.representations import representation

    rep = representation(corpus.representation)

    def plan(features: "Tensor") -> "tuple[Tensor, Tensor]":
        values = kinematic_plan(rep.decode(features).positions, corpus.fps)
        return values, torch.ones_like(values, dtype=torch.bool)

    return plan
