"""How updates are chosen on retrained subsets, and what stands beside them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_problem import DISTILL, GROUPS, TRAIN, small_problem, split, task

import ddm_jax as ddm
from ddm_jax import gradients, metrics, online, recipes, tuning, unlearn
from ddm_jax.estimators.ddm import make_outputs
from ddm_jax.estimators.pools import corrected, on_all_data, unmatched
from ddm_jax.estimators.retraining import retrained_outputs
from ddm_jax.judge.problem import retraining_of, trainer_of
from ddm_jax.judge.rivals import pays_after, short_retrainings
from ddm_jax.synset import all_members
from ddm_jax.types import length, take
from ddm_jax.updates import UpdateSettings, settled

GRADIENTS = 4 * 120  # of a training


@pytest.fixture(scope="module")
def problem():
    return small_problem()


@pytest.fixture(scope="module")
def run(problem):
    return jax.jit(trainer_of(problem).train)(jax.random.key(0), split().train, jnp.ones(120))


@pytest.fixture(scope="module")
def state(run):
    distill = dataclasses.replace(DISTILL, items=3, steps=0)
    return ddm.make_ddm(task(), distill).fit(jax.random.key(1), run, split().train, GROUPS)


@pytest.fixture(scope="module")
def retrained(problem):
    """Masks, and what two seeds say without the rest."""
    masks = np.asarray(ddm.random_masks(jax.random.key(5), 6, 10))
    outputs = retrained_outputs(retraining_of(problem))
    keys = jnp.repeat(jax.random.split(jax.random.key(6), 2), 6)
    every = outputs(np.tile(masks, (2, 1)), keys, split().train, GROUPS, split().test)
    return masks, np.asarray(every).reshape(2, 6, -1)


@pytest.fixture(scope="module")
def tuned(problem, state, retrained):
    said: list[str] = []
    found = tuning.tune(
        problem.task, state, *retrained, split().test, gradients=GRADIENTS, share=0.5,
        real=(split().train, GROUPS), say=said.append,
    )  # fmt: skip
    return found, said


@pytest.mark.slow
def test_the_chosen_recipe_is_the_best_of_those_tried_on_all_subsets(
    problem, state, retrained, tuned
):
    found, _ = tuned
    masks, runs = retrained
    last = found.tried[: found.finalists]
    assert [tried.pool for tried in last] == ["synset"] * 4 + ["corrected"] * 2 + ["data"] * 4
    order = sorted(last[:4], key=lambda tried: -tried.agreement)
    assert [tried.update for tried in last[4:6]] == [tried.update for tried in order[:2]]
    where = problem.task, split().train, GROUPS
    states = {
        "synset": state,
        "corrected": corrected(state, *where),
        "data": on_all_data(state, *where),
    }
    measured = []
    for tried in last:
        made, at = ddm.make_ddm(problem.task, None, tried.update), states[tried.pool]
        outputs = made.outputs(at, masks, split().test)
        each = metrics.per_query_correlation(np.asarray(outputs), runs.mean(0))
        measured.append(metrics.nan_mean(each))
        assert tried.agreement == pytest.approx(measured[-1], abs=1e-6)
    worse = [(tried.update.optimizer == "deflated") + (tried.pool != "synset") for tried in last]
    value = np.asarray(measured) - tuning.MARGIN * np.asarray(worse)
    best = last[int(np.argmax(value))]
    assert (found.update, found.pool) == (best.update, best.pool)
    pool = 120 if best.pool == "data" else length(state.synset.items)
    assert length(found.state.synset.items) == pool
    assert (found.state.residual is not None) == (best.pool == "corrected")
    assert found.other is not None
    with_data = best.pool == "data"
    assert (found.other.pool == "data") != with_data
    rest = [value[n] for n, tried in enumerate(last) if (tried.pool == "data") != with_data]
    penalty = tuning.MARGIN * (
        (found.other.update.optimizer == "deflated") + (found.other.pool != "synset")
    )
    assert found.other.agreement - penalty == pytest.approx(max(rest), abs=1e-6)


@pytest.mark.slow
def test_the_rate_that_was_found_is_not_looked_for_again(problem, tuned, monkeypatch):
    found, _ = tuned
    assert all(each.stable > 0 for each in (*found.costs, found.other))
    assert found.stable == found.costs[-1].stable
    masks = np.eye(10, dtype=np.float32)
    anew = ddm.make_ddm(problem.task, None, found.update)
    wanted = anew.outputs(found.state, masks, split().test)
    monkeypatch.setattr(online, "stable_rate", None)
    known = ddm.make_ddm(problem.task, None, found.update, stable=found.stable)
    np.testing.assert_array_equal(known.outputs(found.state, masks, split().test), wanted)
    with pytest.raises(TypeError):  # the rate of the other pool is another
        ddm.make_ddm(problem.task, None, found.update).score(found.state, split().test)


@pytest.mark.slow
def test_costs_are_told_in_gradients_of_a_retraining(state, tuned):
    found, _ = tuned
    items = length(found.state.synset.items)
    assert [tried.share for tried in found.costs] == pytest.approx(
        [recipes.example_gradients(t.update, items) / GRADIENTS for t in found.costs]
    )
    assert found.costs[-1].update == found.update
    assert found.costs[-1].share == pytest.approx(0.5, rel=0.1)
    assert all(tried.seconds > 0 for tried in found.costs)
    assert found.other is not None
    assert found.other.seconds > 0


@pytest.mark.slow
def test_progress_names_every_recipe_and_the_chosen_one(tuned):
    found, said = tuned
    corrected = [tried for tried in found.tried if tried.pool == "corrected"]
    assert sum("on 4 subsets" in line for line in said) == len(found.tried) - len(corrected)
    assert sum("corrected by what the items leave" in line for line in said) >= len(corrected) == 2
    assert any(line.startswith("  the items leave 0.") for line in said)
    assert said[-1].startswith(f"  chosen: {tuning.describe(found.update, found.pool)}")


@pytest.mark.slow
def test_the_same_choice_again(problem, state, retrained, tuned):
    again = ddm.tune(
        problem.task, state, *retrained, split().test, gradients=GRADIENTS, share=0.5,
        real=(split().train, GROUPS),
    )  # fmt: skip
    assert (again.update, again.pool) == (tuned[0].update, tuned[0].pool)
    alone = ddm.tune(problem.task, state, *retrained, split().test, gradients=GRADIENTS, share=0.5)
    assert (alone.pool, alone.other) == ("synset", None)
    of_synset = [each for each in tuned[0].tried if each.pool == "synset"]
    told = [[(t.update, t.agreement) for t in each] for each in (alone.tried, of_synset)]
    assert told[0] == told[1]


@pytest.mark.slow
def test_what_is_corrected_goes_at_the_rates_of_the_synset(problem, state, retrained, monkeypatch):
    """Its curvature is that of the items: it needs no products of its own."""
    found, asked = online.stable_rate, []
    monkeypatch.setattr(
        online, "stable_rate", lambda *given, **more: asked.append(1) or found(*given, **more)
    )
    how = {"gradients": GRADIENTS, "share": 0.1, "fixed": ddm.UpdateSettings(rewind=0.0)}
    where = {"query": split().test, "real": (split().train, GROUPS)}
    counts = []
    for pools in (["synset"], ["synset", "corrected"]):
        asked.clear()
        tuned = ddm.tune(problem.task, state, *retrained, **where, **how, pools=pools)
        counts.append(len(asked))
    assert counts[0] == counts[1] > 0
    assert {each.pool for each in tuned.tried} == {"synset", "corrected"}
    assert tuned.other is None  # neither takes the training data


@pytest.mark.slow
def test_a_correction_is_not_tried_where_the_items_match(problem, state, monkeypatch, retrained):
    monkeypatch.setattr(tuning, "UNMATCHED", 0.9)
    said: list[str] = []
    found = ddm.tune(
        problem.task, state, *retrained, split().test, gradients=GRADIENTS, share=0.1,
        real=(split().train, GROUPS), pools=["synset", "corrected"], say=said.append,
    )  # fmt: skip
    assert {each.pool for each in found.tried} == {"synset"}
    assert any("of the groups' gradients" in line for line in said)


def test_what_is_unmatched_is_what_the_items_leave(run, problem, state):
    whole = corrected(
        on_all_data(state, problem.task, split().train, GROUPS), problem.task, split().train, GROUPS
    )
    np.testing.assert_allclose(unmatched(whole, problem.task), np.zeros(10), atol=1e-6)
    some = corrected(state, problem.task, split().train, GROUPS)
    loss = jax.grad(lambda params, batch: problem.task.loss(params, batch).sum() / 120)
    exact = loss(run.params, take(split().train, np.flatnonzero(GROUPS.ids == 3)))
    size = optax.tree.norm(exact) ** 2
    left = optax.tree.norm(jax.tree.map(lambda leaf: leaf[3], some.residual)) ** 2
    assert unmatched(some, problem.task)[3] == pytest.approx(float(left / size), rel=1e-4)


@pytest.mark.parametrize(
    ("pools", "told"),
    [
        (["synset", "all"], "pools=synset,all; name some of synset, corrected, data"),
        ("synset", "pools='synset'; it must be a tuple of names"),
        ((), "pools=; name some of"),
        (["data"], "pools=data; name some of synset, corrected, data, of which synset must be one"),
        (iter(["synset", "data"]), r"real is not given; pass real=\(data, groups\)"),
    ],
)
def test_pools_that_there_are_not_are_refused(problem, state, retrained, pools, told):
    with pytest.raises(ValueError, match=told):
        ddm.tune(problem.task, state, *retrained, split().test, gradients=GRADIENTS, pools=pools)


def test_pairs_of_something_else_are_refused(problem, state, retrained):
    """A batch unpacks into two as well."""
    for real in (split().train, (split().train,)):
        with pytest.raises(ValueError, match="real is no such pair"):
            ddm.tune(problem.task, state, *retrained, split().test, gradients=GRADIENTS, real=real)


def test_what_cannot_be_corrected_is_refused_in_one_line(run, problem, state):
    train, task = split().train, problem.task
    spoilt = train._replace(x=np.where(np.arange(120) == 7, np.nan, train.x.T).T)
    with pytest.raises(ValueError, match="the training data holds NaN"):
        corrected(state, task, spoilt, GROUPS)
    with pytest.raises(ValueError, match="the state is a TrainRun; pass what"):
        on_all_data(run, task, train, GROUPS)
    with pytest.raises(ValueError, match="the training data is a Groups"):
        corrected(state, task, GROUPS, train)
    with pytest.raises(ValueError, match="not corrected"):
        unmatched(state, task)
    left = [corrected(state, task, train, ids).residual for ids in (GROUPS, np.asarray(GROUPS.ids))]
    jax.tree.map(np.testing.assert_array_equal, *left)


@pytest.mark.slow
def test_a_synset_that_stands_for_nothing_gives_way_to_the_data(problem, state, retrained):
    """Items whose labels are swapped: no recipe can order subsets with them as the data do."""
    wrong = state.synset.items._replace(y=state.synset.items.y[:, ::-1])
    bad = state._replace(synset=state.synset._replace(items=wrong))
    found = ddm.tune(
        problem.task, bad, *retrained, split().test, gradients=GRADIENTS, share=0.5,
        real=(split().train, GROUPS),
    )  # fmt: skip
    assert found.pool == "data"
    assert found.other is not None
    assert found.other.pool == "corrected"  # to first order right, whatever the items
    of_items = [each.agreement for each in found.tried if each.pool == "synset"]
    assert found.other.agreement > max(of_items) + 0.1
    assert all(each.pool == "data" for each in found.costs)
    made = ddm.make_ddm(problem.task, None, found.update)
    outputs = np.asarray(made.outputs(found.state, retrained[0], split().test))
    each = metrics.per_query_correlation(outputs, retrained[1].mean(0))
    assert found.costs[-1].agreement == pytest.approx(metrics.nan_mean(each), abs=1e-6)


def test_what_is_fixed_stays_in_every_recipe(state):
    fixed = UpdateSettings(rewind=0.5, steps=7, batch=11, learning_rate=0.1, optimizer="sgd")
    every = recipes.every_recipe(fixed, state, 30, GRADIENTS, 0.1)
    assert len(every) == len(set(map(str, every)))
    for update in every:
        for name in ("rewind", "steps", "batch", "learning_rate", "optimizer"):
            assert getattr(update, name) == getattr(fixed, name)
        assert update.rate_factor is None
    assert {update.schedule for update in every} == {"constant", "cosine"}


def test_after_adam_its_moments_are_among_the_choices(state):
    squares = jax.tree.map(jnp.ones_like, state.checkpoints)
    kinds = [
        update.optimizer
        for update in recipes.every_recipe(
            UpdateSettings(), state._replace(second_moments=squares), 30, 10**9, 0.1
        )
    ]
    assert set(kinds) == {"preconditioned", "sgd"}
    plain = recipes.every_recipe(UpdateSettings(), state, 30, 10**9, 0.1)
    assert {update.optimizer for update in plain} == {"sgd", "deflated"}


def test_directions_that_cost_more_than_retraining_are_no_choice(state):
    few = recipes.every_recipe(UpdateSettings(), state, 30, 10, 0.1)
    assert {update.optimizer for update in few} == {"sgd"}


def test_a_network_that_cannot_be_deflated_has_the_other_choices(state, monkeypatch):
    monkeypatch.setattr("ddm_jax.rates.MOST_BYTES", 4 * 700)
    kinds = {
        each.optimizer for each in recipes.every_recipe(UpdateSettings(), state, 30, 10**9, 0.1)
    }
    assert kinds == {"sgd"}


@pytest.mark.parametrize(
    ("share", "gradients", "items", "steps", "batch"),
    [
        (0.1, 100_000, 1000, 100, 100),
        (0.02, 100_000, 1000, 20, 100),
        (0.25, 100_000, 40, 625, 40),  # no more than there are
        (0.1, 5000, 1000, 10, 50),  # ten steps at least, of fewer items
        (0.1, 5, 1000, 1, 1),
    ],
)
def test_steps_and_batch_follow_the_cost(share, gradients, items, steps, batch):
    update = recipes.at_cost(UpdateSettings(), share, gradients, items)
    assert (update.steps, update.batch) == (steps, batch)
    assert recipes.example_gradients(update, items) <= max(share * gradients, 1) * 1.01


@pytest.mark.parametrize(
    ("gradients", "told"),
    [(480, [0.25]), (6000, [0.1, 0.25]), (100_000, [0.02, 0.05, 0.1, 0.25])],
)
def test_costs_of_a_few_items_are_not_told(gradients, told):
    assert recipes.shares(UpdateSettings(), 0.25, gradients) == told
    assert recipes.shares(UpdateSettings(steps=3), 0.25, gradients) == [0.25]


@pytest.mark.slow
def test_where_every_recipe_diverges_it_says_so(problem, state, retrained):
    broken = state._replace(synset=state.synset._replace(mass=state.synset.mass * 1e30))
    with pytest.raises(ValueError, match="every recipe of the updates diverged"):
        tuning.tune(
            problem.task, broken, *retrained, split().test, gradients=GRADIENTS,
            fixed=UpdateSettings(steps=5, learning_rate=1.0, optimizer="sgd"),
        )  # fmt: skip


@pytest.mark.slow
def test_outputs_of_another_objective_are_warned_of(problem, state, retrained):
    masks, runs = retrained
    fixed = UpdateSettings(rewind=0.75, optimizer="sgd", schedule="cosine", momentum=0.9)
    with pytest.warns(UserWarning, match="the wrong way round"):
        tuning.tune(
            problem.task, state, masks, -runs, split().test, gradients=GRADIENTS, share=0.5,
            fixed=fixed,
        )  # fmt: skip


@pytest.mark.slow
def test_answers_that_are_all_the_same_are_no_divergence(problem, state, retrained):
    masks, runs = retrained
    with pytest.warns(UserWarning, match="have no order to choose by"):
        found = tuning.tune(
            problem.task, state, masks, np.ones_like(runs), split().test, gradients=GRADIENTS,
            share=0.1, fixed=UpdateSettings(rewind=0.0, optimizer="sgd", schedule="constant"),
        )  # fmt: skip
    assert [tried.agreement for tried in found.tried] == [0.0] * len(found.tried)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"masks": np.ones((3, 10))}, "the number of tuning subsets=3"),
        ({"retrained": np.ones((2, 5, 40))}, "6 masks need"),
        ({"gradients": 0}, "gradients=0"),
        ({"retrained": np.full((2, 6, 40), np.nan)}, "retrained outputs must be finite"),
        ({"share": 1.5}, "share=1.5"),
    ],
)
def test_what_does_not_fit_is_refused(problem, state, retrained, change, told):
    given = {"masks": retrained[0], "retrained": retrained[1], "gradients": 9, "share": 0.1}
    given |= change
    with pytest.raises(ValueError, match=told):
        tuning.tune(problem.task, state, query=split().test, **given)


@pytest.mark.slow
def test_all_members_stand_for_themselves():
    """Fine-tuning on them is fine-tuning on the real data: the gradients are the same."""
    groups = ddm.as_groups(np.where(np.arange(120) % 7 == 0, -1, np.arange(120) % 5))
    synset = all_members(task(), split().train, groups)
    assert length(synset.items) == 120
    assert (np.diff(np.where(np.asarray(synset.group) < 0, 5, synset.group)) >= 0).all()
    assert float(synset.share.sum() + synset.background) == pytest.approx(1)
    params = task().init(jax.random.key(0))
    steps = {"steps": 1, "optimizer": optax.sgd(1.0)}
    keep = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])
    moved = ddm.make_finetune(task(), **steps)(params, synset, keep)
    weights = np.append(keep, 1.0)[np.asarray(groups.ids)]

    def loss(params):
        return jnp.sum(weights * task().loss(params, split().train)) / weights.sum()

    want = jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params))
    for one, other in zip(jax.tree.leaves(moved), jax.tree.leaves(want), strict=True):
        # Labels of items are soft: a chance of exp(-14) is left to each other class.
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.slow
def test_short_retrainings_are_told_with_their_cost(problem, retrained):
    masks, runs = retrained
    found = short_retrainings(problem, masks, runs.mean(0), split().train, GROUPS, split().test)
    assert [rival.epochs for rival in found] == [1, 2]  # fewer than TRAIN.epochs
    assert [rival.share for rival in found] == [1 / TRAIN.epochs, 2 / TRAIN.epochs]
    assert all(-1 <= rival.agreement <= 1 for rival in found)
    assert all(rival.seconds > 0 for rival in found)


def test_after_how_many_questions_a_synset_pays():
    assert pays_after(offline=90.0, question=1.0, rival=10.0) == 10
    assert pays_after(offline=90.0, question=10.0, rival=10.0) == float("inf")


def test_where_nothing_is_chosen_there_are_defaults():
    assert settled(UpdateSettings(steps=7)).steps == 7
    found = settled(UpdateSettings())
    assert (found.steps, found.batch, found.schedule, found.rewind) == (100, 250, "constant", 0.0)
    assert found.learning_rate is None


def test_data_that_are_not_those_of_the_synset_are_refused(state):
    """Points without a group dropped out, and nobody was told."""
    train = split().train
    with pytest.raises(ValueError, match="groups are of 40 points, and there are 120"):
        on_all_data(state, task(), train, ddm.as_groups(np.arange(40) % 10))
    for ids in (np.repeat(np.arange(10), [30] + [10] * 9), np.arange(120) % 11 - 1):
        with pytest.raises(ValueError, match="not those that the synset was distilled of"):
            on_all_data(state, task(), train, ddm.as_groups(ids))


@pytest.mark.parametrize("background", [False, True])
def test_a_corrected_step_is_that_of_all_the_data(run, background):
    """Whatever the items are, a step at the trained network knows each group's gradient."""
    ids = np.asarray(GROUPS.ids) - background  # the first group is always there, or is asked about
    groups = ddm.as_groups(np.where(ids < 0, -1, ids))
    distill = ddm.DistillSettings(items=1, steps=0, start="random")
    state = ddm.make_ddm(task(), distill).fit(jax.random.key(1), run, split().train, groups)
    one = UpdateSettings(steps=1, batch=1000, learning_rate=0.5)
    outputs = make_outputs(task(), one)
    masks = np.concatenate([np.eye(groups.count), 1 - np.eye(groups.count)]).astype(np.float32)
    exact = outputs(on_all_data(state, task(), split().train, groups), masks, split().test)
    found = corrected(state, task(), split().train, groups)
    np.testing.assert_allclose(outputs(found, masks, split().test), exact, atol=2e-4)
    assert np.abs(outputs(state, masks, split().test) - exact).max() > 0.1
    if not background:
        keep = masks[-1:]
        moved = [unlearn.forget_groups(task(), each, keep, one).params for each in (state, found)]
        assert not np.allclose(*(gradients.flatten(each) for each in moved), atol=1e-3)


def test_all_the_data_leave_nothing_to_correct(run, state):
    whole = on_all_data(state, task(), split().train, GROUPS)
    left = corrected(whole, task(), split().train, GROUPS).residual
    some = corrected(state, task(), split().train, GROUPS).residual
    assert np.abs(gradients.flatten(left)).max() < 1e-5 < np.abs(gradients.flatten(some)).max()
    others = ddm.as_groups(np.repeat(np.arange(10), [30] + [10] * 9))
    with pytest.raises(ValueError, match="not those that the synset was distilled of"):
        corrected(state, task(), split().train, others)


@pytest.mark.parametrize(
    ("agreement", "place"),
    [
        ([0.3, 0.5, 0.4], 1),
        ([0.3, 0.405, 0.4], 2),  # not clearly better
        ([0.6, 0.5, 0.4], 0),
        ([float("nan"), 0.2, float("nan")], 1),
        ([float("nan")] * 3, 2),
        ([0.1, 0.2, 0.4], 2),
    ],
)
def test_fewer_steps_are_taken_where_they_are_clearly_better(agreement, place):
    assert tuning.best_cost(agreement, [0.02, 0.1, 0.25], 0.25) == place
    # What costs more than is allowed is told, and never taken.
    assert tuning.best_cost([*agreement, 0.9], [0.02, 0.1, 0.25, 0.5], 0.25) == place


def test_a_network_that_is_lost_is_astray(rng):
    usual = rng.normal(size=(16, 200)) * rng.lognormal(size=200)
    assert not len(tuning.strays(usual))
    usual[3, :60] += 50  # without a group some answers change much
    assert not len(tuning.strays(usual))
    lost = usual.copy()
    lost[5] -= 20
    lost[9, 7] = np.nan
    assert tuning.strays(lost).tolist() == [5, 9]
    assert tuning.strays(np.full((4, 3), np.inf)).tolist() == [0, 1, 2, 3]
    alike = np.zeros((4, 3))
    alike[1] = 1  # of a count of right answers: no distance to compare with
    assert not len(tuning.strays(alike))


def test_the_other_subsets_are_like_those_that_were_retrained():
    masks = np.asarray(ddm.random_masks(jax.random.key(5), 6, 10))
    assert [sum(map(len, tuning.others_of(masks, share))) for share in (1, 0.25, 0.01)] == [
        *(12, 18, 42),  # in sixes
    ]
    others = tuning.others_of(masks, 0.25)
    for each, again in zip(others, tuning.others_of(masks, 0.25), strict=True):
        np.testing.assert_array_equal(each, again)
        np.testing.assert_array_equal(each.sum(1), masks.sum(1))
        assert (each != masks).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "fixed", "halved"),
    [
        ([1, 0], {}, 1),
        ([2, 1, 0], {}, 2),
        ([1, 1, 1], {}, 0),  # no rate mends it
        ([1], {"rate_factor": 1.0}, 0),  # a rate that was asked for
    ],
)
def test_a_rate_at_which_others_go_astray_is_halved(
    problem, state, retrained, monkeypatch, lost, fixed, halved
):
    counts = iter(lost)
    monkeypatch.setattr(tuning, "strays", lambda outputs: np.arange(next(counts)))
    said: list[str] = []
    found = tuning.tune(
        problem.task, state, *retrained, split().test, gradients=GRADIENTS, share=0.5,
        fixed=UpdateSettings(optimizer="sgd", rewind=0.0, momentum=0.9, **fixed), say=said.append,
    )  # fmt: skip
    assert next(counts, None) is None
    best = max(found.tried[: found.finalists], key=lambda tried: tried.agreement)
    assert found.update.rate_factor == best.update.rate_factor / 2**halved
    told = " ".join(said)
    assert "of 12 other subsets go astray" in told
    assert ("which is taken" in told) == bool(halved)
    if halved:  # what is told is of these updates
        made = ddm.make_ddm(problem.task, None, found.update)
        outputs = np.asarray(made.outputs(state, retrained[0], split().test))
        each = metrics.per_query_correlation(outputs, retrained[1].mean(0))
        told = next(cost for cost in found.costs if cost.update == found.update)
        assert told.agreement == pytest.approx(metrics.nan_mean(each), abs=1e-6)
