"""The library's own networks: of images and tables in flax.linen, of language in flax NNX."""

from typing import Any

from ddm_jax.models.images import MLP as MLP
from ddm_jax.models.images import ConvNet as ConvNet
from ddm_jax.models.images import Convolution as Convolution
from ddm_jax.models.images import Logistic as Logistic
from ddm_jax.models.images import ResNet as ResNet
from ddm_jax.models.images import average_pool as average_pool
from ddm_jax.models.images import dense as dense
from ddm_jax.models.images import make_module as make_module
from ddm_jax.models.images import normalisation as normalisation


def __getattr__(name: str) -> Any:
    """NNX is imported where a model of language is asked for."""
    if name == "GPT":
        from ddm_jax.models.gpt import GPT

        return GPT
    if name in ("BASE", "load_gpt2", "save_gpt2"):
        from ddm_jax.models import gpt2

        return getattr(gpt2, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
