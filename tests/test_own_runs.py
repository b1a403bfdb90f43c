"""`ddm run` of data of one's own, to the report and the questions after it."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest
from command import ddm
from PIL import Image

from ddm_jax.attribution import Attribution

pytestmark = pytest.mark.slow
QUICK = [
    part
    for setting in (
        "model.hidden=8",
        "train.epochs=4",
        "train.batch_size=20",
        "distill.items=1",
        "distill.steps=20",
        "tune.subsets=0",
        "online.steps=5",
        "check.groups=2",
        "check.subsets=2",
        "check.seeds=2",
    )
    for part in ("--set", setting)
]
FIGURES = {"agreement", "matrix", "mistakes", "synset", "matching", "groups", "training"}


def finished(folder, *arguments):
    said = ddm("run", *arguments, "--workdir", folder, *QUICK)
    assert said.exit_code == 0, said.stderr
    assert {path.stem for path in (folder / "figures").glob("*.png")} == FIGURES
    assert (folder / "report.html").stat().st_size > 50_000
    return said


def table(path, seed: int = 0) -> None:
    """120 rows of texts, numbers and booleans, some missing; the label follows the age."""
    draw = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {
            "age": draw.integers(18, 80, 120).astype(float),
            "city": draw.choice(["Rome", "Oslo", "$\\frac$"], 120),
            "member": draw.random(120) < 0.5,
            "clinic": draw.choice(["north", "south", "-1"], 120),
        }
    )
    frame["label"] = np.where(frame["age"] > 50, "old", "young")
    frame.loc[[3, 40], "age"] = None
    frame.loc[7, "city"] = None
    frame.to_csv(path, index=False)


def test_a_table_of_texts_with_missing_values_and_groups(tmp_path):
    path, folder = tmp_path / "table.csv", tmp_path / "run"
    table(path)
    asked = (path, "--set", "data.missing=impute", "--set", "data.groups=clinic")
    said = finished(folder, *asked)
    for line in (
        "120 rows, the target is 'label' (data.target names another)",
        "2 classes: old, young",
        "numbers, standardised: age",
        "true or false: member",
        "categories, a column for each value: city (4)",
        "missing values filled: age (2), city (1)",
    ):
        assert line in said.stderr
    found = Attribution.load(folder / "attribution.npz")
    assert found.groups.names == ("north", "south")
    assert found.scores.shape == (2, 24)
    assert (np.asarray(found.groups.ids) == -1).any()
    for command in (
        ("points", "--query", "0,1"),
        ("quality", "--top", "6"),
        ("counterfactual", "--without", "south"),
    ):
        answer = ddm(command[0], "--workdir", folder, *command[1:])
        assert answer.exit_code == 0, answer.stderr
    assert "Without the groups south" in answer.stdout
    with np.load(folder / "answers" / "points.npz", allow_pickle=False) as kept:
        rows = np.concatenate([kept["train_ids"], kept["test_ids"]])
        assert kept["scores"].shape == (96, 2)
    np.testing.assert_array_equal(np.sort(rows), np.arange(120))
    wrong = ddm("counterfactual", "--workdir", folder, "--without", "sud")
    assert wrong.exit_code == 1
    assert "groups sud: name some of north, south, with commas between" in wrong.stderr

    assert "training the target network: done before" in finished(folder, *asked).stderr
    table(path, seed=1)
    again = finished(folder, *asked)
    assert "training the target network: again, for its input data" in again.stderr


def test_a_folder_of_digits(tmp_path):
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in range(150):
        place = tmp_path / "png" / f"number {digits.target[number]}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[number] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    said = finished(tmp_path / "run", tmp_path / "png")
    assert "150 images" in said.stderr
    told = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert told["model"]["kind"] == "mlp"
    assert told["cluster"]["num_groups"] == 12
    assert Attribution.load(tmp_path / "run" / "attribution.npz").scores.shape == (12, 30)


@pytest.mark.parametrize("kind", ["texts", "arrays"])
def test_texts_and_arrays(tmp_path, kind):
    if kind == "texts":
        words = np.array(["sun rain wind", "red green blue"])
        lines = [
            json.dumps({"text": f"{words[i % 2]} and {i % 7}", "label": i % 2}) for i in range(60)
        ]
        path = tmp_path / "lines.jsonl"
        path.write_text("\n".join(lines))
    else:
        x = np.random.default_rng(0).normal(size=(60, 5, 3)) + np.arange(60)[:, None, None] % 2
        path = tmp_path / "arrays.npz"
        np.savez(path, x=x, y=np.arange(60) % 2)
    finished(tmp_path / "run", path)
    answer = ddm("points", "--workdir", tmp_path / "run", "--query", "0")
    assert answer.exit_code == 0, answer.stderr


@pytest.mark.parametrize("kind", ["a number", "labels"])
def test_numbers_and_several_labels(tmp_path, kind):
    draw = np.random.default_rng(0)
    frame = pandas.DataFrame(draw.normal(size=(80, 3)), columns=["a", "b", "c"])
    if kind == "a number":
        frame["price"] = 1000 + 50 * frame["a"] + draw.normal(size=80)
        asked = ()
    else:
        frame["rain"], frame["wind"] = frame["a"] > 0, frame["b"] > 0.5
        asked = ("--set", "data.target=rain,wind")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    folder = tmp_path / "run"
    finished(folder, tmp_path / "rows.csv", *asked)
    told = json.loads((folder / "metrics.json").read_text())
    assert (told["objective"], told["lower_is_better"]) == ("loss", True)
    assert told["settings"]["cluster"]["method"] == "kmeans"
    assert "accuracy" not in told
    assert told["performance"]["name"] == ("R²" if asked == () else "accuracy of all labels")
    for command in (
        ("points", "--query", "0,1"),
        ("quality", "--top", "6"),
        ("counterfactual", "--without", "1"),
        ("forget", "--groups", "1"),
    ):
        answer = ddm(command[0], "--workdir", folder, *command[1:])
        assert answer.exit_code == 0, answer.stderr
    assert "mean losses" in answer.stdout or asked
    if asked == ():
        points = json.loads((folder / "answers" / "points.json").read_text())["table"]
        assert all(800 < float(row[1]) < 1200 for row in points[1:]), "in the data's own units"
    refused = ddm("forget", "--workdir", folder, "--class", "rain")
    assert refused.exit_code == 1
