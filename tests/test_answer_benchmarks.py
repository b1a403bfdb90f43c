"""The quick forms of the benchmarks of answers run, and say what they must."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from test_benchmarks import ROOT, check_told, mnist_data, quick


@pytest.mark.slow
def test_points(tmp_path):
    result = quick("points", tmp_path)
    check_told(result, "points")
    rows = {row["estimator"]: row for row in result["digits"]}
    assert 0.3 < rows["synset, M=1"]["group_lds"] < rows["perfect predictor"]["group_lds"]


@pytest.mark.slow
def test_hierarchy(tmp_path):
    result = quick("hierarchy", tmp_path)
    check_told(result, "hierarchy")
    rows = {row["estimator"]: row for row in result["hierarchy"]}
    assert rows["flat"]["updates"] == 41
    assert rows["1 opened, the rest by points"]["updates"] == 16
    selective = rows["slopes, 3 leaves measured"]
    assert rows["slopes"]["updates"] < selective["updates"]
    assert rows["slopes"]["pearson"] < selective["pearson"]
    by_size = [rows[f"{opened} opened, the rest by size"]["pearson"] for opened in (0, 3)]
    assert by_size[0] < by_size[1] < rows["flat"]["pearson"] + 0.05
    sums = {(row["subsets"], row["by"]): row for row in result["additivity"]}
    halves = sums["halves", "distilled datamodel"]
    assert halves["joint_to_truth"] > halves["sum_to_truth"]


@pytest.mark.slow
def test_unlearning(tmp_path):
    result = quick("unlearning", tmp_path)
    check_told(result, "unlearning")
    rows = {(row["gone"][:5], row["method"]): row for row in result["rows"]}
    assert rows["class", "retraining"]["forgotten"] == 0
    assert rows["class", "synset"]["forgotten"] < rows["class", "nothing"]["forgotten"]
    switched_off = rows["class", "output switched off"]
    assert switched_off["forgotten"] == 0
    assert switched_off["membership"] < 0.5  # its loss is high there
    assert switched_off["kept"] >= rows["class", "nothing"]["kept"]
    assert ("5 % o", "output switched off") not in rows
    assert 0.1 < rows["class", "synset"]["amount"] < 3


@pytest.mark.slow
def test_quality(tmp_path):
    result = quick("quality", tmp_path)
    check_told(result, "quality")
    rows = {(row["kind"], row["score"]): row for row in result["detection"]}
    assert {kind for kind, _ in rows} == {"nearest"}
    for row in rows.values():
        assert row["found_0.05"] <= row["found_0.1"] <= row["found_0.2"] <= 1
    found = {score: row["average_precision"] for (_, score), row in rows.items()}
    assert found["*mislabelled*"] > found["training loss"] > 0.5
    assert found["*redundant*"] < 0.3
    curves = {(row["kind"], row["order"]): row for row in result["curves"]}
    clean, dirty = curves["nearest", "the flipped ones"], curves["nearest", "random"]
    assert clean["without_0"] == dirty["without_0"]
    assert clean["without_0.1"] > dirty["without_0.1"] + 0.03
    assert curves["nearest", "*mislabelled*"]["without_0.1"] > dirty["without_0.1"]
    assert curves["nothing", "random"]["without_0.9"] < curves["nothing", "random"]["without_0"]


@pytest.mark.slow
def test_label_errors(tmp_path):
    result = quick("label_errors", tmp_path, *mnist_data())
    check_told(result, "label_errors")
    rows = {row["score"]: row for row in result["rows"]}
    assert {row["errors"] for row in rows.values()} == {7}
    for row in rows.values():
        assert row["among_15"] <= row["among_50"] <= row["among_100"] <= row["among_200"] <= 7
        assert row["auc"] > 0.8
    assert rows["*mislabelled*"]["average_precision"] > 10 * 7 / 2700


@pytest.mark.parametrize("kind", ["blurred", "noisy", "occluded", "copied"])
def test_images_are_spoilt_as_said(kind, planted, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spoil = importlib.import_module("quality").spoil
    split = SimpleNamespace(
        train=planted.data._replace(y=np.asarray(planted.data.y)),
        pixels=lambda x: np.array(x),
        offset=0.0,
        scale=1.0,
    )
    before, labels = np.asarray(planted.data.x), np.asarray(planted.data.y)
    train, bad = spoil(split, kind, 0)
    changed = np.flatnonzero((train.x != before).any((1, 2, 3)))
    assert len(changed) == 15
    assert train.x.min() >= 0
    assert train.x.max() <= 1
    if kind == "copied":
        assert bad.sum() == 30
        for point in changed:
            away = np.abs(before - train.x[point]).mean((1, 2, 3))
            source = away.argmin()
            assert away[source] < 0.03
            assert bad[source]
            assert (train.y[point] == labels[source]).all()
    else:
        assert (np.flatnonzero(bad) == changed).all()
        np.testing.assert_array_equal(train.y, labels)
    again, _ = spoil(split, kind, 0)
    np.testing.assert_array_equal(again.x, train.x)


@pytest.mark.slow
def test_networks(tmp_path):
    result = quick("networks", tmp_path)
    check_told(result, "networks")
    first, second = result["likeness"]
    assert (first["first"], first["second"]) == ("MLP 64", "another seed")
    assert (second["first"], second["second"]) == ("MLP 64", "logistic")
    for row in (first, second):
        assert row["ddm_chance"] == row["exact_chance"] == 0.5
        assert 0 < row["exact_per_query"] <= 1
        assert 0 < row["ddm_per_query"] <= 1
    served = {(row["synset"], row["network"]): row["group_lds"] for row in result["transfer"]}
    assert len(served) == 4
    assert min(served.values()) > 0.3


@pytest.mark.slow
def test_privacy(tmp_path):
    result = quick("privacy", tmp_path)
    check_told(result, "privacy")
    rows = {(row["start"], row["how"]): row for row in result["rows"]}
    assert len(rows) == 6
    for start in ("members, by pursuit", "random members"):
        before, after = rows[start, "at the start"], rows[start, "distilled"]
        assert (before["distance"], before["copies"]) == (0, 1)
        assert after["distance"] > 0.01
        assert after["copies"] < 1
        assert after["membership"] > 0.6
    noise = rows["noise", "distilled"]
    assert noise["copies"] == 0
    assert noise["distance"] > 1
    assert noise["membership"] < rows["random members", "distilled"]["membership"]
