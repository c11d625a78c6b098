"""A pipeline, or the tokenizer of one, where another kind of model would be of no use."""

from pathlib import Path
from typing import Any

from vadis.component import MotionTokenizer
from vadis.errors import ModelError
from vadis.loading import load
from vadis.pipelines.base import Pipeline
from vadis.places import HubName


def load_pipeline(source: str | Path | HubName, **options: Any) -> Any:
    """The pipeline of that name, folder or Hub id; options as in `load`. Raises ModelError for a part of a model."""
    loaded = load(source, **options)
    if not isinstance(loaded, Pipeline):
        raise ModelError(f"{source} holds a {type(loaded).__name__}, which is one part of a model: name a whole one.")
    return loaded


def load_tokenizer(source: str | Path | HubName, **options: Any) -> Any:
    """The tokenizer of that name, folder or Hub id, or that of the pipeline there; ModelError for anything else."""
    loaded = load(source, **options)
    tokenizer = loaded.tokenizer if isinstance(loaded, Pipeline) else loaded
    if not isinstance(tokenizer, MotionTokenizer):
        raise ModelError(f"{source} holds a {type(tokenizer).__name__}, not a tokenizer or a pipeline with one.")
    return tokenizer
