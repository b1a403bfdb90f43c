"""How many floating-point operations a traced function takes: of its matrix products, counted.

XLA's own count takes the body of a loop once, however often it runs; this one multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from ddm_jax.judge.program import programs


def count_flops(fn: Callable[..., Any], *args: Any) -> float | None:
    """Operations of matrix products, convolutions and factorisations in `fn(*args)`.

    A multiplication and an addition are two. Element by element work is left out: it is small
    beside them wherever time matters. Traces only. None where a loop's turns are not known
    before it runs.
    """
    found = _count(jax.make_jaxpr(fn)(*args).jaxpr)
    return None if math.isnan(found) else found


def _count(program: core.Jaxpr) -> float:
    return float(sum(_of_equation(equation) for equation in program.eqns))


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(variable.aval, "shape", ()) for variable in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        inner = math.prod(shapes[0][axis] for axis in contracted)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * inner
    if name == "conv_general_dilated":
        out_features = shapes[1][params["dimension_numbers"].rhs_spec[0]]
        taps = math.prod(shapes[1]) / out_features
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * taps
    if name in FACTORISATIONS:
        *batch, rows, columns = shapes[0]
        return FACTORISATIONS[name] * math.prod(batch) * rows * columns * min(rows, columns)
    if name == "triangular_solve":
        return float(math.prod(shapes[1]) * shapes[0][-1])
    inside = [_count(getattr(part, "jaxpr", part)) for part in programs(params)]
    if name == "scan":
        return params["length"] * sum(inside)
    if name == "while":
        return math.nan if sum(inside) else 0.0
    if name == "cond":
        return max(inside)
    if name == "shard_map":
        return params["mesh"].size * sum(inside)
    return sum(inside)


# Times rows * columns * the smaller of both: the leading term of the usual algorithms.
FACTORISATIONS = {"cholesky": 1 / 3, "lu": 2 / 3, "qr": 2.0, "geqrf": 2.0, "eigh": 9.0, "svd": 12.0}
