"""Pipelines whose parts are components of vadis: a tokenizer, a generator, perhaps a planner, and a frozen text encoder."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from vadis.errors import about
from vadis.pipelines.base import Pipeline, PipelineConfig
from vadis.places import HubName


class ComponentPipeline(Pipeline):
    """Text encoder, planner if there is one, generator, tokenizer."""

    generators: ClassVar[type]
    """Base class of the generators that it can use."""
    options_of_loading = ("tokenizer", "generator", "planner", "text_encoder")
    continuous: ClassVar[bool] = False
    """The tokenizer makes latents."""

    def __init__(
        self,
        tokenizer: Any,
        generator: Any,
        planner: Any | None = None,
        text_encoder: Any | None = None,
        config: PipelineConfig | None = None,
    ) -> None:
        """Raises ModelError for parts that don't belong together."""
        self.tokenizer, self.generator, self.planner = tokenizer, generator, planner
        super().__init__(config)
        self._text_encoder = text_encoder
        self._text_source: Path | HubName | None = None  # where its weights are, when not in their usual place
        self._check_parts()

    @abstractmethod
    def _check_parts(self) -> None:
        """Raise ModelError where parts don't belong together."""

    @property
    def model(self) -> Any:
        return self.generator

    @property
    def networks(self) -> tuple[Any, ...]:
        return (self.tokenizer, self.generator, self.planner)

    @property
    def text_encoder(self) -> Any:
        """The frozen text encoder, loaded when first needed."""
        with self._lock:
            if self._text_encoder is None:
                from vadis.text_encoders import text_encoder

                self._text_encoder = text_encoder(self.config.text_encoder, self._text_source)
            return self._text_encoder

    def warm(self) -> None:
        self.text_encoder  # noqa: B018 - loaded when first asked for

    def _move(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        # the planner stays on the CPU, like the text encoder that it reads
        self.tokenizer.to(device=device)
        self.generator.to(device=device, dtype=dtype)

    @classmethod
    def _open(cls, folder: Path, config: Any, *, dtype: Any, device: Any, allow_download: bool, **given: Any) -> Self:
        from vadis.devices import pick_device
        from vadis.loading import check_parts, load_bundle
        from vadis.text_encoders import encoder_source

        if dtype is None and pick_device(device).type == "cpu":
            dtype = "float32"  # weights may be stored in half precision, which a CPU computes slowly
        parts = load_bundle(folder, dtype=dtype, device=device, **given)
        check_parts(folder, parts, given, cls.generators, cls.continuous)
        encoder, stored = parts.get("text_encoder"), None
        if isinstance(encoder, dict | list):
            encoder, stored = None, encoder_source(folder, encoder, config.text_encoder, allow_download)
        with about(folder):
            pipe = cls(parts["tokenizer"], parts["generator"], parts.get("planner"), encoder, config)
        pipe._text_source = stored
        return pipe

    def _parts(self) -> dict[str, Any]:
        from vadis.text_encoders import encoder_entry

        parts = {"tokenizer": self.tokenizer, "generator": self.generator}
        if self.planner is not None:
            parts["planner"] = self.planner
        encoder = encoder_entry(self.config.text_encoder, self._text_encoder, self._text_source)
        return parts | {"text_encoder": encoder}
