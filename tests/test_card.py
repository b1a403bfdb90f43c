"""The what-if card: one file that answers without the training data."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ddm as command
from small_problem import DISTILL, GROUPS, UPDATE, small_problem, split, task
from tiny_run import finished  # noqa: F401

import ddm_jax as ddm
from ddm_jax import card as cards
from ddm_jax import files, metrics, objectives
from ddm_jax.cluster import as_groups
from ddm_jax.estimators.pools import corrected
from ddm_jax.judge.problem import trainer_of
from ddm_jax.metrics.intervals import fit_intervals
from ddm_jax.run import cards as of_run
from ddm_jax.run.finished import open_finished
from ddm_jax.unlearn import forget_groups
from ddm_jax.updates import UpdateSettings

pytestmark = pytest.mark.slow  # each compiles the updates of a card

NAMES = tuple(f"writer {k}" for k in range(10))
NAMED = as_groups([NAMES[i % 10] for i in range(120)])


@pytest.fixture(scope="module")
def run():
    train = trainer_of(small_problem()).train
    return jax.jit(train)(jax.random.key(0), split().train, jnp.ones(120))


@pytest.fixture(scope="module")
def state(run):
    return ddm.make_ddm(task(), DISTILL).fit(jax.random.key(1), run, split().train, GROUPS)


def intervals():
    draw = np.random.default_rng(0)
    predicted = draw.normal(size=(6, 40))
    retrained = 2 * predicted + 0.3 * draw.normal(size=(3, 6, 40))
    return fit_intervals(predicted, retrained, np.repeat([0.1, 0.5], 3), np.ones(40))


@pytest.fixture(scope="module")
def card(state):
    return cards.make_card(
        state, UPDATE, NAMED, intervals=intervals(), told={"agreement": {"halves": 0.9}}
    )


@pytest.fixture(scope="module")
def path(card, tmp_path_factory):
    place = tmp_path_factory.mktemp("card") / "model.ddm"
    cards.save_card(place, card, task(), split().train, include_examples=True)
    return place


@pytest.mark.parametrize("rewind", [0.0, 0.3, 0.75, 0.9])
def test_a_card_answers_as_the_whole_run_does(state, rewind):
    update = dataclasses.replace(UPDATE, rewind=rewind)
    masks = np.ones((3, 10), np.float32)
    masks[1, [3, 7]] = 0
    masks[2, 4] = 2
    wanted = ddm.make_ddm(task(), None, update).outputs(state, masks, split().test)
    made = cards.make_card(state, update, GROUPS)
    assert len(made.state.checkpoints["Dense_0"]["bias"]) == (2 if rewind else 1)
    found = cards.make_what_if(task(), made)(masks, split().test)
    np.testing.assert_array_equal(found.outputs, wanted)
    np.testing.assert_allclose(found.changes, wanted - wanted[:1], atol=1e-6)
    assert found.half_widths is None


def test_a_corrected_run_has_a_card_too(state, tmp_path):
    whole = corrected(state, task(), split().train, GROUPS)
    place, masks = tmp_path / "corrected.ddm", np.r_[0.0, np.ones(9)]
    made = cards.make_card(whole, UPDATE, GROUPS)
    items = whole.synset.items
    for x, told in (
        (items.x + np.float32(9), "^the card holds what the items leave of each group's gradient"),
        (split().train.x[: len(items.x)], r"are training examples.*leave of each .* distil from"),
    ):
        holding = whole.synset._replace(items=items._replace(x=x))
        with pytest.raises(ValueError, match=told):
            cards.save_card(
                place, made._replace(state=made.state._replace(synset=holding)),
                task(), split().train,
            )  # fmt: skip
    assert "the groups' gradients" in repr(made)
    cards.save_card(place, made, task(), split().train, include_examples=True)
    found = cards.make_what_if(task(), ddm.load_card(place, task()))(masks, split().test)
    wanted = ddm.make_ddm(task(), None, UPDATE).outputs(whole, masks[None], split().test)
    np.testing.assert_allclose(found.outputs, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(cards.make_what_if(task(), cards.make_card(state, UPDATE, GROUPS))(
        masks, split().test).outputs - wanted).max() > 1e-3  # fmt: skip


def test_a_card_that_was_read_is_the_card(card, path):
    read = ddm.load_card(path, task())
    state = card.state
    jax.tree.map(np.testing.assert_array_equal, read.state, state)
    assert jax.tree.structure(read.state.checkpoints) == jax.tree.structure(state.checkpoints)
    assert read.update == card.update
    assert read.names == card.names == tuple(sorted(NAMES))
    for one, two in zip(read.intervals, card.intervals, strict=True):
        np.testing.assert_array_equal(one, two)
    assert read.told["agreement"] == {"halves": 0.9}
    assert read.told["ddm_jax"] == ddm.__version__
    assert "10 groups, 10 items; 0.900 on halves; changes at 2, 2 times what the" in repr(read)


def test_its_error_bars_are_those_of_all_groups_left_out(card, state, run):
    masks = np.ones((2, 10), np.float32)
    masks[0, 2] = 0
    masks[1, :5] = 0
    found = cards.make_what_if(task(), card)(masks, split().test)
    made = ddm.make_ddm(task(), None, UPDATE)
    scores = np.asarray(made.score(state, split().test))
    every = np.concatenate([np.ones((1, 10), np.float32), masks])
    outputs = np.asarray(made.outputs(state, every, split().test))
    said, reach = outputs[1:] - outputs[:1], metrics.reach(scores)
    wide = metrics.half_widths(intervals(), said, [0.1, 0.5], reach)
    np.testing.assert_allclose(found.half_widths, wide, rtol=1e-4)
    # At the size that retraining gave: here twice what the updates say.
    wanted = metrics.expected(intervals(), said, [0.1, 0.5])
    np.testing.assert_allclose(found.changes, wanted, atol=1e-5)
    np.testing.assert_allclose(-found.changes[0], 2 * scores[2], rtol=0.1)
    trained = task().output(run.params, split().test)
    np.testing.assert_allclose(found.outputs - found.changes, [trained] * 2, atol=1e-5)


def test_a_card_of_before_has_bars_around_the_predictions(card, path, tmp_path):
    arrays, told = files.read_any_arrays(path, "")
    old, numbers = tmp_path / "old.ddm", [n for n in arrays if n.startswith("intervals.")]
    del arrays[max(numbers)]  # the factors
    told["shapes"]["intervals"]["tuple"].pop()
    files.write_arrays(old, arrays, told)
    read = ddm.load_card(old, task())
    np.testing.assert_array_equal(read.intervals.times, 1)
    np.testing.assert_array_equal(read.intervals.widths, card.intervals.widths)


def test_one_question_may_be_a_single_mask(card):
    what_if = cards.make_what_if(task(), card)
    mask = np.r_[0.0, np.ones(9)]
    one, two = what_if(mask, split().test), what_if(mask[None], split().test)
    np.testing.assert_array_equal(one.outputs, two.outputs)
    with pytest.raises(ValueError, match="masks"):
        what_if(np.ones((1, 9)), split().test)


def test_nothing_of_the_data_is_in_it_but_the_items(path, state):
    """Neither the start of the distillation, which are training examples, nor the groups."""
    arrays, _ = files.read_any_arrays(path)
    sizes = {name: leaf.shape for name, leaf in arrays.items()}
    assert not any(120 in shape for shape in sizes.values())
    start = np.asarray(state.info.start.items.x)
    assert not np.array_equal(start, state.synset.items.x)
    assert not any(np.array_equal(leaf, start) for leaf in arrays.values())
    assert len(arrays) == 4 + 2 + 2 + 3 + 5  # parameters, decays, items, the rest, error bars


def test_items_that_are_training_examples_are_counted_and_refused(run, tmp_path):
    distill = dataclasses.replace(DISTILL, steps=0)
    raw = ddm.make_ddm(task(), distill).fit(jax.random.key(1), run, split().train, GROUPS)
    made = cards.make_card(raw, UPDATE, GROUPS)
    assert cards.count_copies(raw.synset, task(), split().train) == 10
    with pytest.raises(ValueError, match=r"10 of 10 items .*include_examples=True"):
        cards.save_card(tmp_path / "card", made, task(), split().train)
    assert list(tmp_path.iterdir()) == []
    cards.save_card(tmp_path / "card", made, task(), split().train, include_examples=True)
    told = ddm.load_card(tmp_path / "card", task()).told
    assert told["training examples among the items"] == 10


def test_a_synset_from_noise_is_written_without_asking(run, tmp_path):
    distill = dataclasses.replace(DISTILL, start="noise")
    state = ddm.make_ddm(task(), distill).fit(jax.random.key(1), run, split().train, GROUPS)
    cards.save_card(
        tmp_path / "card", cards.make_card(state, UPDATE, GROUPS), task(), split().train
    )
    told = ddm.load_card(tmp_path / "card", task()).told
    assert told["training examples among the items"] == 0


def test_a_card_of_another_task_is_refused(path):
    with pytest.raises(ValueError, match="parameters of this task have the shapes"):
        ddm.load_card(path, task(hidden=9))
    with pytest.raises(ValueError, match="outputs of this task are not those"):
        ddm.load_card(path, objectives.explain(task(), "probability"))
    other = ddm.classification(ddm.models.MLP(10, (8,)), (8, 8, 1))
    assert ddm.load_card(path, other).names is not None


def test_a_damaged_card_and_what_is_none_are_refused(path, tmp_path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or was edited"):
        ddm.load_card(tmp_path / "bad", task())
    files.write_arrays(tmp_path / "other", {"x": np.ones(3)})
    with pytest.raises(ValueError, match="is no card"):
        ddm.load_card(tmp_path / "other", task())
    with pytest.raises(FileNotFoundError):
        ddm.load_card(tmp_path / "none", task())


def test_other_types_and_other_items_come_back(tmp_path):
    """Half precision, dicts of arrays, integers, moments and a background."""

    def init(key):
        return {"w": jax.random.normal(key, (3,), jnp.bfloat16)}

    def loss(params, batch):
        return (batch.x["a"] @ params["w"].astype(jnp.float32) - batch.y["t"]) ** 2

    own = ddm.Task(init, loss, loss, targets="any")
    draw = np.random.default_rng(0)
    data = ddm.Batch(
        {"a": draw.normal(size=(40, 3)).astype(np.float32), "ids": np.arange(40)},
        {"t": draw.normal(size=40).astype(np.float32)},
    )
    train = ddm.make_train(
        own, steps=20, batch_size=10, optimizer="adam", learning_rate=0.01, checkpoint_every=5
    )
    run = jax.jit(train)(jax.random.key(0), data, jnp.ones(40))
    groups = as_groups(np.arange(40) % 5 - 1)
    made = ddm.make_ddm(own, ddm.DistillSettings(items=2, steps=3), UpdateSettings(steps=3))
    state = made.fit(jax.random.key(1), run, data, groups)
    card = cards.make_card(state, UpdateSettings(steps=3, rewind=0.5), groups)
    cards.save_card(tmp_path / "card", card, own, data, include_examples=True)
    read = ddm.load_card(tmp_path / "card", own)
    assert jax.tree.structure(read.state) == jax.tree.structure(card.state)
    for one, two in zip(jax.tree.leaves(read.state), jax.tree.leaves(card.state), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(np.asarray(one, float), np.asarray(two, float))


def card_stable(run):
    """The stable rate on the synset, as the run's own choice found it."""
    return of_run.without_data(run, run.plan).stable


def test_a_run_becomes_a_card(finished, tmp_path):  # noqa: F811
    place = tmp_path / "run.ddm"
    said = command("card", "--workdir", finished, "--output", place, "--include-examples")
    assert said.exit_code == 0
    assert "objective: margin" in said.stdout
    run = open_finished(finished)
    read = ddm.load_card(place, run.plan.task)
    np.testing.assert_allclose(
        -np.asarray(
            cards.make_what_if(run.plan.task, read)(1 - np.eye(10), run.plan.split.test)[1]
        ),
        run.attribution.scores,
        atol=1e-5,
    )
    assert read.intervals is not None
    assert read.stable == card_stable(run)
    assert len(read.told["agreement"]) == 3
    split = run.plan.split
    names = [split.classes[place] for place in np.argmax(split.test.y, 1)]
    queries = read.queries(split.pixels(split.test.x), names)
    for one, two in zip(queries, split.test, strict=True):
        np.testing.assert_array_equal(one, two)
    unlabelled, mask = read.queries(split.pixels(split.test.x)), np.r_[0.0, np.ones(9)]
    with pytest.raises(ValueError, match="queries have no label, and this objective needs it"):
        cards.make_what_if(run.plan.task, read)(mask, unlabelled)
    logit = objectives.explain(run.plan.given, "logit:0")
    said = cards.make_what_if(logit, read)(mask, unlabelled).outputs
    np.testing.assert_array_equal(said, cards.make_what_if(logit, read)(mask, queries).outputs)


def test_a_card_of_numbers_has_no_queries_of_its_own(card):
    with pytest.raises(ValueError, match="came as a network takes them"):
        card.queries(np.zeros((2, 2)))


def test_a_run_that_takes_the_data_has_the_card_of_its_synset(finished):  # noqa: F811
    run = open_finished(finished)
    made = of_run.card_of_run(run)
    other = run.tuning._replace(pool="data", other=None)
    again = of_run.card_of_run(run._replace(tuning=other))
    # The same updates on the synset: predicted anew, and the same.
    for one, two in zip(made.intervals, again.intervals, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3)
    assert len(jax.tree.leaves(again.state.synset.items.x)[0]) == 10


def test_a_card_forgets(card, path, state):
    keep = np.ones(10, np.float32)
    keep[3] = 0
    read = ddm.load_card(path, task())
    found, careful = forget_groups(task(), read.state, keep, read.update)
    wanted, alike = forget_groups(task(), state, keep, UPDATE)
    assert careful == alike
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)
    before = ddm.trajectory_point(state.checkpoints, 0.0)
    with pytest.raises(AssertionError):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, before)


def test_what_a_card_cannot_hold_is_refused_when_it_is_written(state, tmp_path):
    """It was written, and could never be read."""

    class Pair(NamedTuple):
        image: jax.Array

    items = state.synset.items
    for x, what in ((Pair(items.x), "Pair"), ({10: items.x}, "dict")):
        odd = state._replace(synset=state.synset._replace(items=ddm.Batch(x, items.y)))
        card = cards.make_card(odd, UPDATE, GROUPS)
        with pytest.raises(ValueError, match=f"x of an item is {what}"):
            cards.save_card(tmp_path / "card", card, task(), split().train, include_examples=True)
    with pytest.raises(ValueError, match="there are 2 groups, and the synset has 10"):
        cards.make_card(state, UPDATE, as_groups(np.arange(120) % 2))


def test_a_task_that_is_nearly_the_cards_is_refused(path):
    own = task()

    def near(params, batch):
        return own.loss(jax.tree.map(lambda leaf: 1.01 * leaf, params), batch)

    with pytest.raises(ValueError, match="losses of this task are not those"):
        ddm.load_card(path, own._replace(loss=near))
    with pytest.raises(ValueError, match="lower_is_better"):
        ddm.load_card(path, own._replace(lower_is_better=not own.lower_is_better))
