"""Closed-over arrays are arguments of what is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations
from jax import lax

import ddm_jax as ddm
from ddm_jax.compute.compiled import compiled


def descend(frozen):
    """A few steps of descent through a frozen layer, for several starts."""

    def fn(starts, rate, *, steps):
        def one(x):
            slope = jax.grad(lambda x: jnp.sum(jnp.tanh(x @ frozen) ** 2))
            return lax.scan(lambda x, _: (x - rate * slope(x), None), x, length=steps)[0]

        return {"moved": lax.map(one, starts), "start": starts.sum()}

    return fn


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (60, 60)), jax.random.normal(keys[1], (3, 60))


def test_it_gives_the_same_bits_as_jit(problem):
    frozen, starts = problem
    plain = jax.jit(descend(frozen), static_argnames="steps")(starts, 0.1, steps=3)
    found = compiled(descend(frozen), static_argnames="steps")(starts, 0.1, steps=3)
    assert jax.tree.structure(plain) == jax.tree.structure(found)
    jax.tree.map(np.testing.assert_array_equal, plain, found)


def test_what_is_closed_over_is_no_constant_of_the_program(problem):
    frozen, starts = problem
    whole = jax.jit(descend(frozen), static_argnames="steps").lower(starts, 0.1, steps=3).as_text()
    found = compiled(descend(frozen), static_argnames="steps").lower(starts, 0.1, steps=3).as_text()
    assert len(whole) > 60 * 60 * 8  # each number as hexadecimal digits
    assert len(found) < 10_000


def test_a_second_call_compiles_nothing_and_another_shape_does(problem):
    frozen, starts = problem
    fn = compiled(descend(frozen), static_argnames="steps")
    other, fewer = 2 * starts, starts[:2]
    assert compilations(lambda: fn(starts, 0.1, steps=3)) > 0
    assert compilations(lambda: fn(other, 0.2, steps=3)) == 0
    assert compilations(lambda: fn(fewer, 0.1, steps=3)) > 0
    assert fn(starts, 0.1, steps=1)["moved"].shape == (3, 60)


def test_under_jit_and_grad_it_is_the_function_itself(problem):
    frozen, starts = problem
    fn = compiled(lambda x: jnp.sum(jnp.sin(x @ frozen)))
    want = jax.grad(lambda x: jnp.sum(jnp.sin(x @ frozen)))(starts)
    np.testing.assert_allclose(jax.jit(jax.grad(fn))(starts), want, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_networks_side_by_side_share_what_is_frozen(problem, count):
    frozen, starts = problem
    mapped = ddm.device_vmap(lambda x: jnp.tanh(x @ frozen), devices=jax.devices()[:count])
    np.testing.assert_allclose(mapped(starts), jnp.tanh(starts @ frozen), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("outside", [jax.jit, jax.grad, jax.vmap])
def test_a_closure_over_what_is_traced_outside(problem, outside):
    frozen, starts = problem

    def fn(wrap):
        def ask(x):
            return wrap(lambda start: jnp.sum(jnp.sin(start @ frozen) * x))(starts[0])

        return outside(ask)(starts[0])

    np.testing.assert_allclose(fn(compiled), fn(lambda inner: inner), rtol=1e-5)


def test_arrays_of_the_host_beside_what_is_traced(problem):
    frozen, starts = problem
    table = np.asarray(starts)
    fn = compiled(lambda table, row: jnp.sum(table[row] @ frozen))
    np.testing.assert_allclose(
        jax.jit(lambda row: fn(table, row))(1), jnp.sum(starts[1] @ frozen), rtol=1e-5
    )


def test_arrays_among_the_keywords(problem):
    frozen, starts = problem
    fn = compiled(lambda x, *, scale: scale * (x @ frozen))
    np.testing.assert_allclose(fn(starts, scale=jnp.ones(60)), starts @ frozen, rtol=1e-5)
