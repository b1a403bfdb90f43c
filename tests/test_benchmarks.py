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
    if not DATA.exists():
        pytest.skip(f"needs prepared MNIST in {DATA.relative_to(ROOT.parent)} beside the project")
    result = quick("mnist_groups", "--data-dir", str(DATA))
    check_told(result, "mnist_groups")
    rows = {r["estimator"]: r for r in result["mean"]}
    assert rows["DDM"]["group_lds"] > rows["grad-dot"]["group_lds"] > -1


def test_runs():
    result = quick("runs")
    check_told(result, "runs")
    assert set(result["runs"]) == {"digits"}
    assert result["runs"]["digits"]["peak_gib"] < 2
    assert 0 < result["runs"]["digits"]["test_accuracy"] <= 1
