"""A model becomes a task: its loss, its output, how it is trained, and what of it learns."""

import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import ddm_jax as ddm
from ddm_jax import checkpoints, gradients, models, objectives
from ddm_jax.checks import check_batch, check_loss, count_outputs
from ddm_jax.compute import memory
from ddm_jax.compute.compiled import compiled
from ddm_jax.tasks import merge


class Line(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


def test_loss_is_cross_entropy_by_hand():
    real = ddm.classification(models.Logistic(2), (2,))
    params = jax.tree.map(jnp.zeros_like, real.init(jax.random.key(0)))
    batch = ddm.Batch(jnp.ones((1, 2)), jnp.array([[1.0, 0.0]]))
    assert ddm.classification(Line(), (1,)).features is None
    np.testing.assert_allclose(real.loss(params, batch), [np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(real.output(params, batch), [0.0], atol=1e-6)


def test_a_regression_task_has_squared_errors_by_hand():
    task = ddm.regression(Line(), (1,))
    params = {"Dense_0": {"kernel": jnp.array([[2.0, 0.0]]), "bias": jnp.array([0.0, 1.0])}}
    batch = ddm.Batch(jnp.array([[1.0], [3.0]]), jnp.array([[1.0, 1.0], [6.0, 4.0]]))
    loss = task.loss(params, batch)
    assert loss.shape == (2,)
    np.testing.assert_allclose(loss, [0.5, 4.5])
    np.testing.assert_allclose(task.output(params, batch), [-0.5, -4.5])
    assert task.apply(params, batch.x).shape == (2, 2)
    assert task.targets == "any"
    assert ddm.classification(Line(), (1,)).targets == "distribution"


# What is random in training


@pytest.fixture(scope="module")
def pictures():
    x = jax.random.normal(jax.random.key(1), (20, 8, 8, 1))
    return ddm.Batch(x, jax.nn.one_hot(jnp.arange(20) % 10, 10))


@pytest.mark.slow
def test_dropout_is_random_in_training_alone(pictures):
    task = ddm.classification(models.MLP(10, (32,), dropout=0.5), (8, 8, 1))
    plain = ddm.classification(models.MLP(10, (32,)), (8, 8, 1))
    params = task.init(jax.random.key(0))
    one, again, other = (task.training_loss(params, pictures, jax.random.key(k)) for k in (0, 0, 1))
    assert one.shape == again.shape == other.shape == (20,)
    np.testing.assert_array_equal(one, again)
    assert jnp.abs(one - other).min() > 0, "every example has a mask of its own draw"
    for deterministic in (task.loss, plain.loss):
        assert deterministic(params, pictures).shape == (20,)
    np.testing.assert_array_equal(task.loss(params, pictures), plain.loss(params, pictures))
    np.testing.assert_array_equal(task.output(params, pictures), plain.output(params, pictures))
    np.testing.assert_array_equal(
        task.features(params, pictures.x), plain.features(params, pictures.x)
    )
    assert jnp.abs(one - task.loss(params, pictures)).max() > 0.01


class Louder(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return (3.0 if train else 1.0) * nn.Dense(10)(x.reshape(len(x), -1))


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        if train:
            x = x + jax.random.normal(self.make_rng("dropout"), x.shape)
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_ones_own_module_is_told_that_it_is_trained(pictures):
    task = ddm.classification(Louder(), (8, 8, 1))
    params = task.init(jax.random.key(0))
    got = task.training_loss(params, pictures, jax.random.key(1))
    want = task.loss(jax.tree.map(lambda leaf: 3 * leaf, params), pictures)
    assert got.shape == want.shape == (20,)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert jnp.abs(got - task.loss(params, pictures)).max() > 0.1


def test_ones_own_module_gets_a_key_in_training(pictures):
    task = ddm.classification(Noisy(), (8, 8, 1))
    params = task.init(jax.random.key(0))
    one, other = (task.training_loss(params, pictures, jax.random.key(k)) for k in (0, 1))
    assert one.shape == other.shape == (20,)
    assert jnp.abs(one - other).min() > 0
    assert task.loss(params, pictures).shape == (20,)


# One flag a class, as networks have it.
class Train(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(10)(nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train))


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, training: bool):
        return nn.Dense(10)(nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not training))


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, x, *, is_training):
        return nn.Dense(10)(nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not is_training))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dense(10)(nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=deterministic))


@pytest.mark.slow
@pytest.mark.parametrize("module", [Train(), Training(), IsTraining(), Deterministic()])
def test_dropout_is_switched_on_for_training_whatever_its_flag_is_called(module, pictures):
    """0.8 knew `train` alone, and trained the others without their dropout."""
    task = ddm.classification(module, (8, 8, 1))
    params = task.init(jax.random.key(0))
    one, other = (task.training_loss(params, pictures, jax.random.key(k)) for k in (0, 1))
    assert one.shape == other.shape == (20,)
    assert jnp.abs(one - other).min() > 0
    plain = ddm.classification(models.Logistic(10), (8, 8, 1))
    np.testing.assert_allclose(task.loss(params, pictures), plain.loss(params, pictures), rtol=1e-5)

    def trained(task):
        train = ddm.make_train(task, steps=3, batch_size=20, learning_rate=0.1)
        return jax.jit(train)(jax.random.key(0), pictures, jnp.ones(20)).params

    kernels = [trained(each)["Dense_0"]["kernel"] for each in (task, plain)]
    assert kernels[0].shape == kernels[1].shape
    assert jnp.abs(kernels[0] - kernels[1]).max() > 1e-3, "it is trained with dropout"


class Always(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.Dropout(0.25, deterministic=True)(x))


class Nowhere(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.Dropout(0.0, deterministic=True)(x))


def test_dropout_that_nothing_switches_on_is_refused():
    message = (
        r"dropout \(0\.25\) and nothing to switch it on .* train, training, is_training, determ"
    )
    for make in (ddm.classification, ddm.regression):
        with pytest.raises(ValueError, match=message):
            make(Always(), (4,))
    assert ddm.classification(Nowhere(), (4,)).training_loss is None


# What is refused


class WithBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x))


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x).sum()


def test_modules_that_are_no_classifiers_are_refused_by_name():
    with pytest.raises(ValueError, match="batch_stats"):
        ddm.classification(WithBatchNorm(), (4,))
    with pytest.raises(ValueError, match=r"must be \(1, C\)"):
        ddm.classification(Flat(), (4,))


# Models of every framework, by hand

KERNEL, BIAS = jnp.array([[1.0, 0.0], [2.0, -1.0]]), jnp.array([0.0, 1.0])
X = jnp.array([[1.0, 1.0], [0.0, 2.0]])  # the linear map gives [[3, 0], [4, -1]]
KEY = jax.random.key(0)


class NnxLine(nnx.Module):
    def __init__(self, *, rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs)])

    def __call__(self, x):
        return self.layers[0](x)


def plain_line(params, x):
    return x @ params["kernel"] + params["bias"]


def plain_init(key):
    return {"kernel": jax.random.normal(key, (2, 2)), "bias": jnp.zeros(2)}


MODELS = {
    "linen": ((Line(), (2,)), {}),
    "nnx": ((NnxLine(rngs=nnx.Rngs(0)),), {}),
    "nnx class": ((NnxLine,), {}),
    "nnx function": ((lambda some: NnxLine(rngs=some),), {}),
    "equinox": ((eqx.nn.Linear(2, 2, key=KEY),), {}),
    "equinox function": ((lambda key: eqx.nn.Linear(2, 2, key=key),), {}),
    "function": ((plain_line,), {"init": plain_init}),
    "function of given params": ((plain_line,), {"params": plain_init(KEY)}),
}
FIXED = ("nnx", "equinox", "function of given params")
PLUS = lambda z: float(np.log1p(np.exp(z)))  # noqa: E731
KINDS = {
    # targets, losses, outputs
    "classification": ([[1.0, 0.0], [0.0, 1.0]], [PLUS(-3), PLUS(5)], [3, -5]),
    "regression": ([[1.0, 1.0], [4.0, 0.0]], [2.5, 0.5], [-2.5, -0.5]),
    "multilabel": (
        [[1, 0], [0, 1]],
        [PLUS(-3) + PLUS(0), PLUS(4) + PLUS(1)],
        [-PLUS(-3) - PLUS(0), -PLUS(4) - PLUS(1)],
    ),
}


def filled(params):
    """The parameters of the linear map, which equinox transposes."""
    values = {"kernel": KERNEL, "weight": KERNEL.T, "bias": BIAS}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: values[path[-1].key], params)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_task_of_every_framework_by_hand(name, kind):
    arguments, options = MODELS[name]
    task = getattr(ddm, kind)(*arguments, **options)
    targets, losses, outputs = KINDS[kind]
    batch = ddm.Batch(X, jnp.array(targets))
    params = filled(task.init(KEY))
    assert isinstance(params, dict)
    np.testing.assert_allclose(task.apply(params, X), [[3, 0], [4, -1]])
    np.testing.assert_allclose(task.loss(params, batch), losses, rtol=1e-6)
    np.testing.assert_allclose(task.output(params, batch), outputs, rtol=1e-6)
    assert task.training_loss is None
    assert task.targets == {"classification": "distribution", "multilabel": "labels"}.get(
        kind, "any"
    )
    slopes = jax.jit(jax.grad(lambda p: task.loss(p, batch).sum()))(params)
    assert jax.tree.structure(slopes) == jax.tree.structure(params)
    assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(slopes))
    check_batch(task, batch)
    check_loss(task, batch)
    count_outputs(task, batch)
    assert not task.lower_is_better


@pytest.mark.parametrize("name", MODELS)
def test_every_key_gives_fresh_parameters_or_those_of_the_instance(name):
    arguments, options = MODELS[name]
    task = ddm.classification(*arguments, **options)
    many = jax.jit(jax.vmap(task.init))(jax.random.split(KEY, 3))
    matrices = [leaf for leaf in jax.tree.leaves(many) if leaf.ndim == 3]
    assert matrices[0].shape == (3, 2, 2)
    same = bool(jnp.allclose(matrices[0][0], matrices[0][1]))
    assert same == (name in FIXED)
    flat, back = ravel_pytree(task.init(KEY))
    assert flat.shape == (6,)
    assert jax.tree.structure(back(flat)) == jax.tree.structure(task.init(KEY))


def test_parameters_of_a_list_of_layers_go_to_a_file_and_back(tmp_path):
    nets = NnxLine, lambda key: eqx.nn.MLP(2, 2, 3, 1, key=key)
    for number, (net, path) in enumerate(zip(nets, ("kernel", "weight"), strict=True)):
        params = ddm.classification(net).init(KEY)
        assert path in params["layers"]["0"]
        checkpoints.save(tmp_path / str(number), params)
        back = checkpoints.load(tmp_path / str(number), params)
        jax.tree.map(np.testing.assert_array_equal, params, back)


def test_a_trained_model_comes_back():
    for model in (NnxLine(rngs=nnx.Rngs(0)), eqx.nn.MLP(2, 2, 3, 1, key=KEY)):
        task = ddm.classification(model)
        params = jax.tree.map(lambda leaf: leaf + 1, task.init(KEY))
        trained = merge(model, params)
        call = jax.vmap(trained) if isinstance(model, eqx.Module) else trained
        np.testing.assert_allclose(call(X), task.apply(params, X), rtol=1e-6)
        before = jax.vmap(model) if isinstance(model, eqx.Module) else model
        assert jnp.abs(before(X) - call(X)).max() > 0.1, "and the one before is as it was"
    with pytest.raises(ValueError, match="there is no 'layers/9' among layers/0/weight"):
        merge(model, {"layers": {"9": jnp.ones(2)}})


def test_a_soft_label_of_each_kind_is_an_item():
    multi = ddm.multilabel(plain_line, init=plain_init)
    leaves = multi.items.start(ddm.Batch(X, np.array([[1, 0], [0, 1]])))
    np.testing.assert_allclose(leaves.y, [[7, -7], [-7, 7]])
    assert jnp.issubdtype(leaves.y.dtype, jnp.floating)
    soft = multi.items.start(ddm.Batch(X, jnp.array([[0.5, 0.25], [0.9, 1.0]])))
    back = multi.items.batch(soft)
    np.testing.assert_allclose(back.y, [[0.5, 0.25], [0.9, 0.9990889]], rtol=1e-5)
    assert multi.items.free == ("x", "y")
    real = ddm.regression(plain_line, init=plain_init)
    assert real.items.free == ("x", "y")
    assert real.items.batch(real.items.start(leaves)) is leaves
    assert ddm.classification(plain_line, init=plain_init).items is None


def test_predictions_and_logits_are_explained_by_name():
    batch = ddm.Batch(X, jnp.array([[1.0, 1.0], [4.0, 0.0]]))
    params = {"kernel": KERNEL, "bias": BIAS}
    for make, name in ((ddm.regression, "prediction:1"), (ddm.multilabel, "logit:1")):
        task = make(plain_line, init=plain_init)
        np.testing.assert_allclose(objectives.explain(task, name).output(params, batch), [0, -1])
        explained = objectives.explain(task, "loss")
        np.testing.assert_allclose(explained.output(params, batch), task.loss(params, batch))
        with pytest.raises(ValueError, match="objective 'margin' needs classes"):
            objectives.explain(task, "margin")


def test_one_real_target_is_never_broadcast():
    column = ddm.regression(lambda p, x: x @ p, params=jnp.ones((2, 1)))
    scalar = ddm.regression(lambda p, x: (x @ p)[:, 0], params=jnp.ones((2, 1)))
    wide = ddm.regression(plain_line, init=plain_init)
    y = jnp.array([1.0, 4.0])
    for task in (column, scalar):
        for targets in (y, y[:, None]):
            loss = task.loss(jnp.ones((2, 1)), ddm.Batch(X, targets))
            np.testing.assert_allclose(loss, [0.5, 2.0])
        assert task.apply(jnp.ones((2, 1)), X).shape == (2, 1)
    for task, params, targets in (
        (wide, plain_init(KEY), y),
        (column, jnp.ones((2, 1)), jnp.ones((2, 2))),
        (column, jnp.ones((2, 1)), None),
    ):
        with pytest.raises(ValueError, match=r"the targets have shape .* the model returns"):
            task.loss(params, ddm.Batch(X, targets))
    for make in (ddm.classification, ddm.multilabel):
        with pytest.raises(ValueError, match=r"the labels have shape \(2,\) and the model returns"):
            make(plain_line, init=plain_init).loss(plain_init(KEY), ddm.Batch(X, jnp.arange(2)))


# Inputs of any kind


class Mixed(nn.Module):
    @nn.compact
    def __call__(self, x):
        words = nn.Embed(7, 4)(x["tokens"]).mean(1)
        return nn.Dense(3)(jnp.concatenate([words, x["table"]], -1))


def mixed(rows):
    return {"tokens": jnp.arange(rows * 5).reshape(rows, 5) % 7, "table": jnp.ones((rows, 2))}


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        mixed(4),
        {"tokens": jax.ShapeDtypeStruct((5,), jnp.int32), "table": (2,)},
        {"tokens": jax.ShapeDtypeStruct((5,), jnp.int32), "table": [2]},
    ],
)
def test_inputs_are_dicts_and_tokens(shape):
    task = ddm.classification(Mixed(), shape)
    params = task.init(KEY)
    assert params["Embed_0"]["embedding"].shape == (7, 4)
    batch = ddm.Batch(mixed(6), jax.nn.one_hot(jnp.arange(6) % 3, 3))
    assert task.loss(params, batch).shape == task.output(params, batch).shape == (6,)
    check_batch(task, batch)


@pytest.mark.parametrize("shape", [28, "28", {"a": 1.5}, (2.0, 3)])
def test_an_input_shape_that_is_none_is_refused(shape):
    with pytest.raises(ValueError, match=r"input_shape holds .* must be the shape of one example"):
        ddm.classification(Line(), shape)


def test_many_examples_go_in_pieces_where_no_shape_was_given(monkeypatch):
    sizes = []

    def apply(params, x):
        sizes.append(x.shape[0])
        return plain_line(params, x)

    task = ddm.classification(apply, init=plain_init)
    x = jax.random.normal(KEY, (10, 2))
    whole = task.apply(plain_init(KEY), x)
    monkeypatch.setattr(memory, "BUDGETS", {"examples": memory.Budget(20, 10**9, 16)})
    sizes.clear()
    pieces = task.apply(plain_init(KEY), x)
    assert 1 <= sizes[-1] < 10
    np.testing.assert_allclose(whole, pieces, rtol=1e-6)


# Dropout


class NnxDropout(nnx.Module):
    def __init__(self, rngs, rate=0.5):
        self.first, self.second = nnx.Linear(2, 40, rngs=rngs), nnx.Linear(40, 2, rngs=rngs)
        self.one, self.two = nnx.Dropout(rate, rngs=rngs), nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        return self.second(self.two(self.one(self.first(x))))


class NnxFlag(nnx.Module):
    def __init__(self, rngs):
        self.line, self.dropout = nnx.Linear(2, 40, rngs=rngs), nnx.Dropout(0.5)

    def __call__(self, x, *, train, rngs=None):
        return self.dropout(self.line(x), deterministic=not train, rngs=rngs)[:, :2]


class EqxDropout(eqx.Module):
    line: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.line, self.dropout = eqx.nn.Linear(2, 40, key=key), eqx.nn.Dropout(0.5)

    def __call__(self, x, *, key=None):
        return self.dropout(self.line(x), key=key)[:2]


class EqxKey(EqxDropout):
    def __call__(self, x, key):
        return super().__call__(x, key=jax.random.split(key)[0])


def in_eval(model):
    model.eval()
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        NnxDropout(nnx.Rngs(0)),
        in_eval(NnxDropout(nnx.Rngs(0))),
        NnxDropout,
        NnxFlag,
        EqxDropout(KEY),
        eqx.nn.inference_mode(EqxDropout(KEY)),
        EqxKey(KEY),
        lambda key: EqxDropout(key),
    ],
)
def test_dropout_of_every_framework_is_random_in_training_alone(model):
    task = ddm.classification(model)
    params = task.init(KEY)
    batch = ddm.Batch(jnp.ones((30, 2)), jnp.tile(jnp.eye(2)[:1], (30, 1)))
    training_loss = jax.jit(task.training_loss)
    one, again, other = (training_loss(params, batch, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert jnp.abs(one - other).max() > 0.01
    assert jnp.std(one) > 0.01, "every example has a mask of its own"
    np.testing.assert_array_equal(task.loss(params, batch), task.loss(params, batch))
    assert jnp.std(task.loss(params, batch)) < 1e-6
    slopes = jax.grad(lambda p: task.training_loss(p, batch, KEY).sum())(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_every_dropout_layer_draws_its_own_mask():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(2))
            self.one, self.two = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return jnp.stack([self.one(x), self.two(x)], -1) * self.scale

    task = ddm.regression(Twice)
    batch = ddm.Batch(jnp.ones(400), jnp.zeros((400, 2)))
    found = task.training_loss(task.init(KEY), batch, KEY)
    np.testing.assert_allclose((found == 2).mean(), 0.5, atol=0.1)  # one kept: 2^2 / 2


def test_dropout_of_nothing_is_not_random():
    assert ddm.classification(lambda rngs: NnxDropout(rngs, rate=0.0)).training_loss is None
    assert ddm.classification(eqx.nn.MLP(2, 2, 3, 1, key=KEY)).training_loss is None


def test_dropout_without_a_key_is_refused():
    class Keyless(nnx.Module):
        def __init__(self, rngs):
            self.line, self.dropout = nnx.Linear(2, 2, rngs=rngs), nnx.Dropout(0.25)

    with pytest.raises(ValueError, match=r"dropout is dropout \(0\.25\) without a key: make it"):
        ddm.classification(Keyless)


# BatchNorm


class NnxNorm(nnx.Module):
    def __init__(self, rngs, **how):
        self.norm, self.line = nnx.BatchNorm(2, rngs=rngs, **how), nnx.Linear(2, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.line(self.norm(x)))


class NnxNormByFlag(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(2, rngs=rngs, use_running_average=None)

    def __call__(self, x, train):
        return self.norm(x, use_running_average=not train)


def test_a_frozen_batch_norm_of_nnx_uses_its_statistics():
    model = NnxNorm(nnx.Rngs(0))
    model.norm.mean[...] = jnp.array([1.0, 2.0])
    model.eval()
    task = ddm.classification(model)
    params = task.init(KEY)
    assert set(params["norm"]) == {"scale", "bias"}
    moved = X - jnp.array([1.0, 2.0])
    want = moved / np.sqrt(1 + 1e-5) @ params["line"]["kernel"]
    np.testing.assert_allclose(task.apply(params, X), want, rtol=1e-4, atol=1e-6)
    alone = task.loss(params, ddm.Batch(X[:1], jnp.eye(2)[:1]))
    both = task.loss(params, ddm.Batch(X, jnp.eye(2)))
    np.testing.assert_allclose(alone[0], both[0], rtol=1e-6)
    assert task.training_loss(params, ddm.Batch(X, jnp.eye(2)), KEY).shape == (2,)
    fresh = ddm.classification(lambda rngs: NnxNorm(rngs, use_running_average=True))
    assert fresh.loss(fresh.init(KEY), ddm.Batch(X, jnp.eye(2))).shape == (2,)


def test_a_batch_norm_that_would_train_is_refused_with_the_remedy():
    remedy = r"model\.eval\(\) or use_running_average=True where it is made, or use GroupNorm"
    for model in (NnxNorm(nnx.Rngs(0)), NnxNorm):
        with pytest.raises(ValueError, match="norm would train the statistics.*" + remedy):
            ddm.classification(model)
    task = ddm.classification(NnxNormByFlag)
    params, batch = task.init(KEY), ddm.Batch(X, jnp.eye(2))
    assert task.loss(params, batch).shape == (2,)
    with pytest.raises(ValueError, match="the model trains the statistics.*" + remedy):
        task.training_loss(params, batch, KEY)

    class Stateful(eqx.Module):
        norm: eqx.nn.BatchNorm

        def __call__(self, x, state):
            return self.norm(x, state)

    model, _ = eqx.nn.make_with_state(lambda: Stateful(eqx.nn.BatchNorm(2, "b", mode="batch")))()
    with pytest.raises(ValueError, match=r"Stateful has state.* use GroupNorm or LayerNorm"):
        ddm.classification(model)


class NormByFlag(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(3)(nn.Dropout(self.rate, deterministic=not train)(x))


class FrozenNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


def test_frozen_statistics_of_linen():
    x, y = jnp.ones((5, 4)), jnp.tile(jnp.eye(3)[:1], (5, 1))
    mean = jnp.arange(4.0)
    state = {"batch_stats": {"BatchNorm_0": {"mean": mean, "var": jnp.ones(4)}}}
    task = ddm.classification(NormByFlag(), (4,), frozen_state=state)
    params = task.init(KEY)
    assert set(params) == {"BatchNorm_0", "Dense_0"}
    want = (x - mean) / np.sqrt(1 + 1e-5) @ params["Dense_0"]["kernel"]
    np.testing.assert_allclose(task.apply(params, x), want, rtol=1e-4, atol=1e-6)
    assert task.training_loss is None, "the switch is of the statistics alone, which are frozen"
    random = ddm.classification(FrozenNorm(), (4,), frozen_state=state)
    losses = random.training_loss(random.init(KEY), ddm.Batch(x, y), KEY)
    assert jnp.std(losses) > 0
    with pytest.raises(ValueError, match="train=True switches on both the dropout and the stat"):
        ddm.classification(NormByFlag(0.5), (4,), frozen_state=state)
    with pytest.raises(ValueError, match=r"frozen_state=\{'batch_stats': \.\.\.\}, or use Group"):
        ddm.classification(NormByFlag(), (4,))
    with pytest.raises(ValueError, match=r"frozen_state has \['batch_stats'\]; the module has"):
        ddm.classification(Line(), (4,), frozen_state=state)
    with pytest.raises(ValueError, match=r"frozen_state\['batch_stats'\] has the shapes"):
        ddm.classification(NormByFlag(), (5,), frozen_state=state)


# A part of the parameters learns


def test_the_variables_of_a_filter_learn():
    class Adapted(nnx.Module):
        def __init__(self, rngs):
            self.line = nnx.LoRALinear(2, 2, lora_rank=1, rngs=rngs)

        def __call__(self, x):
            return self.line(x)

    model = Adapted(nnx.Rngs(0))
    model.line.lora.lora_b[...] = jnp.ones((1, 2))
    task = ddm.classification(model, trainable=nnx.LoRAParam)
    params = task.init(KEY)
    assert set(params["line"]) == {"lora"}
    assert ravel_pytree(params)[0].shape == (4,)
    np.testing.assert_allclose(task.apply(params, X), model(X), rtol=1e-6)
    whole = ddm.classification(model)
    by_path = ddm.freeze(whole, whole.init(KEY), "*lora*")
    batch = ddm.Batch(X, jnp.eye(2))
    np.testing.assert_allclose(task.loss(params, batch), by_path.loss(params, batch), rtol=1e-6)
    with pytest.raises(ValueError, match=r"trainable=.* is none of the model's variables: \['Par"):
        ddm.classification(NnxLine, trainable=nnx.LoRAParam)


FREEZE = {
    "linen": (ddm.classification(models.MLP(2, (3,)), (2,)), "Dense_1/*", 8),
    "nnx": (ddm.classification(NnxDropout), ("second/*", "first/bias"), 122),
    "equinox": (
        ddm.classification(eqx.nn.MLP(2, 2, 3, 1, key=KEY)),
        lambda path: path.endswith("1/weight"),
        6,
    ),
    "any pytree": (ddm.regression(lambda p, x: x @ p[0] + p[1], params=[KERNEL, BIAS]), "1", 2),
    "equinox's own params": (
        ddm.regression(lambda p, x: jax.vmap(p)(x), params=eqx.nn.Linear(2, 2, key=KEY)),
        "weight",
        4,
    ),
}


@pytest.mark.parametrize("name", FREEZE)
def test_only_the_trainable_part_learns(name):
    task, trainable, count = FREEZE[name]
    params = task.init(KEY)
    tuned = ddm.freeze(task, params, trainable)
    start = tuned.init(jax.random.key(7))
    assert ravel_pytree(start)[0].shape == (count,)
    batch = ddm.Batch(X, jnp.eye(2))
    assert tuned.targets == task.targets
    assert tuned.items == task.items
    for part in ("loss", "output"):
        np.testing.assert_allclose(
            getattr(tuned, part)(start, batch), getattr(task, part)(params, batch), rtol=1e-6
        )
    np.testing.assert_allclose(tuned.apply(start, X), task.apply(params, X), rtol=1e-6)
    if task.features:
        np.testing.assert_allclose(tuned.features(start, X), task.features(params, X), rtol=1e-6)
    if task.training_loss:
        both = tuned.training_loss(start, batch, KEY), task.training_loss(params, batch, KEY)
        np.testing.assert_allclose(*both, rtol=1e-6)
    assert gradients.example_gradients(tuned.loss, start, batch).shape == (2, count)
    moved = jax.tree.map(lambda leaf: leaf + 1, start)
    whole = merge(params, moved)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True)
    changed = sum(int((new != old).sum()) for new, old in pairs)
    assert changed == count, "all else is as it was"
    np.testing.assert_allclose(tuned.loss(moved, batch), task.loss(whole, batch), rtol=1e-6)
    many = jax.vmap(tuned.init)(jax.random.split(KEY, 3))
    assert jax.tree.leaves(many)[0].shape[0] == 3


def test_the_frozen_part_is_an_argument_of_programs_and_no_constant():
    params = {"back": jnp.ones((2, 300)), "head": jnp.ones((300, 1))}
    task = ddm.regression(lambda p, x: x @ p["back"] @ p["head"], params=params)
    tuned = ddm.freeze(task, params, "head")
    batch = ddm.Batch(X, jnp.ones(2))
    lowered = compiled(tuned.loss).lower(tuned.init(KEY), batch)
    shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(lowered.in_avals)]
    assert (2, 300) in shapes
    found = compiled(tuned.loss)(tuned.init(KEY), batch)
    np.testing.assert_allclose(found, task.loss(params, batch), rtol=1e-6)
    norm = NnxNorm(nnx.Rngs(0), use_running_average=True)
    closed = ddm.classification(norm)
    lowered = compiled(closed.loss).lower(closed.init(KEY), ddm.Batch(X, jnp.eye(2)))
    assert len(jax.tree.leaves(lowered.in_avals)) == 4 + 2 + 2  # params, batch, mean and variance


def test_what_cannot_be_frozen_is_refused():
    task = FREEZE["linen"][0]
    params = task.init(KEY)
    with pytest.raises(ValueError, match=r"'head/\*' matches no parameter; there are Dense_0/bias"):
        ddm.freeze(task, params, ("Dense_0/*", "head/*"))
    for nothing in ((), lambda path: False):
        with pytest.raises(ValueError, match="nothing is trainable; there are Dense_0/bias, Dense"):
            ddm.freeze(task, params, nothing)
    with pytest.raises(
        ValueError, match="not of this task: they have Dense_0/bias, Dense_0/kernel"
    ):
        ddm.freeze(task, {"Dense_0": params["Dense_0"]}, "*")
    wide = jax.tree.map(lambda leaf: jnp.ones((*leaf.shape, 2)), params)
    with pytest.raises(ValueError, match=r"not of this task: Dense_0/bias is \(3, 2\) for \(3,\)"):
        ddm.freeze(task, wide, "*")


# What is no model


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        (Line(), {}, "Line is a flax.linen module: input_shape is needed"),
        (3, {}, r"int is no module of .* \(it is a int\); a function apply"),
        (plain_line, {}, "plain_line is no module of flax or equinox, nor a function of nnx.Rngs"),
        (lambda rngs: 3, {}, "it makes a int"),
        (plain_line, {"init": plain_init, "params": {}}, "one of the two is given"),
        (Line(), {"input_shape": (2,), "init": plain_init}, "init= is for a function apply"),
        (NnxLine, {"frozen_state": {}}, "frozen_state= is for a flax.linen module, and the model"),
        (lambda key: eqx.nn.Linear(2, 2, key=key), {"trainable": "x"}, "trainable= is for an NNX"),
    ],
)
def test_what_is_no_model_is_refused_by_name(model, options, told):
    with pytest.raises(ValueError, match=told) as error:
        ddm.classification(model, **options)
    assert "\n" not in str(error.value)


def test_predictions_of_another_shape_are_refused_when_they_are_made():
    task = ddm.classification(lambda p, x: (x @ p)[:, None], params=KERNEL)
    with pytest.raises(ValueError, match=r"returns \(2, 1, 2\) for 2 examples; .* \(2, C\)"):
        task.apply(KERNEL, X)
    with pytest.raises(ValueError, match=r"returns a tuple for 2 examples"):
        ddm.classification(lambda p, x: (x, p), params=KERNEL).apply(KERNEL, X)
    with pytest.raises(ValueError, match=r"returns \(1, 1, 2\) for 1 examples"):
        ddm.classification(lambda p, x: (x @ p)[:, None], (2,), params=KERNEL)


def test_equinox_and_nnx_are_imported_by_their_users_alone():
    code = (
        "import sys, flax.linen as nn, ddm_jax as ddm\n"
        "ddm.classification(ddm.models.MLP(2), (3,))\n"
        "print('equinox' in sys.modules, 'flax.nnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_freeze_refuses_paths_that_are_the_same():
    params = {"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)}
    task = ddm.Task(lambda key: params, loss=None, output=None, targets="any")
    with pytest.raises(ValueError, match="two parameters have the same path"):
        ddm.freeze(task, params, "*")


def test_freeze_refuses_what_is_not_finite():
    task = ddm.Task(lambda key: {"a": jnp.ones(2)}, loss=None, output=None, targets="any")
    with pytest.raises(ValueError, match="a is not finite"):
        ddm.freeze(task, {"a": jnp.array([1.0, jnp.nan])}, "*")


def test_freeze_takes_an_nnx_module():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    task = ddm.classification(model)
    tuned = ddm.freeze(task, model, "bias")
    assert set(tuned.init(jax.random.key(0))) == {"bias"}
    x = jnp.ones((4, 2))
    np.testing.assert_allclose(tuned.apply(tuned.init(jax.random.key(0)), x), model(x), rtol=1e-6)
