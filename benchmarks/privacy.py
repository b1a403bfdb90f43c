"""What a synset shows of the training data, for items that start as real images and as noise.

Distance of each item to its nearest training image, in units of the median distance between a
training image and its nearest other one; the part of the items that are copies; how well the
distance to the synset tells training images from test images (AUC); and, on digits, what each
start is worth (rho and LDS, see digits_protocol.py). The figure shows items beside their nearest
training images.

    python benchmarks/privacy.py --data-dir DIR [--quick] [--partitions 10 11 12]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import protocol

from ddm_jax import candidates, config, privacy
from ddm_jax.plan import Plan, make_plan

DOCS = Path(__file__).parent.parent / "docs"
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
    plan: Plan, run: Any, groups: np.ndarray, ready: Any, steps: int
) -> tuple[list[dict[str, Any]], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """A row a start, before and after distillation, and what the figure shows."""
    train, test = plan.split.train, plan.split.test
    data, query = jax.device_put((train, test))
    rows, shown = [], {}
    for name, start in STARTS.items():
        for how, distilled in (("at the start", 0), ("distilled", steps)):
            settings = {
                "items": ITEMS,
                "start": start,
                "distill_steps": distilled,
                "steps": plan.config.online.steps,
                "rewind": plan.config.online.rewind,
            }
            made = candidates.make_ddm_candidate(plan, settings)
            state = made.fit(jax.random.key(0), run, data, groups)
            items = np.asarray(state.synset.x)
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
            told = [
                v if isinstance(v, str) else f"{k} {v:.3f}"
                for k, v in row.items()
                if isinstance(v, str | float)
            ]
            protocol.say("  " + ", ".join(told))
            if distilled:
                mass = np.asarray(state.synset.mass)
                some = np.linspace(0, len(mass) - 1, SHOWN).round().astype(int)
                places = some * ITEMS + mass[some].argmax(1)
                flat = items.reshape(-1, *items.shape[2:])
                shown[name] = (
                    plan.split.pixels(flat[places]),
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="where TFDS keeps prepared data")
    parser.add_argument("--quick", action="store_true", help="200 digits")
    parser.add_argument("--partitions", type=int, nargs="+", default=[10, 11, 12])
    options = parser.parse_args()
    seeds = options.partitions[: 1 if options.quick else None]
    shown = {}
    each = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            changes = QUICK if options.quick else ()
            place = Path(folder) if options.quick else None
            ready = protocol.prepare("digits", seed, *changes, folder=place)
            steps = 50 if options.quick else ready.plan.config.distill.steps
            rows, images = exposure_rows(ready.plan, ready.target, ready.groups, ready, steps)
            each.append([{"case": "digits, MLP"} | row for row in rows])
            shown.setdefault("digits", images)
    rows = protocol.average(each)
    if options.data_dir and not options.quick:
        each = []
        for seed in seeds:
            chosen = [f"seed={seed}", f"data.data_dir={options.data_dir}"]
            plan = make_plan(config.override(config.preset("mnist"), chosen))
            train = plan.split.train
            run = jax.jit(plan.trainer.train)(
                jax.random.key(seed), jax.device_put(train), jnp.ones(len(train.x))
            )
            groups = protocol.cluster(plan)
            found, images = exposure_rows(plan, run, groups, None, plan.config.distill.steps)
            each.append([{"case": "MNIST 5,000, MLP"} | row for row in found])
            shown.setdefault("MNIST", images)
        rows += protocol.average(each)
    content = {"settings": {"items": ITEMS}, "partitions": seeds, "rows": rows}
    protocol.write_json("privacy", options.quick, content)
    if not options.quick:
        figure(shown).savefig(DOCS / "privacy.png", dpi=110)


if __name__ == "__main__":
    main()
