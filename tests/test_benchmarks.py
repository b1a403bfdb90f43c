"""The quick form of each benchmark runs, and says what it must."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "tensorflow_datasets"


def quick(name, *words):
    result = ROOT / "benchmarks" / "results" / f"{name}_quick.json"
    result.unlink(missing_ok=True)
    subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--quick", *words],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return json.loads(result.read_text())


def check_told(result, name):
    assert result["command"].startswith(f"python benchmarks/{name}.py")
    assert result["versions"]["jax"]
    assert result["cores"] >= 1
    assert str(ROOT) not in json.dumps(result)


def mnist_data():
    if not DATA.exists():
        pytest.skip(f"needs prepared MNIST in {DATA.relative_to(ROOT.parent)} beside the project")
    return ["--data-dir", str(DATA)]


def test_digits_protocol():
    result = quick("digits_protocol")
    check_told(result, "digits_protocol")
    rows = {(r["estimator"], r.get("update"), r.get("steps")): r for r in result["mean"]}
    ddm = rows["DDM", "retain", 50]
    assert ddm["rho"] > rows["grad-dot", None, None]["rho"] + 0.2
    assert ddm["group_lds"] > rows["grad-dot", None, None]["group_lds"] + 0.1
    assert ddm["rho"] > rows["undistilled, random start", "retain", 50]["rho"] + 0.1
    assert 0 < ddm["share_of_retraining"] < 1
    assert rows["one exact retraining", None, None]["rho"] <= 1


def test_mnist_groups():
    result = quick("mnist_groups", *mnist_data())
    check_told(result, "mnist_groups")
    rows = {r["estimator"]: r for r in result["mean"]}
    assert rows["DDM"]["group_lds"] > rows["grad-dot"]["group_lds"] > -1


def test_runs():
    result = quick("runs")
    check_told(result, "runs")
    assert set(result["runs"]) == {"digits"}
    assert result["runs"]["digits"]["peak_gib"] < 2
    assert 0 < result["runs"]["digits"]["test_accuracy"] <= 1


def test_dattri_protocol():
    result = quick("dattri_protocol", *mnist_data())
    check_told(result, "dattri_protocol")
    ceiling, grad_dot = result["rows"]
    assert 0 < grad_dot["value_one_run"] < ceiling["value_one_run"] < ceiling["value"] < 1
    assert grad_dot["counterfactuals"] == 12
    assert grad_dot["queries"] == 60
    assert grad_dot["published_one_run"] == 0.327


def test_convnet_groups():
    result = quick("convnet_groups", *mnist_data())
    check_told(result, "convnet_groups")
    found = result["presets"]["mnist-convnet"]
    assert set(found["ceilings"]) == {"leave-one-out", "LDS, keep 0.5"}
    assert all(row["runs_for_ceiling_0.8"] >= 1 for row in found["ceilings"].values())
    rows = {(row["estimator"], row["score"]): row for row in found["rows"]}
    assert len(rows) == 4
    for row in rows.values():
        assert -1 <= row["value"] <= 1
        assert row["online_seconds"] > 0
    assert rows["ddm", "leave-one-out"]["candidates"] == 2
    assert rows["ddm", "leave-one-out"]["queries"] == 45  # three quarters of 60


def test_mislabelled():
    result = quick("mislabelled")
    check_told(result, "mislabelled")
    rows = {(row["noise"], row["estimator"]): row for row in result["rows"]}
    assert len(rows) == 10
    # Ten per cent flips to any class are easy, those to the nearest class less so.
    assert rows["uniform", "training loss"]["auc"] > 0.9
    assert rows["nearest", "training loss"]["auc"] < rows["uniform", "training loss"]["auc"]
    assert rows["uniform", "without its own group, DDM"]["auc"] > 0.7
    for row in rows.values():
        assert row["found_0.05"] <= row["found_0.1"] <= row["found_0.2"] <= 1


def test_digits_removal():
    result = quick("digits_removal")
    check_told(result, "digits_removal")
    flipped = {row["estimator"]: row["flipped_8"] for row in result["brittleness"]}
    assert set(flipped) == {"exact order", "DDM", "grad-dot", "random"}
    assert flipped["DDM"] > flipped["random"] + 0.2
    best_first = {row["estimator"]: row["without_worst_area"] for row in result["curves"]}
    assert best_first["DDM"] > best_first["random"]


def test_kill_store():
    result = quick("kill_store")
    check_told(result, "kill_store")
    assert result["result"]["kills"] == 3
    assert result["result"]["kills_while_filling"] >= 1
    assert result["result"]["rows_lost"] == result["result"]["rows_repeated"] == 0
    assert result["result"]["equal_bits"] is True
