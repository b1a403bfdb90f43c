import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm
from ddm_jax.loo import deal_items, stable_rate

DECAY = 0.05


def ridge_task():
    """Squared error against a label distribution: linear in the labels, with a closed form."""

    def loss(params, batch):
        return 0.5 * jnp.sum((batch.x @ params - batch.y) ** 2, -1)

    return ddm.Task(
        init=lambda key: jnp.zeros((3, 2)),
        apply=lambda params, x: x @ params,
        loss=loss,
        output=lambda params, batch: (batch.x @ params)[:, 0],
    )


@pytest.fixture(scope="module")
def ridge():
    """Points whose synset is themselves: K = N groups of one item."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (9, 3))
    y = jax.nn.softmax(jax.random.normal(keys[1], (9, 2)))
    synset = ddm.Synset(x[:, None], jnp.log(y)[:, None], jnp.ones((9, 1)), jnp.full(9, 1 / 9))
    query = ddm.Batch(jax.random.normal(keys[2], (4, 3)), jnp.ones((4, 2)) / 2)
    return ddm.Batch(x, y), synset, query


def solve(data, weights):
    w = weights / weights.sum()
    hessian = (data.x * w[:, None]).T @ data.x + DECAY * jnp.eye(3)
    return jnp.linalg.solve(hessian, (data.x * w[:, None]).T @ data.y)


def converged():
    return ddm.make_finetune(
        ridge_task(), steps=600, optimizer=optax.sgd(0.2, 0.9, True), weight_decay=DECAY
    )


def test_retaining_until_convergence_is_exact_leave_one_out(ridge):
    data, synset, query = ridge
    response = ddm.ddm_response(converged(), ridge_task().output)
    got = ddm.leave_one_out(response, 9)(solve(data, jnp.ones(9)), synset, query)
    full = query.x @ solve(data, jnp.ones(9))
    without = [query.x @ solve(data, jnp.ones(9).at[k].set(0)) for k in range(9)]
    want = jnp.stack([(full - other)[:, 0] for other in without])
    assert got.shape == want.shape == (9, 4)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_retraining_is_exact_leave_one_out_too(ridge):
    data, synset, query = ridge
    train = ddm.make_train(
        ridge_task(), steps=600, batch_size=9, learning_rate=0.2, momentum=0.9, weight_decay=DECAY
    )
    exact = ddm.retraining_response(train, ridge_task().output)
    got = ddm.leave_one_out(exact, 9)(jax.random.key(0), data, jnp.arange(9), query)
    distilled = ddm.leave_one_out(ddm.ddm_response(converged(), ridge_task().output), 9)(
        solve(data, jnp.ones(9)), synset, query
    )
    assert got.shape == distilled.shape == (9, 4)
    np.testing.assert_allclose(got, distilled, atol=1e-5)


def without_by_hat_matrix(x, y, query, out):
    """Ridge predictions without the points `out`, from the fit on all of them.

    The objective is a mean over what is kept, so the penalty of the sum shrinks with it. With
    `A = x'x + (N - |out|) decay I`, hat matrix `H = x A^-1 x'` and the residuals r of that fit:
    `theta_without = theta_A - A^-1 x_out' (I - H_out)^-1 r_out`.
    """
    inverse = np.linalg.inv(x.T @ x + (len(x) - len(out)) * DECAY * np.eye(x.shape[1]))
    theta = inverse @ x.T @ y
    hat = x[out] @ inverse @ x[out].T
    correction = np.linalg.solve(np.eye(len(out)) - hat, y[out] - x[out] @ theta)
    return (query @ (theta - inverse @ x[out].T @ correction))[:, 0]


@pytest.mark.parametrize("size", [1, 3])
def test_retrained_scores_are_the_hat_matrix_formula(size):
    """Groups of one and of three points; random starts, as converged runs forget theirs."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        x, y, query = (rng.normal(size=shape) for shape in ((9, 3), (9, 2), (4, 3)))
        groups = np.arange(9) % (9 // size)
        task = ridge_task()._replace(init=lambda key: jax.random.normal(key, (3, 2)))
        train = ddm.make_train(
            task, steps=1500, batch_size=9, learning_rate=0.1, momentum=0.9, weight_decay=DECAY
        )
        data = ddm.Batch(jnp.asarray(x), jnp.asarray(y))
        run = jax.jit(train)(jax.random.key(0), data, jnp.ones(9))
        assert run.params.dtype == jnp.float64
        estimator = ddm.make_retraining(task, train, seeds=2)
        state = estimator.fit(jax.random.key(1), run, data, groups)
        explained = ddm.Batch(jnp.asarray(query), jnp.zeros((4, 2)))
        scores = np.asarray(estimator.score(state, explained))
    full = (query @ np.linalg.solve(x.T @ x + 9 * DECAY * np.eye(3), x.T @ y))[:, 0]
    want = np.stack(
        [
            full - without_by_hat_matrix(x, y, query, np.flatnonzero(groups == k))
            for k in range(9 // size)
        ]
    )
    assert scores.shape == want.shape == (9 // size, 4)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(scores, want, atol=1e-9)


def test_any_subset_at_once_is_exact(ridge):
    data, synset, query = ridge
    masks = ddm.random_masks(jax.random.key(1), 6, 9)
    outputs = ddm.subset_outputs(ddm.ddm_response(converged(), ridge_task().output))
    got = outputs(masks, jnp.zeros((3, 2)), synset, query)
    want = jnp.stack([(query.x @ solve(data, mask))[:, 0] for mask in masks])
    assert got.shape == want.shape == (6, 4)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_forgetting_one_step_by_hand(ridge):
    data, synset, _query = ridge
    finetune = ddm.make_finetune(
        ridge_task(), update="forget", steps=1, optimizer=optax.sgd(0.3), weight_decay=DECAY
    )
    params = jnp.ones((3, 2))
    keep = jnp.ones(9).at[2].set(0).at[5].set(0)
    gradient = sum(data.x[i][:, None] * (data.x[i] @ params - data.y[i])[None] / 9 for i in (2, 5))
    got = finetune(params, synset, keep)
    assert got.shape == gradient.shape
    np.testing.assert_allclose(got, params + 0.3 * gradient, atol=1e-6)
    np.testing.assert_array_equal(finetune(params, synset, jnp.ones(9)), params)


def test_forgetting_needs_only_the_left_out_groups(ridge):
    _data, synset, _query = ridge
    finetune = ddm.make_finetune(ridge_task(), update="forget", steps=3, optimizer=optax.sgd(0.3))
    keep = jnp.ones(9).at[2].set(0)
    broken = synset._replace(x=synset.x.at[3:].set(77.0))
    a, b = (finetune(jnp.ones((3, 2)), s, keep) for s in (synset, broken))
    np.testing.assert_array_equal(a, b)


def test_small_forget_steps_are_grad_dot(ready, synset):
    finetune = ddm.make_finetune(ready.task, update="forget", steps=1, optimizer=optax.sgd(1e-2))
    got = ddm.leave_one_out(ddm.ddm_response(finetune, ready.task.output), 10)(
        ready.run.params, synset, ready.query
    )
    h = jax.vmap(ddm.make_synset_gradient(ready.task), (None, 0))(ready.run.params, synset)
    down = jax.tree.map(jnp.negative, h)
    want = jax.vmap(
        lambda d: jax.jvp(lambda p: ready.task.output(p, ready.query), (ready.run.params,), (d,))[1]
    )(down)
    assert got.shape == want.shape == (10, 50)
    assert np.corrcoef(np.ravel(got), np.ravel(want))[0, 1] > 0.999


def small(ready, update):
    finetune = ddm.make_finetune(
        ready.task, update=update, steps=3, optimizer=optax.sgd(0.1), weight_decay=1e-3
    )
    return ddm.ddm_response(finetune, ready.task.output)


@pytest.mark.parametrize("update", ["retain", "forget"])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_leave_one_out_equals_a_python_loop_on_any_number_of_devices(ready, synset, update, count):
    response = small(ready, update)
    args = (ready.run.params, synset, ready.query)
    got = ddm.leave_one_out(response, 10, devices=jax.local_devices()[:count])(*args)
    one = jax.jit(response)
    full = one(jnp.ones(10), *args)
    want = jnp.stack([full - one(jnp.ones(10).at[k].set(0), *args) for k in range(10)])
    assert got.shape == want.shape == (10, 50)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_plain_vmap_pmap_and_jit_of_the_finetune_agree(ready, synset):
    finetune = ddm.make_finetune(ready.task, steps=2, optimizer=optax.sgd(0.1))
    masks = 1 - jnp.eye(10)[:4]
    args = (ready.run.params, synset)
    by_vmap = jax.jit(jax.vmap(finetune, (None, None, 0)))(*args, masks)
    by_pmap = jax.pmap(finetune, in_axes=(None, None, 0))(*args, masks)
    for k in range(4):
        alone = finetune(*args, masks[k])
        for a, b, c in zip(*map(jax.tree.leaves, (alone, by_vmap, by_pmap)), strict=True):
            assert a.shape == b[k].shape == c[k].shape
            np.testing.assert_allclose(a, b[k], atol=1e-5)
            np.testing.assert_allclose(a, c[k], atol=1e-5)


def test_a_network_that_is_not_flax_goes_the_whole_way(rng):
    """Own functions over a nested params pytree: two layers by hand."""

    def init(key):
        a, b = jax.random.split(key)
        return [
            {"w": 0.1 * jax.random.normal(a, (64, 9)), "b": jnp.zeros(9)},
            (0.1 * jax.random.normal(b, (9, 10)),),
        ]

    def apply(params, x):
        hidden = jnp.tanh(x.reshape(len(x), -1) @ params[0]["w"] + params[0]["b"])
        return hidden @ params[1][0]

    def loss(params, batch):
        return optax.softmax_cross_entropy(apply(params, batch.x), batch.y)

    task = ddm.Task(init, apply, loss, ddm.objectives.margin(apply))
    split = ddm.data.load("digits", train_size=100, test_size=30)
    labels = split.train.y.argmax(1)
    groups = ddm.make_groups("class", features=split.train.x, labels=labels, num_groups=10)
    train = ddm.make_train(
        task, steps=60, batch_size=50, learning_rate=0.5, momentum=0.5, checkpoint_every=10
    )
    run = jax.jit(train)(jax.random.key(0), jax.device_put(split.train), jnp.ones(100))
    estimator = ddm.make_ddm(task, items=1, distill_steps=60, steps=15)
    state = estimator.fit(jax.random.key(1), run, split.train, groups)
    scores = np.asarray(estimator.score(state, split.test))
    assert scores.shape == (10, 30)
    # Without the only group of its class no query would be right.
    own = scores[split.test.y.argmax(1), np.arange(30)]
    assert (own > 0).mean() > 0.9


def test_masks():
    masks = ddm.leave_one_out_masks(3)
    np.testing.assert_array_equal(masks, [[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    halves = ddm.random_masks(jax.random.key(0), 50, 9)
    assert halves.shape == (50, 9)
    assert set(np.asarray(halves.sum(1))) == {4.0}
    assert (halves.mean(0) > 0.2).all()
    few = ddm.random_masks(jax.random.key(0), 5, 10, keep=0.0)
    assert set(np.asarray(few.sum(1))) == {1.0}


def test_ridge_datamodel_recovers_a_linear_response(rng):
    truth = rng.normal(size=(8, 5))
    masks = np.asarray(ddm.random_masks(jax.random.key(0), 400, 8))
    got = ddm.ridge_datamodel(masks, masks @ truth + 3.0, strength=1e-6)
    # All masks keep four groups, so effects are known up to a shift a query.
    assert got.shape == truth.shape
    np.testing.assert_allclose(got - got.mean(0), truth - truth.mean(0), atol=1e-4)


def test_trajectory_point_counts_back_from_the_end(ready):
    for rewind, index in ((0.0, 9), (0.2, 7), (0.75, 1), (0.99, 0)):
        point = ddm.trajectory_point(ready.run.checkpoints, rewind)
        for leaf, kept in zip(
            jax.tree.leaves(point), jax.tree.leaves(ready.run.checkpoints), strict=True
        ):
            np.testing.assert_array_equal(leaf, kept[index])


def test_wrong_arguments_are_named(ready, synset):
    good = {"steps": 1, "optimizer": optax.sgd(0.1)}
    with pytest.raises(ValueError, match="unknown update 'erase'"):
        ddm.make_finetune(ready.task, **good, update="erase")
    with pytest.raises(ValueError, match="steps=-1"):
        ddm.make_finetune(ready.task, **(good | {"steps": -1}))
    with pytest.raises(ValueError, match="num_groups=1"):
        ddm.leave_one_out(lambda *args: None, 1)
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        ddm.check_masks(np.ones((2, 3)), 4)
    with pytest.raises(ValueError, match="mask 1 keeps no group"):
        ddm.check_masks(np.array([[1, 0], [0, 0]]), 2)
    with pytest.raises(ValueError, match="must be 1 where"):
        ddm.check_masks(np.array([[2, 0]]), 2)
    outputs = ddm.subset_outputs(small(ready, "retain"))
    with pytest.raises(ValueError, match="mask 0 keeps no group"):
        outputs(np.zeros((1, 10)), ready.run.params, synset, ready.query)
    with pytest.raises(ValueError, match="synset of 10 groups"):
        outputs(np.ones((1, 9)), ready.run.params, synset, ready.query)
    with pytest.raises(ValueError, match="strength=0"):
        ddm.ridge_datamodel(np.eye(2), np.eye(2), strength=0)
    with pytest.raises(ValueError, match="rewind=1"):
        ddm.trajectory_point(ready.run.checkpoints, 1)


# The learning rate of the online stage


def parabola():
    """Half squared errors of a linear model, as a task of its own: the Hessian is a literal."""

    def apply(params, x):
        return x @ params

    return ddm.Task(
        init=lambda key: jnp.zeros(3),
        apply=apply,
        loss=lambda params, batch: 0.5 * apply(params, batch.x) ** 2,
        output=lambda params, batch: apply(params, batch.x),
    )


@pytest.mark.parametrize(("momentum", "limit"), [(0.0, 2.0), (0.9, 3.8 / 2.8)])
def test_the_stable_rate_is_half_of_what_diverges(momentum, limit):
    # Two groups of one item; the whole objective has the curvatures 4, 1 and 0.
    x = jnp.array([[[4.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]]])
    share = jnp.array([0.25, 0.25])
    synset = ddm.Synset(x, jnp.zeros((2, 1, 2)), jnp.array([[0.5], [0.5]]), share)
    task, start = parabola(), jnp.ones(3)
    rate = stable_rate(task, start, synset, momentum=momentum)
    assert rate.shape == ()
    np.testing.assert_allclose(rate, 0.5 * limit / 4.0, rtol=1e-3)
    decayed = stable_rate(task, start, synset, momentum=momentum, weight_decay=1.0)
    np.testing.assert_allclose(decayed, 0.5 * limit / 5.0, rtol=1e-3)
    for factor, stable in ((1.9, True), (2.1, False)):
        optimizer = optax.sgd(factor * float(rate), momentum=momentum or None, nesterov=True)
        finetune = ddm.make_finetune(task, steps=200, optimizer=optimizer)
        moved = finetune(start, synset, jnp.ones(2))
        assert moved.shape == (3,)
        assert (jnp.abs(moved[0]) < 0.1) == stable


# A step takes some of each group's items


def many_items(count, groups=3):
    """A synset of random items, with heavy-tailed masses of both signs."""
    draw = np.random.default_rng(count)
    mass = draw.normal(size=(groups, count)) ** 3
    return ddm.Synset(
        jnp.asarray(draw.normal(size=(groups, count, 3)), jnp.float32),
        jnp.asarray(draw.normal(size=(groups, count, 2)), jnp.float32),
        jnp.asarray(mass, jnp.float32),
        jnp.array([0.5, 0.3, 0.2]),
    )


@pytest.mark.parametrize(
    ("count", "step_items", "batches", "size"),
    [(6, 2, 3, 2), (7, 3, 3, 3), (5, 4, 2, 3), (1, 5, 1, 1), (4, 4, 1, 4), (4, None, 1, 4)],
)
def test_batches_deal_out_every_item_once(count, step_items, batches, size):
    synset = many_items(count)
    dealt = deal_items(synset, step_items)
    assert dealt.x.shape == (batches, 3, size, 3)
    assert dealt.y.shape == (batches, 3, size, 2)
    assert dealt.mass.shape == (batches, 3, size)
    np.testing.assert_array_equal(dealt.share, np.broadcast_to(synset.share, (batches, 3)))
    for k in range(3):
        there = {
            tuple(np.round([*x, *y, mass / batches], 5).tolist())
            for x, y, mass in zip(
                dealt.x[:, k].reshape(-1, 3),
                dealt.y[:, k].reshape(-1, 2),
                dealt.mass[:, k].ravel(),
                strict=True,
            )
            if mass != 0  # filled up
        }
        want = {
            tuple(np.round([*x, *y, mass], 5).tolist())
            for x, y, mass in zip(synset.x[k], synset.y[k], synset.mass[k], strict=True)
        }
        assert len(want) == count
        assert there == want


def test_batches_weigh_alike():
    synset = many_items(40)
    synset = synset._replace(mass=jnp.cbrt(synset.mass))
    heavy = np.abs(deal_items(synset, 10).mass).sum(2)
    in_order = 4 * np.abs(synset.mass).reshape(3, 4, 10).sum(2).T
    assert heavy.shape == in_order.shape == (4, 3)
    assert (heavy.std(0) < 0.3 * in_order.std(0)).all()
    # The heaviest item of each group is in another batch.
    assert len(set(np.abs(deal_items(synset, 10).mass).max(2).argmax(0))) == 3


def test_steps_take_the_batches_in_turn():
    synset, task = many_items(4), ridge_task()
    keep = jnp.array([1.0, 0.0, 1.0])
    finetune = ddm.make_finetune(
        task, steps=5, optimizer=optax.sgd(0.1), weight_decay=DECAY, step_items=2
    )
    got = finetune(jnp.ones((3, 2)), synset, keep)
    dealt, params = deal_items(synset, 2), np.ones((3, 2))
    for t in range(5):
        x, y, mass = (np.asarray(leaf[t % 2], float) for leaf in dealt[:3])
        y = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
        slope = DECAY * params
        for k in (0, 2):
            weight = synset.share[k] / (0.5 + 0.2) * mass[k]
            slope = slope + (x[k] * np.asarray(weight)[:, None]).T @ (x[k] @ params - y[k])
        params = params - 0.1 * slope
    assert got.shape == params.shape
    np.testing.assert_allclose(got, params, atol=1e-4)


@pytest.mark.parametrize("update", ["retain", "forget"])
def test_a_step_of_all_items_is_what_it_was(update):
    synset, keep = many_items(4), jnp.array([1.0, 0.0, 1.0])
    settings = {"update": update, "steps": 3, "optimizer": optax.sgd(0.1)}
    moved = [
        ddm.make_finetune(ridge_task(), **settings, step_items=items)(
            jnp.ones((3, 2)), synset, keep
        )
        for items in (None, 4, 9)
    ]
    for other in moved[1:]:
        np.testing.assert_array_equal(moved[0], other)


def test_the_stable_rate_is_that_of_the_sharpest_batch():
    # A batch an item, each twice as heavy: curvatures 8 and 2, and 5 of both together.
    x = jnp.array([[[4.0, 0.0, 0.0], [2.0, 0.0, 0.0]]])
    synset = ddm.Synset(x, jnp.zeros((1, 2, 2)), jnp.array([[0.25, 0.25]]), jnp.array([1.0]))
    args = (parabola(), jnp.ones(3), synset)
    whole = stable_rate(*args, momentum=0.0)
    some = stable_rate(*args, momentum=0.0, step_items=1)
    np.testing.assert_allclose([whole, some], [1 / 5.0, 1 / 8.0], rtol=1e-3)


def test_a_step_takes_at_least_one_item():
    with pytest.raises(ValueError, match="step_items=0; a step takes at least 1"):
        ddm.make_finetune(ridge_task(), steps=1, optimizer=optax.sgd(0.1), step_items=0)
