import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ddm_jax as ddm
from ddm_jax import gradients
from ddm_jax.compute import memory
from ddm_jax.estimators._shared import member_rows
from ddm_jax.gradients import group_batches


@pytest.fixture(scope="module")
def tiny(ready):
    few = ddm.Batch(ready.data.x[:7], ready.data.y[:7])
    flat, unravel = ravel_pytree(ready.run.params)
    return few, flat, unravel


@pytest.mark.slow
def test_rows_are_the_gradients_of_each_example(ready, tiny):
    few, flat, unravel = tiny
    got = gradients.example_gradients(ready.task.loss, ready.run.params, few)
    want = jax.jacobian(lambda v: ready.task.loss(unravel(v), few))(flat)
    assert got.shape == want.shape == (7, flat.size)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_products_are_the_same_in_pieces(ready, tiny, monkeypatch):
    few, flat, _ = tiny
    vectors = jax.random.normal(jax.random.key(0), (3, flat.size))
    rows = gradients.example_gradients(ready.task.loss, ready.run.params, few)
    for rows_at_once in (100, 2, 1):
        budget = memory.Budget(4 * flat.size * rows_at_once, 10**6, 1)
        monkeypatch.setitem(memory.BUDGETS, "rows", budget)
        assert gradients.rows_at_once(ready.run.params) == rows_at_once
        got = gradients.gradient_products(ready.task.loss, ready.run.params, few, vectors)
        assert got.shape == (7, 3)
        np.testing.assert_allclose(got, rows @ vectors.T, atol=1e-4)


def test_group_rows_are_sums_over_n(ready):
    rows = gradients.example_gradients(ready.task.loss, ready.run.params, ready.data)
    got = gradients.group_gradient_rows(
        ready.task, ready.run.params, ready.data, group_batches(ready.groups)
    )
    want = gradients.group_sums(rows, ready.groups)
    by_hand = np.stack([np.asarray(rows)[ready.groups.ids == k].sum(0) / 150 for k in range(10)])
    assert got.shape == want.shape == by_hand.shape == (10, rows.shape[1])
    np.testing.assert_allclose(want, by_hand, atol=1e-6)
    np.testing.assert_allclose(got, by_hand, atol=1e-6)


def test_the_background_is_in_no_gradient_and_counts_in_n(ready):
    """The others' stay as they are, in whatever way they are summed."""
    some = ddm.as_groups(np.where(ready.groups.ids < 3, -1, ready.groups.ids - 3))
    rows = gradients.example_gradients(ready.task.loss, ready.run.params, ready.data)
    want = gradients.group_sums(rows, ready.groups)[3:]
    batches = group_batches(some, 4)
    assert int(batches.total) == 150
    assert not np.isin(batches.rows, np.flatnonzero(some.ids < 0)).any()
    got = gradients.group_gradient_rows(ready.task, ready.run.params, ready.data, batches)
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(gradients.group_sums(rows, some), want)
    np.testing.assert_array_equal(jax.jit(gradients.group_sums)(rows, some), want)
    members = member_rows(some)
    assert members.shape == (7, some.sizes().max())
    for group, found in enumerate(members):
        np.testing.assert_array_equal(found[found >= 0], np.flatnonzero(some.ids == group))


@pytest.mark.slow
def test_a_task_of_sets_is_asked_about_all_queries_at_once(ready):
    """Also where there are as many sets as queries, which no shape would tell."""
    few = ddm.Batch(ready.query.x[:5], ready.query.y[:5])
    output = ready.task.output
    for sets in (np.eye(5)[::-1], np.full((1, 5), 0.2), np.arange(15.0).reshape(3, 5)):
        task = ready.task._replace(
            output=lambda params, query, sets=sets: sets @ output(params, query), of_sets=True
        )
        own = gradients.output_gradients(ready.task, ready.run.params, few)
        got = gradients.output_gradients(task, ready.run.params, few)
        assert got.shape == (len(sets), own.shape[1])
        np.testing.assert_allclose(got, sets @ own, atol=1e-4)
        along = gradients.as_params(own[:2], ready.run.params)
        want = own[:2] @ got.T
        changes = gradients.output_changes(task, ready.run.params, few, along)
        assert changes.shape == (2, len(sets))
        np.testing.assert_allclose(changes, want, rtol=1e-4, atol=1e-3)
    halves = gradients.output_gradients(task, ready.run.params, few, lambda rows: rows[:, :4] / 2)
    np.testing.assert_allclose(halves, got[:, :4] / 2, atol=1e-6)


@pytest.mark.slow
def test_hessian_products_are_those_of_the_whole_matrix(ready, tiny):
    few, flat, unravel = tiny
    weights = jnp.array([0.0, 1.0, 2.0, 0.5, 0.25, 0.0, 1.0])
    vectors = jax.random.normal(jax.random.key(1), (2, flat.size))
    matrix = jax.hessian(lambda v: weights @ ready.task.loss(unravel(v), few))(flat)
    got = gradients.hessian_products(ready.task, ready.run.params, few, weights, vectors)
    assert got.shape == (2, flat.size)
    assert np.abs(matrix).max() > 0.01
    np.testing.assert_allclose(got, vectors @ matrix, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_vector_of_parameters_is_wide_and_goes_back(dtype):
    params = {"a": jnp.arange(3, dtype=dtype), "b": jnp.ones((2, 2), dtype)}
    flat = gradients.flatten(params)
    assert flat.dtype == jnp.float32
    np.testing.assert_array_equal(flat, [0, 1, 2, 1, 1, 1, 1])
    back = gradients.unflatten(params)(flat)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {jnp.dtype(dtype)}


def test_a_curvature_without_any_damping_is_refused():
    np.testing.assert_allclose(gradients.curvature_diagonal(0.5, jnp.float32(0.25)), 0.75)
    np.testing.assert_allclose(gradients.curvature_diagonal(0.0, 0.25), 0.25)
    with pytest.raises(ValueError, match="damping=0 and the run's weight_decay=0; one of them"):
        gradients.curvature_diagonal(0.0, jnp.float32(0))
    for damping in (-1.0, float("nan"), "much"):
        with pytest.raises(ValueError, match=f"damping={damping!r}; .* at least 0"):
            gradients.check_damping(damping)
