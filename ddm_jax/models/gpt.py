"""A GPT in flax NNX, as GPT-2 has it, and one read from a folder of Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddm_jax.checks import check_integer, require_extra
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
        self.context = context
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


def load_gpt2(folder: str | Path, *, lora: int = 0) -> GPT:
    """Read a GPT-2 that Hugging Face's transformers saved: config.json and model.safetensors.

    Its logits are those of `GPT2LMHeadModel`, without dropout. Pass it to `tasks.language`: every
    training then begins at these weights.

    Args:
        lora: as of `GPT`.

    Raises:
        ValueError: where a file is missing, the model is another one than GPT-2, or the package
            safetensors is not there.
    """
    load_file = require_extra("safetensors.numpy", "language", "GPT-2").load_file
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; save it with model.save_pretrained(folder)")
    told = json.loads((folder / "config.json").read_text())
    _check_gpt2(folder, told)
    try:
        arrays = load_file(folder / "model.safetensors")
    except Exception as error:  # what safetensors raises is none of Python's own
        raise ValueError(f"{folder / 'model.safetensors'} cannot be read: {error}") from error
    arrays = {name.removeprefix("transformer."): array for name, array in arrays.items()}
    tied = told.get("tie_word_embeddings", True)
    model = GPT(
        told["vocab_size"],
        context=told["n_positions"],
        width=told["n_embd"],
        depth=told["n_layer"],
        heads=told["n_head"],
        tied=tied,
        lora=lora,
        epsilon=told.get("layer_norm_epsilon", 1e-5),
        rngs=nnx.Rngs(0),
    )

    def put(variable: Any, name: str, transposed: bool = False) -> None:
        if name not in arrays:
            raise ValueError(f"{folder / 'model.safetensors'} has no {name}; it is no whole GPT-2")
        array = np.asarray(arrays[name], np.float32)
        array = array.T if transposed else array
        if array.shape != variable.shape:
            raise ValueError(
                f"{name} of {folder} has shape {array.shape}; config.json says {variable.shape}"
            )
        variable.set_value(jnp.asarray(array))

    put(model.tokens.embedding, "wte.weight")
    put(model.places.embedding, "wpe.weight")
    for number, block in enumerate(model.blocks):
        norms = {"ln_1": block.norm_in, "ln_2": block.norm_out}
        layers = {
            "attn.c_attn": block.mix,
            "attn.c_proj": block.mixed,
            "mlp.c_fc": block.up,
            "mlp.c_proj": block.down,
        }
        for name, norm in norms.items():
            put(norm.scale, f"h.{number}.{name}.weight")
            put(norm.bias, f"h.{number}.{name}.bias")
        for name, layer in layers.items():
            whole: Any = layer.base_module if isinstance(layer, nnx.LoRA) else layer
            put(whole.kernel, f"h.{number}.{name}.weight")
            put(whole.bias, f"h.{number}.{name}.bias")
    put(model.norm.scale, "ln_f.weight")
    put(model.norm.bias, "ln_f.bias")
    if model.head is not None:
        put(model.head.kernel, "lm_head.weight", transposed=True)
    return model


def _check_gpt2(folder: Path, told: dict[str, Any]) -> None:
    """What `GPT` computes is what the configuration says."""
    if told.get("model_type") != "gpt2":
        raise ValueError(
            f"{folder} holds a {told.get('model_type')!r}; load_gpt2 reads models of type 'gpt2'"
        )
    asked = {
        "activation_function": ("gelu_new", ("gelu_new", "gelu_pytorch_tanh")),
        "n_inner": (None, (None, 4 * told["n_embd"])),
        "scale_attn_weights": (True, (True,)),
        "scale_attn_by_inverse_layer_idx": (False, (False,)),
        "add_cross_attention": (False, (False,)),
    }
    for name, (usual, allowed) in asked.items():
        if told.get(name, usual) not in allowed:
            raise ValueError(f"{folder}: {name}={told[name]!r}; load_gpt2 computes {allowed[0]!r}")
