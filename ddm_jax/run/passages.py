"""Which documents raise and lower a query of a language model, and the passages that say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ddm_jax.attribution import Attribution
from ddm_jax.checks import check_integer
from ddm_jax.compute.compiled import compiled
from ddm_jax.data import Split
from ddm_jax.data.tokens import encoded
from ddm_jax.gradients import gradient_products, output_gradients
from ddm_jax.items import items_of
from ddm_jax.run.drawing import group_names
from ddm_jax.run.wording import text_of, tokenizer_of
from ddm_jax.types import Batch, Params, Synset, Task, take

SHOWN = 8  # queries
SIDES = 2  # documents that raise a query, and as many that lower it


class Passage(NamedTuple):
    """A document's effect on a query, and the item of it that says most of why."""

    document: str
    effect: float
    half_width: float  # of its 90 % interval; NaN where the run has no check
    text: str


class Explained(NamedTuple):
    """A query, and what raises and lowers it."""

    query: int
    text: str
    output: float
    raises: list[Passage]
    lowers: list[Passage]


def explain_queries(
    split: Split,
    task: Task,
    params: Params,
    synset: Synset,
    attribution: Attribution,
    queries: Sequence[int] | None = None,
) -> list[Explained]:
    """What raises and lowers some queries; by default those with the largest effects.

    Of each document stands the item whose gradient moves the query most: with the mass m of an
    item, `-m <grad loss(item), grad output(query)>`.
    """
    scores = attribution.scores
    chosen = largest(scores, SHOWN) if queries is None else np.asarray(queries)
    few = take(split.test, chosen)
    names, owner = group_names(attribution.groups), np.asarray(synset.group)
    reach, outputs = map(np.asarray, make_item_effects(task)(params, synset, few))
    items = items_of(task).batch(synset.items)
    half = attribution.half_widths

    def passage(group: int, place: int) -> Passage:
        own = np.flatnonzero(owner == group)
        score = scores[group, chosen[place]]
        item = own[np.argmax(reach[own, place] * np.sign(score))]
        wide = float("nan") if half is None else float(half[group, chosen[place]])
        return Passage(names[group], float(score), wide, text_of(split, take(items.x, int(item))))

    found = []
    for place, query in enumerate(chosen):
        order = np.argsort(-scores[:, query], kind="stable")
        raised = [group for group in order[:SIDES] if scores[group, query] > 0]
        lowered = [group for group in order[::-1][:SIDES] if scores[group, query] < 0]
        found.append(
            Explained(
                int(query),
                text_of(split, take(few.x, place)),
                float(outputs[place]),
                [passage(int(group), place) for group in raised],
                [passage(int(group), place) for group in lowered],
            )
        )
    return found


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """The queries of the largest single effects, first one of each document."""
    order = np.argsort(-np.abs(scores).max(0), kind="stable")
    seen: set[int] = set()
    first = []
    for query in order:
        group = int(np.abs(scores[:, query]).argmax())
        if group not in seen:
            seen.add(group)
            first.append(int(query))
    rest = [int(query) for query in order if int(query) not in first]
    return np.asarray((first + rest)[:count], int)


def make_item_effects(task: Task) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Make `item_effects(params, synset, queries)`: how each item moves each query, at a network.

    Effects on the output, [I, Q], and the outputs, [Q].
    """

    @compiled
    def effects(params: Params, synset: Synset, queries: Batch) -> tuple[jax.Array, jax.Array]:
        wanted = output_gradients(task, params, queries)
        examples = items_of(task).batch(synset.items)
        products = gradient_products(task.loss, params, examples, wanted)
        return -synset.mass[:, None] * products, task.output(params, queries)

    return effects


def tokens_of(split: Split, prompt: str) -> list[int]:
    """A prompt as tokens.

    Raises:
        ValueError: for one without any or that is no text, or where the data have no tokenizer.
    """
    tokens = encoded(tokenizer_of(split), prompt, "the prompt")
    if not tokens:
        raise ValueError("the prompt is empty; give some text")
    return tokens


def continuations(
    split: Split, task: Task, networks: dict[str, Params], prompt: str, count: int = 40
) -> dict[str, str]:
    """What each network says after a prompt, its likeliest tokens."""
    go_on = make_continuation(split, task, count)
    return {name: go_on(params, prompt) for name, params in networks.items()}


def make_continuation(split: Split, task: Task, count: int = 40) -> Callable[[Params, str], str]:
    """Make `go_on(params, prompt)`, the likeliest tokens after a prompt.

    Raises:
        ValueError: (when called) as `tokens_of`.
    """
    from ddm_jax.tasks import make_generate

    check_integer("count", count)
    decode, context = tokenizer_of(split).decode, split.test.x["tokens"].shape[1]
    say = make_generate(task, count, context=context)
    return lambda params, prompt: decode(say(params, tokens_of(split, prompt)))
