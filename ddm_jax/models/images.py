"""The library's own networks, in flax.linen.

Every network normalises within one example (never over a batch), so that a per-example gradient
depends on the parameters and that example alone. Convolutions are `convolution.convolve`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddm_jax.checks import check_choice
from ddm_jax.compute.convolution import convolve
from ddm_jax.types import Array


class Convolution(nn.Module):
    """Convolution with zero padding `(size - 1) // 2`; see `convolution.convolve`.

    `[B, H, W, D] -> [B, ceil(H / stride), ceil(W / stride), width]` for odd `size`.
    """

    width: int
    size: int = 3
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        depth = x.shape[-1]
        kernel = self.param(
            "kernel", nn.initializers.he_normal(), (self.size, self.size, depth, self.width)
        )
        out = convolve(x, kernel, self.stride)
        if self.use_bias:
            out = out + self.param("bias", nn.initializers.zeros, (self.width,))
        return out


def average_pool(x: Array) -> Array:
    """Average over 2x2 blocks; an odd last row or column is dropped. `[B, H, W, D]`."""
    batch, height, width, depth = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, depth).mean((2, 4))


def normalisation(name: str, width: int) -> nn.Module:
    """Per-example normalisation: "instance" (one group a channel) or "group" (up to 8 groups)."""
    check_choice("norm", name, ("instance", "group"))
    if name == "instance":
        return nn.GroupNorm(num_groups=None, group_size=1)
    return nn.GroupNorm(num_groups=max(g for g in range(1, 9) if width % g == 0))


def dense(width: int, initial: str, fan_in: int) -> nn.Dense:
    """Fully connected layer, by how it starts.

    "lecun" is flax's own: weights of variance 1/fan_in, biases zero. "uniform" is PyTorch's:
    both uniform in `+-1/sqrt(fan_in)`.
    """
    check_choice("initial", initial, ("lecun", "uniform"))
    if initial == "lecun":
        return nn.Dense(width)
    bound = fan_in**-0.5

    def draw(key, shape, dtype=jnp.float32, **kwargs):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(width, kernel_init=draw, bias_init=draw)


class Logistic(nn.Module):
    """Multinomial logistic regression."""

    num_classes: int
    initial: str = "lecun"  # see `dense`

    @nn.compact
    def __call__(self, x: Array, return_features: bool = False) -> Array:
        x = x.reshape(x.shape[0], -1)
        return x if return_features else dense(self.num_classes, self.initial, x.shape[-1])(x)


class MLP(nn.Module):
    """Fully connected ReLU network; `dropout` after each hidden layer, in training only."""

    num_classes: int
    hidden: Sequence[int] = (64,)
    dropout: float = 0.0  # in [0, 1)
    initial: str = "lecun"  # see `dense`

    @nn.compact
    def __call__(self, x: Array, return_features: bool = False, train: bool = False) -> Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(dense(width, self.initial, x.shape[-1])(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x if return_features else dense(self.num_classes, self.initial, x.shape[-1])(x)


class ConvNet(nn.Module):
    """The ConvNet of dataset condensation (Zhao, Mopuri & Bilen 2021, arXiv 2006.05929).

    `depth` blocks of 3x3 convolution, normalisation, ReLU and 2x2 average pooling, then a
    linear layer. Every block halves the image, so `depth` is at most log2 of its smaller side.
    """

    num_classes: int
    width: int = 32
    depth: int = 3
    norm: str = "instance"

    @nn.compact
    def __call__(self, x: Array, return_features: bool = False) -> Array:
        for block in range(self.depth):
            if min(x.shape[1:3]) < 2:
                raise ValueError(
                    f"depth={self.depth} halves the image {self.depth} times, but after "
                    f"{block} of them it is {x.shape[1]}x{x.shape[2]}; use depth <= {block}"
                )
            x = Convolution(self.width)(x)
            x = average_pool(nn.relu(normalisation(self.norm, self.width)(x)))
        x = x.reshape(x.shape[0], -1)
        return x if return_features else nn.Dense(self.num_classes)(x)


class ResNet(nn.Module):
    """Residual network (He et al. 2016) with GroupNorm and a 3x3 stem, for small images.

    `blocks[i]` basic blocks at `width * 2**i` channels; each stage but the first halves the
    image. `blocks=(2, 2, 2, 2)`, `width=64` is ResNet-18.
    """

    num_classes: int
    width: int = 16
    blocks: Sequence[int] = (1, 1, 1)
    norm: str = "group"

    @nn.compact
    def __call__(self, x: Array, return_features: bool = False) -> Array:
        x = Convolution(self.width, use_bias=False)(x)
        x = nn.relu(normalisation(self.norm, self.width)(x))
        for stage, count in enumerate(self.blocks):
            width = self.width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                y = Convolution(width, stride=stride, use_bias=False)(x)
                y = nn.relu(normalisation(self.norm, width)(y))
                y = Convolution(width, use_bias=False)(y)
                y = normalisation(self.norm, width)(y)
                if x.shape != y.shape:
                    x = Convolution(width, size=1, stride=stride, use_bias=False)(x)
                    x = normalisation(self.norm, width)(x)
                x = nn.relu(x + y)
        x = x.mean((1, 2))
        return x if return_features else nn.Dense(self.num_classes)(x)


def make_module(name: str, num_classes: int, **settings) -> nn.Module:
    """Build a network by name: "logistic", "mlp", "convnet" or "resnet".

    Raises:
        ValueError: for a name that is not one of these.
    """
    check_choice("model", name, tuple(MODELS))
    return MODELS[name](num_classes=num_classes, **settings)


MODELS = {"logistic": Logistic, "mlp": MLP, "convnet": ConvNet, "resnet": ResNet}
