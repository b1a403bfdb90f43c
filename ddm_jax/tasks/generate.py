"""What a language model says after a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.checks import check_integer, check_number
from ddm_jax.types import Array, Params, Task


def generate(
    task: Task,
    params: Params,
    prompt: Sequence[int],
    count: int,
    *,
    context: int,
    temperature: float = 0.0,
    key: Array | None = None,
) -> list[int]:
    """The `count` tokens that a network says after a prompt, the likeliest or drawn.

    It sees at most the last `context` tokens. It traces whole: two networks of one shape share the
    compiled program where `jax.jit` is around it.

    Args:
        task: as `tasks.language` makes it.
        params: of any network of it, such as `Study.forget` returns.
        temperature: 0 takes the likeliest token; else tokens are drawn with logits divided by it.
        key: of the draws; needed for a temperature above zero.

    Raises:
        ValueError: for a task that is no language model's, an empty prompt, or no key to draw with.
    """
    check_integer("count", count)
    check_integer("context", context, 2)
    check_number("temperature", temperature, least=0)
    if not len(prompt):
        raise ValueError("the prompt is empty; give at least one token")
    if temperature and key is None:
        raise ValueError(f"temperature={temperature} draws tokens; pass a key")
    start = np.zeros(context, np.int32)
    kept = np.asarray(prompt, np.int32)[-context:]
    start[: len(kept)] = kept
    said = _loop(task, count, bool(temperature))(
        params, jnp.asarray(start), len(kept), temperature or 1.0, key
    )
    return [int(token) for token in said]


def _loop(task: Task, count: int, draws: bool) -> Any:
    """`(params, tokens [L], filled, temperature, key) -> the next tokens [count]`."""
    apply = task.apply
    if apply is None:
        raise ValueError("this task has no logits; make it with tasks.language")

    @jax.jit
    def run(params: Params, tokens: Array, filled: Any, temperature: Any, key: Any) -> Array:
        def step(carry: tuple[Array, Array], turn: Array) -> tuple[tuple[Array, Array], Array]:
            tokens, filled = carry
            x = {"tokens": tokens[None], "mask": jnp.ones((1, len(tokens)))}
            logits = apply(params, x)[0, filled - 1]
            if draws:
                token = jax.random.categorical(jax.random.fold_in(key, turn), logits / temperature)
            else:
                token = logits.argmax()
            full = filled == len(tokens)
            tokens = jnp.where(full, jnp.roll(tokens, -1), tokens)
            filled = jnp.where(full, filled, filled + 1)
            token = token.astype(tokens.dtype)
            return (tokens.at[filled - 1].set(token), filled), token

        return jax.lax.scan(step, (tokens, jnp.asarray(filled)), jnp.arange(count))[1]

    return run
