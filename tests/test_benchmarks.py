"""The quick form of each benchmark runs, and says what it must: long, as each is a process."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "tensorflow_datasets"


pytestmark = pytest.mark.slow


def quick(name, folder, *words):
    """The result of a quick form, which is written to a folder of the test."""
    result = folder / f"{name}.json"
    subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--quick", "--output", str(result), *words],
        cwd=ROOT,
        # Half of a quick form is compilation: the least of it, as no number here is a measurement.
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        check=True,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    return json.loads(result.read_text())


def check_told(result, name):
    assert result["command"].startswith(f"python benchmarks/{name}.py --quick")
    assert result["versions"]["jax"]
    assert result["cores"] >= 1
    assert result["seconds"] > 0
    assert len(result["partitions"]) == 1
    assert str(ROOT) not in json.dumps(result)


def mnist_data():
    if not DATA.exists():
        pytest.skip(f"needs prepared MNIST in {DATA.relative_to(ROOT.parent)} beside the project")
    return ["--data-dir", str(DATA)]


def needs(*libraries):
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: python -m pip install '.[benchmarks]'")


def test_digits_protocol(tmp_path):
    result = quick("digits_protocol", tmp_path)
    check_told(result, "digits_protocol")
    rows = {(r["estimator"], r.get("update"), r.get("steps")): r for r in result["mean"]}
    ddm = rows["DDM", "retain", 50]
    assert ddm["rho"] > rows["grad-dot", None, None]["rho"] + 0.2
    assert ddm["group_lds"] > rows["grad-dot", None, None]["group_lds"] + 0.1
    assert ddm["rho"] > rows["undistilled, random start", "retain", 50]["rho"] + 0.1
    assert 0 < ddm["share_of_retraining"] < 1
    assert rows["one exact retraining", None, None]["rho"] <= 1


def test_mnist_groups(tmp_path):
    result = quick("mnist_groups", tmp_path, *mnist_data())
    check_told(result, "mnist_groups")
    rows = {r["estimator"]: r for r in result["mean"]}
    assert rows["DDM"]["group_lds"] > rows["grad-dot"]["group_lds"] > -1


def test_unseen(tmp_path):
    result = quick("unseen", tmp_path)
    check_told(result, "unseen")
    (row,) = result["rows"]
    assert row["case"] == "modules"
    for score in ("LDS, keep 0.5", "leave-one-out"):
        for who in ("synset", "data", "one retraining"):
            assert -1 <= row[f"{who}, {score}"] <= 1
    assert row[f"{row['pool']}, LDS, keep 0.5"] > 0
    assert all(0.5 < row["coverage"][kind] <= 1 for kind in ("halves", "single groups"))
    assert row["short retraining"] is not None


def test_language(tmp_path):
    result = quick("language", tmp_path, "--planted", "0")
    check_told(result, "language")
    found = result["protocols"]["installed"]
    assert found["documents"] == 27
    assert found["tokens_per_retraining"] > 0
    rows = {(row["estimator"], row.get("score")): row for row in found["rows"]}
    for name in ("ddm", "grad_dot", "own document"):
        for score in ("LDS, keep 0.5", "leave-one-out"):
            assert -1 <= rows[name, score]["value"] <= 1
    assert rows["own document", "LDS, keep 0.5"]["value"] > 0  # each query is of a document


def test_language_memory(tmp_path):
    result = quick("language_memory", tmp_path)
    check_told(result, "language_memory")
    assert result["finite"]
    assert [stage["peak_gb"] > 0 for stage in result["stages"]] == [True] * 3


def test_cifar10_whole(tmp_path):
    result = quick("cifar10_whole", tmp_path, *mnist_data())
    check_told(result, "cifar10_whole")
    (row,) = result["rows"]
    assert (row["estimator"], row["score"]) == ("grad_dot", "LDS, keep 0.5")
    assert -1 <= row["value"] <= row["ceiling"] <= 1
    assert (result["groups"], result["queries"]) == (10, 50)


def test_few_items(tmp_path):
    result = quick("few_items", tmp_path)
    check_told(result, "few_items")
    rows = [row for row in result["rows"] if "items" in row]
    assert [row["pools"] for row in rows] == ["synset", "synset,corrected"]
    for row in rows:
        assert 0.3 < row["halves"] <= 1
        assert 0 < row["single"] <= 1
        assert 0 < row["unmatched"] < 0.5


def test_shakespeare(tmp_path):
    result = quick("shakespeare", tmp_path)
    check_told(result, "shakespeare")
    rows = {row["estimator"]: row for row in result["rows"]}
    assert -1 <= rows["grad-dot"]["LDS"] <= 1
    assert result["one_retraining"] <= result["perfect"] <= 1
    assert result["halves"] == result["again"] == 4
    if importlib.util.find_spec("dattri") is not None:  # the same weights and the same scores
        assert abs(rows["dattri: TracIn"]["LDS"]) <= 1


def test_runs(tmp_path):
    result = quick("runs", tmp_path)
    check_told(result, "runs")
    assert set(result["runs"]) == {"digits"}
    assert result["runs"]["digits"]["peak_gib"] < 2
    assert 0 < result["runs"]["digits"]["test_accuracy"] <= 1


def test_comparison(tmp_path):
    result = quick("comparison", tmp_path)
    check_told(result, "comparison")
    judged = {(r["estimator"], r["score"]): r for r in result["protocols"]["digits"]["rows"]}
    assert len(judged) == 4
    for row in judged.values():
        assert -1 <= row["value"] <= 1
        assert row["online_gflop"] > 0
        assert row["peak_gib"] > 0.1
    assert judged["ddm", "LDS, keep 0.5"]["candidates"] == 6
    assert result["protocols"]["digits"]["seconds_per_retraining"] > 0
    found = {r["estimator"]: r for r in result["protocols"]["mislabelled digits"]["rows"]}
    assert set(found) == {"ddm", "grad_dot"}
    assert all(0.5 < row["auc"] <= 1 for row in found.values())


def test_digits_removal(tmp_path):
    result = quick("digits_removal", tmp_path)
    check_told(result, "digits_removal")
    flipped = {row["estimator"]: row["flipped_8"] for row in result["brittleness"]}
    assert set(flipped) == {"exact order", "DDM", "grad-dot", "random"}
    assert flipped["DDM"] > flipped["random"] + 0.2
    best_first = {row["estimator"]: row["without_worst_area"] for row in result["curves"]}
    assert best_first["DDM"] > best_first["random"]


def test_kill_store(tmp_path):
    result = quick("kill_store", tmp_path)
    check_told(result, "kill_store")
    assert result["result"]["kills"] == 3
    assert result["result"]["kills_while_filling"] >= 1
    assert result["result"]["rows_lost"] == result["result"]["rows_repeated"] == 0
    assert result["result"]["equal_bits"] is True


def test_torch_steps(tmp_path):
    needs("torch")
    result = quick("torch_steps", tmp_path)
    check_told(result, "torch_steps")
    rows = {(row["network"], row["step"]): row for row in result["rows"]}
    assert len(rows) == 4
    for row in rows.values():
        assert row["difference"] < 1e-4
        others = set(row["milliseconds"]) - {"jax"}
        assert others == {
            "loop",
            "vmap",
            "loop, channels last" if "ConvNet" in row["network"] else "stacked",
        }
        best = min(row["milliseconds"][form] for form in others)
        assert row["ratio_to_best"] == pytest.approx(row["milliseconds"]["jax"] / best)
    # 4 examples of 3 models through 64-64-10: forward, kernel gradients, one error signal.
    dense = rows["MLP 64-64-10", "fine-tune"]
    assert dense["operations_a_step"] == 12 * 2 * (2 * 64 * 64 + 3 * 64 * 10)
    # 2 items of 3 groups, all seven products of each layer but two of the first.
    matching = rows["MLP 64-64-10", "matching"]
    assert matching["operations_a_step"] == 6 * 2 * (5 * 64 * 64 + 7 * 64 * 10)
    # 8x8x2 through width 4, halved to 4x4x4, halved to 2x2x4.
    assert rows["ConvNet w4, 8x8x2", "matching"]["operations_a_step"] == 6 * 2 * (
        5 * 64 * 18 * 4 + 7 * (16 * 36 * 4 + 16 * 10)
    )


def test_torch_steps_without_torch(tmp_path):
    """A plain word about what to install, before anything else."""
    (tmp_path / "torch.py").write_text("raise ImportError('none here')")
    done = subprocess.run(
        [sys.executable, "benchmarks/torch_steps.py", "--quick"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 1
    assert "python -m pip install '.[benchmarks]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_peers(tmp_path):
    needs("torch", "dattri", "trak")
    result = quick("peers", tmp_path, *mnist_data())
    check_told(result, "peers")
    assert set(result["peers"]) == {"torch", "dattri", "traker"}
    rows = {row["estimator"]: row for row in result["rows"]}
    assert len(rows) == 6
    assert [row["error"] for row in rows.values() if "error" in row] == []
    ours, theirs = rows["ddm_jax: grad-dot"], rows["dattri: grad-dot"]
    assert theirs["agreement_with_ours"] > 0.99
    assert theirs["value"] == pytest.approx(ours["value"], abs=0.01)
    for row in rows.values():
        assert (row["counterfactuals"], row["queries"]) == (9, 45)  # three quarters of each
        assert -1 <= row["value"] <= 1
        assert row["online_seconds"] > 0
    influence = rows["dattri: influence, CG"]
    assert len(influence["tuning_values"]) == 6  # as many as `ddm compare` allows
    assert influence["tuning_values"][str(influence["damping"])] == max(
        influence["tuning_values"].values()
    )


def test_a_peer_that_fails_keeps_its_row(tmp_path, monkeypatch):
    needs("torch", "dattri")
    (tmp_path / "trak.py").write_text("raise ImportError('no such projector')")
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), before]))
    result = quick("peers", tmp_path, *mnist_data())
    row = next(row for row in result["rows"] if row["estimator"] == "traker: TRAK-1")
    assert row["error"] == "ImportError: no such projector"
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    render = importlib.import_module("render")
    shown = render.table(render.TABLES["peers"], result)
    assert "failed: ImportError: no such projector" in shown


def test_convolutions(tmp_path):
    result = quick("convolutions", tmp_path)
    check_told(result, "convolutions")
    assert len(result["layers"]) == 3 * 3 * 2  # orders, forms, placements
    assert all(row["gflops_a_second"] > 0 for row in result["layers"])
    (cut,) = result["pieces"]
    assert 1 <= cut["piece"] <= cut["batch"]


def test_scaling(tmp_path):
    result = quick("scaling", tmp_path)
    check_told(result, "scaling")
    one, two = result["rows"]
    assert (one["devices"], one["blocks"]) == (1, 1)
    assert (two["devices"], two["blocks"]) == (2, 2)
    assert one["num_params"] == 784 * 16 + 16 + 16 * 64 + 64 + 64 * 10 + 10
    for row in result["rows"]:
        assert row["peak_bytes"] > row["start_bytes"] > 0
        assert row["online_seconds"] > 0
        assert row["expected_bytes"]["gradients"] == 4 * 8 * 10 * row["num_params"]


def test_cost(tmp_path):
    result = quick("cost", tmp_path, *mnist_data())
    check_told(result, "cost")
    (row,) = result["rows"]
    assert row["example_gradients"] == 50 * 5 * 10
    assert row["retraining_example_gradients"] == 10 * 200
    assert [short["epochs"] for short in row["short"]] == [1, 2, 5, 10]
    assert row["rival"] in [*row["short"], row["retraining"]]
    assert row["lds"] > 0


def test_tasks(tmp_path):
    result = quick("tasks", tmp_path)
    check_told(result, "tasks")
    assert result["case"] == "diabetes"
    for name in ("retraining", "ddm"):
        (rows,) = result["rows"][name]
        assert [row["score"] for row in rows] == ["leave-one-out", "LDS, keep 0.5"]
        assert all(-1 <= row["value"] <= 1 for row in rows)
    assert result["rows"]["ddm"][0][1]["candidates"] == 6
