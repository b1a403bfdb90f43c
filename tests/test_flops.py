import jax
import jax.numpy as jnp
import pytest
from jax import lax

import ddm_jax as ddm
from ddm_jax.judge.flops import count_flops

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))


def looped(a, b):
    return lax.scan(lambda total, _: (total + a @ b, None), jnp.zeros((3, 5)), length=7)[0]


def branched(a, b):
    return lax.cond(a[0, 0] > 0, jnp.matmul, lambda a, b: a[:, :1] + b[0], a, b)


def until_large(a, b):
    return lax.while_loop(lambda t: t[0, 0] < 9, lambda t: t + a @ b, jnp.zeros((3, 5)))


@pytest.mark.parametrize(
    ("fn", "args", "want"),
    [
        (jnp.matmul, (A, B), 120),
        (jnp.add, (A, A), 0),
        (jax.jit(jnp.matmul), (A, B), 120),
        (jax.vmap(jnp.matmul, (0, None)), (jnp.ones((6, 3, 4)), B), 720),
        (looped, (A, B), 840),
        (branched, (A, B), 120),
        (jnp.linalg.cholesky, (jnp.eye(6),), 72),
        (until_large, (A, B), None),
        (lambda a: lax.while_loop(lambda t: t[0, 0] < 9, lambda t: t + a, a), (A,), 0),
    ],
)
def test_literal_counts(fn, args, want):
    assert count_flops(fn, *args) == (want if want is None else pytest.approx(want))


def test_a_convolution_and_one_of_the_package():
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
    plain = lambda x: lax.conv_general_dilated(  # noqa: E731
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    want = 2 * 2 * 8 * 8 * 16 * 27
    assert count_flops(plain, x) == want
    from ddm_jax.compute.convolution import convolve

    assert count_flops(lambda x: convolve(x, kernel, 1), x) == pytest.approx(want)


def test_every_device_counts():
    mapped = ddm.device_vmap(lambda a: a @ B, chunk=1)
    items = jnp.ones((8, 3, 4))
    assert jax.device_count() == 4
    assert count_flops(mapped, items) == 8 * 120


def test_a_gradient_costs_three_times_its_function(ready):
    def loss(params):
        return ready.task.loss(params, ready.data).sum()

    once = count_flops(loss, ready.run.params)
    assert once == pytest.approx(2 * 150 * (64 * 12 + 12 * 10))
    assert count_flops(jax.grad(loss), ready.run.params) == pytest.approx(
        2 * 150 * (2 * 64 * 12 + 3 * 12 * 10)
    )
