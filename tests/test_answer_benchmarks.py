"""The quick forms of the benchmarks of answers run, and say what they must."""

from test_benchmarks import check_told, quick


def test_points():
    result = quick("points")
    check_told(result, "points")
    rows = {row["estimator"]: row for row in result["digits"]}
    assert 0.3 < rows["synset, M=1"]["group_lds"] < rows["perfect predictor"]["group_lds"]


def test_hierarchy():
    result = quick("hierarchy")
    check_told(result, "hierarchy")
    rows = {row["estimator"]: row for row in result["hierarchy"]}
    assert rows["flat"]["updates"] == 41
    assert rows["1 opened, the rest by points"]["updates"] == 16
    by_size = [rows[f"{opened} opened, the rest by size"]["pearson"] for opened in (0, 3)]
    assert by_size[0] < by_size[1] < rows["flat"]["pearson"] + 0.05
    sums = {(row["subsets"], row["by"]): row for row in result["additivity"]}
    halves = sums["halves", "distilled datamodel"]
    assert halves["joint_to_truth"] > halves["sum_to_truth"]


def test_unlearning():
    result = quick("unlearning")
    check_told(result, "unlearning")
    rows = {(row["gone"][:5], row["method"]): row for row in result["rows"]}
    assert rows["class", "retraining"]["forgotten"] == 0
    assert rows["class", "synset"]["forgotten"] < rows["class", "nothing"]["forgotten"]
    assert rows["class", "retraining"]["within"] == 3
