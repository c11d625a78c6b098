"""Learned embeddings of motion and text, which text-to-motion metrics are computed on."""

from vadis.evaluators.base import Evaluator
from vadis.evaluators.guo import GuoConfig, GuoEvaluator
from vadis.evaluators.tmr import TMRConfig, TMREvaluator

__all__ = ["Evaluator", "GuoConfig", "GuoEvaluator", "TMRConfig", "TMREvaluator"]
