"""A model becomes a `Task`."""

from ddm_jax.tasks.freeze import freeze, merge
from ddm_jax.tasks.makers import classification, multilabel, regression

__all__ = ["classification", "freeze", "merge", "multilabel", "regression"]
