"""A model becomes a `Task`."""

from ddm_jax.tasks.linen import classification, regression

__all__ = ["classification", "regression"]
