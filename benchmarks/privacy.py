"""What a synset shows of the training data, for items that start as real images and as noise.

Distance of each item to its nearest training image, in units of the median distance between a
training image and its nearest other one; the part of the items that are copies; how well the
distance to the synset tells training images from test images (AUC); and, on digits, what each
start is worth (rho and LDS, see digits_protocol.py). The figure shows items beside their nearest
training images.

    python benchmarks/privacy.py --data-dir DIR [--quick] [--partitions 10 11 12]
"""

from __future__ import annotations

import dataclasses
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import protocol

import ddm_jax as ddm
from ddm_jax.metrics import privacy
from ddm_jax.run.plan import Plan
from ddm_jax.types import Groups

ITEMS = 5
STARTS = {"members, by pursuit": "pursuit", "random members": "random", "noise": "noise"}
SHOWN = 8
QUICK = (
    "data.train_size=200",
    "cluster.num_groups=10",
    "train.epochs=20",
    "distill.distance=squared",
    "truth.seeds=2",
    "truth.subsets=6",
    "truth.subset_seeds=2",
)


def exposure_rows(
    plan: Plan, run: Any, groups: Groups, ready: Any, steps: int
) -> tuple[list[dict[str, Any]], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A row a start, before and after distillation, and what the figure shows."""
    train, test = plan.split.train, plan.split.test
    data, query = protocol.placed(plan)
    problem = plan.truth
    rows, shown = [], {}
    for name, start in STARTS.items():
        for how, distilled in (("at the start", 0), ("distilled", steps)):
            changes = {"items": ITEMS, "start": start, "steps": distilled}
            distill = dataclasses.replace(problem.distill, **changes)
            made = ddm.make_ddm(problem.task, distill, problem.update)
            state = made.fit(jax.random.key(0), run, data, groups)
            items = np.asarray(state.synset.items.x)
            found = privacy.nearest_training_points(items, train.x)
            row: dict[str, Any] = {"start": name, "how": how}
            row["distance"] = float(np.median(found.distance) / found.typical)
            row["copies"] = found.copies
            row["membership"] = privacy.membership_by_distance(items, train.x, test.x)
            if ready is not None:
                row |= protocol.score_effects(ready, np.asarray(made.score(state, query)))
                assert made.outputs is not None
                halves = np.asarray(made.outputs(state, ready.truth.masks, query))
                row |= protocol.score_subsets(ready, halves)
            rows.append(row)
            harness.say(harness.told(row))
            if distilled:
                mass = np.asarray(state.synset.mass).reshape(-1, ITEMS)
                some = np.linspace(0, len(mass) - 1, SHOWN).round().astype(int)
                places = some * ITEMS + mass[some].argmax(1)
                shown[name] = (
                    plan.split.pixels(items[places]),
                    plan.split.pixels(train.x[found.nearest[places]]),
                )
    return rows, shown


def figure(shown: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> Any:
    """Items, and under each the training image nearest to it."""
    from matplotlib.figure import Figure

    lines = [(case, start) for case, starts in shown.items() for start in starts]
    figure = Figure(figsize=(1.7 + SHOWN * 0.85, 1.75 * len(lines)), layout="constrained")
    grid = figure.subplots(2 * len(lines), SHOWN + 1, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for place, (case, start) in enumerate(lines):
        texts = (f"{case}\nstart: {start}\nsynthetic items", "nearest\ntraining images")
        for half, (text, images) in enumerate(zip(texts, shown[case][start], strict=True)):
            line = grid[2 * place + half]
            line[0].text(1.0, 0.5, text, ha="right", va="center", fontsize=8)
            for axes, image in zip(line[1:], images, strict=True):
                axes.imshow(image.squeeze(), cmap="gray_r", vmin=0, vmax=1)
    return figure


def main() -> None:
    """Measure every start and write the results."""
    options = harness.arguments(__doc__, quick="200 digits", data=True)
    shown: dict[str, Any] = {}
    each = []
    for seed in options.partitions:
        ready = protocol.prepare(options, "digits", seed, *(QUICK if options.quick else ()))
        steps = 50 if options.quick else ready.plan.config.distill.steps
        rows, images = exposure_rows(ready.plan, ready.target, ready.groups, ready, steps)
        each.append([{"case": "digits, MLP"} | row for row in rows])
        shown.setdefault("digits", images)
    rows = harness.average(each)
    if options.data_dir and not options.quick:
        each = []
        for seed in options.partitions:
            plan = protocol.plan_of(options, "mnist", seed)
            data, _ = protocol.placed(plan)
            train = jax.jit(plan.trainer.train)
            run = train(jax.random.key(seed), data, jnp.ones(len(data.x)))
            steps = plan.config.distill.steps
            found, images = exposure_rows(plan, run, protocol.cluster(plan), None, steps)
            each.append([{"case": "MNIST 5,000, MLP"} | row for row in found])
            shown.setdefault("MNIST", images)
        rows += harness.average(each)
    harness.write(options, {"settings": {"items": ITEMS}, "rows": rows})
    if not options.quick:
        figure(shown).savefig(harness.DOCS / "privacy.png", dpi=110)


if __name__ == "__main__":
    main()
