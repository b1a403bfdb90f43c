import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import compilations

import ddm_jax as ddm
from ddm_jax import rates
from ddm_jax.estimators.retraining import retraining_response
from ddm_jax.matching import make_synset_gradient
from ddm_jax.online import make_parts
from ddm_jax.rates import Deflation, deflation, precondition, stable_rate
from ddm_jax.synset import batches_of, by_group, deal, item_weights, join, take_batch
from ddm_jax.updates import UNCHOSEN, pace_of, settled, update_rule

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
    synset = ddm.Synset(ddm.Batch(x, jnp.log(y)), jnp.arange(9), jnp.ones(9), jnp.full(9, 1 / 9))
    query = ddm.Batch(jax.random.normal(keys[2], (4, 3)), jnp.ones((4, 2)) / 2)
    return ddm.Batch(x, y), synset, query


def solve(data, weights):
    w = weights / weights.sum()
    hessian = (data.x * w[:, None]).T @ data.x + DECAY * jnp.eye(3)
    return jnp.linalg.solve(hessian, (data.x * w[:, None]).T @ data.y)


def scores_of(response, num_groups, **placement):
    return ddm.leave_one_out(ddm.subset_outputs(response, **placement), num_groups)


def converged():
    return ddm.make_finetune(
        ridge_task(), steps=600, optimizer=optax.sgd(0.2, 0.9, True), weight_decay=DECAY
    )


def test_retaining_until_convergence_is_exact_leave_one_out(ridge):
    data, synset, query = ridge
    response = ddm.ddm_response(converged(), ridge_task().output)
    got = scores_of(response, 9)(solve(data, jnp.ones(9)), synset, query)
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
    exact = retraining_response(train, ridge_task().output)
    groups = ddm.as_groups(jnp.arange(9))
    got = scores_of(exact, 9)(jax.random.key(0), data, groups, query)
    distilled = scores_of(ddm.ddm_response(converged(), ridge_task().output), 9)(
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


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_retrained_scores_are_the_hat_matrix_formula(size):
    """Groups of one and of three points; random starts, as converged runs forget theirs."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        x, y, query = (rng.normal(size=shape) for shape in ((9, 3), (9, 2), (4, 3)))
        groups = np.arange(9) % (9 // size)
        task = ridge_task()._replace(init=lambda key: jax.random.normal(key, (3, 2)), targets="any")
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
    x = synset.items.x.at[3:].set(77.0)
    broken = synset._replace(items=synset.items._replace(x=x))
    a, b = (finetune(jnp.ones((3, 2)), s, keep) for s in (synset, broken))
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_small_forget_steps_are_grad_dot(ready, synset):
    finetune = ddm.make_finetune(ready.task, update="forget", steps=1, optimizer=optax.sgd(1e-2))
    got = scores_of(ddm.ddm_response(finetune, ready.task.output), 10)(
        ready.run.params, synset, ready.query
    )
    h = jax.vmap(make_synset_gradient(ready.task), (None, 0))(ready.run.params, by_group(synset))
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


@pytest.mark.slow
@pytest.mark.parametrize("update", ["retain", "forget"])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_leave_one_out_equals_a_python_loop_on_any_number_of_devices(ready, synset, update, count):
    response = small(ready, update)
    args = (ready.run.params, synset, ready.query)
    got = scores_of(response, 10, devices=jax.local_devices()[:count])(*args)
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


@pytest.mark.slow
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

    task = ddm.Task(init, loss, ddm.objectives.margin(apply), apply)
    split = ddm.data.load("digits", train_size=100, test_size=30)
    labels = split.train.y.argmax(1)
    groups = ddm.make_groups("class", features=split.train.x, labels=labels, num_groups=10)
    train = ddm.make_train(
        task, steps=60, batch_size=50, learning_rate=0.5, momentum=0.5, checkpoint_every=10
    )
    run = jax.jit(train)(jax.random.key(0), jax.device_put(split.train), jnp.ones(100))
    estimator = ddm.make_ddm(
        task, ddm.DistillSettings(items=1, steps=60), ddm.UpdateSettings(steps=15)
    )
    state = estimator.fit(jax.random.key(1), run, split.train, groups)
    scores = np.asarray(estimator.score(state, split.test))
    assert scores.shape == (10, 30)
    # Without the only group of its class no query would be right.
    own = scores[split.test.y.argmax(1), np.arange(30)]
    assert (own > 0).mean() > 0.9


def test_trajectory_point_counts_back_from_the_end(ready):
    for rewind, index in ((0.0, 9), (0.2, 7), (0.75, 1), (0.99, 0)):
        point = ddm.trajectory_point(ready.run.checkpoints, rewind)
        for leaf, kept in zip(
            jax.tree.leaves(point), jax.tree.leaves(ready.run.checkpoints), strict=True
        ):
            np.testing.assert_array_equal(leaf, kept[index])


def test_wrong_arguments_are_named(ready, synset):
    good = {"steps": 1, "optimizer": optax.sgd(0.1)}
    with pytest.raises(ValueError, match="update='erase'; choose one of retain, forget"):
        ddm.make_finetune(ready.task, **good, update="erase")
    with pytest.raises(ValueError, match="steps=-1"):
        ddm.make_finetune(ready.task, **(good | {"steps": -1}))
    outputs = ddm.subset_outputs(small(ready, "retain"))
    with pytest.raises(ValueError, match="mask 0 keeps no group"):
        outputs(np.zeros((1, 10)), ready.run.params, synset, ready.query)
    with pytest.raises(ValueError, match="synset of 10 groups"):
        outputs(np.ones((1, 9)), ready.run.params, synset, ready.query)
    for rewind in (1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"rewind={rewind}; .* at least 0 and below 1"):
            ddm.trajectory_point(ready.run.checkpoints, rewind)


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
    x = jnp.array([[4.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    half = jnp.array([0.5, 0.5])
    synset = ddm.Synset(ddm.Batch(x, jnp.zeros((2, 2))), jnp.arange(2), half, half / 2)
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


# A step takes a batch of the items of all groups


SHARE = np.array([0.5, 0.3, 0.2])


def many_items(*counts, background=None):
    """A synset of as many random items a group, with heavy-tailed masses of both signs.

    The last of the counts is the background's, where there is one.
    """
    draw = np.random.default_rng(counts[0])
    size, groups = sum(counts), len(counts) - (background is not None)
    mass = draw.normal(size=size) ** 3
    x, y = draw.normal(size=(size, 3)), draw.normal(size=(size, 2))
    return ddm.Synset(
        items=ddm.Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)),
        group=jnp.asarray(np.repeat([*range(groups), -1][: len(counts)], counts), jnp.int32),
        mass=jnp.asarray(mass, jnp.float32),
        share=jnp.asarray(SHARE[:groups], jnp.float32),
        background=None if background is None else jnp.float32(background),
    )


def passes_of(synset, batch, count):
    """Which item stands where in some passes, [count, turns, b]; -1 where not full."""
    turns = batches_of(len(synset.mass), batch)
    rows = np.asarray(deal(synset, batch, count * turns))
    assert len(rows) == count * turns
    return rows.reshape(count, turns, -1)


DEALT = pytest.mark.parametrize(
    ("counts", "batch", "turns", "size"),
    [
        ((6, 6, 6), 6, 3, 6),
        ((7, 7, 7), 9, 3, 7),
        ((5, 5, 5), 12, 2, 8),
        ((1, 1, 1), 5, 1, 3),
        ((4, 4, 4), 12, 1, 12),
        ((4, 4, 4), None, 1, 12),
        ((1, 8, 3), 7, 2, 6),
        ((7, 1, 2), 3, 4, 3),
        ((1, 1, 5), 6, 2, 4),
        ((2, 9, 1), 1, 12, 1),
    ],
)


@DEALT
def test_every_pass_deals_out_every_item_once(counts, batch, turns, size):
    synset, items = many_items(*counts), sum(counts)
    assert batches_of(items, batch) == turns
    for rows in passes_of(synset, batch, 3):
        assert rows.shape == (turns, size)
        np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.arange(items))
        assert (rows[rows < 0] == -1).all()
        # Batches are full, but for one item less in some.
        assert set((rows >= 0).sum(1)) <= {size, size - 1}


@DEALT
def test_the_mean_over_a_pass_is_the_whole_synset(counts, batch, turns, size):
    synset = many_items(*counts)
    factor = jnp.array([1.0, 0.0, 2.5])
    owner = np.repeat(np.arange(3), counts)
    want = (np.asarray(factor) * SHARE)[owner] * np.asarray(synset.mass)
    weights = item_weights(synset, factor)
    np.testing.assert_allclose(weights, want, rtol=1e-5)
    sums = np.zeros(5)
    for rows in np.asarray(deal(synset, batch, turns)):
        some, mass = take_batch(synset.items, weights, rows, turns)
        assert some.x.shape == (size, 3)
        assert mass.shape == (size,)
        full = rows >= 0
        assert not np.asarray(mass)[~full].any()
        np.testing.assert_array_equal(some.x[full], synset.items.x[rows[full]])
        np.testing.assert_array_equal(some.y[full], synset.items.y[rows[full]])
        sums += np.asarray(mass) @ np.concatenate([some.x, some.y], 1)
    whole = want @ np.concatenate(synset.items, 1)
    np.testing.assert_allclose(sums / turns, whole, rtol=1e-4, atol=1e-5)


def test_the_background_has_its_turn_and_a_weight_of_its_own():
    synset = many_items(4, 4, 5, background=0.2)
    for rows in passes_of(synset, 4, 2):
        np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.arange(13))
    weights = np.asarray(item_weights(synset, jnp.array([2.0, 0.0]), 3.0))
    own = np.repeat([0.5 * 2, 0.3 * 0, 0.2 * 3], [4, 4, 5])
    np.testing.assert_allclose(weights, own * np.asarray(synset.mass), rtol=1e-5)


@pytest.mark.slow
def test_each_pass_is_dealt_anew():
    together = [
        {frozenset(batch.tolist()) for batch in rows} for rows in passes_of(many_items(40), 8, 4)
    ]
    for first in range(4):
        for second in range(first):
            assert len(together[first] & together[second]) <= 1
    # And so does not depend on how many there are.
    rows = np.asarray(deal(many_items(40), 8, 20))
    for steps in (1, 3, 5):
        np.testing.assert_array_equal(deal(many_items(40), 8, steps), rows[:steps])


@pytest.mark.slow
@pytest.mark.parametrize("share", [SHARE, SHARE[::-1]])
def test_batches_weigh_alike(share):
    synset = many_items(40, 40, 40)
    synset = synset._replace(mass=jnp.cbrt(synset.mass), share=jnp.asarray(share, jnp.float32))
    weight = np.abs(np.repeat(share, 40) * np.asarray(synset.mass))
    in_order = weight.reshape(4, 30).sum(1)
    for rows in passes_of(synset, 30, 3):
        sums = weight[rows].sum(1)
        assert rows.shape == (4, 30)
        assert sums.std() < 0.2 * in_order.std()
        # Of the heaviest items, and of any four that come next, one is in each batch.
        place = np.empty(120, int)
        place[rows] = np.arange(4)[:, None]
        strata = place[np.argsort(-weight)].reshape(30, 4)
        np.testing.assert_array_equal(np.sort(strata, 1), np.tile(np.arange(4), (30, 1)))


@pytest.mark.parametrize(("counts", "batch"), [((4, 4, 4), 6), ((2, 6, 3), 4), ((2, 6, 4), 5)])
def test_steps_take_the_batches_in_turn(counts, batch):
    synset, task = many_items(*counts), ridge_task()
    keep = jnp.array([1.0, 0.0, 1.0])
    finetune = ddm.make_finetune(
        task, steps=5, optimizer=optax.sgd(0.1), weight_decay=DECAY, batch=batch
    )
    got = finetune(jnp.ones((3, 2)), synset, keep)
    rows, turns = np.asarray(deal(synset, batch, 5)), batches_of(sum(counts), batch)
    assert turns > 1
    assert len(rows) == 5
    owner = np.repeat(np.arange(3), counts)
    x, y, mass = (np.asarray(leaf, float) for leaf in (*synset.items, synset.mass))
    y = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    params = np.ones((3, 2))
    for row in rows:
        slope = DECAY * params
        for item in row[row >= 0]:
            if owner[item] != 1:
                weight = turns * SHARE[owner[item]] / (0.5 + 0.2) * mass[item]
                slope = slope + weight * np.outer(x[item], x[item] @ params - y[item])
        params = params - 0.1 * slope
    assert got.shape == params.shape
    np.testing.assert_allclose(got, params, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("update", ["retain", "forget"])
def test_every_mask_meets_the_same_items(update):
    """What the two steps of a pass of three do not take may be anything, whatever is kept."""
    synset = many_items(4, 4, 4)
    finetune = ddm.make_finetune(
        ridge_task(), update=update, steps=2, optimizer=optax.sgd(0.1), batch=4
    )
    unseen = np.setdiff1d(np.arange(12), deal(synset, 4, 2))
    seen = np.setdiff1d(np.arange(12), unseen)
    assert len(unseen) == 4

    def moved(keep, of):
        return np.asarray(finetune(jnp.ones((3, 2)), of, jnp.asarray(keep)))

    def with_other(rows):
        x = synset.items.x.at[rows].set(7.0)
        return synset._replace(items=synset.items._replace(x=x))

    for keep in ([1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.5, 0.5, 0.0]):
        was = moved(keep, synset)
        np.testing.assert_array_equal(was, moved(keep, with_other(unseen)))
        assert np.abs(was - moved(keep, with_other(seen))).max() > 0.1


@pytest.mark.parametrize("update", ["retain", "forget"])
def test_a_step_of_all_items_is_what_it_was(update):
    synset, keep = many_items(4, 4, 4), jnp.array([1.0, 0.0, 1.0])
    settings = {"update": update, "steps": 3, "optimizer": optax.sgd(0.1)}
    moved = [
        ddm.make_finetune(ridge_task(), **settings, batch=batch)(jnp.ones((3, 2)), synset, keep)
        for batch in (None, 12, 250)
    ]
    for other in moved[1:]:
        np.testing.assert_array_equal(moved[0], other)


def test_the_stable_rate_is_that_of_the_sharpest_batch():
    # A batch an item, each twice as heavy: curvatures 8 and 2, and 5 of both together.
    items = ddm.Batch(jnp.array([[4.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), jnp.zeros((2, 2)))
    quarter = jnp.full(2, 0.25)
    synset = ddm.Synset(items, jnp.zeros(2, jnp.int32), quarter, jnp.array([1.0]))
    args = (parabola(), jnp.ones(3), synset)
    whole = stable_rate(*args, momentum=0.0)
    some = stable_rate(*args, momentum=0.0, batch=1)
    np.testing.assert_allclose([whole, some], [1 / 5.0, 1 / 8.0], rtol=1e-3)


def test_a_rare_direction_is_found_beside_one_that_all_batches_share():
    # All items are curved by 1 along a shared direction; one has another of its own, of 3.
    count, wide = 64, 20_000
    x = np.zeros((count, wide), np.float32)
    x[:, 0], x[7, 1] = 1.0, np.sqrt(3.0 * 8)
    items = ddm.Batch(jnp.asarray(x), jnp.zeros((count, 2)))
    group, mass = jnp.zeros(count, jnp.int32), jnp.full(count, 1 / count)
    synset = ddm.Synset(items, group, mass, jnp.array([1.0]))
    rate = stable_rate(parabola(), jnp.ones(wide), synset, momentum=0.0, batch=8)
    sharpest = np.linalg.eigvalsh(x[:8] @ x[:8].T / 8)[-1]  # any batch that has it
    np.testing.assert_allclose(rate, 1 / sharpest, rtol=0.05)


def test_the_sharpest_batch_is_found_across_what_came_before():
    # Each batch is curved along a direction of its own, along which all others are flat.
    items = ddm.Batch(jnp.diag(jnp.array([1.0, 5.0, 3.0])), jnp.zeros((3, 2)))
    synset = ddm.Synset(items, jnp.zeros(3, jnp.int32), jnp.full(3, 1 / 3), jnp.array([1.0]))
    rate = stable_rate(parabola(), jnp.ones(3), synset, momentum=0.0, batch=1)
    np.testing.assert_allclose(rate, 1 / 25.0, rtol=1e-3)


@pytest.mark.slow
def test_not_every_batch_of_many_is_looked_at(monkeypatch):
    items = ddm.Batch(jnp.eye(3)[:1] * jnp.arange(1.0, 6.0)[:, None], jnp.zeros((5, 2)))
    synset = ddm.Synset(items, jnp.zeros(5, jnp.int32), jnp.full(5, 0.2), jnp.ones(1))
    args = (parabola(), jnp.ones(3), synset)
    order = np.asarray(deal(synset, 1, 5))[:, 0]
    for most in (1, 2, 5):
        monkeypatch.setattr(rates, "MOST_BATCHES", most)
        rate = stable_rate(*args, momentum=0.0, batch=1)
        np.testing.assert_allclose(rate, 1 / (1.0 + order[:most].max()) ** 2, rtol=1e-3)


def test_a_step_takes_at_least_one_item():
    with pytest.raises(ValueError, match="batch=0; it must be a whole number, at least 1"):
        ddm.make_finetune(ridge_task(), steps=1, optimizer=optax.sgd(0.1), batch=0)


# Any subset in one call


def asked(ready, **update):
    return ddm.make_counterfactual(ready.task, ddm.UpdateSettings(**update))


@pytest.mark.slow
def test_it_is_the_response_to_each_mask(ready, synset):
    masks = np.ones((2, 10), np.float32)
    masks[1, [2, 5]] = 0
    args = (ready.run.params, synset, masks)
    counterfactual = asked(ready, steps=7, batch=8, learning_rate=0.2)
    found = counterfactual(*args, ready.query, 1e-3)
    finetune = ddm.make_finetune(
        ready.task,
        steps=7,
        optimizer=optax.sgd(0.2, 0.9, nesterov=True),
        weight_decay=1e-3,
        batch=8,
    )
    outputs = ddm.subset_outputs(ddm.ddm_response(finetune, ready.task.output))
    expected = outputs(masks, ready.run.params, synset, ready.query)
    assert found.shape == expected.shape == (2, 50)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    networks = counterfactual(*args, weight_decay=1e-3)
    second = ddm.types.take(networks, 1)
    np.testing.assert_allclose(
        ready.task.output(second, ready.query), expected[1], rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_one_mask_will_do_and_the_rate_is_the_stable_one(ready, synset):
    keep = np.r_[np.zeros(1), np.ones(9)]
    rate = float(stable_rate(ready.task, ready.run.params, synset, batch=8))
    args = (ready.run.params, synset, keep, ready.query)
    found = asked(ready, steps=5, batch=8)(*args)
    same = asked(ready, steps=5, batch=8, learning_rate=rate)(*args)
    assert found.shape == (1, 50)
    np.testing.assert_allclose(found, same, rtol=1e-3, atol=1e-3)
    half = asked(ready, steps=5, batch=8, rate_factor=0.5)(*args)
    same = asked(ready, steps=5, batch=8, learning_rate=rate / 2)(*args)
    np.testing.assert_allclose(half, same, rtol=1e-3, atol=1e-3)
    assert np.abs(half - found).max() > 0.1


@pytest.mark.slow
def test_a_second_call_compiles_nothing(ready, synset):
    masks = np.ones((3, 10), np.float32)
    counterfactual = asked(ready, steps=3)

    def call():
        args = (ready.run.params, synset, masks, ready.query)
        jax.block_until_ready(counterfactual(*args))

    assert compilations(call) > 0
    assert compilations(call) == 0


@pytest.mark.slow
def test_settings_of_the_same_shapes_share_what_is_compiled(ready, synset):
    """Of which steps and batch decide; each says what it says alone."""
    masks, parts = 1 - np.eye(10, dtype=np.float32)[:3], make_parts(ready.task)
    args = (ready.run.params, synset, masks, ready.query)
    several = [
        ddm.UpdateSettings(steps=3, batch=8, **chosen)
        for chosen in ({}, {"schedule": "cosine", "momentum": 0.5}, {"rate_factor": 0.5})
    ]
    found = []

    def call():
        made = [ddm.make_counterfactual(ready.task, update, parts) for update in several]
        found.extend(np.asarray(one(*args)) for one in made)

    call()
    assert compilations(call) == 0
    for update, one in zip(several, found, strict=False):
        alone = ddm.make_counterfactual(ready.task, update)(*args)
        np.testing.assert_allclose(one, alone, rtol=1e-5, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.1
    assert np.abs(found[0] - found[2]).max() > 0.1


def test_what_nobody_chose_is_filled_in():
    chosen = settled(ddm.UpdateSettings(steps=7, momentum=0.0, optimizer="deflated"))
    assert chosen._asdict() == UNCHOSEN | {
        "update": "retain",
        "steps": 7,
        "momentum": 0.0,
        "optimizer": "deflated",
        "learning_rate": None,
    }
    assert None not in UNCHOSEN.values()


def test_what_a_counterfactual_refuses(ready, synset):
    ask = lambda masks: asked(ready)(ready.run.params, synset, masks, ready.query)  # noqa: E731
    with pytest.raises(ValueError, match=r"they must be \[R, 10\]"):
        ask(np.ones((2, 9)))
    with pytest.raises(ValueError, match="keeps no group"):
        ask(np.zeros(10))
    with pytest.raises(ValueError, match="R >= 1"):
        ask(np.ones((0, 10)))
    with pytest.raises(ValueError, match="weights of at least 0"):
        ask(np.full(10, -0.5))
    with pytest.raises(ValueError, match=r"online\.steps=0; it must be at least 1"):
        asked(ready, steps=0)
    with pytest.raises(ValueError, match=r"online\.learning_rate=-0\.1; it must be above 0"):
        asked(ready, learning_rate=-0.1)


def test_a_network_without_what_one_mask_leaves_out(ready, synset):
    keep = np.ones(10, np.float32)
    keep[3], keep[7] = 0, 0.5
    settings = {"steps": 4, "batch": 20}
    networks = asked(ready, learning_rate=0.1, momentum=0.0, **settings)(
        ready.run.params, synset, keep
    )
    finetune = ddm.make_finetune(ready.task, optimizer=optax.sgd(0.1), **settings)
    expected = jax.jit(finetune)(ready.run.params, synset, keep)

    def check(found, wanted, before):
        assert found.shape == (1, *wanted.shape)
        assert np.abs(wanted - before).max() > 1e-3
        np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-5)

    jax.tree.map(check, networks, expected, ready.run.params)


def test_a_weight_of_two_is_the_group_twice(ridge):
    """In closed form, and as a synset with that group's items listed twice."""
    data, synset, query = ridge
    weights = jnp.ones(9).at[2].set(2).at[5].set(0)
    ask = ddm.make_counterfactual(ridge_task(), ddm.UpdateSettings(steps=600, learning_rate=0.2))
    start = jnp.zeros((3, 2))
    got = ask(start, synset, weights, query, DECAY)
    np.testing.assert_allclose(got[0], (query.x @ solve(data, weights))[:, 0], atol=1e-5)
    again = ddm.Synset(
        items=ddm.types.take(synset.items, slice(2, 3)),
        group=jnp.zeros(1, jnp.int32),
        mass=synset.mass[2:3],
        share=synset.share[2:3],
    )
    keep = jnp.ones(10).at[5].set(0)
    np.testing.assert_allclose(got, ask(start, join(synset, again), keep, query, DECAY), atol=1e-5)
    once = ask(start, synset, jnp.ones(9).at[5].set(0), query, DECAY)
    assert np.abs(got - once).max() > 0.01


@pytest.mark.slow
def test_masks_may_be_lists(ready, synset):
    ask = ddm.make_counterfactual(ready.task, ddm.UpdateSettings(steps=2))
    args = (ready.run.params, synset)
    keep = [1] * 9 + [0]
    one = ask(*args, keep, ready.query)
    np.testing.assert_array_equal(one, ask(*args, [keep], ready.query))
    assert one.shape == (1, 50)


@pytest.mark.slow
def test_a_rewound_start_is_no_faster_than_what_is_stable_at_the_end():
    """An adapter that begins at zero is flat there, and the curvature grows on the way."""

    def loss(params, batch):
        return 0.5 * (params["a"] * params["b"] * batch.x[:, 0] - 1) ** 2

    task = ddm.Task(
        init=lambda key: {"a": jnp.zeros(()), "b": jnp.ones(())},
        loss=loss,
        output=lambda params, batch: params["a"] * batch.x[:, 0],
        targets="any",
    )
    items = ddm.Batch(jnp.array([[1.0], [2.0]]), None)
    synset = ddm.Synset(items, jnp.arange(2), jnp.ones(2), jnp.full(2, 0.5))
    start, trained = {"a": 0.1, "b": 0.1}, {"a": 3.0, "b": 3.0}
    start, trained = jax.tree.map(jnp.float32, (start, trained))
    settings = {"momentum": 0.0, "batch": 2}
    ask = ddm.make_counterfactual(task, ddm.UpdateSettings(steps=1, **settings))
    moved = ask(start, synset, np.ones(2), trained=trained)
    ends = [float(stable_rate(task, at, synset, **settings)) for at in (start, trained)]
    assert ends[1] < ends[0]
    slow = ddm.UpdateSettings(steps=1, learning_rate=ends[1], **settings)
    want = ddm.make_counterfactual(task, slow)(start, synset, np.ones(2))
    np.testing.assert_allclose(moved["a"], want["a"], rtol=1e-5)


def test_a_cosine_goes_down_to_zero():
    update = ddm.UpdateSettings(steps=4, schedule="cosine", momentum=0.0)
    rule = update_rule(pace_of(settled(update), 1.0))
    state = rule.init(jnp.zeros(()))
    taken = []
    for _ in range(4):
        step, state = rule.update(jnp.ones(()), state)
        taken.append(-float(step))
    np.testing.assert_allclose(taken, [0.5 * (1 + np.cos(np.pi * t / 4)) for t in range(4)], 1e-6)


# Steps that are shrunk along the sharpest directions


CURVATURES = np.array([64.0, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5])


@pytest.fixture
def known():
    """A quadratic of eight parameters: the directions of its Hessian, [8, 8], and its synset."""
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0].T
    return directions, synset_of_curvature(directions, CURVATURES)


def synset_of_curvature(directions, curvatures):
    """One item a direction, each of a group of its own: `sum_i curvature_i v_i v_i^T`."""
    count = len(curvatures)
    x = jnp.asarray(np.sqrt(count * curvatures)[:, None] * directions[:count], jnp.float32)
    items = ddm.Batch(x, jnp.zeros((count, 2)))
    return ddm.Synset(items, jnp.arange(count), jnp.ones(count), jnp.full(count, 1 / count))


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_the_sharpest_directions_are_those_of_the_hessian(known, monkeypatch, decay):
    directions, synset = known
    monkeypatch.setattr(rates, "RANK", 3)
    monkeypatch.setattr(rates, "LANCZOS", 8)
    found = deflation(parabola(), jnp.ones(8), synset, decay)
    assert found.directions.shape == (3, 8)
    np.testing.assert_allclose(np.abs(found.directions @ directions.T), np.eye(3, 8), atol=1e-3)
    want = (CURVATURES[3] + decay) / (CURVATURES[:3] + decay)
    np.testing.assert_allclose(found.left, want, rtol=1e-3)


@pytest.mark.slow
def test_few_iterations_find_the_sharpest_of_many_directions(monkeypatch):
    """Curvatures that fall off: half as many products as parameters will do."""
    directions = np.linalg.qr(np.random.default_rng(1).normal(size=(60, 60)))[0].T
    curvatures = 100.0 * 0.7 ** np.arange(60)
    monkeypatch.setattr(rates, "RANK", 4)
    monkeypatch.setattr(rates, "LANCZOS", 20)
    synset = synset_of_curvature(directions, curvatures)
    found = deflation(parabola(), jnp.ones(60), synset)
    np.testing.assert_allclose(np.abs(found.directions @ directions.T), np.eye(4, 60), atol=0.01)
    np.testing.assert_allclose(found.left, 0.7 ** np.arange(4, 0, -1), rtol=0.01)


def test_a_gradient_is_shrunk_along_these_directions_alone(known):
    directions, _ = known
    by = Deflation(jnp.asarray(directions[:2], jnp.float32), jnp.array([0.25, 0.5]))
    rule = precondition(by, 0.0)
    for row, factor in zip(directions, [0.25, 0.5, 1, 1, 1, 1, 1, 1], strict=True):
        gradient = {"a": jnp.asarray(row[:3]), "b": jnp.asarray(row[3:])}
        moved, _ = rule.update(gradient, rule.init(gradient), gradient)
        np.testing.assert_allclose(moved["a"], factor * row[:3], atol=1e-6)
        np.testing.assert_allclose(moved["b"], factor * row[3:], atol=1e-6)


@pytest.mark.slow
def test_what_is_left_is_as_sharp_as_the_next_direction(known, monkeypatch):
    """Which the stable rate is that of; beyond it the deflated steps diverge."""
    _, synset = known
    monkeypatch.setattr(rates, "RANK", 3)
    task, start = parabola(), jnp.ones(8)
    by = deflation(task, start, synset, 1.0)
    rate = stable_rate(task, start, synset, momentum=0.0, weight_decay=1.0, preconditioner=by)
    np.testing.assert_allclose(rate, 1 / (CURVATURES[3] + 1), rtol=0.01)
    for factor, stable in ((1.9, True), (2.1, False)):
        rule = optax.chain(precondition(by, 0.0), optax.sgd(factor * float(rate)))
        finetune = ddm.make_finetune(task, steps=200, optimizer=rule, weight_decay=1.0)
        moved = finetune(start, synset, jnp.ones(8))
        assert (float(jnp.abs(moved).max()) < 0.1) == stable


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_no_direction_is_shrunk_to_less_than_the_flattest_that_counts(decay):
    """Of a Hessian of rank two, whose next curvature is that of the decay, or none."""
    directions = np.linalg.qr(np.random.default_rng(2).normal(size=(8, 8)))[0].T
    synset = synset_of_curvature(directions, CURVATURES[:2])
    by = deflation(parabola(), jnp.ones(8), synset, decay)
    sharp = CURVATURES[:2] + decay
    flattest = decay or 1e-3 * sharp[0]
    np.testing.assert_allclose(by.left[:2], flattest / sharp, rtol=1e-3)
    np.testing.assert_allclose(by.left[2:], 1.0, rtol=1e-3)
    np.testing.assert_allclose(np.abs(by.directions[:2] @ directions.T), np.eye(2, 8), atol=1e-3)
    rate = stable_rate(
        parabola(), jnp.ones(8), synset, momentum=0.0, weight_decay=decay, preconditioner=by
    )
    np.testing.assert_allclose(rate, 1 / max(flattest, 1e-3), rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_directions_are_orthonormal_where_the_iteration_runs_out_of_them(scale, decay):
    """After three products all is found; what rounding adds must point nowhere twice."""
    x = np.random.default_rng(3).normal(size=(3, 100))
    directions = np.linalg.qr(x.T)[0].T
    synset = synset_of_curvature(directions, scale * CURVATURES[:3] / 10)
    by = deflation(parabola(), jnp.ones(100), synset, decay)
    kept = np.asarray(by.directions, float)
    inner = kept @ kept.T
    # A direction may be none at all.
    np.testing.assert_allclose(inner, np.diag(np.round(np.diag(inner))), atol=1e-4)
    assert (np.diag(inner)[:3] > 0.99).all()
    multiplied = np.eye(100) - kept.T @ np.diag(1 - np.asarray(by.left, float)) @ kept
    hessian = directions.T @ np.diag(scale * CURVATURES[:3] / 10) @ directions
    found = np.abs(np.linalg.eigvals(multiplied @ (hessian + decay * np.eye(100)))).max()
    want = max(decay, 1e-3 * (scale * CURVATURES[0] / 10 + decay))
    np.testing.assert_allclose(found, want, rtol=0.02)


@pytest.mark.slow
def test_deflated_updates_need_fewer_steps(ridge):
    """To the same ridge regression, each at half of what is stable."""
    data, synset, query = ridge
    x = data.x * jnp.array([20.0, 4.0, 1.0])  # of unlike curvature
    data, synset = data._replace(x=x), synset._replace(items=synset.items._replace(x=x))
    masks = np.ones((3, 9), np.float32)
    masks[1, 2] = masks[2, [0, 5, 7]] = 0
    want = np.stack([(query.x @ solve(data, mask))[:, 0] for mask in masks])

    def off(optimizer, steps):
        update = ddm.UpdateSettings(optimizer=optimizer, steps=steps)
        ask = ddm.make_counterfactual(ridge_task(), update)
        found = ask(jnp.zeros((3, 2)), synset, masks, query, DECAY)
        assert found.shape == want.shape == (3, 4)
        return np.abs(found - want).max()

    assert off("deflated", 100) < 1e-3
    assert off("sgd", 100) > 0.05
    assert off("sgd", 10000) < 1e-3


@pytest.mark.slow
def test_deflated_counterfactuals_of_a_network(ready, synset):
    """Of several masks: finite, each as alone, and other than the steps of SGD."""
    masks = 1 - np.eye(10, dtype=np.float32)[:3]
    args = (ready.run.params, synset)
    asked_of = {
        kind: asked(ready, steps=5, batch=8, optimizer=kind) for kind in ("deflated", "sgd")
    }
    found, plain = (np.asarray(ask(*args, masks, ready.query)) for ask in asked_of.values())
    assert found.shape == (3, 50)
    assert np.isfinite(found).all()
    assert np.abs(found - plain).max() > 0.1
    alone = asked_of["deflated"](*args, masks[1], ready.query)
    np.testing.assert_allclose(alone[0], found[1], rtol=1e-3, atol=1e-3)
    networks = asked_of["deflated"](*args, masks)
    third = ready.task.output(ddm.types.take(networks, 2), ready.query)
    np.testing.assert_allclose(third, found[2], rtol=1e-3, atol=1e-3)
