"""Which groups matter to a query: found by one reverse sweep through the updates, then measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddm_jax.checks import check_integer
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import chunked_vmap
from ddm_jax.online import Response
from ddm_jax.types import Array, Batch, length


def response_slopes(response: Response, num_groups: int) -> Callable[..., Array]:
    """Make `slopes(*args) -> [K, Q]`, `d response / d keep_k` where every group is kept.

    To first order what `leave_one_out` measures, by one reverse sweep through the updates for each
    query: two to four updates' time, whatever K is. Large effects come out of another size, the
    order is much the same. At a rate above the stable one (`stable_rate`) the derivative explodes.

    Raises:
        ValueError: for fewer than two groups.
    """
    check_integer("num_groups", num_groups, 2)

    @compiled
    def slopes(*args: Any) -> Array:
        outputs, pull = jax.vjp(lambda keep: response(keep, *args), jnp.ones(num_groups))
        return chunked_vmap(lambda one: pull(one)[0])(jnp.eye(len(outputs), dtype=outputs.dtype)).T

    return slopes


def make_selective(response: Response, num_groups: int, measured: int) -> Callable[..., Array]:
    """Make `effects(*args, query) -> [K, Q]`: leave-one-out in about `measured + 4` updates.

    For each query the slopes of all groups (`response_slopes`, two to four updates' time, in
    order like the effects), and in place of the largest `measured` ones what leaving these groups
    out does. A sweep and updates of its own for each query: of K + 1 queries or more the whole
    matrix costs less.

    Args:
        response: `(keep, *args, query) -> [Q]`, such as `ddm_response`; the query comes last.
        measured: how many groups are left out for each query, 1..K.

    Raises:
        ValueError: for fewer than two groups, a number that does not fit, or (when called) a
            response that has not one output for each query.
    """
    slopes = response_slopes(response, num_groups)
    check_integer("measured", measured, 1, num_groups)

    @compiled
    def effects(*args: Any) -> Array:
        *others, queries = args
        along = slopes(*args).T  # [Q, K]
        count = length(queries)
        if len(along) != count:
            raise ValueError(
                f"the response gives {len(along)} outputs for {count} queries; one of each is "
                "needed to say which groups matter to it"
            )

        def of_query(item: tuple[Array, Batch]) -> Array:
            slope, query = item[0], jax.tree.map(lambda leaf: leaf[None], item[1])
            chosen = jnp.argsort(-jnp.abs(slope))[:measured]
            without = 1.0 - jax.nn.one_hot(chosen, num_groups)
            masks = jnp.concatenate([jnp.ones((1, num_groups)), without])
            each = chunked_vmap(lambda keep: response(keep, *others, query)[0])(masks)
            each = each.astype(slope.dtype)
            return slope.at[chosen].set(each[0] - each[1:])

        return chunked_vmap(of_query)((along, queries)).T

    return effects
