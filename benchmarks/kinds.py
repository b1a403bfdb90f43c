"""Every method on every kind of task: does it work or refuse, and does it agree with retraining?

Tiny problems with models that are linear in their parameters, so that retraining has one answer.
Each is trained to its optimum, and what is left out is a sixth of its points. A method works where
its scores are finite, and refuses by a ValueError of one line that names it; anything else is a
fault, and ends this script.

    python benchmarks/kinds.py [--quick]
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ddm_jax as ddm
from ddm_jax.estimators import ESTIMATORS
from ddm_jax.metrics import nan_mean, per_query_correlation
from ddm_jax.train import Train
from ddm_jax.types import Batch, Groups, Params, Task, TrainRun
from ddm_jax.values import VALUES

N, Q, K = 72, 8, 6
TOKENS, LENGTH = 6, 4  # of the vocabulary, and of an input
RECIPE: dict[str, Any] = {
    "steps": 150,
    "batch_size": N,
    "learning_rate": 0.3,
    "momentum": 0.5,
    "weight_decay": 0.02,
    "checkpoint_every": 15,
}


class Kind(NamedTuple):
    """A tiny problem of one kind."""

    title: str
    task: Task
    data: Batch
    query: Batch
    groups: Groups
    recipe: dict[str, Any] = RECIPE


class Ready(NamedTuple):
    """The same, trained."""

    kind: Kind
    train: Train
    run: TrainRun


class Method(NamedTuple):
    """How a method is made here, and what it claims."""

    make: Callable[[Task, Train], ddm.Estimator]
    predicts: bool = True  # whether its scores are to be those of retraining
    linear: bool = True  # whether its score of a mean of outputs is the mean of its scores


class Outcome(NamedTuple):
    """What came of asking a method."""

    scores: np.ndarray | None  # [K, Q], None where it refused
    said: str = ""  # why it refused, or what it warned of


# The problems. Points come in six groups that lie apart; the labels of the last are half wrong.

IDS = np.arange(N) % K


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, 5] of training and [Q, 5] of queries."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(K, 5))
    x = draw.normal(size=(N, 5)) + centres[IDS]
    return x.astype(np.float32), draw.normal(size=(Q, 5)).astype(np.float32)


def noise(classes: int, seed: int = 1) -> np.ndarray:
    """What spoils labels: logits [N, classes], large in the last group."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(N, classes)) * np.where(IDS == K - 1, 4.0, 0.5)[:, None]


def truth(classes: int, size: int = 5, seed: int = 2) -> np.ndarray:
    """The true weights [size, classes]."""
    return np.random.default_rng(seed).normal(size=(size, classes))


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Label rows [B, classes]."""
    return np.eye(classes, dtype=np.float32)[labels]


def linear(size: int, columns: int) -> Callable[[jax.Array], Params]:
    """`init` of a linear layer, at zero."""
    return lambda key: {"dense": {"kernel": jnp.zeros((size, columns)), "bias": jnp.zeros(columns)}}


def layer(params: Params, x: jax.Array) -> jax.Array:
    """A linear layer."""
    return x @ params["dense"]["kernel"] + params["dense"]["bias"]


def of_classes(apply: Any, init: Any, features: Any = None) -> Task:
    """A classification task by hand."""
    return Task(
        init=init,
        loss=lambda params, batch: optax.softmax_cross_entropy(apply(params, batch.x), batch.y),
        output=ddm.objectives.margin(apply),
        apply=apply,
        features=features,
    )


def of_loss(loss: Any, init: Any, **more: Any) -> Task:
    """A task of any loss, whose explained output is minus it: being right."""
    return Task(
        init=init,
        loss=loss,
        output=lambda params, batch: -loss(params, batch),
        targets="any",
        **more,
    )


def classes() -> Kind:
    """Softmax regression, three classes."""
    x, asked = inputs()
    true = truth(3)
    y, right = (x @ true + noise(3)).argmax(1), (asked @ true).argmax(1)
    return Kind(
        "classes",
        of_classes(layer, linear(5, 3), lambda params, x: x),
        Batch(x, one_hot(y, 3)),
        Batch(asked, one_hot(right, 3)),
        ddm.as_groups(IDS),
    )


def real() -> Kind:
    """Linear regression of real targets."""
    x, asked = inputs()
    true = truth(1)
    y, right = x @ true + noise(1), asked @ true + 0.5
    loss = lambda params, batch: jnp.sum(optax.l2_loss(layer(params, batch.x), batch.y), 1)  # noqa: E731
    return Kind(
        "real targets",
        of_loss(loss, linear(5, 1), apply=layer),
        Batch(x, y.astype(np.float32)),
        Batch(asked, right.astype(np.float32)),
        ddm.as_groups(IDS),
        RECIPE | {"learning_rate": 0.05, "steps": 300, "checkpoint_every": 30},
    )


def labels() -> Kind:
    """Logistic regressions of several labels an example."""
    x, asked = inputs()
    true = truth(3)
    y, right = x @ true + noise(3) > 0, asked @ true > 0

    def loss(params: Params, batch: Batch) -> jax.Array:
        return jnp.sum(optax.sigmoid_binary_cross_entropy(layer(params, batch.x), batch.y), 1)

    return Kind(
        "several labels",
        of_loss(loss, linear(5, 3), apply=layer),
        Batch(x, y.astype(np.float32)),
        Batch(asked, right.astype(np.float32)),
        ddm.as_groups(IDS),
    )


def tokens() -> Kind:
    """The next token from the tokens before it: embeddings that add up to logits."""
    draw = np.random.default_rng(3)
    habits = 2.5 * draw.normal(size=(TOKENS, TOKENS))
    x = draw.integers(0, TOKENS, (N, LENGTH)).astype(np.int32)
    x[np.arange(N), 0] = IDS  # each group has a token that it begins with
    asked = draw.integers(0, TOKENS, (Q, LENGTH)).astype(np.int32)
    y = (habits[x].mean(1) + noise(TOKENS)).argmax(1).astype(np.int32)
    right = habits[asked].mean(1).argmax(1).astype(np.int32)

    def loss(params: Params, batch: Batch) -> jax.Array:
        logits = params["embedding"][batch.x].mean(1)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)

    return Kind(
        "tokens",
        of_loss(loss, lambda key: {"embedding": jnp.zeros((TOKENS, TOKENS))}),
        Batch(x, y),
        Batch(asked, right),
        ddm.as_groups(IDS),
        RECIPE | {"learning_rate": 1.0},
    )


def columns() -> Kind:
    """Classes from a dict of numbers and a category."""
    x, asked = inputs()
    draw = np.random.default_rng(4)
    category, wanted = (draw.integers(0, 4, size).astype(np.int32) for size in (N, Q))
    true, shift = truth(3), draw.normal(size=(4, 3))
    y = (x @ true + shift[category] + noise(3)).argmax(1)
    right = (asked @ true + shift[wanted]).argmax(1)

    def init(key: jax.Array) -> Params:
        return {**linear(5, 3)(key), "embedding": jnp.zeros((4, 3))}

    def apply(params: Params, x: Any) -> jax.Array:
        return layer(params, x["numbers"]) + params["embedding"][x["category"]]

    return Kind(
        "dict inputs",
        of_classes(apply, init),
        Batch({"numbers": x, "category": category}, one_hot(y, 3)),
        Batch({"numbers": asked, "category": wanted}, one_hot(right, 3)),
        ddm.as_groups(IDS),
    )


def nothing() -> Kind:
    """No target: one half of an input from the other."""
    x, asked = inputs()
    mix = truth(2, 3)
    x[:, 3:] = x[:, :3] @ mix + noise(2)
    asked[:, 3:] = asked[:, :3] @ mix + 0.5

    def loss(params: Params, batch: Batch) -> jax.Array:
        return jnp.sum(optax.l2_loss(layer(params, batch.x[:, :3]), batch.x[:, 3:]), 1)

    return Kind(
        "no target",
        of_loss(loss, linear(3, 2)),
        Batch(x, None),
        Batch(asked, None),
        ddm.as_groups(IDS),
        RECIPE | {"learning_rate": 0.05, "steps": 300, "checkpoint_every": 30},
    )


def adamw() -> Kind:
    """The classes, trained by AdamW."""
    recipe = {
        "steps": 200,
        # With all points Adam's step near the optimum has no derivative that means anything.
        "batch_size": N // 3,
        "learning_rate": 0.05,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "checkpoint_every": 20,
    }
    return classes()._replace(title="AdamW", recipe=recipe)


def frozen() -> Kind:
    """The classes by a last layer on random features that do not learn."""
    kind = classes()
    draw = np.random.default_rng(5)
    backbone = jnp.asarray(draw.normal(size=(5, 12)) / 5**0.5, jnp.float32)
    features = lambda params, x: jnp.tanh(x @ backbone)  # noqa: E731
    apply = lambda params, x: layer(params, features(params, x))  # noqa: E731
    return kind._replace(title="frozen backbone", task=of_classes(apply, linear(12, 3), features))


SETS = np.repeat(np.eye(Q // 2, dtype=np.float32), 2, 1) / 2  # the means of pairs of queries


def over_sets(task: Task, sets: np.ndarray) -> Task:
    """The task whose outputs are those of sets of queries, `[S, Q]` their weights."""
    return task._replace(output=ddm.objectives.over_sets(task.output, sets), of_sets=True)


def sets() -> Kind:
    """The classes, asked about sets of queries."""
    kind = classes()
    return kind._replace(title="sets of queries", task=over_sets(kind.task, SETS))


def background() -> Kind:
    """The classes, where two of the six groups are not asked about."""
    return classes()._replace(
        title="a background", groups=ddm.as_groups(np.where(IDS < 2, -1, IDS - 2))
    )


KINDS: dict[str, Callable[[], Kind]] = {
    make.__name__: make
    for make in (
        classes,
        real,
        labels,
        tokens,
        columns,
        nothing,
        adamw,
        frozen,
        sets,
        background,
    )
}
QUICK = ("classes", "tokens")


# The methods


def of_task(name: str, **settings: Any) -> Callable[[Task, Train], ddm.Estimator]:
    """A method that takes the task alone."""
    make = (ESTIMATORS | VALUES)[name]
    return lambda task, train: make(task, **settings)


def training(name: str, **settings: Any) -> Callable[[Task, Train], ddm.Estimator]:
    """One that trains networks too."""
    make = (ESTIMATORS | VALUES)[name]
    return lambda task, train: make(task, train, **settings)


def distilled(name: str, part: float, **update: Any) -> Callable[[Task, Train], ddm.Estimator]:
    """One that distils a synset."""
    settings = ddm.DistillSettings(items=3, steps=1000, part=part), ddm.UpdateSettings(**update)
    return lambda task, train: ESTIMATORS[name](task, *settings)


DAMPED = {"damping": 1e-3}
METHODS: dict[str, Method] = {
    "ddm": Method(distilled("ddm", 0.5, steps=40), linear=False),
    "retraining": Method(training("retraining")),
    "banzhaf": Method(training("banzhaf", subsets=60)),
    "datamodel": Method(training("datamodel", subsets=60)),
    "encoded_ensemble": Method(training("encoded_ensemble", members=40)),
    "value_network": Method(training("value_network", subsets=40, steps=200), predicts=False),
    "forward_matching": Method(
        distilled("forward_matching", 1.0, steps=50, rewind=0.0), linear=False
    ),
    "merging": Method(of_task("merging", steps=30)),
    "untrac": Method(of_task("untrac", optimizer="sgd", learning_rate=1e-2)),
    "untrac_inverse": Method(of_task("untrac_inverse", optimizer="sgd", learning_rate=1e-3)),
    "mirrored_influence": Method(of_task("mirrored_influence")),
    "grad_dot": Method(of_task("grad_dot")),
    "grad_cos": Method(of_task("grad_cos"), linear=False),
    "tracin": Method(of_task("tracin")),
    "source": Method(of_task("source")),
    "metagradient": Method(of_task("metagradient")),
    "in_run_shapley": Method(of_task("in_run_shapley")),
    "influence_exact": Method(of_task("influence_exact", **DAMPED)),
    "influence_cg": Method(of_task("influence_cg", **DAMPED)),
    "influence_lissa": Method(of_task("influence_lissa", depth=200, batch=36, **DAMPED)),
    "influence_arnoldi": Method(of_task("influence_arnoldi", **DAMPED)),
    "influence_second_order": Method(of_task("influence_second_order", **DAMPED), linear=True),
    "gauss_newton": Method(of_task("gauss_newton", **DAMPED)),
    "ekfac": Method(of_task("ekfac", **DAMPED)),
    "datainf": Method(of_task("datainf")),
    "trak": Method(training("trak", projection=None, damping=0.1)),
    "synset_influence": Method(
        of_task("synset_influence", distill=ddm.DistillSettings(items=3, steps=100), checkpoints=1)
    ),
    "representer": Method(of_task("representer", l2=1e-2)),
    "representation": Method(of_task("representation"), predicts=False),
    "knn_shapley": Method(of_task("knn_shapley"), predicts=False),
    "class_fraction": Method(of_task("class_fraction"), predicts=False),
    "density_support": Method(of_task("density_support"), predicts=False),
    "group_size": Method(of_task("group_size"), predicts=False),
    "random": Method(of_task("random"), predicts=False),
    "complexity_gap": Method(of_task("complexity_gap"), predicts=False),
    "data_oob": Method(training("data_oob", models=8), predicts=False),
    "self_influence": Method(of_task("self_influence"), predicts=False),
    "training_dynamics": Method(of_task("training_dynamics"), predicts=False),
    "training_loss": Method(of_task("training_loss"), predicts=False),
}
# What these are called in their errors.
CALLED = {"ddm": "distilled datamodel", "synset_influence": "influence of single points"}


@cache
def ready(kind: str) -> Ready:
    """A problem, trained."""
    made = KINDS[kind]()
    train = ddm.make_train(made.task, **made.recipe)
    return Ready(made, train, jax.jit(train)(jax.random.key(0), made.data, jnp.ones(N)))


@cache
def ask(method: str, kind: str) -> Outcome:
    """Ask a method for the scores of a problem, or why it has none.

    Raises:
        Exception: whatever it raises but a ValueError of one line that names it, or a ValueError
            for scores that are not finite.
    """
    made, train, run = ready(kind)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            estimator = METHODS[method].make(made.task, train)
            state = estimator.fit(jax.random.key(1), run, made.data, made.groups)
            scores = np.asarray(estimator.score(state, made.query))
    except ValueError as error:
        told = str(error)
        names = (method, CALLED.get(method, method))
        if "\n" in told or not any(name in told for name in names):
            raise
        return Outcome(None, told)
    width = len(SETS) if made.task.of_sets else Q
    if scores.shape != (made.groups.count, width) or not np.isfinite(scores).all():
        raise RuntimeError(f"{method} on {kind}: {scores.shape}, or scores that are not finite")
    return Outcome(scores, "; ".join(sorted({str(each.message) for each in warned})))


def agreement(method: str, kind: str) -> float | None:
    """The correlation with retraining over the groups, the mean over queries; None if refused."""
    found, exact = ask(method, kind), ask("retraining", kind)
    if found.scores is None or exact.scores is None:
        return None
    return nan_mean(per_query_correlation(found.scores, exact.scores, "pearson"))


def measure(methods: Sequence[str], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """A row a method, with an entry a kind."""
    rows = []
    for method in methods:
        row: dict[str, Any] = {"method": method, "predicts": METHODS[method].predicts}
        for kind in kinds:
            found = ask(method, kind)
            row[kind] = {
                "works": found.scores is not None,
                "agreement": agreement(method, kind),
                "said": found.said,
            }
        told = (f"{row[k]['agreement']:.2f}" if row[k]["works"] else "refuses" for k in kinds)
        harness.say(f"{method:24s}{'  '.join(told)}")
        rows.append(row)
    return rows


def main() -> None:
    """Measure, and write."""
    options = harness.arguments(__doc__, quick="two kinds of task", partitions=(0,))
    kinds = QUICK if options.quick else tuple(KINDS)
    titles = {kind: ready(kind).kind.title for kind in kinds}
    harness.write(options, {"kinds": titles, "rows": measure(tuple(METHODS), kinds)})


if __name__ == "__main__":
    main()
