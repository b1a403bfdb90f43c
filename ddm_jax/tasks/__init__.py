"""A model becomes a `Task`."""

from ddm_jax.tasks.freeze import freeze, merge
from ddm_jax.tasks.generate import make_generate
from ddm_jax.tasks.language import completions, each_token, language, sequences
from ddm_jax.tasks.makers import classification, multilabel, regression

__all__ = [
    "classification",
    "completions",
    "each_token",
    "freeze",
    "language",
    "make_generate",
    "merge",
    "multilabel",
    "regression",
    "sequences",
]
