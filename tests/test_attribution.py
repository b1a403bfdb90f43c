"""The attribution matrix: rankings, tables, and the file it travels in."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddm_jax.attribution import SIGN, Attribution, make_attribution

SCORES = np.array([[1.0, -4.0], [3.0, 0.0], [-2.0, 5.0]])
GROUPS = np.array([0, 2, 1, 2, 2])


@pytest.fixture
def attribution() -> Attribution:
    return make_attribution(SCORES, GROUPS, [70, 30], {"method": "ddm", "seed": 0})


def test_fields(attribution):
    assert attribution.scores.shape == (3, 2)
    assert attribution.scores.dtype == np.float32
    assert attribution.groups.shape == (5,)
    assert attribution.groups.dtype == np.int32
    np.testing.assert_array_equal(attribution.query_ids, [70, 30])
    assert attribution.metadata["sign"] == SIGN
    assert attribution.metadata["method"] == "ddm"


def test_query_ids_default_to_their_places():
    np.testing.assert_array_equal(make_attribution(SCORES, GROUPS).query_ids, [0, 1])


def test_top_literal(attribution):
    ranking = attribution.top(2)
    assert ranking.helpful.shape == ranking.harmful.shape == (2, 2)
    np.testing.assert_array_equal(ranking.helpful, [[1, 2], [0, 1]])
    np.testing.assert_array_equal(ranking.harmful, [[2, 0], [0, 1]])


def test_top_of_all_is_the_whole_order_reversed(attribution):
    ranking = attribution.top(3)
    assert ranking.helpful.shape == (3, 2)
    np.testing.assert_array_equal(ranking.helpful, ranking.harmful[::-1])


@pytest.mark.parametrize("k", [0, -1, 4])
def test_top_out_of_range(attribution, k):
    with pytest.raises(ValueError, match=rf"k={k}; it must be in 1\.\.3"):
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


def test_save_and_load_round_trip(attribution, tmp_path):
    for path in (tmp_path / "a.npz", str(tmp_path / "other.suffix")):
        attribution.save(path)
        loaded = Attribution.load(path)
        for left, right in zip(attribution[:3], loaded[:3], strict=True):
            assert left.shape == right.shape
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        assert loaded.metadata == attribution.metadata
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "other.suffix"]


def test_the_file_is_a_plain_npz_of_four_arrays(attribution, tmp_path):
    attribution.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == {"scores", "groups", "query_ids", "metadata"}
        np.testing.assert_array_equal(file["scores"], SCORES)
        np.testing.assert_array_equal(file["groups"], GROUPS)
        np.testing.assert_array_equal(file["query_ids"], [70, 30])
        assert json.loads(str(file["metadata"])) == attribution.metadata


@pytest.mark.parametrize(
    ("scores", "groups", "query_ids", "message"),
    [
        (np.zeros(3), GROUPS, None, r"scores have shape \(3,\); they must be \[K, Q\]"),
        (SCORES, GROUPS, [1, 2, 3], r"query_ids have shape \(3,\); 2 queries need \(2,\)"),
        (SCORES, [0, 1, 1], None, "group 2 is empty"),
        (SCORES, [0, 1, 2, 3], None, "group 3"),
        (SCORES, [0, 1, -1], None, "group -1 is negative"),
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


def test_damaged_files_are_named(attribution, tmp_path):
    path = tmp_path / "a.npz"
    attribution.save(path)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[60] ^= 0xFF
    for damaged in (content[: len(content) // 2], b"", b"text", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.npz is (no attribution or is )?damaged"):
            Attribution.load(path)


def test_files_with_other_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", scores=SCORES)
    with pytest.raises(ValueError, match=r"a\.npz is no attribution"):
        Attribution.load(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", SCORES)
    with pytest.raises(ValueError, match=r"b\.npy is (no attribution|damaged)"):
        Attribution.load(tmp_path / "b.npy")
