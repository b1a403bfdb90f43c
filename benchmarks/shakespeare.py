"""dattri's Shakespeare protocol in nanoGPT's size for a CPU: which blocks taught it a block?

The first nine tenths of the text are training data, the rest is what is asked, both cut into
consecutive blocks of 64 characters. A GPT of four layers (.8 million parameters) is trained for
three epochs; truth: random halves of the training blocks, a network trained on each alone. The LDS
is taken for each test block over the halves. The network and its training follow nanoGPT's
`train_shakespeare_char` for CPUs (batch 12, 2,000 steps, AdamW) without its warm-up; the protocol
is that of dattri (arXiv 2410.04555).

    JAX_NUM_CPU_DEVICES=2 python benchmarks/shakespeare.py --text input.txt [--quick] [--halves 50]

Two halves side by side take some three minutes on two cores, the network of all blocks four, a
pass of gradients of single blocks three, and steps at a tenth of a retraining sixteen for all
halves. What networks and estimators say is kept in `results/shakespeare_said.json` as it comes, and
a later call goes on from there.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from harness import say

import ddm_jax as ddm
from ddm_jax import estimators, metrics, models, tasks
from ddm_jax.data.language import CORPUS
from ddm_jax.estimators.ddm import distilled_run, find_stable, make_outputs, undistilled
from ddm_jax.estimators.retraining import retrained_outputs, subset_retraining_response
from ddm_jax.recipes import at_cost
from ddm_jax.synset import all_members
from ddm_jax.train import Trainer, TrainSettings, recipe
from ddm_jax.types import Batch, Groups, Task, TrainRun, length, take

BLOCK, WIDTH, DEPTH, HEADS = 64, 128, 4, 4
EPOCHS, BATCH, RATE, DECAY, CLIP = 3, 12, 1e-3, 0.1, 1.0
QUERIES = 100
# As on the documents of language.py, on another text; of columns as many as dattri's, for 2,048 of
# .8 million parameters take 27 GB.
DAMPINGS, PROJECTION = {"ekfac": 1e-4, "trak": 1.0}, 512
UPDATE = ddm.UpdateSettings(rewind=0.75, momentum=0.95)
STEPS = {f"steps on what is kept, {share:g} of a retraining": share for share in (0.1, 0.33)}
FEW, MORE = STEPS
ESTIMATORS = (
    *(FEW, "dattri: TRAK-1", "TRAK-1", "grad-dot", "dattri: TracIn", "EK-FAC", "grad-cos", MORE),
)
QUICK = (FEW, "grad-dot", "dattri: TracIn")
AGAIN = 12  # halves that are retrained with a second seed, for the ceiling


class Ready(NamedTuple):
    """The protocol's data and training."""

    task: Task
    train: Batch
    test: Batch
    heads: int


def cut(text: str, characters: str) -> list[list[int]]:
    """Consecutive blocks, each with the character after it, which is only predicted."""
    place = {each: index for index, each in enumerate(characters)}
    ids = [place[each] for each in text]
    count = (len(ids) - 1) // BLOCK
    return [ids[i * BLOCK : (i + 1) * BLOCK + 1] for i in range(count)]


def make_ready(text: str, quick: bool) -> Ready:
    """Cut the text, and make the network's task."""
    characters = "".join(sorted(set(text)))
    border = len(text) * 9 // 10
    train, test = cut(text[:border], characters), cut(text[border:], characters)
    if quick:
        train, test = train[:96], test[:200]
    draw = np.random.default_rng(0)
    asked = np.sort(draw.choice(len(test), min(QUERIES, len(test)), replace=False))
    size = {"context": BLOCK + 1, "width": WIDTH, "depth": DEPTH, "heads": HEADS}
    size |= {"width": 16, "depth": 1, "heads": 2} if quick else {}
    vocabulary = len(characters)
    task = tasks.language(lambda rngs: models.GPT(vocabulary, **size, rngs=rngs), context=BLOCK + 1)
    data, query = (
        tasks.sequences(rows, BLOCK + 1, vocabulary)
        for rows in (train, [test[index] for index in asked])
    )
    return Ready(task, data, query, size["heads"])


def trainer_of(ready: Ready, num_points: int) -> Trainer:
    """nanoGPT's training, on so many blocks."""
    settings = TrainSettings(
        epochs=EPOCHS,
        batch_size=BATCH,
        learning_rate=RATE,
        final_learning_rate=RATE / 10,
        optimizer="adamw",
        weight_decay=DECAY,
        clip=CLIP,
    )
    return recipe(ready.task, settings, num_points)


def masks_of(count: int, halves: int) -> np.ndarray:
    """Random halves of the blocks, [R, N]; the first ones are the same for any R."""
    masks = np.zeros((halves, count), np.float32)
    for row in range(halves):
        masks[row, np.random.default_rng((7, row)).permutation(count)[: count // 2]] = 1
    return masks


class Said(NamedTuple):
    """What is said of the test blocks, kept in a file as it comes."""

    file: Path
    retrained: dict[str, list[float]]  # of "seed-half", [Q]
    predicted: dict[str, dict[str, Any]]  # of an estimator: "outputs" [R, Q], and "seconds"

    def keep(self) -> None:
        """Write the file."""
        text = json.dumps({"retrained": self.retrained, "predicted": self.predicted})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.with_suffix(".part").write_text(text)
        self.file.with_suffix(".part").replace(self.file)


def read_said(file: Path) -> Said:
    """What was said before."""
    return Said(
        file,
        **(json.loads(file.read_text()) if file.exists() else {"retrained": {}, "predicted": {}}),
    )


def rounded(values: Any) -> list[Any]:
    """Numbers as they are kept."""
    values = np.asarray(values, float)
    return [float(f"{each:.5g}") if values.ndim == 1 else rounded(each) for each in values]


def retrain(ready: Ready, said: Said, halves: int, limit: float) -> None:
    """What networks of the halves say, as far as it is missing."""
    count = length(ready.train)
    response = subset_retraining_response(
        trainer_of(ready, count // 2).train, ready.task.output, count // 2
    )
    every = Groups(jnp.arange(count), count)
    outputs = retrained_outputs(response)
    masks, begin = masks_of(count, halves), time.perf_counter()
    data, query = jax.device_put((ready.train, ready.test))
    asked = [(0, row) for row in range(halves)] + [(1, row) for row in range(min(AGAIN, halves))]
    missing = [(seed, row) for seed, row in asked if f"{seed}-{row}" not in said.retrained]
    side_by_side = jax.device_count()  # a network is small: each has a core of its own
    for place in range(0, len(missing), side_by_side):
        if time.perf_counter() - begin > limit:
            break
        some = missing[place : place + side_by_side]
        keys = jnp.stack([jax.random.key(1000 * (seed + 1) + row) for seed, row in some])
        found = outputs(masks[[row for _, row in some]], keys, data, every, query)
        for (seed, row), outputs_of in zip(some, np.asarray(found, float), strict=True):
            said.retrained[f"{seed}-{row}"] = rounded(outputs_of)
            say(f"  half {row}, seed {seed}: mean {outputs_of.mean():.3f}")
        said.keep()


def predict(ready: Ready, said: Said, halves: int, names: list[str]) -> None:
    """What estimators say of all halves, as far as it is missing."""
    missing = [name for name in names if name not in said.predicted]
    if not missing:
        return
    count = length(ready.train)
    masks, trainer = masks_of(count, halves), trainer_of(ready, count)
    data, query = jax.device_put((ready.train, ready.test))
    key, every = jax.random.key(7), jnp.ones(count, jnp.float32)
    run, seconds = harness.once(jax.jit(trainer.train), key, data, every)
    say(f"  the network: {seconds:.0f} s")
    groups = Groups(jnp.arange(count), count)
    made: dict[str, Any] = {
        "grad-dot": estimators.make_grad_dot(ready.task),
        "grad-cos": estimators.make_grad_cos(ready.task),
        "EK-FAC": estimators.make_ekfac(ready.task, damping=DAMPINGS["ekfac"]),
        "TRAK-1": estimators.make_trak(
            ready.task, trainer.train, projection=PROJECTION, damping=DAMPINGS["trak"]
        ),
    }

    def additive(name: str) -> tuple[Any, float]:
        estimator, begin = made[name], time.perf_counter()
        scores = estimator.score(estimator.fit(jax.random.key(1), run, data, groups), query)
        outputs = metrics.additive_outputs(np.asarray(scores), masks)
        return outputs, time.perf_counter() - begin

    def steps(name: str) -> tuple[Any, float]:
        synset = all_members(ready.task, data, groups)
        state = distilled_run(run, synset, undistilled(synset))
        update = at_cost(UPDATE, STEPS[name], count * EPOCHS, count)
        begin = time.perf_counter()
        outputs = make_outputs(ready.task, update, stable=find_stable(ready.task, update, state))
        found = []
        for place in range(0, len(masks), jax.device_count()):
            found += list(
                np.asarray(outputs(state, masks[place : place + jax.device_count()], query))
            )
        return found, time.perf_counter() - begin

    for name in missing:
        of = additive if name in made else steps if name in STEPS else dattri
        given = (ready, run, masks) if of is dattri else ()
        try:
            outputs, taken = of(name, *given)
        except (ImportError, SystemExit, ValueError) as error:  # the others go on
            say(f"  {name}: {error}")
            continue
        said.predicted[name] = {"outputs": rounded(outputs), "seconds": taken}
        say(f"  {name}: {taken:.0f} s")
        said.keep()


def rows_of(said: Said, halves: int) -> list[dict[str, Any]]:
    """How well each agrees with the halves that were retrained."""
    truth, rows = retrained_of(said, 0, halves), []
    for name, kept in said.predicted.items():
        predicted = np.asarray(kept["outputs"])[: len(truth)]
        agreement = metrics.linear_datamodeling_score(predicted, truth)
        rows.append(
            {
                "estimator": name,
                "LDS": agreement.mean,
                "over_queries": list(agreement.over_queries),
                "seconds": kept["seconds"],
            }
        )
        say(harness.told(rows[-1]))
    return sorted(rows, key=lambda row: -row["LDS"])


def ceiling_of(said: Said, halves: int) -> dict[str, float]:
    """What another network of the same half scores, and who knew what is expected of it."""
    again = retrained_of(said, 1, halves)
    if len(again) < 2:
        return {}
    both = np.stack([retrained_of(said, 0, halves)[: len(again)], again])
    alike = metrics.noise_ceiling(both).reliability  # of one network: the truth is one a half
    return {"one_retraining": alike, "perfect": max(alike, 0) ** 0.5, "again": len(again)}


def dattri(name: str, ready: Ready, run: TrainRun, masks: np.ndarray) -> tuple[Any, float]:
    """What dattri's own TRAK or TracIn says on the same weights.

    Raises:
        ImportError: where it is not installed.
    """
    import torch_gpt

    train, test = (np.asarray(part.x["tokens"]) for part in (ready.train, ready.test))
    networks = [
        torch_gpt.TorchGPT(jax.tree.map(np.asarray, take(run.checkpoints, place)), ready.heads)
        for place in range(1, length(run.checkpoints))
    ]
    ours = ready.task.apply and ready.task.apply(run.params, take(ready.test, slice(4)).x)
    torch_gpt.check_same(networks[-1], test[:4], np.asarray(ours))
    if name == "dattri: TracIn":
        scores, seconds = torch_gpt.dattri_tracin(networks, [RATE] * len(networks), train, test)
    else:
        scores, seconds = torch_gpt.dattri_trak(networks[-1], train, test)
    return metrics.additive_outputs(scores, masks), seconds


def retrained_of(said: Said, seed: int, halves: int) -> np.ndarray:
    """What networks of a seed say, [R, Q]: of the first halves, as far as they are there."""
    there = next((row for row in range(halves) if f"{seed}-{row}" not in said.retrained), halves)
    return np.asarray([said.retrained[f"{seed}-{row}"] for row in range(there)])


def main() -> None:
    """Predict and retrain what is missing, judge, and write."""
    options = harness.arguments(
        __doc__,
        quick="96 blocks, a tiny network, 4 halves",
        partitions=(0,),
        text={"type": Path, "help": "tinyshakespeare.txt; the small form has its own"},
        halves={"type": int, "default": 50},
        minutes={"type": float, "default": 1e9, "help": "stop retraining after so many"},
        estimators={"nargs": "*", "default": ESTIMATORS, "choices": ESTIMATORS},
    )
    if options.quick:
        text, halves = "".join(file.read_text() for file in sorted(CORPUS.glob("plays/*"))), 4
    elif options.text is None:
        raise SystemExit("name the text: --text tinyshakespeare.txt")
    else:
        text, halves = options.text.read_text(), options.halves
    ready = make_ready(text, options.quick)
    said = read_said((options.work if options.quick else harness.RESULTS) / "shakespeare_said.json")
    predict(ready, said, halves, list(QUICK if options.quick else options.estimators))
    retrain(ready, said, halves, 60 * options.minutes)
    count = len(retrained_of(said, 0, halves))
    if count < 2:
        raise SystemExit(f"{count} halves are retrained, and two are needed; raise --minutes")
    content = {
        "blocks": length(ready.train),
        "queries": length(ready.test),
        "halves": count,
        "rows": rows_of(said, halves),
        **ceiling_of(said, halves),
    }
    harness.write(options, content)


if __name__ == "__main__":
    main()
