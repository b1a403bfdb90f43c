"""The attribution matrix: rankings, tables, and the file it travels in."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax.attribution import SIGN, Attribution, make_attribution
from ddm_jax.cluster import as_groups
from ddm_jax.files import write_arrays

SCORES = np.array([[1.0, -4.0], [3.0, 0.0], [-2.0, 5.0]])
GROUPS = np.array([0, 2, 1, 2, 2])
HALF_WIDTHS = np.array([[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]])


@pytest.fixture
def attribution() -> Attribution:
    return make_attribution(SCORES, GROUPS, [70, 30], {"method": "ddm", "seed": 0})


@pytest.fixture
def sure() -> Attribution:
    """One with error bars."""
    return make_attribution(SCORES, GROUPS, [70, 30], {"seed": 0}, HALF_WIDTHS)


@pytest.fixture
def named() -> Attribution:
    groups = as_groups(GROUPS, names=("maps", "web", "books"))
    return make_attribution(SCORES, groups, [70, 30], {"lower_is_better": True})


def test_fields(attribution):
    assert attribution.scores.shape == (3, 2)
    assert attribution.scores.dtype == np.float32
    assert attribution.groups.ids.shape == (5,)
    assert attribution.groups.ids.dtype == np.int32
    assert attribution.groups.count == 3
    np.testing.assert_array_equal(attribution.query_ids, [70, 30])
    assert attribution.metadata["sign"] == SIGN
    assert attribution.metadata["method"] == "ddm"


def test_query_ids_default_to_their_places():
    np.testing.assert_array_equal(make_attribution(SCORES, GROUPS).query_ids, [0, 1])


def test_top_literal(attribution):
    ranking = attribution.top(2)
    assert ranking.raises.shape == ranking.lowers.shape == (2, 2)
    np.testing.assert_array_equal(ranking.raises, [[1, 2], [0, 1]])
    np.testing.assert_array_equal(ranking.lowers, [[2, 0], [0, 1]])
    assert ranking.helpful is None
    assert ranking.harmful is None


def test_what_raises_a_loss_is_harmful():
    loss, margin = (
        make_attribution(SCORES, GROUPS, metadata={"lower_is_better": worse}).top(2)
        for worse in (True, False)
    )
    np.testing.assert_array_equal(loss.harmful, [[1, 2], [0, 1]])
    np.testing.assert_array_equal(loss.helpful, [[2, 0], [0, 1]])
    np.testing.assert_array_equal(margin.helpful, [[1, 2], [0, 1]])
    np.testing.assert_array_equal(margin.harmful, [[2, 0], [0, 1]])
    np.testing.assert_array_equal(loss.raises, margin.raises)
    np.testing.assert_array_equal(loss.lowers, margin.lowers)


def test_a_task_that_explains_its_loss_says_that_less_is_better(ready):
    task = ddm.objectives.explain(ready.task, "loss")
    found = make_attribution(SCORES, GROUPS, metadata={"lower_is_better": task.lower_is_better})
    assert found.top(1).harmful.tolist() == [[1, 2]]


def test_groups_with_names_are_shown_by_them(named):
    ranking = named.top(2)
    assert ranking.raises.tolist() == [["web", "books"], ["maps", "web"]]
    assert (
        ranking.helpful.tolist() == ranking.lowers.tolist() == [["books", "maps"], ["maps", "web"]]
    )
    frame = named.to_dataframe()
    assert frame["group"].tolist() == ["maps", "maps", "web", "web", "books", "books"]
    assert frame["size"].tolist() == [1, 1, 1, 1, 3, 3]


def test_top_of_all_is_the_whole_order_reversed(attribution):
    ranking = attribution.top(3)
    assert ranking.raises.shape == (3, 2)
    np.testing.assert_array_equal(ranking.raises, ranking.lowers[::-1])


@pytest.mark.parametrize("k", [0, -1, 4])
def test_top_out_of_range(attribution, k):
    with pytest.raises(ValueError, match=rf"k={k}; it must be a whole number, in 1\.\.3"):
        attribution.top(k)


def test_members(attribution):
    np.testing.assert_array_equal(attribution.members(2), [1, 3, 4])
    np.testing.assert_array_equal(attribution.members(0), [0])


def test_to_dataframe(attribution):
    frame = attribution.to_dataframe()
    assert frame.shape == (6, 4)
    assert list(frame.columns) == ["group", "size", "query", "score"]
    assert frame.to_numpy().tolist() == [
        [0, 1, 70, 1.0],
        [0, 1, 30, -4.0],
        [1, 1, 70, 3.0],
        [1, 1, 30, 0.0],
        [2, 3, 70, -2.0],
        [2, 3, 30, 5.0],
    ]


def test_to_dataframe_with_half_widths(sure):
    frame = sure.to_dataframe()
    assert list(frame.columns) == ["group", "size", "query", "score", "half_width"]
    assert frame["score"].tolist() == [1.0, -4.0, 3.0, 0.0, -2.0, 5.0]
    assert frame["half_width"].tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


@pytest.mark.parametrize("shape", [(2, 3), (3,), (3, 1), (1, 3, 2)])
def test_half_widths_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"half_widths have shape .* must be \(3, 2\), as the sc"):
        make_attribution(SCORES, GROUPS, half_widths=np.ones(shape))


def assert_same(one: Attribution, two: Attribution):
    for left, right in (
        (one.scores, two.scores),
        (one.groups.ids, two.groups.ids),
        (one.query_ids, two.query_ids),
    ):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    assert one.groups.count == two.groups.count
    assert one.groups.names == two.groups.names
    assert one.metadata == two.metadata
    assert (one.half_widths is None) == (two.half_widths is None)
    if one.half_widths is not None:
        assert one.half_widths.dtype == two.half_widths.dtype == np.float32
        np.testing.assert_array_equal(one.half_widths, two.half_widths)


def test_save_and_load_round_trip(attribution, named, sure, tmp_path):
    for place in (tmp_path / "a.npz", str(tmp_path / "other.suffix")):
        for one in (attribution, named, sure):
            one.save(place)
            assert_same(Attribution.load(place), one)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "other.suffix"]
    # Without them there is no array of them in the file.
    attribution.save(tmp_path / "a.npz")
    assert Attribution.load(tmp_path / "a.npz").half_widths is None


def test_half_widths_of_another_type_in_the_file_are_refused(sure, tmp_path):
    path = tmp_path / "a.npz"
    wrong = {"half_widths": np.ones((3, 2), np.float64)}
    arrays = {"scores": sure.scores, "groups": sure.groups.ids, "query_ids": sure.query_ids}
    write_arrays(path, arrays | wrong, sure.metadata)
    with pytest.raises(ValueError, match=r"a\.npz is not as declared.*half_widths"):
        Attribution.load(path)


def test_a_file_of_0_8_is_read(attribution, tmp_path):
    """It has no checksum, and tells by its objective what is good for a query."""
    for objective, harmful in (("loss", [[1, 2]]), ("margin", [[2, 0]])):
        metadata = attribution.metadata | {"objective": objective}
        np.savez_compressed(
            tmp_path / "a.npz",
            scores=attribution.scores,
            groups=attribution.groups.ids,
            query_ids=attribution.query_ids,
            metadata=np.asarray(json.dumps(metadata)),
        )
        found = Attribution.load(tmp_path / "a.npz")
        assert found.top(1).harmful.tolist() == harmful
        said = metadata | {"lower_is_better": objective == "loss"}
        assert_same(found, attribution._replace(metadata=said))


def test_every_damaged_byte_is_noticed(attribution, tmp_path):
    path = tmp_path / "a.npz"
    attribution.save(path)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"a\.npz is damaged"):
            Attribution.load(path)


def test_a_background_is_kept_and_is_no_group(tmp_path):
    made = make_attribution(SCORES, [2, -1, 0, 1, -1, 0])
    made.save(tmp_path / "a.npz")
    read = Attribution.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(read.groups.ids, [2, -1, 0, 1, -1, 0])
    assert read.groups.count == 3
    assert read.members(0).tolist() == [2, 5]
    assert read.to_dataframe()["size"].tolist() == [2, 2, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="group -1; name one of"):
        read.members(-1)


def test_the_file_is_a_plain_npz_of_four_arrays(attribution, tmp_path):
    attribution.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == {"scores", "groups", "query_ids", "metadata"}
        np.testing.assert_array_equal(file["scores"], SCORES)
        np.testing.assert_array_equal(file["groups"], GROUPS)
        np.testing.assert_array_equal(file["query_ids"], [70, 30])
        assert json.loads(str(file["metadata"])) == attribution.metadata


def test_half_widths_are_a_fifth_array_of_it(sure, tmp_path):
    sure.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == {"scores", "groups", "query_ids", "metadata", "half_widths"}
        np.testing.assert_array_equal(file["half_widths"], HALF_WIDTHS)


@pytest.mark.parametrize(
    ("scores", "groups", "query_ids", "message"),
    [
        (np.zeros(3), GROUPS, None, r"scores have shape \(3,\); they must be \[K, Q\]"),
        (SCORES, GROUPS, [1, 2, 3], r"query_ids have shape \(3,\); 2 queries need \(2,\)"),
        (SCORES, [0, 1, 1], None, r"scores have shape \(3, 2\); 2 groups need \(2, Q\)"),
        (SCORES, [0, 1, 2, 3], None, r"scores have shape \(3, 2\); 4 groups need \(4, Q\)"),
        (SCORES, [0, 1, 3, 3], None, "group 2 is empty"),
        (SCORES, [0, 1, -2], None, "group -2 is negative"),
        (SCORES, [0, 1, -1], None, "2 groups need"),
        (SCORES, [0.0, 1.0, 2.0], None, "groups are float64"),
        (
            SCORES + np.array([[0], [np.nan], [np.inf]]),
            GROUPS,
            None,
            "2 of 3 groups .* first is group 1",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(scores, groups, query_ids, message):
    with pytest.raises(ValueError, match=message):
        make_attribution(scores, groups, query_ids)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*gone\.npz"):
        Attribution.load(tmp_path / "gone.npz")
    with pytest.raises(ValueError, match=r"there is no file .* to read"):
        Attribution.load(tmp_path)


def test_damaged_files_are_named(attribution, tmp_path):
    path = tmp_path / "a.npz"
    attribution.save(path)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[60] ^= 0xFF
    for damaged in (content[: len(content) // 2], b"", b"text", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.npz is damaged.*make it again"):
            Attribution.load(path)


def test_files_with_other_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", scores=SCORES)
    np.save(tmp_path / "b.npy", SCORES)
    for name in ("a.npz", "b.npy"):
        with pytest.raises(ValueError, match=rf"{name} is damaged.*make it again"):
            Attribution.load(tmp_path / name)
    write_arrays(tmp_path / "c.npz", {"scores": SCORES})
    with pytest.raises(ValueError, match=r"c\.npz is not as declared \(groups is not there"):
        Attribution.load(tmp_path / "c.npz")


def test_members_by_name_and_of_no_group():
    scores = np.arange(4.0).reshape(2, 2)
    attribution = make_attribution(scores, as_groups(["bob", "alice", "bob"]))
    np.testing.assert_array_equal(attribution.members("bob"), [0, 2])
    np.testing.assert_array_equal(attribution.members(0), [1])
    for wrong in (2, -1, "zed"):
        with pytest.raises(ValueError, match=r"name one of 0\.\.1, or a group's name"):
            attribution.members(wrong)
