"""The motion grammar inside vLLM: a processor of one request, and the adapter class through which vLLM (V1) finds it.

    LLM(model=FOLDER, logits_processors=["vadis.language.grammar_vllm:MotionAdapter"],
        additional_config={"motion_tokenizer": FOLDER})                  # the tokenizer: for exact lengths of DSFT
    SamplingParams(extra_args={"motion": {"length": 50}}, stop_token_ids=[end])

Experimental: the processor of a request is tested, the adapter only against vLLM's documentation, never inside it.

FOLDER holds the model and its `motion_vocabulary.json`. Requests without "motion" in `extra_args` are left alone. vLLM is
imported only when the adapter is asked for; the processor itself needs nothing but torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vadis.errors import MissingExtra, VadisError
from vadis.language.grammar import MotionGrammar

SETTINGS = ("length", "shortest", "longest")


class MotionRequestProcessor:
    """`(output_ids, logits) -> logits` of one request: forbids what would make its motion ill-formed.

    Args:
        vocabulary: a `MotionVocabulary`.
        tokenizer: the motion tokenizer; see `MotionGrammar`.
        settings: `length`, or `shortest` and `longest`.
        finish: ids that may follow the end.
    """

    def __init__(
        self, vocabulary: Any, tokenizer: Any | None = None, finish: Sequence[int] = (), **settings: Any
    ) -> None:
        self._make = lambda: MotionGrammar(vocabulary, 1, tokenizer=tokenizer, finish=finish, **settings)
        self._grammar, self._seen = self._make(), 0

    def __call__(self, output_ids: Sequence[int], logits: Tensor) -> Tensor:
        """Logits `(V,)` with -inf at what can't follow the ids so far; only ids that are new since the last call are read."""
        if len(output_ids) < self._seen:  # the engine began the request anew
            self._grammar, self._seen = self._make(), 0
        for token in output_ids[self._seen :]:
            self._grammar.advance(torch.tensor([token]), strict=False)
        self._seen = len(output_ids)
        mask = self._grammar.mask()[0].to(logits.device)
        mask = torch.nn.functional.pad(mask, (0, logits.shape[-1] - len(mask)))
        return logits.masked_fill(~mask, -torch.inf)


def motion_settings(extra_args: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The settings of a request's `extra_args`, None where it asks for no motion. Raises VadisError for others."""
    wanted = (extra_args or {}).get("motion")
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping) or set(wanted) - set(SETTINGS):
        raise VadisError(f'extra_args["motion"] must be a dict with some of {", ".join(SETTINGS)}; got {wanted!r:.80}.')
    for name, value in wanted.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise VadisError(f'extra_args["motion"]: {name} must be a whole number of at least 1, not {value!r:.40}.')
    return dict(wanted)


def adapter_class() -> type:
    """The class for vLLM's `logits_processors`. Raises MissingExtra without vLLM."""
    try:
        from vllm.v1.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
            AdapterLogitsProcessor,
        )
    except ImportError as error:
        raise MissingExtra("this needs vLLM (V1 engine): pip install vllm") from error

    class MotionAdapter(AdapterLogitsProcessor):
        """Gives each request that asks for motion its own processor."""

        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            super().__init__(vllm_config, device, is_pin_memory)
            from vadis.language.add_motion import MotionVocabulary
            from vadis.loading import load

            self._vocabulary = MotionVocabulary.load(vllm_config.model_config.model)
            source = dict(getattr(vllm_config, "additional_config", None) or {}).get("motion_tokenizer")
            self._tokenizer = None if source is None else load(source)

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            motion_settings(sampling_params.extra_args)

        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params: Any) -> MotionRequestProcessor | None:
            settings = motion_settings(params.extra_args)
            if settings is None:
                return None
            finish = list(params.stop_token_ids or [])
            return MotionRequestProcessor(self._vocabulary, self._tokenizer, finish, **settings)

    return MotionAdapter


def __getattr__(name: str) -> Any:
    if name == "MotionAdapter":
        return adapter_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
