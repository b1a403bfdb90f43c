"""Convolutions with a kernel for each model: forms, orders of derivative, and batches in pieces.

The layers of ConvNets of width 32 (28x28x1) and 128 (32x32x3), K models of B examples, inside one
compiled loop on one core; each form under `lax.map` and under `vmap`. "double" is the gradient of
a squared kernel gradient with respect to the input, as in a matching step. Minimum of interleaved
rounds. Then whole gradient steps of both ConvNets with a batch of 100, whole and in pieces.

    python benchmarks/convolutions.py [--quick]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import jax
import jax.numpy as jnp
from harness import say
from jax import lax

import ddm_jax as ddm
from ddm_jax.compute import convolution, memory, pieces
from ddm_jax.types import Array

# models K, examples B, height, channels in, channels out
LAYERS = (
    (10, 10, 28, 1, 32),
    (10, 10, 14, 32, 32),
    (10, 100, 14, 32, 32),
    (5, 10, 32, 3, 128),
    (5, 10, 16, 128, 128),
)
NETWORKS = ((32, (28, 28, 1)), (128, (32, 32, 3)))


def orders(form: str) -> dict[str, Callable[[Array, Array], Any]]:
    """Functions of one model's input and kernel."""

    def loss(x: Array, kernel: Array) -> Array:
        return jnp.sum(convolution.convolve(x, kernel, 1, form) ** 2)

    def matching(x: Array, kernel: Array) -> Array:
        return jnp.sum(jax.grad(loss, 1)(x, kernel) ** 2)

    return {
        "forward": loss,
        "gradient": jax.grad(loss, 1),
        "double": jax.grad(matching, 0),
    }


def placed(fn: Callable[[Array, Array], Any], how: str) -> Callable[[Array, Array], Any]:
    """`fn` over all models."""
    if how == "vmap":
        return jax.jit(jax.vmap(fn))
    return jax.jit(lambda x, kernel: lax.map(lambda both: fn(*both), (x, kernel)))


def fastest(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the first call, and the least of those after it; a slow one is measured once."""
    first = {name: harness.once(run)[1] for name, run in runs.items()}
    slow = {name: run for name, run in runs.items() if first[name] > harness.LONG}
    quick = {name: run for name, run in runs.items() if name not in slow}
    seconds = harness.interleaved(quick, rounds) | harness.interleaved(slow, 1)
    return {
        name: {"first_seconds": first[name], "seconds": min(each)} for name, each in seconds.items()
    }


def measure_layer(layer: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """All forms of one layer, forward, backward and double backward."""
    models, batch, height, depth, width = layer
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (models, batch, height, height, depth))
    kernel = jax.random.normal(keys[1], (models, 3, 3, depth, width))
    flops = 2 * models * batch * height**2 * 9 * depth * width
    rows = []
    for order, multiply in (("forward", 1), ("gradient", 2), ("double", 4)):
        mapped = {
            f"{form}, {how}": placed(orders(form)[order], how)
            for form in convolution.FORMS
            for how in ("map", "vmap")
        }
        runs = {name: partial(fn, x, kernel) for name, fn in mapped.items()}
        for name, found in fastest(runs, rounds).items():
            rate = multiply * flops / found["seconds"] / 1e9
            rows.append(
                {"layer": list(layer), "order": order, "form": name, "gflops_a_second": rate}
                | found
            )
        say(f"  {layer} {order}: " + _best(rows[-len(runs) :]))
    return rows


def _best(rows: list[dict[str, Any]]) -> str:
    told = sorted(rows, key=lambda row: row["seconds"])
    return ", ".join(f"{row['form']} {1000 * row['seconds']:.2f} ms" for row in told[:3])


def measure_pieces(width: int, shape: tuple[int, ...], batch: int, rounds: int) -> dict[str, Any]:
    """Gradient steps of one network: the batch as a whole, and as the package cuts it."""
    task = ddm.classification(ddm.models.ConvNet(10, width), shape)
    params = jax.jit(task.init)(jax.random.key(0))
    data = ddm.Batch(
        jax.random.normal(jax.random.key(1), (batch, *shape)), jnp.full((batch, 10), 0.1)
    )

    def loss(params: Any, data: ddm.Batch, weights: Array) -> Array:
        return weights @ task.loss(params, data)

    def steps(gradient: Callable[..., Any]) -> Callable[[], Any]:
        @jax.jit
        def run(params: Any, data: ddm.Batch) -> Any:
            def step(params: Any, _: Any):
                _, slope = gradient(params, data, jnp.full(batch, 1 / batch))
                return jax.tree.map(lambda p, g: p - 0.01 * g, params, slope), None

            return lax.scan(step, params, length=2)[0]

        return lambda: run(params, data)

    runs = {
        "whole": steps(jax.value_and_grad(loss)),
        "pieces": steps(pieces.value_and_gradient(loss)),
    }
    found = fastest(runs, rounds)
    each = pieces.bytes_an_example(loss, params, data)
    row = {
        "width": width,
        "batch": batch,
        "bytes_an_example": each,
        "piece": memory.examples_a_piece(batch, each),
        "whole_seconds": found["whole"]["seconds"] / 2,
        "pieces_seconds": found["pieces"]["seconds"] / 2,
    }
    say(f"  {row}")
    return row


def main() -> None:
    """Measure everything and write results/convolutions.json."""
    options = harness.arguments(__doc__, quick="one layer and one network", one_core=True)
    rounds = 2 if options.quick else 5
    layers = [(2, 4, 8, 3, 8)] if options.quick else LAYERS
    rows = [row for layer in layers for row in measure_layer(layer, rounds)]
    networks = [(4, (16, 16, 1))] if options.quick else NETWORKS
    cut = [measure_pieces(*network, 100, rounds) for network in networks]
    harness.write(options, {"layers": rows, "pieces": cut})


if __name__ == "__main__":
    main()
