"""What a language model says after a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.checks import check_integer, check_number
from ddm_jax.compute.compiled import compiled
from ddm_jax.tasks.language import vocabulary_of
from ddm_jax.types import Array, Params, Task

COLDEST = 1e-3  # below it logits divided by it are too large


def make_generate(
    task: Task, count: int, *, context: int, temperature: float = 0.0
) -> Callable[..., list[int]]:
    """Make `say(params, prompt, key=None) -> count tokens`: what a network says after a prompt.

    It sees at most the last `context` tokens, and is compiled once for all networks and prompts.

        say = tasks.make_generate(task, 20, context=64)
        split.tokenizer.decode(say(study.forget(["one.txt"]), split.tokenizer.encode("Once")))

    Args:
        task: as `tasks.language` makes it.
        temperature: 0 takes the likeliest token; else tokens are drawn with logits divided by it,
            and each call needs a key.

    Raises:
        ValueError: for a task that is no language model's, or numbers out of range; when it is
            called, for an empty prompt, or no key to draw with.
    """
    check_integer("count", count)
    check_integer("context", context, 2)
    check_number("temperature", temperature, least=0)
    if 0 < temperature < COLDEST:
        raise ValueError(f"temperature={temperature}; give 0 for the likeliest, or {COLDEST:g} on")
    vocabulary, apply = vocabulary_of(task, context), cast(Callable[..., Array], task.apply)

    @compiled
    def run(params: Params, tokens: Array, filled: Array, key: Array) -> Array:
        def step(carry: tuple[Array, Array], turn: Array) -> tuple[tuple[Array, Array], Array]:
            tokens, filled = carry
            x = {"tokens": tokens[None], "mask": jnp.ones((1, context))}
            logits = apply(params, x)[0, filled - 1]
            if temperature:
                token = jax.random.categorical(jax.random.fold_in(key, turn), logits / temperature)
            else:
                token = logits.argmax()
            full, token = filled == context, token.astype(tokens.dtype)
            tokens = jnp.where(full, jnp.roll(tokens, -1), tokens)
            filled = jnp.where(full, filled, filled + 1)
            return (tokens.at[filled - 1].set(token), filled), token

        return jax.lax.scan(step, (tokens, filled), jnp.arange(count))[1]

    def say(params: Params, prompt: Sequence[int], key: Any = None) -> list[int]:
        if not len(prompt):
            raise ValueError("the prompt is empty; give at least one token")
        if temperature and not _is_key(key):
            raise ValueError(f"temperature={temperature} draws tokens; pass a jax.random.key")
        given = np.asarray(prompt)
        whole = given.ndim == 1 and np.issubdtype(given.dtype, np.integer)
        if not whole or given.min() < 0 or given.max() >= vocabulary:
            raise ValueError(
                f"prompt={str(prompt)[:60]}; give tokens, whole numbers in 0..{vocabulary - 1}: "
                "split.tokenizer.encode makes them of a text"
            )
        kept = given[-context:].astype(np.int32)
        start = np.pad(kept, (0, context - len(kept)))
        key = jax.random.key(0) if key is None else key
        return [int(token) for token in run(params, start, np.int32(len(kept)), key)]

    return say


def _is_key(key: Any) -> bool:
    return isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
