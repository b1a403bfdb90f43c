"""What a run will take, told before it begins."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command import ddm
from tiny_run import finished, tiny_config  # noqa: F401

from ddm_jax.judge import filling, store
from ddm_jax.run import estimate, settings, stages
from ddm_jax.run.plan import count_groups, make_plan
from ddm_jax.run.workdir import SILENT

TUNED = ("tune.subsets=4", "tune.seeds=2")


@pytest.fixture(scope="module")
def plan():
    return make_plan(tiny_config())


@pytest.fixture(scope="module")
def found(plan):
    return estimate.estimate(plan)


@pytest.mark.slow
def test_as_many_networks_as_the_run_trains(plan, found, finished):  # noqa: F811
    trained = filling.status(store.inspect_store(finished / "check")).declared
    assert found.networks == {"target": 1, "tuning": 0, "check": trained}
    tuned = make_plan(tiny_config(*TUNED))
    assert estimate.networks_of(tuned)["tuning"] == 8
    many = make_plan(tiny_config("check.groups=10000"))  # more than there are
    check = many.config.check
    assert estimate.networks_of(many)["check"] == check.seeds * (
        1 + count_groups(many) + check.subsets
    )


@pytest.mark.slow
def test_every_stage_that_takes_time_has_its_seconds(found, finished):  # noqa: F811
    told = json.loads((finished / "metrics.json").read_text())["seconds"]
    assert set(found.seconds) == set(told) - {"groups"}
    assert all(np.isfinite(seconds) and seconds > 0 for seconds in found.seconds.values())


@pytest.mark.slow
def test_twice_the_epochs_take_twice_the_training(plan, monkeypatch):
    monkeypatch.setattr(estimate, "_seconds_a_step", lambda plan, rows: (1.0, 0.0))
    monkeypatch.setattr(estimate, "COMPILING", dict.fromkeys(estimate.COMPILING, 0.0))
    epochs = plan.config.train.epochs
    longer = make_plan(tiny_config(f"train.epochs={2 * epochs}"))
    one, two = (estimate.estimate(each).seconds for each in (plan, longer))
    assert two["target"] == 2 * one["target"]
    steps = epochs * (len(plan.split.train.x) // plan.config.train.batch_size)
    assert one["target"] == steps


@pytest.mark.slow
def test_what_is_chosen_costs_more_than_what_is_given(plan, monkeypatch):
    monkeypatch.setattr(estimate, "_seconds_a_step", lambda plan, rows: (1.0, 0.0))
    given, open_, alone = (
        estimate.estimate(make_plan(tiny_config(*changes))).seconds["tuning"]
        for changes in (
            (),
            (*TUNED, "online.steps=none"),
            (*TUNED, "online.steps=none", "tune.pools=synset"),
        )
    )
    assert given < alone < open_


@pytest.mark.slow
def test_looking_for_the_rate_counts(monkeypatch):
    monkeypatch.setattr(estimate, "_seconds_a_step", lambda plan, rows: (1.0, 0.0))
    open_, given, adam = (
        estimate.estimate(make_plan(tiny_config(*TUNED, *changes))).seconds["tuning"]
        for changes in ((), ("online.learning_rate=0.1",), ("train.optimizer=adam",))
    )
    assert given < open_ < adam


@pytest.mark.slow
def test_the_disk_holds_what_it_will_hold(found, finished):  # noqa: F811
    kept = sum(file.stat().st_size for file in finished.rglob("*"))
    assert kept / 3 < found.disk < 3 * kept


@pytest.mark.slow
def test_short_runs_are_not_timed_and_long_ones_are_told(tmp_path, monkeypatch, plan):
    assert not estimate.is_long(plan)
    assert estimate.is_long(make_plan(tiny_config("train.epochs=1000000")))
    monkeypatch.setattr(estimate, "SLOW", 1.0)
    monkeypatch.setattr(estimate, "LONG", 0.5)

    class StoppedError(Exception):
        pass

    def stop(*args):
        raise StoppedError

    monkeypatch.setattr(stages, "bring", stop)
    said: list[str] = []
    with pytest.raises(StoppedError):
        stages.run(tiny_config(), tmp_path / "run", SILENT._replace(say=said.append))
    assert len(said) == 1
    assert said[0].startswith("This run trains 11 networks and takes about ")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (119.4, "119 s"), (121, "2 minutes"), (3600, "60 minutes"), (9000, "2.5 hours"),
     (400_000, "110 hours")],
)  # fmt: skip
def test_times_in_words(seconds, said):
    assert estimate.in_words(seconds) == said


@pytest.mark.slow
def test_a_dry_run_says_it_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = ddm("run", "--dry-run", "--set", "train.epochs=2")
    assert said.exit_code == 0
    assert "networks to train" in said.stdout
    assert "This run trains 68 networks" in said.stdout
    assert list(tmp_path.iterdir()) == []
    assert ddm("run", "--dry-run", "--set", "train.epochs=0").exit_code != 0


def test_the_groups_are_counted_before_anything_is_clustered():
    assert count_groups(make_plan(tiny_config("cluster.method=class"))) == 10
    plan = make_plan(tiny_config("cluster.method=point", "check.groups=2"))
    assert count_groups(plan) == len(plan.split.train.x)
    assert settings.Config().cluster.num_groups == 50


def test_what_compiles_slowly_takes_longer(monkeypatch):
    """A small corpus took 218 s where 62 were told: a language model's programs are long."""
    plan = make_plan(settings.preset("digits"))

    def of(compiling):
        monkeypatch.setattr(estimate, "_seconds_a_step", lambda plan, rows: (1e-3, compiling))
        return estimate.estimate(plan).seconds

    short, long = of(0.5), of(4.0)
    for stage, told in estimate.COMPILING.items():
        assert long[stage] - short[stage] == pytest.approx(3 * told)
