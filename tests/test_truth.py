"""The ground truth of a problem: which networks, what they say, and what it is not mixed with.

One small truth is retrained for all tests that read outputs; most others compile nothing.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_problem import GROUPS, POINTS, TRAIN, small_problem, split, task

import ddm_jax as ddm
from ddm_jax import files
from ddm_jax.cluster import as_groups
from ddm_jax.judge import store, truth
from ddm_jax.judge.problem import TruthSettings, make_problem, retraining_of
from ddm_jax.train import TrainSettings

# A part of 0.9 keeps nine of ten groups: masks that leave one out once more.
KEEP = {"keep": (0.5, 0.9)}
SUBSETS = {"leave_one_out": False}
TARGET = jax.random.fold_in(jax.random.key(0), 0)  # of a run's first stage
ALIKE = SUBSETS | {"keep": (0.9,), "subsets": 12}
BATCH_50 = dataclasses.replace(TRAIN, batch_size=50)


def _open(problem, folder: Path, groups=GROUPS, described=None, data=None) -> store.Store:
    train, test = (split().train, split().test) if data is None else data
    return truth.open_truth(problem, train, test, groups, folder, described)


def _fill(problem, folder: Path, groups=GROUPS, chunk=4):
    opened = _open(problem, folder, groups)
    return opened, truth.fill(problem, opened, split().train, split().test, groups, chunk)


def _declare(num_groups: int, seed: int = 0, **changes) -> truth.Declared:
    return truth.declare(small_problem(**changes).truth, seed, num_groups)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A full store of 2 * (11 + 8) networks, in chunks of its own choice; read only."""
    folder = tmp_path_factory.mktemp("filled") / "truth"
    opened, computed = _fill(small_problem(**KEEP), folder, chunk=None)
    assert computed == 38
    return opened


@cache
def _retraining(problem):
    return jax.jit(retraining_of(problem))


def _by_hand(problem, mask, key) -> np.ndarray:
    """The outputs of one network."""
    return np.asarray(
        _retraining(problem)(jnp.asarray(mask), key, split().train, GROUPS, split().test)
    )


def _key(*numbers: int) -> jax.Array:
    """The key of a truth, folded with the seed and maybe the mask."""
    key = jax.random.fold_in(truth.truth_key(0), 1)
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def _alike(masks) -> tuple[int, int]:
    """Two rows with the same mask."""
    for row, mask in enumerate(masks):
        for other in range(row):
            if (masks[other] == mask).all():
                return other, row
    raise AssertionError("no two masks are equal")


def test_masks_leave_each_group_out_and_then_keep_parts():
    rows = _declare(10, subset_seeds=3, keep=(0.5, 0.3))
    assert rows.masks.shape == (19, 10)
    np.testing.assert_array_equal(rows.masks[0], 1)
    np.testing.assert_array_equal(rows.masks[1:11], 1 - np.eye(10))
    np.testing.assert_array_equal(rows.masks[11:].sum(1), [5, 5, 5, 5, 3, 3, 3, 3])
    assert set(np.unique(rows.masks)) == {0, 1}
    assert rows.seeds.tolist() == [2] * 11 + [3] * 8
    assert rows.keep.tolist() == [0] * 11 + [0.5] * 4 + [0.3] * 4
    assert rows.groups.tolist() == list(range(10))
    assert len(np.unique(rows.masks[11:15], axis=0)) > 1


def test_without_leave_one_out_there_are_subsets_alone():
    rows = _declare(10, leave_one_out=False)
    assert rows.masks.shape == (4, 10)
    assert rows.masks.sum(1).tolist() == [5] * 4
    assert rows.seeds.tolist() == [2] * 4
    assert rows.keep.tolist() == [0.5] * 4
    assert rows.groups.shape == (0,)


def test_without_subsets_there_is_leave_one_out_alone():
    rows = _declare(3, subsets=0)
    assert rows.masks.tolist() == [[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert rows.seeds.tolist() == [2] * 4
    assert rows.keep.tolist() == [0] * 4
    assert rows.groups.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"seeds": 5, "subset_seeds": 7}, True),
        ({"leave_one_out": False}, True),
        ({"groups": 3}, True),
        ({"keep": (0.5, 0.3)}, True),
        ({"objective": "margin"}, True),
        ({"seed": 1}, False),
    ],
)
def test_what_a_subset_keeps_depends_on_the_seed_of_the_run_alone(changes, same):
    base, other = (_declare(10, **each) for each in ({}, changes))
    first, second = base.masks[base.keep == 0.5], other.masks[other.keep == 0.5]
    assert first.shape == second.shape == (4, 10)
    assert (first == second).all() == same


def test_a_few_single_groups_are_drawn_by_the_seed():
    """What the check of a run leaves out."""
    rows = _declare(10, groups=3)
    assert rows.groups.shape == (3,)
    assert (np.diff(rows.groups) > 0).all()
    assert rows.masks.shape == (8, 10)
    np.testing.assert_array_equal(rows.masks[0], 1)
    np.testing.assert_array_equal(rows.masks[1:4], 1 - np.eye(10)[rows.groups])
    assert rows.seeds.tolist() == [2] * 8
    assert rows.keep.tolist() == [0] * 4 + [0.5] * 4
    np.testing.assert_array_equal(_declare(10, groups=3).groups, rows.groups)
    drawn = {tuple(_declare(10, seed, groups=3).groups.tolist()) for seed in range(8)}
    assert len(drawn) > 4
    for enough in (10, 11, None):
        assert _declare(10, groups=enough).groups.tolist() == list(range(10))


def test_a_filled_truth_is_cut_by_what_was_removed(filled):
    found = truth.read_truth(small_problem(**KEEP), filled)
    assert found.full.shape == (2, 40)
    assert found.single.shape == (2, 10, 40)
    assert found.groups.tolist() == list(range(10))
    assert found.masks.shape == (8, 10)
    assert found.masks.sum(1).tolist() == [5] * 4 + [9] * 4
    assert found.keep.tolist() == [0.5] * 4 + [0.9] * 4
    assert found.subsets.shape == (2, 8, 40)
    assert found.seconds > 0
    outputs = store.read(filled)
    assert outputs.shape == (2, 19, 40)
    np.testing.assert_array_equal(found.full, outputs[:, 0])
    np.testing.assert_array_equal(found.single, outputs[:, 1:11])
    np.testing.assert_array_equal(found.subsets, outputs[:, 11:])
    assert (found.full > 0).all()  # losses


def test_effects_are_full_minus_single_of_the_same_seed(filled):
    found = truth.read_truth(small_problem(**KEEP), filled)
    effects = found.effects()
    assert effects.shape == (2, 10, 40)
    np.testing.assert_array_equal(effects[1, 7], found.full[1] - found.single[1, 7])
    np.testing.assert_array_equal(effects[0, 2], found.full[0] - found.single[0, 2])
    assert (np.abs(effects).max(-1) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("row", "seed"), [(0, 0), (0, 1), (4, 1), (12, 0), (18, 1)])
def test_a_row_is_a_network_retrained_by_hand(filled, row, seed):
    expected = _by_hand(small_problem(**KEEP), filled.masks[row], _key(seed))
    outputs = store.read(filled)[seed, row]
    assert outputs.shape == expected.shape == (40,)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_rows_of_one_seed_share_their_key(filled):
    """A subset without one group is the same network as leaving that group out."""
    found = truth.read_truth(small_problem(**KEEP), filled)
    for row in range(4, 8):
        group = int(np.flatnonzero(found.masks[row] == 0)[0])
        for seed in (0, 1):
            again, single = found.subsets[seed, row], found.single[seed, group]
            assert again.shape == single.shape == (40,)
            np.testing.assert_array_equal(again, single)
        assert np.abs(found.single[0, group] - found.single[1, group]).max() > 1e-3
    assert np.abs(found.full[0] - found.full[1]).max() > 1e-3


def test_no_seed_is_the_target_network_s_own(filled):
    """The target network has the first key of the run; with it, retraining is the target itself."""
    target = _by_hand(small_problem(**KEEP), np.ones(10), TARGET)
    full = truth.read_truth(small_problem(**KEEP), filled).full
    assert full.shape == (2, *target.shape) == (2, 40)
    assert np.abs(full - target).max(1).min() > 1e-3


def test_a_few_single_groups_are_those_of_all(filled, tmp_path):
    """The check of a run is a small truth: the same networks, with the same keys."""
    few = small_problem(groups=3, subsets=0)
    opened, computed = _fill(few, tmp_path / "truth")
    assert computed == 8
    found, every = truth.read_truth(few, opened), truth.read_truth(small_problem(**KEEP), filled)
    assert found.single.shape == found.effects().shape == (2, 3, 40)
    assert found.groups.shape == (3,)
    np.testing.assert_array_equal(found.single, every.single[:, found.groups])
    np.testing.assert_array_equal(found.effects(), every.effects()[:, found.groups])
    assert found.masks.shape == (0, 10)


@pytest.mark.slow
def test_unpaired_rows_have_a_key_each(tmp_path):
    outputs = {}
    for paired in (True, False):
        problem = small_problem(**ALIKE, paired=paired)
        opened, computed = _fill(problem, tmp_path / str(paired))
        assert computed == 24
        outputs[paired] = truth.read_truth(problem, opened).subsets
        assert outputs[paired].shape == (2, 12, 40)
    masks = _declare(10, **ALIKE, paired=False).masks
    np.testing.assert_array_equal(masks, _declare(10, **ALIKE).masks)
    one, other = _alike(masks)
    for seed in (0, 1):
        np.testing.assert_array_equal(outputs[True][seed, one], outputs[True][seed, other])
        apart = np.abs(outputs[False][seed, one] - outputs[False][seed, other])
        assert apart.max() > 1e-3
    expected = _by_hand(problem, masks[other], _key(1, other))
    assert expected.shape == (40,)
    np.testing.assert_allclose(outputs[False][1, other], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_chunks_of_any_size_give_the_same_bits(filled, tmp_path, chunk):
    opened, computed = _fill(small_problem(**KEEP), tmp_path / "truth", chunk=chunk)
    assert computed == 38
    outputs, expected = store.read(opened), store.read(filled)
    assert outputs.shape == expected.shape == (2, 19, 40)
    np.testing.assert_array_equal(outputs, expected)


def test_more_seeds_keep_the_networks_that_are_done(filled, tmp_path):
    shutil.copytree(filled.folder, tmp_path / "truth")
    more = small_problem(**KEEP, seeds=3)
    opened = _open(more, tmp_path / "truth")
    with pytest.raises(ValueError, match="lacks 11 of 49 rows"):
        truth.read_truth(more, opened)
    opened, computed = _fill(more, tmp_path / "truth")
    assert computed == 11
    found, before = (truth.read_truth(each, opened) for each in (more, small_problem(**KEEP)))
    assert found.full.shape == (3, 40)
    assert found.single.shape == (3, 10, 40)
    assert found.subsets.shape == (2, 8, 40)
    np.testing.assert_array_equal(found.single[:2], before.single)
    np.testing.assert_array_equal(found.subsets, before.subsets)
    assert not np.isnan(found.single).any()


@pytest.mark.slow
def test_removal_by_subset_trains_on_the_kept_points_alone(tmp_path):
    train = dataclasses.replace(TRAIN, batch_size=25)
    problem = small_problem(**SUBSETS, removal="subset", train=train)
    opened, computed = _fill(problem, tmp_path / "truth", POINTS)
    assert computed == 8
    found = truth.read_truth(problem, opened)
    assert found.full.shape == (0, 40)
    assert found.single.shape == (0, 0, 40)
    assert found.effects().shape == (0, 0, 40)
    assert found.subsets.shape == (2, 4, 40)
    assert found.masks.shape == (4, 120)
    # 60 of 120 points in batches of 25: two steps an epoch, four epochs.
    by_hand = ddm.make_train(task(), steps=8, batch_size=25, learning_rate=0.3, weight_decay=1e-3)
    data, query = split().train, split().test
    for row, seed in ((0, 0), (3, 1)):
        kept = np.flatnonzero(found.masks[row])
        assert kept.shape == (60,)
        subset = ddm.Batch(data.x[kept], data.y[kept])
        run = jax.jit(by_hand)(_key(seed), subset, jnp.ones(60))
        expected = ddm.objectives.loss(task().apply)(run.params, query)
        assert expected.shape == (40,)
        np.testing.assert_allclose(found.subsets[seed, row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_subsets_of_another_size_than_is_trained_on_are_refused(tmp_path):
    """Version 0.8 trained on what was there and the first point once more for each that lacked."""
    problem = small_problem(**SUBSETS, removal="subset")
    uneven = as_groups(np.repeat(np.arange(10), [3] * 5 + [21] * 5))
    with pytest.raises(ValueError, match=r"removal=subset trains on 60 points, and a mask keeps"):
        _open(problem, tmp_path / "truth", uneven)
    assert not (tmp_path / "truth").exists()
    args = (_key(0), split().train, POINTS, split().test)
    assert np.isnan(_retraining(problem)(jnp.ones(120), *args)).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"seeds": 1}, r"truth\.seeds=1; it must be at least 2"),
        ({"subset_seeds": 1}, r"truth\.subset_seeds=1; it must be at least 2"),
        ({"seeds": 10_001}, r"truth\.seeds=10001; it must be at most 10000"),
        ({"subsets": -1}, r"truth\.subsets=-1; it must be at least 0"),
        ({"subsets": 3, "leave_one_out": False}, r"truth\.subsets=3; it must be at least 4"),
        ({"groups": 1}, r"truth\.groups.*=1; it must be at least 2"),
        ({"groups": 3, "leave_one_out": False}, r"groups=3 needs truth\.leave_one_out=true"),
        ({"keep": (0.5, 1.0)}, r"truth\.keep\.1=1.0; it must be below 1"),
        ({"keep": (0.0,)}, r"truth\.keep\.0=0.0; it must be above 0"),
        ({"keep": (float("nan"),)}, r"truth\.keep\.0=nan"),
        ({"keep": ()}, r"truth\.keep is empty"),
        ({"paired": False}, r"leave_one_out=true needs truth\.paired=true"),
        ({"paired": "false"}, r"truth\.paired='false'"),
        ({"removal": "all"}, r"truth\.removal='all'; choose one of 'weights', 'subset'"),
        ({"removal": "subset"}, r"needs truth\.leave_one_out=false and a single truth\.keep"),
        ({"removal": "subset", "keep": (0.3, 0.5), **SUBSETS}, r"and a single truth\.keep"),
        ({"seed": 3}, r"truth\.seed is no setting"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, told):
    with pytest.raises(ValueError, match=told) as caught:
        TruthSettings(**settings)
    assert "\n" not in str(caught.value)


def test_settings_that_are_unusual_but_sound_are_taken():
    TruthSettings(subsets=0)
    TruthSettings(subsets=1, groups=2, keep=(0.01, 0.99))
    TruthSettings(**SUBSETS, paired=False, removal="subset", keep=(0.3,))


def test_a_batch_that_does_not_fit_and_an_unknown_objective_are_refused():
    train = TrainSettings(epochs=4, batch_size=61)
    with pytest.raises(ValueError, match=r"batch_size=61 exceeds the 60 training points"):
        small_problem(**SUBSETS, removal="subset", train=train)
    with pytest.raises(ValueError, match=r"unknown objective 'lost'"):
        small_problem(objective="lost")
    assert small_problem(objective="loss").task.lower_is_better
    assert not small_problem(objective="margin").task.lower_is_better


OTHERS = {
    "seed": ({"seed": 1}, "seed 0 -> 1"),
    "rate": (
        {"train": dataclasses.replace(TRAIN, learning_rate=0.2)},
        "train.final_learning_rate 0.3 -> 0.2; ",
    ),
    "last batch": ({"train": dataclasses.replace(TRAIN, last_batch="keep")}, "train.last_batch "),
    "objective": ({"objective": "margin"}, 'truth.objective "loss" -> "margin"'),
    "subsets": ({"subsets": 5}, "masks "),
    "keep": ({"keep": (0.3,)}, "masks "),
    "groups": ({"groups": 3}, "masks "),
    "network": ({"hidden": 9}, 'program on cpu "'),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", OTHERS)
def test_a_truth_of_other_settings_is_refused_by_name(tmp_path, change):
    opened = _open(small_problem(), tmp_path / "truth")
    changes, told = OTHERS[change]
    with pytest.raises(ValueError, match=rf"was made with something else \((masks .*)?{told}"):
        _open(small_problem(**changes), tmp_path / "truth")
    assert _open(small_problem(), tmp_path / "truth").identity == opened.identity


def test_what_the_data_and_the_network_are_is_told_where_it_is_known(tmp_path):
    """The program differs too, which says nothing more then."""
    described = {"data.name": "digits", "model.hidden": (8,)}
    opened = _open(small_problem(), tmp_path / "truth", described=described)
    assert opened.identity["model.hidden"] == [8]
    other = described | {"model.hidden": (9,)}
    with pytest.raises(ValueError, match=r"else \(model.hidden \[8\] -> \[9\]\);"):
        _open(small_problem(hidden=9), tmp_path / "truth", described=other)


def test_pairing_and_the_way_of_removing_are_told_apart(tmp_path):
    _open(small_problem(**SUBSETS), tmp_path / "truth", POINTS)
    for change, told in (
        ({"paired": False}, r"\(truth.paired true -> false\)"),
        ({"removal": "subset"}, r'\(truth.removal "weights" -> "subset"\)'),
    ):
        with pytest.raises(ValueError, match=told):
            _open(small_problem(**SUBSETS, **change), tmp_path / "truth", POINTS)


def test_other_groups_are_refused_by_name(tmp_path):
    _open(small_problem(), tmp_path / "truth")
    moved = np.array(GROUPS.ids)
    moved[[0, 1]] = moved[[1, 0]]
    with pytest.raises(ValueError, match=r"something else \(groups \S+ -> \S+\);"):
        _open(small_problem(), tmp_path / "truth", as_groups(moved))
    with pytest.raises(ValueError, match=r"something else \(groups \S+ -> \S+; masks \S+ -> \S+\)"):
        _open(small_problem(), tmp_path / "truth", as_groups(np.arange(120) % 5))


def test_other_pixels_or_labels_are_refused_by_name(tmp_path):
    _open(small_problem(), tmp_path / "truth")
    both = [split().train, split().test]
    for part in range(2):
        for name in ("x", "y"):
            values = np.array(getattr(both[part], name))
            values[3] = values[3][::-1]
            changed = list(both)
            changed[part] = both[part]._replace(**{name: values})
            with pytest.raises(ValueError, match=r"something else \(data \S+ -> \S+\);"):
                _open(small_problem(), tmp_path / "truth", data=changed)


def test_data_whose_digest_is_known_are_not_hashed_again(tmp_path, monkeypatch):
    told = files.digest(*split().train, *split().test)
    digest, hashed = files.digest, []

    def spy(*arrays):
        hashed.append(sum(np.size(array) for array in arrays))
        return digest(*arrays)

    monkeypatch.setattr(files, "digest", spy)
    opened = _open(small_problem(), tmp_path / "known", described={"data": told})
    assert max(hashed) < split().train.x.size
    again = _open(small_problem(), tmp_path / "unknown")
    assert max(hashed) > split().train.x.size
    assert again.identity == opened.identity


@pytest.mark.parametrize(
    "change",
    [
        {"distill": ddm.distill.DistillSettings(items=2)},
        {"update": ddm.UpdateSettings(steps=7)},
        {"seeds": 4},
        {"subset_seeds": 3},
    ],
)
def test_what_the_outputs_do_not_depend_on_may_change(tmp_path, change):
    opened = _open(small_problem(), tmp_path / "truth")
    again = _open(small_problem(**change), tmp_path / "truth")
    assert again.folder == opened.folder
    assert again.identity == opened.identity


def _with_loss(change):
    """The problem with a loss that was rewritten."""
    changed = task()._replace(loss=lambda params, batch: change(task().loss(params, batch)))
    base = small_problem()
    parts = (changed, base.train, base.distill, base.update, base.truth)
    return make_problem(*parts, num_points=120, seed=0)


def test_an_edited_loss_is_refused_and_a_refactored_one_is_not(tmp_path):
    _open(small_problem(), tmp_path / "truth")
    _open(_with_loss(lambda losses: losses), tmp_path / "truth")
    _open(_with_loss(jax.jit(lambda values: values)), tmp_path / "truth")
    for edit in (lambda losses: 1.5 * losses, lambda losses: losses + 0 * losses.mean()):
        with pytest.raises(ValueError, match=r'something else \(program on cpu "\w+" -> "\w+"\);'):
            _open(_with_loss(edit), tmp_path / "truth")


@pytest.mark.parametrize("name", truth.VERSIONS)
def test_another_version_is_refused_by_name(tmp_path, monkeypatch, name):
    _open(small_problem(), tmp_path / "truth")
    version = truth.packages.version
    monkeypatch.setattr(
        truth.packages, "version", lambda each: "99.0" if each == name else version(each)
    )
    with pytest.raises(ValueError, match=rf'something else \({name} "\S+" -> "99.0"\)'):
        _open(small_problem(), tmp_path / "truth")


# Stores of version 0.8, and of other platforms


def _age(folder: Path, **changes) -> None:
    """Write the manifest as version 0.8 did: files by the hash of their code, no checksum."""
    manifest = json.loads((folder / store.MANIFEST).read_text())
    del manifest["checksum"]
    found = {n: v for n, v in manifest["identity"].items() if not n.startswith(truth.PROGRAM)}
    code = {"code of train.py": "c950547fc4e8", "code of estimators/retraining.py": "9a85c742424a"}
    manifest["identity"] = found | code | {"jax": "0.10.2"} | changes
    (folder / store.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


@pytest.fixture
def old(filled, tmp_path) -> Path:
    """A full store of version 0.8."""
    shutil.copytree(filled.folder, tmp_path / "truth")
    _age(tmp_path / "truth")
    return tmp_path / "truth"


def _nudge(folder: Path, row: store.Row, by: float) -> None:
    opened = store.inspect_store(folder)
    store.write_row(opened, row, store.read_row(opened, row) + by, 1.0)


def test_a_store_of_0_8_is_taken_over(old, filled):
    outputs = store.read(store.inspect_store(old))
    _nudge(old, store.Row(0, 0), 5e-4)  # another version of JAX rounds otherwise
    _nudge(old, store.Row(5, 1), 5.0)  # a row that nobody looks at
    opened, computed = _fill(small_problem(**KEEP), old)
    assert computed == 0
    assert opened.identity == filled.identity == store.inspect_store(old).identity
    assert np.abs(store.read(opened) - outputs)[:, [0, *range(6, 19)]].max() < 1e-3
    _open(small_problem(**KEEP), old)
    with pytest.raises(ValueError, match="seed 0 -> 1"):
        _open(small_problem(**KEEP, seed=1), old)


@pytest.mark.parametrize("row", [store.Row(0, 0), store.Row(18, 1)])
def test_a_store_of_0_8_whose_rows_come_out_otherwise_is_refused(old, row):
    _nudge(old, row, 2e-3)
    before = (old / store.MANIFEST).read_bytes()
    told = rf"mask {row.mask} with seed {row.seed} comes out 0.002 away from what it holds"
    with pytest.raises(ValueError, match=told):
        _open(small_problem(**KEEP), old)
    assert (old / store.MANIFEST).read_bytes() == before


def test_a_store_of_0_8_that_differs_otherwise_is_refused_by_name(old):
    """And its code is not named: that is not what is wrong."""
    with pytest.raises(
        ValueError, match=r"something else \(seed 0 -> 1\)|\(masks .*; seed 0 -> 1\)"
    ):
        _open(small_problem(**KEEP, seed=1), old)
    with pytest.raises(ValueError, match=r'something else \(truth.objective "loss" -> "margin"\)'):
        _open(small_problem(**KEEP, objective="margin"), old)
    manifest = json.loads((old / store.MANIFEST).read_text())
    manifest["identity"]["train.schedule"] = "linear"  # that this version does not have
    (old / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r'something else \(train.schedule "linear" -> null\)'):
        _open(small_problem(**KEEP), old)


def test_an_empty_store_of_0_8_is_taken_over(tmp_path):
    opened = _open(small_problem(), tmp_path / "truth")
    _age(opened.folder)
    assert _open(small_problem(), opened.folder).identity == opened.identity


def test_a_store_of_another_platform_is_taken_over_where_its_rows_agree(filled, tmp_path):
    """Convolutions take other forms there, and so other programs, of the same outputs."""
    folder, cpu = tmp_path / "truth", truth.PROGRAM + "cpu"
    shutil.copytree(filled.folder, folder)
    manifest = json.loads((folder / store.MANIFEST).read_text())["identity"]
    elsewhere = {n: v for n, v in manifest.items() if n != cpu} | {"program on tpu": "0123"}
    store._write_manifest(folder, elsewhere, filled.seeds)
    for _ in range(2):  # the second time, nothing is looked at
        opened = _open(small_problem(**KEEP), folder)
        assert opened.identity == filled.identity | {"program on tpu": "0123"}
        _nudge(folder, store.Row(0, 0), 1.0)
    store._write_manifest(folder, elsewhere, filled.seeds)
    with pytest.raises(ValueError, match=r"mask 0 with seed 0 comes out 2 away"):
        _open(small_problem(**KEEP), folder)
    store._write_manifest(folder, elsewhere | {cpu: "4567"}, filled.seeds)
    with pytest.raises(ValueError, match=r'something else \(program on cpu "4567" -> "\w+"\);'):
        _open(small_problem(**KEEP), folder)


def test_a_truth_without_subsets_is_read(tmp_path):
    problem = small_problem(subsets=0, seeds=3)
    opened = _open(problem, tmp_path / "truth")
    for row in store.declared(opened):
        store.write_row(opened, row, np.full(40, 100 * row.seed + row.mask), 1.0)
    found = truth.read_truth(problem, opened)
    assert found.full.shape == (3, 40)
    assert found.single.shape == (3, 10, 40)
    assert found.single[2, :, 0].tolist() == [201, 202, 203, 204, 205, 206, 207, 208, 209, 210]
    assert found.effects()[2, :, 0].tolist() == [-1, -2, -3, -4, -5, -6, -7, -8, -9, -10]
    assert found.masks.shape == (0, 10)
    assert found.subsets.shape == (2, 0, 40)
    assert found.seconds == 1.0


@pytest.mark.parametrize(("seeds", "subset_seeds"), [(2, 3), (3, 2)])
def test_other_numbers_of_seeds_leave_nothing_undefined(tmp_path, seeds, subset_seeds):
    problem = small_problem(seeds=seeds, subset_seeds=subset_seeds)
    opened = _open(problem, tmp_path / "truth")
    for row in store.declared(opened):
        store.write_row(opened, row, np.full(40, 100 * row.seed + row.mask), 1.0)
    found = truth.read_truth(problem, opened)
    assert found.full.shape == (seeds, 40)
    assert found.single.shape == (seeds, 10, 40)
    assert found.subsets.shape == (subset_seeds, 4, 40)
    assert found.subsets[1, :, 0].tolist() == [111, 112, 113, 114]
    for part in (found.full, found.single, found.subsets):
        assert np.isfinite(part).all()


def test_a_truth_has_as_many_outputs_as_its_objective(tmp_path):
    for objective, outputs in (("loss", 40), ("logit:3", 40), ("accuracy", 1)):
        opened = _open(small_problem(objective=objective), tmp_path / objective)
        assert opened.num_outputs == outputs
        assert opened.masks.shape == (15, 10)
    with pytest.raises(ValueError, match="class_index=10"):
        _open(small_problem(objective="logit:10"), tmp_path / "other")
