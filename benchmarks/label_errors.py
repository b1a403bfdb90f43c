"""Real label errors: those of MNIST's test set, found among its 10,000 labels.

Nothing is planted. The errors are the images of which five people, asked about each image that a
cross-validated network doubted, did not confirm the given label by three votes or more (Northcutt,
Athalye & Mueller, "Pervasive label errors in test sets destabilize machine learning benchmarks",
2021, arXiv 2103.14749; 100 images were asked about, so that errors no network doubts are not
among them). The test set is the training data here; no test points are looked at. One setting was
changed after these errors had been looked at, `values.kernel.BLOCK`, from 4,000 points to all of
them; no other was chosen on it. Partitions are seeds of the networks, folds and planted flips.

    python benchmarks/label_errors.py --data-dir DIR [--quick] [--partitions 10 11 12]
"""

from __future__ import annotations

import argparse
from typing import Any

import harness
import numpy as np
import protocol
from quality import scores

from ddm_jax import metrics
from ddm_jax.data import Split

# MNIST's test images that people would label otherwise, in the order of the original file, and the
# label that each has.
ERRORS = {947: 8, 1621: 0, 1901: 9, 2130: 4, 2462: 2, 2597: 5, 2654: 6, 3520: 6, 3558: 5, 5937: 5}
ERRORS |= {6651: 0, 6783: 1, 8527: 4, 9679: 6, 9729: 5}
LOOKED_AT = (15, 50, 100, 200)
SHOWN = 30
SCORES = (
    "training loss",
    "area under the margin",
    "self-confidence, 5 folds",
    "complexity gap",
    "self-influence",
    "*mislabelled*",
    "*kernel margins*",
)


def seed_rows(seed: int, options: argparse.Namespace) -> tuple[list[dict[str, Any]], Any]:
    """How early each score names the errors, and what the last figure needs."""
    size = 2700 if options.quick else 10_000
    changes = [f"data.train_size={size}", f"data.test_size={size}", "data.order=original"]
    changes += ["train.epochs=5"] if options.quick else []
    plan = protocol.plan_of(options, "mnist", seed, *changes)
    bad = np.isin(np.arange(size), list(ERRORS))
    labels = plan.split.test.y.argmax(1)
    if any(labels[index] != label for index, label in ERRORS.items() if index < size):
        raise ValueError("the test images are not in the order of the original file")
    found = scores(plan, plan.split.test, seed, np.arange(0), "real")
    rows = []
    for name in SCORES:
        values = found[name].values
        told = metrics.detection(values, bad, tuple(count / size for count in LOOKED_AT))
        row: dict[str, Any] = {"score": name, "errors": int(bad.sum()), "auc": told.auc}
        row["average_precision"] = told.average_precision
        for count, share in zip(LOOKED_AT, told.found, strict=True):
            row[f"among_{count}"] = float(share * bad.sum())
        rows.append(row | {"seconds": found[name].seconds})
        harness.say(f"{seed}: {rows[-1]}")
    return rows, (
        plan.split,
        np.argsort(-found["*mislabelled*"].values, kind="stable")[:SHOWN],
        bad,
    )


def figure(split: Split, order: np.ndarray, bad: np.ndarray) -> Any:
    """The most suspect labels, those that people would change in red."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    grid = figure.subplots(3, SHOWN // 3)
    for axes, index in zip(grid.ravel(), order, strict=True):
        wrong = bool(bad[index])
        image = split.pixels(split.test.x[index]).squeeze()
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("tab:red" if wrong else "0.8")
        axes.set_title(
            f"“{split.classes[int(split.test.y[index].argmax())]}”",
            color="tab:red" if wrong else "black",
            fontsize=10,
        )
    return figure


def main() -> None:
    """Look for the errors with every score, and write the results."""
    options = harness.arguments(__doc__, quick="the first 2,700 images", data=True)
    each = [seed_rows(seed, options) for seed in options.partitions]
    content = {
        "settings": {"looked_at": LOOKED_AT},
        "rows": harness.average([rows for rows, _ in each]),
    }
    harness.write(options, content)
    if not options.quick:
        figure(*each[0][1]).savefig(harness.DOCS / "label_errors.png", dpi=110)


if __name__ == "__main__":
    main()
