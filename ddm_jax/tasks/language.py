"""Causal language modelling as a task: sequences of tokens, and which of them count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.checks import check_integer, is_concrete
from ddm_jax.compute.memory import examples_a_piece
from ddm_jax.compute.pieces import bytes_an_example, map_pieces
from ddm_jax.tasks.frameworks import as_model
from ddm_jax.types import Array, Batch, Items, Params, Task, length


def language(
    model: Any,
    context: int,
    *,
    init: Callable[[Array], Params] | None = None,
    params: Params | None = None,
    trainable: Any = None,
) -> Task:
    """Make a `Task` of a causal language model, tokens `[B, L]` -> next-token logits `[B, L, V]`.

    An example is `x = {"tokens": [N, L], "mask": [N, L]}` (`sequences` makes it), integers and
    what each counts: 1 for a token that is to be predicted from those before it, 0 for padding
    and for what is only read, such as a prompt. With `n_t = -log p(token_t | tokens before t)`

        loss   = sum_t mask_t n_t / (L - 1)
        output = -sum_t mask_t n_t,

    so that every token that counts weighs alike in training, and padding weighs nothing (a whole
    sequence of it has loss 0). What is explained is the log-likelihood of what a query's mask
    marks: the sequence, a completion (`completions`) or single tokens (`each_token`); of the
    difference of two continuations it is `objectives.over_sets` with weights 1 and -1.

    With `y [N, L]` of integers these are what is to be predicted in place of the tokens, after the
    same tokens before; None is the tokens themselves.

    The items of a synset are real sequences, whose masses are learnt.

    Args:
        model: as of `classification`; it maps tokens to logits.
        context: L, the tokens of a training sequence.
        init, params, trainable: as of `classification`.

    Raises:
        ValueError: for a model that does not return `[B, L, V]`, or as `classification`.
    """
    check_integer("context", context, 2)
    example = jax.ShapeDtypeStruct((context,), jnp.int32)
    made = as_model(model, example, init, params, None, trainable)
    like = jax.eval_shape(made.init, jax.random.key(0))
    logits = _logits_of(made.forward, like, jax.ShapeDtypeStruct((1, context), jnp.int32))
    vocabulary = logits.shape[-1]

    def ahead(predict: Callable[..., Any], params: Params, tokens: Array, *key: Array) -> Array:
        """Logits of the tokens but the first."""
        logits = _logits_of(predict, params, tokens, *key)[:, :-1]
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def token_losses(
        predict: Callable[..., Any], params: Params, batch: Batch, *key: Array
    ) -> Array:
        tokens, mask = parts_of(batch.x, vocabulary)
        wanted = tokens if batch.y is None else targets_of(batch.y, tokens)
        chances = jax.nn.log_softmax(ahead(predict, params, tokens, *key))
        # A token that the model has no logit of is NaN, and not another token's.
        found = jnp.take_along_axis(
            chances, wanted[:, 1:, None], -1, mode="fill", fill_value=jnp.nan
        )
        counts = mask[:, 1:]
        return -jnp.where(counts > 0, counts * found[..., 0], 0.0).sum(1)

    def mean_of(predict: Callable[..., Any]) -> Callable[..., Array]:
        def loss(params: Params, batch: Batch, *key: Array) -> Array:
            each = token_losses(predict, params, batch, *key)
            return each / (batch.x["tokens"].shape[1] - 1)

        return loss

    loss = mean_of(made.forward)

    def output(params: Params, batch: Batch) -> Array:
        summed = lambda p, some, weights: weights @ loss(p, some)  # noqa: E731
        size = examples_a_piece(length(batch), bytes_an_example(summed, params, batch))
        return -map_pieces(lambda some: token_losses(made.forward, params, some), batch, size)

    def draw(params: Params, batch: Batch, key: Array) -> Batch:
        tokens, mask = parts_of(batch.x, vocabulary)
        keys = jax.random.split(key, len(tokens))

        def of_piece(piece: tuple[Array, Array]) -> Array:
            some, keys = piece
            logits = ahead(made.forward, params, some)
            found = jax.vmap(jax.random.categorical)(keys, logits).astype(some.dtype)
            return jnp.concatenate([some[:, :1], found], 1)

        size = examples_a_piece(len(tokens), tokens.shape[1] * vocabulary * 8)
        drawn = map_pieces(of_piece, (tokens, keys), size)
        # A loss is a mean over places, whose gradients with drawn tokens do not depend on each
        # other: the mean of L of them has an L-th of the curvature for its second moment.
        weight = jnp.sqrt(mask * (tokens.shape[1] - 1))
        return Batch({"tokens": tokens, "mask": weight}, drawn)

    return Task(
        init=made.init,
        loss=loss,
        output=output,
        apply=lambda params, x: made.forward(params, parts_of(x, vocabulary)[0]),
        training_loss=mean_of(made.train_forward) if made.train_forward else None,
        draw=draw,
        targets="any",
        items=Items(free=()),
    )


def parts_of(x: Any, vocabulary: int | None = None) -> tuple[Array, Array]:
    """The tokens and the mask of examples, checked; by their values where they are there.

    Raises:
        ValueError: for anything but a dict of both, `[B, L]` each, of integers and of numbers
            that are no less than 0; or a token out of 0..V-1.
    """
    if not isinstance(x, dict) or set(x) != {"tokens", "mask"}:
        raise ValueError(
            'inputs must be {"tokens": [N, L], "mask": [N, L]}; `tasks.sequences` makes them'
        )
    tokens, mask = x["tokens"], x["mask"]
    if tokens.ndim != 2 or tokens.shape != mask.shape or tokens.shape[1] < 2:
        raise ValueError(
            f"tokens have shape {tokens.shape} and their mask {mask.shape}; both must be [N, L] of "
            "at least two tokens"
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens are {tokens.dtype}; they must be integers")
    if vocabulary is not None and is_concrete((tokens, mask)):
        ids, weights = np.asarray(tokens), np.asarray(mask)
        odd = (ids < 0) | (ids >= vocabulary)
        if odd.any():
            row, place = np.argwhere(odd)[0]
            raise ValueError(
                f"sequence {row} has token {ids[row, place]}, and the model knows "
                f"0..{vocabulary - 1}; it needs the tokenizer that it was made with"
            )
        if not (weights >= 0).all():
            raise ValueError(
                f"masks hold {weights[~(weights >= 0)][0]}; each must be 0 or more: 1 counts"
            )
    return tokens, mask


def targets_of(y: Any, tokens: Array) -> Array:
    """Tokens to be predicted in place of the sequence's own, checked.

    Raises:
        ValueError: for anything but integers of the tokens' shape.
    """
    if jnp.shape(y) != tokens.shape or not jnp.issubdtype(jnp.result_type(y), jnp.integer):
        raise ValueError(
            f"y has shape {jnp.shape(y)} of {jnp.result_type(y)}; a sequence's targets are its own "
            f"tokens, so y is None, or tokens {tokens.shape} to be predicted in their place"
        )
    return jnp.asarray(y)


def vocabulary_of(task: Task, context: int) -> int:
    """How many tokens V a language model knows.

    Raises:
        ValueError: for a task that is no language model's.
    """
    x = {
        "tokens": jax.ShapeDtypeStruct((1, context), jnp.int32),
        "mask": jax.ShapeDtypeStruct((1, context), jnp.float32),
    }
    params = jax.eval_shape(task.init, jax.random.key(0))
    apply: Any = task.apply
    try:
        shape = jax.eval_shape(apply, params, x).shape
    except Exception as error:  # whatever a model of other inputs raises
        raise ValueError("this task is no language model's; make it with tasks.language") from error
    return int(shape[-1])


def _logits_of(predict: Callable[..., Any], params: Params, tokens: Any, *key: Array) -> Array:
    if isinstance(tokens, jax.ShapeDtypeStruct):
        found = jax.eval_shape(predict, params, tokens)
    else:
        found = predict(params, tokens, *key)
    shape = getattr(found, "shape", None)
    if shape is None or len(shape) != 3 or shape[:2] != tokens.shape:
        told = shape if shape is not None else f"a {type(found).__name__}"
        raise ValueError(
            f"the model returns {told} for tokens {tokens.shape}; it must be "
            f"({tokens.shape[0]}, {tokens.shape[1]}, V), the logits of what follows each"
        )
    return found


def sequences(tokens: Sequence[Sequence[int]], context: int, vocabulary: int) -> Batch:
    """Make a `Batch` of sequences of tokens, padded to `context`; every real token counts.

    Raises:
        ValueError: for an empty sequence, one that is longer, or a token out of 0..V-1.
    """
    check_integer("context", context, 2)
    check_integer("vocabulary", vocabulary, 2)
    made = np.zeros((len(tokens), context), np.int32)
    mask = np.zeros((len(tokens), context), np.float32)
    for row, each in enumerate(tokens):
        found = np.asarray(each)
        if found.ndim != 1 or not 0 < len(found) <= context:
            raise ValueError(
                f"sequence {row} has shape {found.shape}; it must be one to {context} tokens"
            )
        if not np.issubdtype(found.dtype, np.integer):
            raise ValueError(f"sequence {row} holds {found.dtype}; tokens are integers")
        if found.min() < 0 or found.max() >= vocabulary:
            wrong = found[(found < 0) | (found >= vocabulary)][0]
            raise ValueError(f"sequence {row} has token {wrong}; it must be in 0..{vocabulary - 1}")
        made[row, : len(found)], mask[row, : len(found)] = found, 1
    mask[:, 0] = 0  # nothing comes before it
    return Batch({"tokens": made, "mask": mask}, None)


def completions(
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    context: int,
    vocabulary: int,
) -> Batch:
    """Queries whose output is the log-likelihood of a continuation of a prompt, [Q].

    Where both do not fit into the context, the beginning of the prompt is left out.

    Raises:
        ValueError: for another number of prompts, an empty one, or as `sequences`.
    """
    if len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} prompts and {len(continuations)} continuations")
    rows = []
    for row, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        room = context - len(continuation)
        if not len(prompt) or not len(continuation) or room < 1:
            raise ValueError(
                f"query {row} has a prompt of {len(prompt)} and a continuation of "
                f"{len(continuation)} tokens; both need some, and context={context} a place before "
                "the continuation"
            )
        rows.append([*prompt[-room:], *continuation])
    made = sequences(rows, context, vocabulary)
    for row, (whole, continuation) in enumerate(zip(rows, continuations, strict=True)):
        made.x["mask"][row, : len(whole) - len(continuation)] = 0
    return made


def each_token(query: Batch, row: int = 0) -> tuple[Batch, np.ndarray]:
    """One query a token of a query's: the log-likelihood of that token alone.

    Scores of them say which groups raise each token, `[K, T]`, and sum to the query's own where
    the method is linear in the output.

    Returns:
        T queries, and the places of their tokens in the sequence, [T].
    """
    whole = {name: np.asarray(part) for name, part in query.x.items()}
    check_integer("row", row, 0, len(next(iter(whole.values()))) - 1)
    tokens, mask = (part[row] for part in parts_of(whole))
    places = np.flatnonzero(mask > 0)
    if not len(places):
        raise ValueError(f"query {row} marks no token; its mask is 0 everywhere")
    alone = np.zeros((len(places), len(tokens)), np.float32)
    alone[np.arange(len(places)), places] = mask[places]
    return Batch({"tokens": np.tile(tokens, (len(places), 1)), "mask": alone}, None), places
