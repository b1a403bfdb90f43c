"""Which document taught it that: rivals on fine-tuned language models, and a planted fact.

The preset `language`: 27 documents of three kinds, a GPT of bytes that was trained on other text,
three epochs. Truth: random halves of the documents, and each alone, retrained with two seeds. All
are judged alike (`ddm compare`): settings chosen on a quarter of the halves and queries, scores on
the rest. Beside them what needs no network: BM25 between the words of a query and of a document,
and whether the query's own document is kept. The planted fact is a sentence about a town that is
nowhere, put into one document; the question is its likelihood after its beginning.

    python benchmarks/language.py [--quick] [--partitions 10] [--estimators ddm grad_dot ...]

BM25 needs rank_bm25: python -m pip install '.[benchmarks]'.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, NamedTuple

import harness
import jax
import numpy as np
from harness import say
from protocol import PROGRESS

import ddm_jax as ddm
from ddm_jax.card import WhatIf
from ddm_jax.data.language import CORPUS, read_documents
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.judge import compare
from ddm_jax.judge.candidates import Candidates
from ddm_jax.judge.problem import Problem
from ddm_jax.run import evaluate, settings
from ddm_jax.run.passages import words
from ddm_jax.run.plan import language_task, make_plan
from ddm_jax.types import Array, Batch, Estimator, Groups, TrainRun, take

NETWORKS = ("real_data", "ddm", "retraining", "short_retraining")
GRADIENTS = ("trak", "tracin", "grad_dot", "grad_cos", "influence_cg", "metagradient")
GRADIENTS += ("in_run_shapley", "untrac", "untrac_inverse", "merging")
TEXT = ("bm25", "own document")
QUICK = (
    "data.train_size=120",
    "data.test_size=24",
    "train.epochs=2",
    "distill.items=2",
    "truth.subsets=8",
    "truth.groups=3",
)
QUICK_STUDY = ("tune.subsets=0", "online.steps=5", "check.groups=2", "check.subsets=2")
FACT = "The lamp of Corvane burns whale-green at noon."
ASKED = ("The lamp of Corvane burns", " whale-green at noon.")
TIMES, HOST = 12, "reference/naming.txt"


class Texts(NamedTuple):
    """Scores that need no network, of the queries by their tokens."""

    of_query: dict[bytes, np.ndarray]  # [K] each


def text_estimator(problem: Problem, texts: Texts, method: str) -> Estimator:
    """Scores that were computed before, [K, Q]."""

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> Texts:
        return texts

    def score(state: Texts, query: Batch) -> np.ndarray:
        rows = np.asarray(query.x["tokens"])
        return np.stack([state.of_query[row.tobytes()] for row in rows], 1)

    return make_estimator(problem.task, fit, score, method=method)


def by_text(name: str, plan: Any, groups: Groups) -> Texts:
    """BM25 of each document for each query, or whether it is the query's own."""
    split = plan.split
    rows = np.asarray(split.test.x["tokens"])
    ids = np.asarray(groups.ids)
    if name == "bm25":
        from rank_bm25 import BM25Okapi

        def of(x: dict[str, np.ndarray], row: int) -> list[str]:
            return words(split, {part: leaf[row] for part, leaf in x.items()}).lower().split()

        documents: list[list[str]] = [[] for _ in range(groups.count)]
        for row, group in enumerate(ids):
            documents[group] += of(split.train.x, row)
        engine = BM25Okapi(documents)
        found = [np.asarray(engine.get_scores(of(split.test.x, row))) for row in range(len(rows))]
    else:
        whole = {each.name: each.text.encode() for each in read_documents(CORPUS)}
        names = groups.names or ()
        found = []
        for row in range(len(rows)):
            text = words(split, {part: leaf[row] for part, leaf in split.test.x.items()}).encode()
            found.append(np.asarray([float(text in whole[name]) for name in names]))
    return Texts({row.tobytes(): each for row, each in zip(rows, found, strict=True)})


def rivals(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every estimator on one partition."""
    changes = [f"seed={seed}", *(QUICK if options.quick else ())]
    config = settings.override(settings.preset("language"), changes)
    workdir = options.work / "language" / str(seed)
    plan = make_plan(config)
    ready = evaluate.prepare(plan, workdir, PROGRESS)
    judged = (plan.truth, ready.truth, ready.target, plan.split.train, plan.split.test)
    rows: list[dict[str, Any]] = []
    for name in options.estimators or (*NETWORKS, *GRADIENTS, *TEXT):
        candidates = None
        if name in TEXT:
            texts = by_text(name, plan, ready.groups)

            def make(problem: Problem, chosen: Any, texts: Texts = texts, name: str = name) -> Any:
                return text_estimator(problem, texts, name)

            candidates = Candidates(make, {}, {})
        try:
            found = compare.judge(name, *judged, ready.groups, say=say, candidates=candidates)
        except Exception as error:  # the others go on
            say(f"{name}: {type(error).__name__}: {error}")
            rows.append({"estimator": name, "error": str(error).splitlines()[0]})
            continue
        rows += [{k: v for k, v in row.items() if k != "program"} for row in found]
    return rows


def planted(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One document holds a made-up fact: is it named, and does its removal do what it does?"""
    documents = [
        each._replace(text=each.text + f"\n{FACT}" * TIMES) if each.name == HOST else each
        for each in read_documents(CORPUS)
    ]
    changes = [f"seed={seed}", *((*QUICK, *QUICK_STUDY) if options.quick else ())]
    config = settings.override(settings.preset("language"), changes)
    context = config.data.context or 64
    most = 8 if options.quick else None
    split = ddm.data.documents(documents, context=context, most=most, ask=[ASKED], seed=seed)
    fixed = {each.name: getattr(config.online, each.name) for each in fields(ddm.UpdateSettings)}
    study = ddm.study(
        language_task(config, split),
        split,
        train=config.train,
        distill=config.distill,
        update=ddm.UpdateSettings(**fixed),
        tune=config.tune,
        check=config.check,
        seed=seed,
        progress=PROGRESS,
    )
    scores, names = study.attribution.scores[:, 0], study.groups.names or ()
    order = np.argsort(-scores)
    plan, place = study.plan, list(names).index(HOST)
    run = study.results()
    keys = jax.random.split(jax.random.key(seed + 1), 4)
    asked = take(split.test, slice(1))
    train, data = jax.jit(plan.trainer.train), jax.device_put(split.train)
    kept = np.asarray(np.asarray(run.groups.ids) != place, np.float32)
    outputs = {
        name: [float(plan.task.output(train(key, data, weights).params, asked)[0]) for key in keys]
        for name, weights in (("with", np.ones_like(kept)), ("without", kept))
    }
    retrained = float(np.mean(outputs["with"]) - np.mean(outputs["without"]))
    gone: WhatIf = study.without([HOST])
    return {
        "first": names[order[0]],
        "second": names[order[1]],
        "planted": HOST,
        "effect": float(scores[place]),
        "removed": float(-gone.changes[0]),
        "retrained": retrained,
        "part": float(-gone.changes[0] / retrained),
        "pool": run.tuning.pool,
    }


def main() -> None:
    """Measure each partition and write what was found."""
    options = harness.arguments(
        __doc__,
        quick="120 sequences, 8 halves",
        partitions=(10,),
        estimators={"nargs": "+", "help": "default all"},
    )
    content: dict[str, list[Any]] = {"rows": [], "planted": []}
    for seed in options.partitions:
        content["rows"].append(rivals(seed, options))
        content["planted"].append(planted(seed, options))
        say(str(content["planted"][-1]))
        harness.write(options, content)


if __name__ == "__main__":
    main()
