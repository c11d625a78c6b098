"""What every saved model part shares: a kind, a config class, and saving and loading under the layout of `vadis.component_files`."""

from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from vadis.errors import ModelError, about


class Part:
    """A part of a model that has a folder of its own.

    `kind` says its place on the road (tokenizer, generator, planner, evaluator); `config.type` names its class in `vadis.loading`.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type]
    own_files: ClassVar[bool] = False
    """It writes and reads files of its own (`save_pretrained`, `from_folder`) instead of a config and a state dict."""
    config: Any

    def save_pretrained(self, folder: str | Path) -> None:
        """Write it to a folder that `vadis.load` reads."""
        from vadis.component_files import save_pretrained

        save_pretrained(self, folder)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Any:
        """The part in a folder with files of its own; asked only where `own_files`."""
        raise NotImplementedError


class MotionTokenizer(Part):
    """What every motion tokenizer says of itself; `vadis.tokenizers.base.Tokenizer` is that of networks."""

    kind = "tokenizer"
    continuous: ClassVar[bool] = False
    """Tokens are latents, not integers."""
    two_streams: ClassVar[bool] = False
    """Tokens are an `Encoded` of two streams that speak of the whole clip (DSFT), not a row in the order of time."""
    grouped: bool = False
    """A step in time is a row of tokens (S, G), even where G is 1."""
    parts: tuple[str, ...] = ()
    """Names of the parts of the body that have a column of tokens each, if they do."""


class Component(Part, nn.Module):
    """A module built from one frozen config, `cls(config)`, whose state dict is all there is to save.

    `keep_float32` components ignore a lower precision asked for at load.
    """

    keep_float32: ClassVar[bool] = False
    meta_safe: ClassVar[bool] = False
    """The module keeps no unsaved tensor, so it may be built on the meta device and filled by assignment."""
    may_be_unset: ClassVar[tuple[str, ...]] = ()
    """Buffers that are NaN throughout as long as nobody has set them; all other weights are finite."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, dtype: Any = None, device: Any = None, strict: bool = True, **hub: Any
    ) -> Self:
        """Load from a folder, a bundled name or a Hub id, as `vadis.load` does; ModelError when it holds another class."""
        from vadis.component_files import read_component, read_page
        from vadis.devices import pick_device
        from vadis.hub import find_folder

        folder = find_folder(source, **hub)
        own = next(field.default for field in fields(cls.config_class) if field.name == "type")
        if (kind := read_page(folder).get("type")) != own:
            raise ModelError(f"{source} holds a model of the type {kind!r:.60}, not a {cls.__name__}: use vadis.load.")
        with about(folder):
            return read_component(cls, folder, dtype, pick_device(device), strict)
