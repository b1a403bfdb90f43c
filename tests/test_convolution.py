import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax.compute import convolution
from ddm_jax.objectives import output_change
from ddm_jax.types import take


@pytest.fixture
def double():
    """Second-order gradients are compared in float64, where no ReLU kink decides."""
    with jax.enable_x64(True):
        yield


def draw(key, *shape):
    return jax.random.normal(jax.random.key(key), shape, jnp.float64)


def by_hand(x, kernel, stride):
    """The definition, one output pixel at a time."""
    size = kernel.shape[0]
    border = (size - 1) // 2
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    rows, columns = (-(-n // stride) for n in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.einsum("bhwd,hwdc->bc", window, kernel)
    return out


@pytest.mark.parametrize("form", [None, *convolution.FORMS])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2), (1, 2)])
def test_each_form_is_the_definition(double, form, size, stride):
    x, kernel = draw(0, 2, 7, 6, 3), draw(1, size, size, 3, 4)
    if form == "own" and (stride != 1 or size == 1):
        with pytest.raises(ValueError, match="form='own' has stride 1"):
            convolution.convolve(x, kernel, stride, form)
        return
    got, want = convolution.convolve(x, kernel, stride, form), by_hand(x, kernel, stride)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("form", [None, *convolution.FORMS])
def test_kernels_of_another_type_than_the_images(form):
    """As flax's own layers take them: the wider type wins, and slopes have the kernel's."""
    x, kernel = jnp.ones((2, 4, 4, 1), jnp.float32), jnp.ones((3, 3, 1, 2), jnp.bfloat16)

    def total(kernel):
        return jnp.sum(convolution.convolve(x, kernel, 1, form))

    assert convolution.convolve(x, kernel, 1, form).dtype == jnp.float32
    slope = jax.grad(total)(kernel)
    assert slope.dtype == jnp.bfloat16
    np.testing.assert_array_equal(slope[1, 1], jnp.full((1, 2), 32, jnp.bfloat16))


def derivatives(form, x, kernel):
    """Value and derivatives of first, second and third order."""

    def value(x, kernel):
        return jnp.sum(jnp.tanh(convolution.convolve(x, kernel, 1, form)))

    def next_order(fn):
        return jax.grad(lambda *a: sum(jnp.sum(jnp.sin(g)) for g in fn(*a)), (0, 1))

    first = jax.grad(value, (0, 1))
    second = next_order(first)
    return value(x, kernel), first(x, kernel), second(x, kernel), next_order(second)(x, kernel)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("form", ["own", "patches"])
def test_derivatives_of_every_order_equal_those_of_jax(double, form, size):
    x, kernel = draw(0, 3, 6, 5, 2), draw(1, size, size, 2, 4)
    got = jax.tree.leaves(derivatives(form, x, kernel))
    want = jax.tree.leaves(derivatives("direct", x, kernel))
    assert len(got) == len(want) == 7
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_vmap_equals_a_loop(double, axes):
    x, kernel = draw(0, 5, 3, 6, 5, 2), draw(1, 5, 3, 3, 2, 4)
    arguments = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True)]
    got = jax.vmap(lambda *a: derivatives("own", *a), axes)(*arguments)
    each = [
        derivatives("own", *(a[i] if axis == 0 else a for a, axis in zip(arguments, axes)))  # noqa: B905
        for i in range(5)
    ]
    want = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_vmap_over_vmap(double):
    x, kernel = draw(0, 2, 3, 4, 6, 5, 2), draw(1, 2, 3, 3, 2, 4)
    got = jax.vmap(jax.vmap(convolution.convolve, (0, None)))(x, kernel)
    want = jnp.stack(
        [jnp.stack([convolution.convolve(x[i, j], kernel[i]) for j in range(3)]) for i in range(2)]
    )
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_kernels_of_their_own_make_no_grouped_convolution():
    x, kernel = jnp.ones((6, 4, 9, 7, 3)), jnp.ones((6, 3, 3, 3, 5))

    def slopes(form):
        def value(x, kernel):
            return jnp.sum(convolution.convolve(x, kernel, 1, form) ** 2)

        return str(jax.make_jaxpr(jax.vmap(jax.grad(value, (0, 1))))(x, kernel))

    grouped = "feature_group_count=6"
    assert grouped in slopes("direct")
    assert grouped not in slopes("own")
    assert grouped not in slopes("patches")
    assert slopes(None) == slopes("own")  # on this platform


@pytest.mark.slow
def test_forward_mode_is_refused_and_the_way_round_it_is_right(ready):
    task = ddm.classification(ddm.models.ConvNet(10, width=4, depth=2), (8, 8, 1))
    params = jax.jit(task.init)(jax.random.key(0))
    direction = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape), params)
    query = take(ready.query, slice(0, 6))

    def outputs(params):
        return task.apply(params, query.x)[:, 3]

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(outputs, (params,), (direction,))
    got = output_change(outputs, params)(direction)
    gradients = jax.jacrev(outputs)(params)
    want = sum(
        jnp.sum(g * d, tuple(range(1, g.ndim)))
        for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True)
    )
    assert got.shape == want.shape == (6,)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form='fft'; choose one of own, patches, direct"):
        convolution.convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), 1, "fft")
