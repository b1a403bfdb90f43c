"""The ground truth of a run: which networks, what they say, and what it refuses to be mixed with.

One small truth is retrained for all tests that read outputs; the others compile nothing.
"""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import compile_once, tiny_config  # noqa: F401

import ddm_jax as ddm
from ddm_jax import store, truth
from ddm_jax.plan import check_settings, make_plan

SMALL = ("truth.seeds=2", "truth.subsets=4", "truth.subset_seeds=2")
GROUPS = np.arange(120, dtype=np.int32) % 10
# A part of 0.9 keeps nine of ten groups: masks that leave one out once more.
KEEP = "truth.keep=0.5,0.9"
POINTS = ("truth.leave_one_out=false", "cluster.method=point")
TARGET = jax.random.fold_in(jax.random.key(0), 0)  # of the pipeline's first stage
ALIKE = ("truth.leave_one_out=false", "truth.keep=0.9", "truth.subsets=12")


@cache
def _plan(*changes: str):
    return make_plan(tiny_config(*SMALL, *changes))


def _fill(plan, folder: Path, groups=GROUPS, chunk=4):
    opened = truth.open_truth(plan, folder, groups)
    computed = truth.fill(plan, opened, groups, chunk, lambda done, note: None)
    return opened, computed


@pytest.fixture(scope="module")
def filled(tmp_path_factory, compile_once):  # noqa: F811
    """A full store of 2 * (11 + 8) networks, in chunks of its own choice; read only."""
    opened, computed = _fill(_plan(KEEP), tmp_path_factory.mktemp("filled") / "truth", chunk=None)
    assert computed == 38
    return opened


@cache
def _retraining(*changes: str):
    return jax.jit(_plan(*changes).truth_retraining)


def _by_hand(changes, mask, key) -> np.ndarray:
    """The outputs of one network."""
    split = _plan(*changes).split
    data, groups, query = jax.device_put((split.train, jnp.asarray(GROUPS), split.test))
    return np.asarray(_retraining(*changes)(jnp.asarray(mask), key, data, groups, query))


def _key(changes, *numbers: int) -> jax.Array:
    """The key of a truth, folded with the number of keep fractions, the seed, maybe the mask."""
    plan = _plan(*changes)
    key = jax.random.fold_in(truth.truth_key(plan), 1)
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
    rows = truth.declare(_plan("truth.subset_seeds=3", "truth.keep=0.5,0.3"), 10)
    assert rows.masks.shape == (19, 10)
    np.testing.assert_array_equal(rows.masks[0], 1)
    np.testing.assert_array_equal(rows.masks[1:11], 1 - np.eye(10))
    np.testing.assert_array_equal(rows.masks[11:].sum(1), [5, 5, 5, 5, 3, 3, 3, 3])
    assert set(np.unique(rows.masks)) == {0, 1}
    assert rows.seeds.tolist() == [2] * 11 + [3] * 8
    assert rows.keep.tolist() == [0] * 11 + [0.5] * 4 + [0.3] * 4
    assert rows.groups_out == 10
    assert len(np.unique(rows.masks[11:15], axis=0)) > 1


def test_without_leave_one_out_there_are_subsets_alone():
    rows = truth.declare(_plan("truth.leave_one_out=false"), 10)
    assert rows.masks.shape == (4, 10)
    assert rows.masks.sum(1).tolist() == [5] * 4
    assert rows.seeds.tolist() == [2] * 4
    assert rows.keep.tolist() == [0.5] * 4
    assert rows.groups_out == 0


def test_without_subsets_there_is_leave_one_out_alone():
    rows = truth.declare(_plan("truth.subsets=0"), 3)
    assert rows.masks.tolist() == [[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert rows.seeds.tolist() == [2] * 4
    assert rows.keep.tolist() == [0] * 4
    assert rows.groups_out == 3


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        (["truth.seeds=5", "truth.subset_seeds=7"], True),
        (["truth.leave_one_out=false"], True),
        (["truth.keep=0.5,0.3"], True),
        (["online.masks=50", "distill.items=2", "truth.objective=margin"], True),
        (["seed=1"], False),
    ],
)
def test_what_a_subset_keeps_depends_on_the_seed_of_the_run_alone(changes, same):
    base, other = (truth.declare(_plan(*each), 10) for each in ((), changes))
    first, second = base.masks[base.keep == 0.5], other.masks[other.keep == 0.5]
    assert first.shape == second.shape == (4, 10)
    assert (first == second).all() == same


def test_a_filled_truth_is_cut_by_what_was_removed(filled):
    found = truth.read_truth(_plan(KEEP), filled)
    assert found.full.shape == (2, 40)
    assert found.single.shape == (2, 10, 40)
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
    found = truth.read_truth(_plan(KEEP), filled)
    effects = found.effects()
    assert effects.shape == (2, 10, 40)
    np.testing.assert_array_equal(effects[1, 7], found.full[1] - found.single[1, 7])
    np.testing.assert_array_equal(effects[0, 2], found.full[0] - found.single[0, 2])
    assert (np.abs(effects).max(-1) > 0).all()


@pytest.mark.parametrize(("row", "seed"), [(0, 0), (0, 1), (4, 1), (12, 0), (18, 1)])
def test_a_row_is_a_network_retrained_by_hand(filled, row, seed):
    expected = _by_hand((KEEP,), filled.masks[row], _key((KEEP,), seed))
    outputs = store.read(filled)[seed, row]
    assert outputs.shape == expected.shape == (40,)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_rows_of_one_seed_share_their_key(filled):
    """A subset without one group is the same network as leaving that group out."""
    found = truth.read_truth(_plan(KEEP), filled)
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
    target = _by_hand((KEEP,), np.ones(10), TARGET)
    full = truth.read_truth(_plan(KEEP), filled).full
    assert full.shape == (2, *target.shape) == (2, 40)
    assert np.abs(full - target).max(1).min() > 1e-3


def test_unpaired_rows_have_a_key_each(tmp_path):
    paired, unpaired = _plan(*ALIKE), _plan(*ALIKE, "truth.paired=false")
    outputs = {}
    for plan in (paired, unpaired):
        opened, computed = _fill(plan, tmp_path / str(plan.config.truth.paired))
        assert computed == 24
        name = plan.config.truth.paired
        outputs[name] = truth.read_truth(plan, opened).subsets
        assert outputs[name].shape == (2, 12, 40)
    masks = truth.declare(unpaired, 10).masks
    np.testing.assert_array_equal(masks, truth.declare(paired, 10).masks)
    one, other = _alike(masks)
    for seed in (0, 1):
        np.testing.assert_array_equal(outputs[True][seed, one], outputs[True][seed, other])
        apart = np.abs(outputs[False][seed, one] - outputs[False][seed, other])
        assert apart.max() > 1e-3
    changes = (*ALIKE, "truth.paired=false")
    expected = _by_hand(changes, masks[other], _key(changes, 1, other))
    assert expected.shape == (40,)
    np.testing.assert_allclose(outputs[False][1, other], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_chunks_of_any_size_give_the_same_bits(filled, tmp_path, chunk):
    opened, computed = _fill(_plan(KEEP), tmp_path / "truth", chunk=chunk)
    assert computed == 38
    outputs, expected = store.read(opened), store.read(filled)
    assert outputs.shape == expected.shape == (2, 19, 40)
    np.testing.assert_array_equal(outputs, expected)


def test_more_seeds_keep_the_networks_that_are_done(filled, tmp_path):
    shutil.copytree(filled.folder, tmp_path / "truth")
    more = _plan(KEEP, "truth.seeds=3")
    opened = truth.open_truth(more, tmp_path / "truth", GROUPS)
    with pytest.raises(ValueError, match="lacks 11 of 49 rows"):
        truth.read_truth(more, opened)
    opened, computed = _fill(more, tmp_path / "truth")
    assert computed == 11
    found, before = truth.read_truth(more, opened), truth.read_truth(_plan(KEEP), filled)
    assert found.full.shape == (3, 40)
    assert found.single.shape == (3, 10, 40)
    assert found.subsets.shape == (2, 8, 40)
    np.testing.assert_array_equal(found.single[:2], before.single)
    np.testing.assert_array_equal(found.subsets, before.subsets)
    assert not np.isnan(found.single).any()


def test_removal_by_subset_trains_on_the_kept_points_alone(tmp_path):
    plan = _plan(*POINTS, "truth.removal=subset", "train.batch_size=25")
    opened, computed = _fill(plan, tmp_path / "truth", np.arange(120, dtype=np.int32))
    assert computed == 8
    found = truth.read_truth(plan, opened)
    assert found.full.shape == (0, 40)
    assert found.single.shape == (0, 0, 40)
    assert found.effects().shape == (0, 0, 40)
    assert found.subsets.shape == (2, 4, 40)
    assert found.masks.shape == (4, 120)
    # 60 of 120 points in batches of 25: two steps an epoch, four epochs.
    train = ddm.make_train(plan.task, steps=8, batch_size=25, learning_rate=0.3, weight_decay=1e-3)
    for row, seed in ((0, 0), (3, 1)):
        kept = np.flatnonzero(found.masks[row])
        assert kept.shape == (60,)
        subset = ddm.Batch(plan.split.train.x[kept], plan.split.train.y[kept])
        key = jax.random.fold_in(jax.random.fold_in(truth.truth_key(plan), 1), seed)
        run = jax.jit(train)(key, subset, jnp.ones(60))
        expected = ddm.objectives.loss(plan.task.apply)(run.params, plan.split.test)
        assert expected.shape == (40,)
        np.testing.assert_allclose(found.subsets[seed, row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["data.train_size=119"], "data.train_size 120 -> 119"),
        (["data.test_size=39"], "data.test_size 40 -> 39"),
        (["data.label_noise=0.1"], "data.label_noise 0.0 -> 0.1"),
        (["model.hidden=9"], r"model.hidden \[8\] -> \[9\]"),
        (["train.learning_rate=0.2"], "train.learning_rate 0.3 -> 0.2"),
        (["train.last_batch=keep"], 'train.last_batch "drop" -> "keep"'),
        (["truth.objective=margin"], 'truth.objective "loss" -> "margin"'),
        (["truth.subsets=5"], "masks "),
        (["truth.keep=0.3"], "masks "),
        (["seed=1"], "seed 0 -> 1"),
    ],
)
def test_a_truth_of_other_settings_is_refused_by_name(tmp_path, changes, told):
    opened = truth.open_truth(_plan(), tmp_path / "truth", GROUPS)
    plan = _plan(*changes)
    groups = GROUPS[: len(plan.split.train.x)]
    with pytest.raises(ValueError, match=rf"was made with something else \(.*{told}"):
        truth.open_truth(plan, tmp_path / "truth", groups)
    assert truth.open_truth(_plan(), tmp_path / "truth", GROUPS).identity == opened.identity


def test_pairing_and_the_way_of_removing_are_told_apart(tmp_path):
    groups = np.arange(120, dtype=np.int32)
    truth.open_truth(_plan(*POINTS), tmp_path / "truth", groups)
    for change, told in (
        ("truth.paired=false", r"\(truth.paired true -> false\)"),
        ("truth.removal=subset", r'\(truth.removal "weights" -> "subset"\)'),
    ):
        with pytest.raises(ValueError, match=told):
            truth.open_truth(_plan(*POINTS, change), tmp_path / "truth", groups)


def test_other_groups_are_refused_by_name(tmp_path):
    truth.open_truth(_plan(), tmp_path / "truth", GROUPS)
    moved = GROUPS.copy()
    moved[[0, 1]] = moved[[1, 0]]
    with pytest.raises(ValueError, match=r"something else \(groups \S+ -> \S+\);"):
        truth.open_truth(_plan(), tmp_path / "truth", moved)
    with pytest.raises(ValueError, match=r"something else \(groups \S+ -> \S+; masks \S+ -> \S+\)"):
        truth.open_truth(_plan(), tmp_path / "truth", GROUPS % 5)


def test_other_pixels_or_labels_are_refused_by_name(tmp_path):
    plan = _plan()
    truth.open_truth(plan, tmp_path / "truth", GROUPS)
    for part in ("train", "test"):
        batch = getattr(plan.split, part)
        for name in ("x", "y"):
            values = getattr(batch, name).copy()
            values[3] = values[3][::-1]
            changed = plan.split._replace(**{part: batch._replace(**{name: values})})
            with pytest.raises(ValueError, match=r"something else \(data \S+ -> \S+\);"):
                truth.open_truth(plan._replace(split=changed), tmp_path / "truth", GROUPS)


@pytest.mark.parametrize(
    "change",
    [
        "online.steps=7",
        "online.objective=loss",
        "distill.items=2",
        "distill.distance=squared",
        "check.seeds=3",
        "cluster.method=kmeans",
        "data.data_dir=/elsewhere",
        "truth.seeds=4",
        "truth.subset_seeds=3",
    ],
)
def test_what_the_outputs_do_not_depend_on_may_change(tmp_path, change):
    opened = truth.open_truth(_plan(), tmp_path / "truth", GROUPS)
    again = truth.open_truth(_plan(change), tmp_path / "truth", GROUPS)
    assert again.folder == opened.folder
    assert again.identity == opened.identity


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the files whose code counts, in place of the package's own."""
    own = Path(ddm.__file__).parent
    for name in truth.CODE:
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(own / name, tmp_path / "package" / name)
    before = truth.code_identity()
    monkeypatch.setattr(ddm, "__file__", str(tmp_path / "package" / "__init__.py"))
    assert truth.code_identity() == before
    return tmp_path / "package"


@pytest.mark.parametrize("name", truth.CODE)
def test_other_code_is_refused_by_name(tmp_path, package, name):
    (package / name).write_text((package / name).read_text() + "LAST = 1\n")
    truth.open_truth(_plan(), tmp_path / "truth", GROUPS)
    (package / name).write_text((package / name).read_text().replace("LAST = 1\n", "LAST = 2\n"))
    told = rf'something else \(code of {name} "\w+" -> "\w+"\);'
    with pytest.raises(ValueError, match=told):
        truth.open_truth(_plan(), tmp_path / "truth", GROUPS)


def test_one_byte_of_the_training_code_counts(tmp_path, package):
    truth.open_truth(_plan(), tmp_path / "truth", GROUPS)
    text = (package / "train.py").read_text()
    assert text.count("jax.random.fold_in(key, 1)") == 1
    (package / "train.py").write_text(text.replace("fold_in(key, 1)", "fold_in(key, 3)"))
    with pytest.raises(ValueError, match=r"code of train\.py"):
        truth.open_truth(_plan(), tmp_path / "truth", GROUPS)


@pytest.mark.parametrize("name", truth.CODE)
def test_comments_docstrings_and_layout_do_not_count(package, name):
    before, text = truth.code_identity(), (package / name).read_text()
    assert text.startswith('"""')
    changed = "# A comment.\n" + re.sub('""".+?"""', '"""Said otherwise."""', text, flags=re.S)
    changed = changed.replace("\n    return ", "\n\n    # Another.\n    return ")
    assert changed.count("otherwise") > 2
    assert changed.count("Another") > 0
    (package / name).write_text(changed)
    assert truth.code_identity() == before
    (package / name).write_text(text.partition('"""\n')[2])  # no docstring at all
    assert truth.code_identity() == before


SOURCE = '''"""Said."""
from a import b


class C(b):
    """Said."""

    x: int = 0

    def f(self, *y, z=None, **w):
        return f"{y!r:>{z}} {{}}" if w else lambda: [None, ..., 1.5, y[1:], -1]
'''


def test_the_code_has_one_digest_on_every_python(tmp_path):
    """Python 3.13 prints syntax trees otherwise than 3.11; a store may be opened by both."""
    (tmp_path / "x.py").write_text(SOURCE)
    assert truth.source_digest([tmp_path / "x.py"]) == "c729774fd115"
    for old, new in (("1.5", "1.25"), ("z=None", "z"), ("y[1:]", "y[:1]"), ("C(b)", "C")):
        assert SOURCE.count(old) == 1
        (tmp_path / "x.py").write_text(SOURCE.replace(old, new))
        assert truth.source_digest([tmp_path / "x.py"]) != "c729774fd115", old


@pytest.mark.parametrize("name", ["jax", "flax", "optax"])
def test_another_version_is_refused_by_name(tmp_path, monkeypatch, name):
    truth.open_truth(_plan(), tmp_path / "truth", GROUPS)
    version = truth.packages.version
    monkeypatch.setattr(
        truth.packages, "version", lambda each: "99.0" if each == name else version(each)
    )
    with pytest.raises(ValueError, match=rf'something else \({name} "\S+" -> "99.0"\)'):
        truth.open_truth(_plan(), tmp_path / "truth", GROUPS)


def test_a_truth_without_subsets_is_read(tmp_path):
    plan = _plan("truth.subsets=0", "truth.seeds=3")
    opened = truth.open_truth(plan, tmp_path / "truth", GROUPS)
    for row in store.declared(opened):
        store.write_row(opened, row, np.full(40, 100 * row.seed + row.mask), 1.0)
    found = truth.read_truth(plan, opened)
    assert found.full.shape == (3, 40)
    assert found.single.shape == (3, 10, 40)
    assert found.single[2, :, 0].tolist() == [201, 202, 203, 204, 205, 206, 207, 208, 209, 210]
    assert found.effects()[2, :, 0].tolist() == [-1, -2, -3, -4, -5, -6, -7, -8, -9, -10]
    assert found.masks.shape == (0, 10)
    assert found.subsets.shape == (2, 0, 40)
    assert found.seconds == 1.0


@pytest.mark.parametrize(("seeds", "subset_seeds"), [(2, 3), (3, 2)])
def test_other_numbers_of_seeds_leave_nothing_undefined(tmp_path, seeds, subset_seeds):
    plan = _plan(f"truth.seeds={seeds}", f"truth.subset_seeds={subset_seeds}")
    opened = truth.open_truth(plan, tmp_path / "truth", GROUPS)
    for row in store.declared(opened):
        store.write_row(opened, row, np.full(40, 100 * row.seed + row.mask), 1.0)
    found = truth.read_truth(plan, opened)
    assert found.full.shape == (seeds, 40)
    assert found.single.shape == (seeds, 10, 40)
    assert found.subsets.shape == (subset_seeds, 4, 40)
    assert found.subsets[1, :, 0].tolist() == [111, 112, 113, 114]
    for part in (found.full, found.single, found.subsets):
        assert np.isfinite(part).all()


def test_a_truth_has_as_many_outputs_as_its_objective(tmp_path):
    for objective, outputs in (("loss", 40), ("logit:3", 40), ("accuracy", 1)):
        plan = _plan(f"truth.objective={objective}")
        opened = truth.open_truth(plan, tmp_path / objective, GROUPS)
        assert opened.num_outputs == outputs
        assert opened.masks.shape == (15, 10)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["truth.seeds=1"], "truth.seeds=1; it must be at least 2"),
        (["truth.subset_seeds=1"], "truth.subset_seeds=1; it must be at least 2"),
        (["truth.subsets=-1"], "truth.subsets=-1; it must be at least 0"),
        (
            ["truth.leave_one_out=false", "truth.subsets=3"],
            "truth.subsets=3; it must be at least 4",
        ),
        (["truth.keep=1.5"], r"truth.keep=1.5; a subset keeps a part in \(0, 1\)"),
        (["truth.keep=0.5,0"], "truth.keep=0.0; a subset keeps"),
        (["truth.keep="], "truth.keep is empty"),
        (["truth.keep=nan"], "truth.keep=nan; a subset keeps"),
        (["truth.paired=false"], "truth.leave_one_out=true needs truth.paired=true"),
        (
            ["truth.removal=subset", "truth.leave_one_out=false"],
            "truth.removal=subset .* needs cluster.method=point",
        ),
        (
            ["truth.removal=subset", "cluster.method=point"],
            "truth.removal=subset .* truth.leave_one_out=false",
        ),
        (
            [
                "truth.removal=subset",
                "cluster.method=point",
                "truth.leave_one_out=false",
                "truth.keep=0.3,0.5",
            ],
            "truth.removal=subset .* a single truth.keep",
        ),
        (["truth.removal=forget"], "truth.removal='forget'; choose one of weights, subset"),
    ],
)
def test_wrong_settings_of_the_truth_are_named(changes, told):
    with pytest.raises(ValueError, match=told):
        check_settings(tiny_config(*SMALL, *changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["truth.objective=beauty"], "unknown objective 'beauty'"),
        (["truth.objective=logit:10"], "class_index=10"),
        (
            [*POINTS, "truth.removal=subset", "truth.keep=0.3"],
            "train.batch_size=40 exceeds the 36 points of a subset",
        ),
    ],
)
def test_settings_of_the_truth_that_do_not_fit_the_data_are_named(changes, told):
    with pytest.raises(ValueError, match=told):
        make_plan(tiny_config(*SMALL, *changes))
