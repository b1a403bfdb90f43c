"""Which groups matter to a query, by one reverse sweep through the updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddm_jax as ddm
from ddm_jax.selective import response_slopes
from ddm_jax.synset import initial_synset


@pytest.fixture(scope="module")
def smooth(ready):
    """A response whose updates take small steps, and what it is asked."""
    finetune = ddm.make_finetune(ready.task, steps=8, optimizer=optax.sgd(0.02))
    synset = initial_synset(
        jax.random.key(1), ready.task, "random", ready.run, ready.data, ready.groups, 2, [0]
    )
    return ddm.ddm_response(finetune, ready.task.output), (ready.run.params, synset, ready.query)


@pytest.mark.slow
def test_slopes_are_differences_of_a_small_part_of_a_group(smooth):
    response, args = smooth
    slopes = np.asarray(response_slopes(response, 10)(*args))
    step = 0.05
    masks = np.concatenate([1 + step * np.eye(10), 1 - step * np.eye(10)])
    each = np.stack([np.asarray(response(jnp.asarray(mask), *args)) for mask in masks])
    np.testing.assert_allclose(
        slopes, (each[:10] - each[10:]) / (2 * step), atol=0.02 * np.abs(slopes).max()
    )
    whole = np.asarray(ddm.leave_one_out(ddm.subset_outputs(response), 10)(*args))
    assert np.corrcoef(slopes.ravel(), whole.ravel())[0, 1] > 0.95


@pytest.mark.slow
def test_selective_effects_are_those_of_the_matrix_where_they_are_large(smooth):
    response, args = smooth
    whole = np.asarray(ddm.leave_one_out(ddm.subset_outputs(response), 10)(*args))
    slopes = np.asarray(response_slopes(response, 10)(*args))
    found = np.asarray(ddm.make_selective(response, 10, 3)(*args))
    largest = np.argsort(-np.abs(slopes), 0)
    scale = np.abs(whole).max()
    for query in range(found.shape[1]):
        some, rest = largest[:3, query], largest[3:, query]
        np.testing.assert_allclose(found[some, query], whole[some, query], atol=1e-3 * scale)
        np.testing.assert_allclose(found[rest, query], slopes[rest, query], atol=1e-3 * scale)
    every = np.asarray(ddm.make_selective(response, 10, 10)(*args))
    np.testing.assert_allclose(every, whole, atol=1e-3 * scale)


def test_selective_effects_refuse_what_does_not_fit(smooth):
    response, args = smooth
    with pytest.raises(ValueError, match=r"measured=11; .* in 1\.\.10"):
        ddm.make_selective(response, 10, 11)
    with pytest.raises(ValueError, match="num_groups=1"):
        response_slopes(response, 1)
    mean = lambda *args: response(*args).mean(keepdims=True)  # noqa: E731
    with pytest.raises(ValueError, match="gives 1 outputs for 50 queries"):
        ddm.make_selective(mean, 10, 2)(*args)
