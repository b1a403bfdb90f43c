"""Any subset in one call, and how far effects add up."""

import jax
import numpy as np
import optax
import pytest

import ddm_jax as ddm


def test_it_is_the_response_to_each_mask(ready, synset):
    masks = np.ones((2, 10), np.float32)
    masks[1, [2, 5]] = 0
    args = (ready.run.params, synset, masks, ready.query)
    found = ddm.counterfactual(
        *args, task=ready.task, steps=7, learning_rate=0.2, weight_decay=1e-3
    )
    finetune = ddm.make_finetune(
        ready.task,
        steps=7,
        optimizer=optax.sgd(0.2, 0.9, nesterov=True),
        weight_decay=1e-3,
        step_items=5,
    )
    outputs = ddm.subset_outputs(ddm.ddm_response(finetune, ready.task.output))
    expected = outputs(masks, ready.run.params, synset, ready.query)
    assert found.shape == expected.shape == (2, 50)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    networks = ddm.counterfactual(
        *args[:3], task=ready.task, steps=7, learning_rate=0.2, weight_decay=1e-3
    )
    second = ddm.types.take(networks, 1)
    np.testing.assert_allclose(
        ready.task.output(second, ready.query), expected[1], rtol=1e-4, atol=1e-4
    )


def test_one_mask_will_do_and_the_rate_is_the_stable_one(ready, synset):
    keep = np.r_[np.zeros(1), np.ones(9)]
    rate = float(ddm.loo.stable_rate(ready.task, ready.run.params, synset, step_items=5))
    args = (ready.run.params, synset, keep, ready.query)
    found = ddm.counterfactual(*args, task=ready.task, steps=5)
    same = ddm.counterfactual(*args, task=ready.task, steps=5, learning_rate=rate)
    assert found.shape == (1, 50)
    np.testing.assert_allclose(found, same, rtol=1e-3, atol=1e-3)


def test_a_second_call_compiles_nothing(ready, synset, caplog):
    masks = np.ones((3, 10), np.float32)

    def call():
        args = (ready.run.params, synset, masks, ready.query)
        jax.block_until_ready(ddm.counterfactual(*args, task=ready.task, steps=3))

    call()
    caplog.clear()
    with jax.log_compiles():
        call()
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]


def test_what_is_refused(ready, synset):
    ask = lambda masks, **more: ddm.counterfactual(  # noqa: E731
        ready.run.params, synset, masks, ready.query, task=ready.task, **more
    )
    with pytest.raises(ValueError, match=r"they must be \[R, 10\]"):
        ask(np.ones((2, 9)))
    with pytest.raises(ValueError, match="keeps no group"):
        ask(np.zeros(10))
    with pytest.raises(ValueError, match="steps=0"):
        ask(np.ones(10), steps=0)
    with pytest.raises(ValueError, match=r"learning_rate=-0\.1"):
        ask(np.ones(10), learning_rate=-0.1)


def test_effects_that_add_up(rng):
    single = rng.standard_normal((4, 3))
    masks = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1]])
    found = ddm.additivity(masks, masks @ single, single)
    np.testing.assert_allclose(found, (1, 1, 0), atol=1e-12)


def test_effects_that_overlap():
    # Either of two groups is enough: without one nothing happens much, without both everything.
    masks = np.array([[1, 1], [0, 1], [1, 0], [0, 0]])
    outputs = np.array([[1.0], [0.9], [0.9], [0.0]])
    found = ddm.additivity(masks, outputs, np.array([[0.1], [0.1]]))
    # joint .1 .1 1, summed .1 .1 .2: slope (.01 + .01 + .2) / .06, error .64 / 1.02
    np.testing.assert_allclose(found, (1.0, 0.22 / 0.06, 0.64 / 1.02))
    with pytest.raises(ValueError, match="first one all ones"):
        ddm.additivity(masks[1:], outputs[1:], np.array([[0.1], [0.1]]))
    with pytest.raises(ValueError, match="do not fit"):
        ddm.additivity(masks, outputs[:2], np.array([[0.1], [0.1]]))


def test_pairs():
    masks = ddm.pair_masks(5, 4, seed=1)
    assert masks.shape == (5, 5)
    assert masks[0].tolist() == [1] * 5
    assert (masks[1:].sum(1) == 3).all()
    assert len({tuple(row) for row in masks}) == 5
    assert len(ddm.pair_masks(4, 100)) == 1 + 6
    with pytest.raises(ValueError, match="num_groups=2"):
        ddm.pair_masks(2, 1)


def test_a_network_without_what_one_mask_leaves_out(ready, synset):
    keep = np.ones(10, np.float32)
    keep[3], keep[7] = 0, 0.5
    settings = {"steps": 4, "step_items": None}
    networks = ddm.counterfactual(
        ready.run.params, synset, keep, task=ready.task, learning_rate=0.1, momentum=0.0, **settings
    )
    finetune = ddm.make_finetune(ready.task, optimizer=optax.sgd(0.1), **settings)
    expected = jax.jit(finetune)(ready.run.params, synset, keep)

    def check(found, wanted, before):
        assert found.shape == (1, *wanted.shape)
        assert np.abs(wanted - before).max() > 1e-3
        np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-5)

    jax.tree.map(check, networks, expected, ready.run.params)


def test_nothing_is_said_of_effects_that_are_none():
    masks = [[1, 1], [0, 1], [1, 0]]
    still = ddm.additivity(masks, np.ones((3, 2)), np.ones((2, 2)))
    flat = ddm.additivity(masks, [[2.0], [1.0], [0.5]], np.ones((2, 1)))
    assert np.isnan(still).all()
    assert np.isnan(flat).all()


def test_sums_twice_too_large():
    masks = [[1, 1], [0, 1], [1, 0], [0, 0]]
    found = ddm.additivity(masks, [[3.0], [2.0], [1.0], [0.0]], [[2.0], [4.0]])
    np.testing.assert_allclose(found, (1, 0.5, 1))


def test_more_that_is_refused(ready, synset):
    ask = lambda masks: ddm.counterfactual(  # noqa: E731
        ready.run.params, synset, masks, ready.query, task=ready.task
    )
    with pytest.raises(ValueError, match="R >= 1"):
        ask(np.ones((0, 10)))
    with pytest.raises(ValueError, match="1 where a group is kept"):
        ask(np.full(10, 1.5))
    for masks in ([1, 1], [[1, 1]], [[1, 0.5], [1, 1]]):
        with pytest.raises(ValueError, match=r"R >= 2, the first one all ones"):
            ddm.additivity(masks, np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="do not fit"):
        ddm.additivity([[1, 1], [0, 1]], np.ones((2, 1)), np.ones((3, 1)))


def test_which_pairs_go_is_the_seeds():
    first, again, other = (ddm.pair_masks(9, 10, seed) for seed in (0, 0, 1))
    assert first.dtype == np.float32
    assert (first == again).all()
    assert (first != other).any()
