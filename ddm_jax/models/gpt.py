"""A GPT in flax NNX, as GPT-2 has it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ddm_jax.checks import check_integer
from ddm_jax.types import Array

START = 0.02  # the deviation of fresh weights


class GPT(nnx.Module):
    """A causal language model: tokens `[B, L]` -> logits of the next token `[B, L, V]`.

    Blocks normalise before attention and before the two layers of GELU; positions are learnt.
    Radford et al., "Language models are unsupervised multitask learners", 2019.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        context: int = 128,
        width: int = 64,
        depth: int = 2,
        heads: int = 2,
        tied: bool = True,
        dropout: float = 0.0,
        lora: int = 0,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        """Make one with fresh weights.

        Args:
            vocabulary: V.
            context: the most tokens of a sequence.
            width, depth, heads: of the blocks; heads divide the width.
            tied: whether tokens are read and written by the same embedding.
            lora: the rank of adapters beside attention's layers, `nnx.LoRAParam`, which begin at
                zero; 0 has none. `tasks.language(model, context, trainable=nnx.LoRAParam)` lets
                nothing else learn.

        Raises:
            ValueError: for sizes below one, or heads that do not divide the width.
        """
        sizes = {"vocabulary": vocabulary, "context": context, "width": width, "depth": depth}
        for name, size in (sizes | {"heads": heads}).items():
            check_integer(name, size)
        check_integer("lora", lora, 0)
        if width % heads:
            raise ValueError(f"heads={heads} do not divide width={width}")
        start = nnx.initializers.normal(START)
        self.context, self.vocabulary = context, vocabulary
        self.tokens = nnx.Embed(vocabulary, width, embedding_init=start, rngs=rngs)
        self.places = nnx.Embed(context, width, embedding_init=start, rngs=rngs)
        self.blocks = nnx.List(
            [Block(width, heads, depth, dropout, lora, epsilon, rngs=rngs) for _ in range(depth)]
        )
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.head = None if tied else _linear(width, vocabulary, START, 0, rngs, bias=False)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, tokens: Array) -> Array:
        """Logits of what follows each token, `[B, L, V]`.

        Raises:
            ValueError: for more tokens than the context holds.
        """
        length = tokens.shape[-1]
        if length > self.context:
            raise ValueError(
                f"a sequence has {length} tokens, and the model's context {self.context}; cut it"
            )
        x = self.tokens(tokens) + self.places(jnp.arange(length))
        x = x if self.dropout is None else self.dropout(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.tokens.attend(x) if self.head is None else self.head(x)


class Block(nnx.Module):
    """Attention, then two layers, each beside the way around it."""

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        dropout: float,
        lora: int,
        epsilon: float,
        *,
        rngs: nnx.Rngs,
    ):
        inner = START / (2 * depth) ** 0.5  # what each block adds, so that their sum stays
        self.heads = heads
        self.norm_in = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.mix = _linear(width, 3 * width, START, lora, rngs)
        self.mixed = _linear(width, width, inner, lora, rngs)
        self.norm_out = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.up = _linear(width, 4 * width, START, 0, rngs)
        self.down = _linear(4 * width, width, inner, 0, rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, x: Array) -> Array:
        drop = (lambda part: part) if self.dropout is None else self.dropout
        x = x + drop(self.mixed(self._attend(self.mix(self.norm_in(x)))))
        return x + drop(self.down(jax.nn.gelu(self.up(self.norm_out(x)), approximate=True)))

    def _attend(self, mixed: Array) -> Array:
        """Causal attention of `[B, L, 3 width]`."""
        batch, length, _ = mixed.shape
        parts = mixed.reshape(batch, length, 3, self.heads, -1)
        query, key, value = (parts[:, :, which] for which in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        later = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(
            later, scores.astype(jnp.promote_types(scores.dtype, "float32")), -jnp.inf
        )
        weights = jax.nn.softmax(scores).astype(value.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, length, -1)


def _linear(
    inside: int, outside: int, deviation: float, lora: int, rngs: nnx.Rngs, bias: bool = True
) -> Any:
    start = nnx.initializers.normal(deviation)
    made = nnx.Linear(inside, outside, use_bias=bias, kernel_init=start, rngs=rngs)
    if not lora:
        return made
    return nnx.LoRA(inside, lora, outside, base_module=made, rngs=rngs)
