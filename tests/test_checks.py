"""What may come in: each refusal is one line that names the value, what is allowed and the mend."""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import compilations
from pydantic import Field

import ddm_jax as ddm
from ddm_jax.checks import (
    check_batch,
    check_choice,
    check_integer,
    check_loss,
    check_number,
    count_outputs,
    require_distributions,
    require_extra,
    settings,
)
from ddm_jax.estimators.contract import joint_estimator, make_estimator

NAN, INF = float("nan"), float("inf")


def refusal(fn, *args, **values):
    """What is said, in one line."""
    try:
        fn(*args, **values)
    except ValueError as error:
        told = str(error)
    else:
        pytest.fail("nothing was refused")
    assert "\n" not in told
    return told


# Numbers and names


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.uint8(1)])
def test_whole_numbers(value):
    found = check_integer("steps", value)
    assert found == value
    assert type(found) is int
    assert check_integer("k", 4, 0, 4) == 4


@pytest.mark.parametrize(
    "value", [0, -1, 2.5, 2.0, True, np.True_, NAN, INF, "3", None, [1], np.array([1])]
)
def test_what_is_no_whole_number_from_one_on(value):
    told = refusal(check_integer, "steps", value)
    assert told == f"steps={value!r}; it must be a whole number, at least 1"


def test_whole_numbers_of_a_range():
    for value in (-1, 5):
        told = refusal(check_integer, "k", value, 0, 4)
        assert told == f"k={value}; it must be a whole number, in 0..4"


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.25), np.int64(1)])
def test_numbers(value):
    found = check_number("keep", value, above=0, most=1)
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize("value", [NAN, INF, -INF, True, "0.5", None, [0.5], 1j])
def test_what_is_no_finite_number(value):
    assert refusal(check_number, "x", value) == f"x={value!r}; it must be a finite number"


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "said"),
    [
        ({"above": 0}, 1e-9, 0, "above 0"),
        ({"least": 0}, 0, -1e-9, "at least 0"),
        ({"below": 1}, 0.999, 1, "below 1"),
        ({"most": 1}, 1, 1.001, "at most 1"),
        ({"above": 0, "below": 1}, 0.5, 1, "above 0 and below 1"),
        ({"least": 0.25, "most": 2}, 2, 0, "at least 0.25 and at most 2"),
    ],
)
def test_numbers_of_a_range(bounds, inside, outside, said):
    assert check_number("x", inside, **bounds) == inside
    told = refusal(check_number, "x", outside, **bounds)
    assert told == f"x={outside!r}; it must be a finite number and {said}"


def test_names():
    assert check_choice("update", "forget", ("retain", "forget")) == "forget"
    for value in ("erase", "", None, 3, ["forget"]):
        told = refusal(check_choice, "update", value, ("retain", "forget"))
        assert told == f"update={value!r}; choose one of retain, forget"


# Settings


@settings("some")
class Some:
    """Settings of every kind."""

    needed: int
    rate: Annotated[float, Field(gt=0, lt=2)] = 1.0
    part: Annotated[float, Field(ge=0, le=1)] = 0.5
    count: Annotated[int, Field(ge=1)] | None = None
    way: Literal["up", "down"] = "up"
    learn: Annotated[tuple[Literal["x", "y"], ...], Field(min_length=1)] = ("x",)
    yes: bool = False


def test_settings_are_frozen_and_compare_by_value():
    some = Some(3, 0.5)
    assert some == Some(needed=3, rate=0.5)
    assert hash(some) == hash(Some(3, 0.5))
    assert some != dataclasses.replace(some, part=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        some.rate = 1.0
    assert refusal(dataclasses.replace, some, part=2) == "some.part=2; it must be at most 1"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "some.needed is missing"),
        ({"needed": 1, "other": 2}, "some.other is no setting; `ddm settings` lists them"),
        ({"needed": 2.5}, "some.needed=2.5; it must be a valid integer"),
        ({"needed": 2.0}, "some.needed=2.0; it must be a valid integer"),
        ({"needed": True}, "some.needed=True; it must be a valid integer"),
        ({"needed": "2"}, "some.needed='2'; it must be a valid integer"),
        ({"needed": None}, "some.needed=None; it must be a valid integer"),
        ({"needed": NAN}, "some.needed=nan; it must be a valid integer"),
        ({"needed": 1, "rate": 0}, "some.rate=0; it must be above 0"),
        ({"needed": 1, "rate": 2.0}, "some.rate=2.0; it must be below 2"),
        ({"needed": 1, "rate": NAN}, "some.rate=nan; it must be a finite number"),
        ({"needed": 1, "rate": INF}, "some.rate=inf; it must be a finite number"),
        ({"needed": 1, "rate": "1"}, "some.rate='1'; it must be a valid number"),
        ({"needed": 1, "rate": True}, "some.rate=True; it must be a valid number"),
        ({"needed": 1, "part": -0.1}, "some.part=-0.1; it must be at least 0"),
        ({"needed": 1, "part": 1.1}, "some.part=1.1; it must be at most 1"),
        ({"needed": 1, "count": 0}, "some.count=0; it must be at least 1"),
        ({"needed": 1, "way": "left"}, "some.way='left'; choose one of 'up', 'down'"),
        ({"needed": 1, "learn": ()}, "some.learn=(); it must have at least 1 entry"),
        ({"needed": 1, "learn": "x"}, "some.learn='x'; it must be a valid tuple"),
        ({"needed": 1, "learn": ("x", "z")}, "some.learn.1='z'; choose one of 'x', 'y'"),
        ({"needed": 1, "yes": "false"}, "some.yes='false'; it must be a valid boolean"),
        ({"needed": 1, "yes": 1}, "some.yes=1; it must be a valid boolean"),
    ],
)
def test_every_fault_of_a_setting_is_one_line(values, told):
    assert refusal(Some, **values) == told


def test_values_by_position_are_checked_too():
    assert refusal(Some, 1, 5.0) == "some.rate=5.0; it must be below 2"
    told = refusal(Some, 1, 1.0, 0.5, None, "up", ("x",), True, 7)
    assert told == "some has 7 settings, and 8 are given"
    with pytest.raises(TypeError, match="multiple values for keyword argument 'needed'"):
        Some(1, needed=2)


@pytest.mark.parametrize(
    ("make", "name", "wrong"),
    [
        (ddm.DistillSettings, "items", 0),
        (ddm.DistillSettings, "items", 2.5),
        (ddm.DistillSettings, "start", "best"),
        (ddm.DistillSettings, "distance", "l1"),
        (ddm.DistillSettings, "balance", 1.5),
        (ddm.DistillSettings, "learn", ()),
        (ddm.DistillSettings, "learn", ("z",)),
        (ddm.DistillSettings, "part", 0),
        (ddm.DistillSettings, "part", 1.5),
        (ddm.DistillSettings, "offset", -1),
        (ddm.DistillSettings, "optimizer", "nesterov"),
        (ddm.DistillSettings, "learning_rate", 0),
        (ddm.DistillSettings, "learning_rate", -1),
        (ddm.DistillSettings, "learning_rate", NAN),
        (ddm.DistillSettings, "steps", -1),
        (ddm.DistillSettings, "points_per_step", 0),
        (ddm.DistillSettings, "precision", "float16"),
        (ddm.UpdateSettings, "update", "erase"),
        (ddm.UpdateSettings, "steps", 0),
        (ddm.UpdateSettings, "batch", 0),
        (ddm.UpdateSettings, "batch", 2.5),
        (ddm.UpdateSettings, "optimizer", "newton"),
        (ddm.UpdateSettings, "rate_factor", 0),
        (ddm.UpdateSettings, "rate_factor", 11),
        (ddm.UpdateSettings, "schedule", "linear"),
        (ddm.UpdateSettings, "learning_rate", 0),
        (ddm.UpdateSettings, "learning_rate", NAN),
        (ddm.UpdateSettings, "momentum", 1),
        (ddm.UpdateSettings, "momentum", -0.1),
        (ddm.UpdateSettings, "rewind", 1),
        (ddm.TrainSettings, "epochs", 0),
        (ddm.TrainSettings, "epochs", 10**12),
        (ddm.TrainSettings, "batch_size", 0),
        (ddm.TrainSettings, "learning_rate", 0),
        (ddm.TrainSettings, "final_learning_rate", -1),
        (ddm.TrainSettings, "warmup_epochs", -1),
        (ddm.TrainSettings, "momentum", 1),
        (ddm.TrainSettings, "weight_decay", -1),
        (ddm.TrainSettings, "weight_decay", INF),
        (ddm.TrainSettings, "last_batch", "pad"),
        (ddm.TrainSettings, "checkpoint_every", 0),
    ],
)
def test_the_settings_of_a_stage_name_what_is_wrong(make, name, wrong):
    section = {"DistillSettings": "distill", "UpdateSettings": "online", "TrainSettings": "train"}
    told = refusal(make, **{name: wrong})
    assert told.startswith(f"{section[make.__name__]}.{name}")
    assert repr(wrong[0] if wrong and isinstance(wrong, tuple) else wrong) in told
    assert make() == make(), "what is left out has a default that passes"


# Examples and runs


@pytest.fixture
def asked(ready):
    """An estimator that notes what its own functions are asked, which nothing refused reaches."""
    calls = []

    def inner(*args):
        calls.append(args)
        return jnp.arange(550.0).reshape(11, 50)

    return joint_estimator(ready.task, inner, inner, lambda state: 10), calls


def swap(batch, **leaves):
    return ddm.Batch(**(batch._asdict() | leaves))


BATCHES = [
    (lambda b: swap(b, y=b.y.argmax(1)), r"the labels of {} have shape \(50,\); make them one-hot"),
    (lambda b: swap(b, y=jnp.eye(12)[b.y.argmax(1)]), r"{} have shape \(50, 12\).* \(50, 10\)"),
    (lambda b: swap(b, y=b.y[:, :3]), r"{} have shape \(50, 3\); the network needs \(50, 10\)"),
    (lambda b: swap(b, y=b.y[:, None]), r"{} have shape \(50, 1, 10\)"),
    (lambda b: swap(b, x=b.x[:, :7]), r"inputs of {}, \(50, 7, 8, 1\), do not fit the network"),
    (lambda b: swap(b, x=b.x[:49]), r"{} has leaves of shapes \(49, 8, 8, 1\), \(50, 10\); they"),
    (lambda b: swap(b, x=b.x[0, 0, 0, 0]), r"{} has leaves of shapes \(\), \(50, 10\)"),
    (lambda b: swap(b, x=b.x.at[3, 0, 0, 0].set(NAN)), "{} holds NaN or infinity; leave those"),
    (lambda b: swap(b, x=b.x.at[3, 0, 0, 0].set(INF)), "{} holds NaN or infinity"),
    (lambda b: swap(b, y=b.y.at[3, 0].set(NAN)), "{} holds NaN or infinity"),
    (lambda b: swap(b, y=b.y.at[3].set(0)), "row 3 of the labels of {} is no distribution .* to 0"),
    (
        lambda b: swap(b, y=b.y.at[7].set(1)),
        "row 7 of the labels of {} is no distribution .* to 10",
    ),
    (lambda b: swap(b, y=b.y.at[7, :2].add(jnp.array([2, -2]))), "row 7 of the labels of {} is no"),
    (lambda b: swap(b, x=np.full((50, 8, 8, 1), "a")), "{} holds <U1; it must hold numbers"),
    (lambda b: swap(b, x=b.x + 0j), "{} holds complex64; it must hold numbers"),
    (lambda b: (b.x, b.y), "{} is a tuple; make it with `data.make_batch`"),
    (lambda b: ddm.Batch(b.x[:0], b.y[:0]), "{} has 0 examples; it needs at least"),
]


@pytest.mark.parametrize(("wrong", "message"), BATCHES)
def test_queries_are_refused_before_anything_compiles(ready, asked, wrong, message):
    """0.8 gave finite, wrong scores for integer labels, from every estimator."""
    estimator, calls = asked
    query = wrong(ready.query)
    for ask in (
        lambda: estimator.score(None, query),
        lambda: estimator.outputs(None, np.ones((1, 10)), query),
    ):
        told = []
        count = compilations(lambda ask=ask, told=told: told.append(refusal(ask)))
        assert count == 0
        with pytest.raises(ValueError, match=message.format("the query")):
            ask()
    assert not calls


@pytest.mark.parametrize(("wrong", "message"), BATCHES)
def test_data_are_refused_before_anything_compiles(ready, asked, wrong, message):
    estimator, calls = asked
    data = wrong(ddm.types.take(ready.data, slice(0, 50)))
    with pytest.raises(ValueError, match=message.format("data")):
        estimator.fit(jax.random.key(0), ready.run, data, np.arange(50) % 2)
    assert not calls


def test_a_class_alone_is_no_classifier():
    """0.8 trained it, and its margin was infinite."""
    task = ddm.classification(ddm.models.Logistic(1), (3,))
    data = ddm.Batch(jnp.zeros((4, 3)), jnp.ones((4, 1)))
    train = ddm.make_train(task, steps=1, batch_size=2, learning_rate=0.1)
    run = train(jax.random.key(0), data, jnp.ones(4))
    told = refusal(ddm.make_ddm(task).fit, jax.random.key(0), run, data, [0, 0, 1, 1])
    assert told.startswith("the labels of data have one column; a classifier needs two classes")


def test_real_targets_are_refused_by_their_row_where_classes_are_needed(ready):
    """0.8 put them through softmax(14 y), and answered."""

    class Net(ddm.models.Logistic):
        pass

    x = jax.random.normal(jax.random.key(0), (20, 3))
    data = ddm.Batch(x, x[:, :2] * 3)
    task = ddm.regression(Net(2), (3,))
    told = refusal(require_distributions, task, "ekfac")
    assert told.startswith("ekfac needs classes, and this task has targets='any': use a method")
    assert "influence_cg" in told
    named = task._replace(targets="distribution")
    train = ddm.make_train(named, steps=2, batch_size=5, learning_rate=0.1)
    run = train(jax.random.key(0), data, jnp.ones(20))
    told = refusal(ddm.make_ddm(named).fit, jax.random.key(0), run, data, np.arange(20) % 2)
    assert told.startswith("row 0 of the labels of data is no distribution over classes")
    assert "targets='any'" in told


def test_anything_may_be_a_target_where_the_task_says_so(ready):
    kept = []
    task = ready.task._replace(targets="any", loss=lambda params, batch: batch.y)
    estimator = make_estimator(task, lambda *args: kept.append(args), lambda *args: None)
    data = ready.data._replace(y=jnp.arange(150.0))
    estimator.fit(jax.random.key(0), ready.run, data, ready.groups)
    assert kept[0][2] is data
    assert kept[0][3] is ready.groups


def test_groups_and_points_of_which_none_could_be_left_out(ready, asked):
    estimator, calls = asked
    fit = lambda data, groups: refusal(  # noqa: E731
        estimator.fit, jax.random.key(0), ready.run, data, groups
    )
    assert fit(ready.data, np.zeros(150, int)).startswith("there is one group; at least 2 are need")
    one = ddm.types.take(ready.data, slice(0, 1))
    assert fit(one, [0]) == "data has 1 examples; it needs at least 2"
    assert "groups have shape (149,)" in fit(ready.data, np.arange(149) % 3)
    assert "groups are of 150 points, and there are 50" in fit(ready.query, ready.groups)
    assert not calls


@pytest.mark.slow
def test_a_run_of_another_network_is_refused(ready, asked):
    estimator, calls = asked
    fit = lambda run: refusal(estimator.fit, jax.random.key(0), run, ready.data, ready.groups)  # noqa: E731
    other = ddm.classification(ddm.models.Logistic(10), (8, 8, 1)).init(jax.random.key(0))
    told = fit(ready.run._replace(params=other))
    assert told.startswith("run.params has the structure PyTreeDef")
    assert "it must have this task's, PyTreeDef" in told
    wider = ddm.classification(ddm.models.MLP(10, (13,)), (8, 8, 1)).init(jax.random.key(0))
    told = fit(ready.run._replace(params=wider))
    assert told == (
        "run.params['Dense_0']['bias'] has shape (13,); it must be (12,), as this task's"
    )
    assert not calls


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_run_that_diverged_is_refused(ready, asked, value):
    """0.8 went on, to "SVD did not converge" from LAPACK, or NaN for scores."""
    estimator, calls = asked
    lost = jax.tree.map(lambda leaf: leaf.at[0].set(value), ready.run.params)
    told = refusal(
        estimator.fit,
        jax.random.key(0),
        ready.run._replace(params=lost),
        ready.data,
        ready.groups,
    )
    assert "is not finite: its training diverged; lower the learning rate" in told
    assert not calls


def test_what_is_traced_is_checked_by_its_shapes(ready, asked):
    estimator, _ = asked
    score = jax.jit(lambda query: estimator.score(None, query))
    assert score(ready.query).shape == (10, 50)
    lost = ready.query._replace(x=ready.query.x * NAN)
    assert score(lost).shape == (10, 50)  # values are not known under `jit`
    assert "have shape (50,); make them one-hot" in refusal(
        score, ready.query._replace(y=ready.query.y.argmax(1))
    )
    assert "the network needs (50, 10)" in refusal(
        score, ready.query._replace(y=ready.query.y[:, :5])
    )


def test_numbers_of_few_bits_and_whole_ones_are_numbers(ready, asked):
    estimator, _ = asked
    for dtype in (jnp.bfloat16, jnp.float16):
        half = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), ready.query)
        assert estimator.score(None, half).shape == (10, 50)
        lost = half._replace(x=half.x.at[0, 0, 0, 0].set(NAN))
        assert "NaN or infinity" in refusal(estimator.score, None, lost)
    whole = ready.query._replace(x=(16 * ready.query.x).astype(jnp.uint8))
    assert estimator.score(None, whole).shape == (10, 50)


def test_a_file_is_looked_at_in_pieces(ready, asked, monkeypatch):
    """One NaN at the end of data on the host is found, and no copy of all of them is made."""
    estimator, _ = asked
    x = np.zeros((50, 8, 8, 1), np.float32)
    most = []
    isfinite = np.isfinite

    def looks(values):
        most.append(np.size(values))
        return isfinite(values)

    monkeypatch.setattr(ddm.checks, "PIECE", 640)
    monkeypatch.setattr(np, "isfinite", looks)
    estimator.score(None, ddm.Batch(x, np.asarray(ready.query.y)))
    assert max(most) == 640
    x[-1, -1, -1, -1] = NAN
    assert "NaN or infinity" in refusal(
        estimator.score, None, ddm.Batch(x, np.asarray(ready.query.y))
    )


def test_labels_of_whole_numbers_are_refused_before_anything_compiles(ready):
    labels = np.asarray(ready.data.y).astype(int)
    estimator = ddm.make_ddm(ready.task)
    with pytest.raises(ValueError, match=r"labels of data are int64; make them floating-point"):
        estimator.fit(jax.random.key(0), ready.run, ready.data._replace(y=labels), ready.groups)


@pytest.mark.parametrize("given", [(2,), (None, 3), (ddm.UpdateSettings(),)])
def test_settings_of_another_kind_are_refused(ready, given):
    with pytest.raises(ValueError, match=r"is no (Distill|Update)Settings"):
        ddm.make_ddm(ready.task, *given)


# Any targets, and what a task says of a batch


def by_hand(**changes):
    """A scalar times the inputs."""
    task = ddm.Task(
        init=lambda key: jnp.ones(()),
        loss=lambda params, batch: params * batch.x["a"],
        output=lambda params, batch: params * batch.x["a"],
        targets="any",
    )
    return task._replace(**changes)


FIVE = ddm.Batch({"a": jnp.arange(5.0), "tokens": np.zeros((5, 3), np.int32)}, None)


@pytest.mark.parametrize(
    "y", [None, np.arange(5), np.zeros((5, 2, 2)), {"mask": np.ones((5, 3), bool)}]
)
def test_any_targets_and_inputs_pass(y):
    check_batch(by_hand(), FIVE._replace(y=y))
    check_loss(by_hand(), FIVE._replace(y=y))
    assert count_outputs(by_hand(), FIVE._replace(y=y)) == 5


def test_a_task_of_classes_needs_labels_and_for_some_methods_predictions():
    task = by_hand(targets="distribution")
    told = refusal(check_batch, task, FIVE)
    assert told.startswith("data has no labels; make them one-hot")
    check_batch(task, FIVE._replace(y=np.eye(5)))
    told = refusal(check_batch, task, FIVE._replace(y=np.ones((5, 5))))
    assert told.startswith("row 0 of the labels of data is no distribution")
    assert "`multilabel`" in told
    told = refusal(require_distributions, task, "ekfac")
    assert told.startswith("ekfac needs the logits of the classes, and this task has none")
    require_distributions(task._replace(apply=lambda params, x: x["a"]), "ekfac")


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda p, b: jnp.mean(p * b.x["a"]), "shape () for 5 examples; it must be [B], one num"),
        (lambda p, b: p * b.x["a"][:, None], "the loss of the task has shape (5, 1) for 5"),
        (lambda p, b: (p * b.x["a"], 0), "the loss of the task is a tuple, and no array"),
        (lambda p, b: p * b.y, "the loss of the task fails on data: "),
    ],
)
def test_a_loss_that_is_not_one_an_example_is_refused(loss, told):
    assert told in refusal(check_loss, by_hand(loss=loss), FIVE)


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (lambda p, b: jnp.mean(p * b.x["a"]), "shape () for 5 queries; it must be [Q], or say"),
        (lambda p, b: p * b.x["a"][:, None], "has shape (5, 1) for 5 queries; it must be [Q]"),
        (lambda p, b: p * b.x["a"][:3], "has shape (3,) for 5 queries; it must be [Q], or say"),
    ],
)
def test_an_output_that_is_not_one_a_query_is_refused(output, told):
    assert told in refusal(count_outputs, by_hand(output=output), FIVE)
    of_sets = by_hand(output=output, of_sets=True)
    if told.startswith("has shape (3,)"):
        assert count_outputs(of_sets, FIVE) == 3
    else:
        assert "of sets it must be [S]" in refusal(count_outputs, of_sets, FIVE)


def test_sets_of_other_queries_are_refused_by_shape():
    sets = ddm.objectives.over_sets(by_hand().output, np.ones((2, 4)))
    told = refusal(count_outputs, by_hand(output=sets, of_sets=True), FIVE)
    assert told.startswith("the output of the task fails on the query: the sets are of 4 queries")


@pytest.mark.slow
def test_a_loss_that_mixes_examples_is_refused():
    """`[B, 1] - [B]` is `[B, B]`: every example against every target."""

    def mixed(params, batch):
        return ((batch.x @ params - batch.y) ** 2).mean(1)

    task = ddm.Task(lambda key: jnp.ones((2, 1)), mixed, mixed, targets="any")
    rng = np.random.default_rng(0)
    data = ddm.Batch(
        rng.normal(size=(12, 2)).astype(np.float32), rng.normal(size=12).astype(np.float32)
    )
    made = ddm.make_ddm(task, ddm.DistillSettings(items=1, steps=0))
    run = ddm.make_run(jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="loss of example 0 is another one among others"):
        made.fit(jax.random.key(0), run, data, np.arange(12) % 3)
    apart = task._replace(loss=lambda p, b: (b.x @ p - b.y[:, None])[:, 0] ** 2)
    made = ddm.make_ddm(apart, ddm.DistillSettings(items=1, steps=0))
    made.fit(jax.random.key(0), run, data, np.arange(12) % 3)


def test_labels_are_between_nothing_and_one():
    task = ddm.multilabel(lambda params, x: x @ params, params=jnp.ones((2, 2)))
    data = ddm.Batch(np.ones((6, 2), np.float32), np.array([[1, -1]] * 6, np.float32))
    with pytest.raises(ValueError, match=r"the labels of data are -1 to 1; they must be in 0\.\.1"):
        check_batch(task, data)


def test_a_package_that_is_not_there_is_named_with_its_extra():
    with pytest.raises(ValueError, match=r"x needs nowhere, .* 'ddm_jax\[language\]'"):
        require_extra("nowhere.at_all", "language", "x")
