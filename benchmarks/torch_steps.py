"""Steps of K networks side by side with PyTorch's: fine-tuning, and matching of K groups.

Fine-tuning: `make_finetune` under `device_vmap`, Nesterov momentum and weight decay, each model
with parameters and a batch of its own. Matching: `make_distiller`'s `advance` with plain descent,
the gradient by inputs, label logits and masses of K groups of M items of
`|g_k - h_k|^2`, a gradient of a gradient. The same numbers go to PyTorch in the forms of
`torch_forms.py`, and every form's result must equal JAX's before anything is timed: losses, and
the change of parameters or synset in the median model, within 1e-4 of their size. (A rounding
error can put a ReLU of a single model on the other side of its kink.)

One thread of one core for both; JAX, each PyTorch form and a matrix product of 2048 take turns.
Several steps in one call, whose seconds are divided; compilation apart. A PyTorch form that takes
over 2.5 times as long as another in the first two calls is not repeated. Floating-point operations
are those of the matrix products alone: with F of a forward pass and F1 of its first layer, a
fine-tuning step has 3 F - F1 (nobody asks for the gradient of the input) and a matching step
7 F - 2 F1 (each layer: output; kernel gradient, and with respect to both its factors; error
signal and its transpose, not below the first; input).

    python benchmarks/torch_steps.py [--quick]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch_forms  # says what to install where PyTorch is missing
from harness import say

import ddm_jax as ddm
from ddm_jax.compute.placement import device_vmap
from ddm_jax.distill import DistillSettings, make_distiller
from ddm_jax.matching import MatchPoints, make_synset_gradient
from ddm_jax.online import make_finetune
from ddm_jax.types import Batch, Synset, take

torch = torch_forms.torch

ROUNDS = 5
TOO_SLOW = 2.5  # times the fastest PyTorch form
PRODUCT = 2048


class Network(NamedTuple):
    """A network by name, with the sizes to measure."""

    name: str
    module: Any
    shape: tuple[int, int, int]
    finetunes: tuple[tuple[int, int], ...]  # B, K
    matches: tuple[tuple[int, int], ...]  # M, K


DENSE = {
    "finetunes": ((10, 10), (10, 100), (100, 10), (100, 100)),
    "matches": ((1, 10), (1, 100), (10, 10), (10, 100)),
}
WIDE = {"finetunes": ((10, 5), (100, 5)), "matches": ((1, 5), (10, 5))}
NETWORKS = (
    Network("MLP 64-64-10", ddm.models.MLP(10), (8, 8, 1), **DENSE),
    Network("logistic 784-10", ddm.models.Logistic(10), (28, 28, 1), **DENSE),
    Network("MLP 784-128-64-10", ddm.models.MLP(10, (128, 64)), (28, 28, 1), **DENSE),
    Network("MLP 784-512-512-10", ddm.models.MLP(10, (512, 512)), (28, 28, 1), **DENSE),
    Network("ConvNet w32, 28x28x1", ddm.models.ConvNet(10), (28, 28, 1), **DENSE),
    Network("ConvNet w128, 32x32x3", ddm.models.ConvNet(10, 128), (32, 32, 3), **WIDE),
)
QUICK = (
    Network("MLP 64-64-10", ddm.models.MLP(10), (8, 8, 1), ((4, 3),), ((2, 3),)),
    Network("ConvNet w4, 8x8x2", ddm.models.ConvNet(10, 4, 2), (8, 8, 2), ((4, 3),), ((2, 3),)),
)


def forward_operations(params: dict[str, Any], shape: tuple[int, ...]) -> tuple[int, int]:
    """Floating-point operations of one example's matrix products: all layers, and the first."""
    layers, side = [], shape[0]
    for leaf in torch_forms.from_flax(params):
        if leaf.ndim == 4:  # output positions times the kernel; each block halves the image
            layers.append(2 * side * side * leaf.size)
            side //= 2
        elif leaf.ndim == 2:
            layers.append(2 * leaf.size)
    return sum(layers), layers[0]


def draw(seed: int, *shape: int) -> np.ndarray:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def finetune_case(network: Network, task: ddm.Task, batch: int, models: int, steps: int):
    """JAX's call, PyTorch's calls, and where both start, as lists in PyTorch's layouts."""
    keys = jax.random.split(jax.random.key(0), models)
    params = jax.jit(jax.vmap(task.init))(keys)
    x, y = draw(1, models, batch, *network.shape), 3 * draw(2, models, batch, 10)
    synset = Synset(  # of one group, for each model
        Batch(x, y),
        np.zeros((models, batch), np.int32),
        np.full((models, batch), 1 / batch, np.float32),
        np.ones((models, 1), np.float32),
    )
    optimizer = optax.sgd(torch_forms.RATE, torch_forms.MOMENTUM, nesterov=True)
    finetune = make_finetune(task, steps=steps, optimizer=optimizer, weight_decay=torch_forms.DECAY)
    mapped = device_vmap(lambda item: finetune(*item))
    items = jax.device_put((params, synset, np.ones((models, 1), np.float32)))
    start = _stacked(params)
    convolutional = start[0].ndim == 5
    given = [torch.from_numpy(leaf) for leaf in start]
    inputs, labels = torch_forms.images_first(x, convolutional), torch.from_numpy(y)
    calls = {
        form: torch_forms.make_finetune(form, given, inputs, labels, steps)
        for form in torch_forms.formats(convolutional)
    }

    def check(ours: Any, theirs: Any) -> dict[str, float]:
        return _changes(_stacked(ours), [leaf.numpy() for leaf in theirs], start)

    return lambda: mapped(items), calls, check


def matching_case(network: Network, task: ddm.Task, size: int, groups: int, steps: int):
    """As `finetune_case`, for the synset."""
    params = jax.jit(task.init)(jax.random.key(0))
    share = np.full(groups, 1 / groups, np.float32)
    mass = np.float32(1 / size) * (1 + 0.1 * draw(3, groups, size))
    group = np.repeat(np.arange(groups, dtype=np.int32)[:, None], size, 1)
    items = Batch(draw(1, groups, size, *network.shape), 3 * draw(2, groups, size, 10))
    synset = Synset(items, group, mass, share)  # by group
    others = synset._replace(items=Batch(draw(4, *items.x.shape), 3 * draw(5, *items.y.shape)))
    synset_gradient = make_synset_gradient(task)
    gradients = device_vmap(lambda one, params: synset_gradient(params, one))(others, params)
    unused = jax.tree.map(lambda leaf: np.zeros((1, 1, *leaf.shape), np.float32), params)
    points = MatchPoints(
        *jax.tree.map(lambda leaf: leaf[None], (params, gradients)), unused, np.zeros((1, 1))
    )
    rate = 0.3 * groups  # the loss is normalised over the groups
    # A cosine over so many steps is constant for the few that are taken.
    settings = DistillSettings(optimizer="sgd", learning_rate=rate, steps=10**9)
    distiller = make_distiller(task, settings)
    advance = jax.jit(distiller.advance, static_argnums=3)
    state, points = jax.device_put((distiller.start(synset), points))
    given = [torch.from_numpy(leaf) for leaf in torch_forms.from_flax(params)]
    convolutional = given[0].ndim == 4
    inputs = torch_forms.images_first(items.x, convolutional)
    theirs = (inputs, *map(torch.from_numpy, (items.y, mass, share)))
    targets = [torch.from_numpy(leaf) for leaf in _stacked(gradients)]
    calls = {
        form: torch_forms.make_matching(form, given, targets, theirs, steps, rate)
        for form in torch_forms.formats(convolutional)
    }

    def check(ours: Any, found: Any) -> dict[str, float]:
        moved, losses = ours[0].synset, np.asarray(ours[1])
        arranged = torch_forms.images_first(np.asarray(moved.items.x), convolutional).numpy()
        ours_now = [arranged, np.asarray(moved.items.y), np.asarray(moved.mass)]
        start = [leaf.numpy() for leaf in theirs[:3]]
        relative = float(np.max(np.abs(found[0].numpy() / losses - 1)))
        apart = _changes(ours_now, [leaf.numpy() for leaf in found[1]], start)
        return apart | {"loss_difference": relative}

    return lambda: advance(jax.random.key(0), state, points, steps), calls, check


def _stacked(params: Any) -> list[np.ndarray]:
    """Flax parameters with leaves [K, ...] in PyTorch's layouts."""
    params = jax.tree.map(np.asarray, params)
    count = len(jax.tree.leaves(params)[0])
    each = [torch_forms.from_flax(take(params, k)) for k in range(count)]
    return [np.stack(same) for same in zip(*each, strict=True)]


def _changes(ours: list[np.ndarray], theirs: list[np.ndarray], start: list[np.ndarray]):
    """How far each model's two changes from the same start are apart, in units of their size."""
    squares = [
        (np.square(a - b), np.square(b - c)) for a, b, c in zip(ours, theirs, start, strict=True)
    ]
    error, size = (
        sum(part[i].reshape(len(part[i]), -1).sum(1) for part in squares) for i in range(2)
    )
    each = np.sqrt(error / size)
    return {"difference": float(np.median(each)), "worst_difference": float(np.max(each))}


def measure(ours: Callable[[], Any], calls: dict[str, Any], check: Any, rounds: int, product: Any):
    """First calls and checks, then rounds in which everything takes turns."""
    result, first = harness.once(ours)
    row: dict[str, Any] = {}
    firsts = {}
    for form, call in calls.items():
        firsts[form] = float("inf")
        for _ in range(2):  # the first call of all warms up; a long one need not
            found, took = harness.once(call)
            firsts[form] = min(firsts[form], took)
            if firsts[form] > 5:
                break
        for name, value in check(result, found).items():
            row[name] = float(np.maximum(row.get(name, 0.0), value))  # keeps a NaN
        del found
    if not (row["difference"] < 1e-4 and row.get("loss_difference", 0.0) < 1e-4):
        raise AssertionError(f"JAX and PyTorch differ: {row}")
    del result
    runs = {"jax": ours, "product": product}
    runs |= {f: c for f, c in calls.items() if firsts[f] < TOO_SLOW * min(firsts.values())}
    seconds = harness.interleaved(runs, rounds)
    seconds |= {form: [took] for form, took in firsts.items() if form not in seconds}
    row["compile_seconds"] = first - min(seconds["jax"])
    row["minimum"] = {name: min(each) for name, each in seconds.items()}
    row["median"] = {name: float(np.median(each)) for name, each in seconds.items()}
    return row


def measure_case(
    network: Network, what: str, size: int, count: int, rounds: int, product: Any
) -> dict[str, Any]:
    """One row: milliseconds a step of everything, and JAX's rate."""
    task = ddm.classification(network.module, network.shape)
    forward, lowest = forward_operations(
        jax.tree.map(np.asarray, jax.jit(task.init)(jax.random.key(0))), network.shape
    )
    each = 3 * forward - lowest if what == "fine-tune" else 7 * forward - 2 * lowest
    operations = size * count * each
    steps = int(min(5, max(2, 20e9 // operations)))
    make = finetune_case if what == "fine-tune" else matching_case
    ours, calls, check = make(network, task, size, count, steps)
    found = measure(ours, calls, check, rounds, product)
    minimum, median = found.pop("minimum"), found.pop("median")
    rate = steps * operations / minimum["jax"] / 1e9
    peak = 2 * PRODUCT**3 / minimum.pop("product") / 1e9
    best = min((form for form in minimum if form != "jax"), key=minimum.__getitem__)
    row = {"network": network.name, "step": what, "size": size, "models": count, "steps": steps}
    row |= {
        "milliseconds": {name: 1000 * took / steps for name, took in minimum.items()},
        "median_milliseconds": {name: 1000 * median[name] / steps for name in minimum},
        "best": best,
        "ratio_to_best": minimum["jax"] / minimum[best],
        "median_ratio_to_best": median["jax"] / median[best],
        "operations_a_step": operations,
        "gflops_a_second": rate,
        "peak_gflops_a_second": peak,
        "share_of_peak": rate / peak,
    }
    told = ", ".join(f"{name} {took:.2f}" for name, took in row["milliseconds"].items())
    say(
        f"{network.name}, {what}, {size} x {count}: {told} ms; {row['ratio_to_best']:.2f} of the "
        f"best, {rate:.0f} of {peak:.0f} GFLOP/s, differ by {found['difference']:.1e}"
    )
    return row | found


def main() -> None:
    """Measure everything and write results/torch_steps.json."""
    options = harness.arguments(
        __doc__, quick="two tiny networks, two rounds", partitions=(0,), one_core=True
    )
    factor = jnp.asarray(draw(0, PRODUCT, PRODUCT))
    multiply = jax.jit(jnp.matmul)

    def product() -> Any:
        return multiply(factor, factor)

    harness.once(product)
    rows: list[dict[str, Any]] = []
    rounds = 2 if options.quick else ROUNDS
    for network in QUICK if options.quick else NETWORKS:
        cases = [("fine-tune", *sizes) for sizes in network.finetunes]
        cases += [("matching", *sizes) for sizes in network.matches]
        for case in cases:
            rows.append(measure_case(network, *case, rounds, product))
    settings = {"rounds": rounds, "torch": torch.__version__}
    harness.write(options, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
