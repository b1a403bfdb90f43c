"""Which document taught it that: rivals on fine-tuned language models, and a planted fact.

The preset `language` on two corpora: *carried*, its own 27 documents, on which it was made; and
*installed*, 27 texts of other kinds that come with other libraries, of which nothing was tuned. A
GPT of bytes that was trained on other text is fine-tuned on them for three epochs. Truth: random
halves of the documents, and each alone, retrained with four seeds. All are judged alike (`ddm
compare`): settings chosen on a quarter of the halves and queries, scores on the rest. Beside them
what needs no network: BM25 between the words of a query and of a document, and whether a document
is the query's own. The planted fact is a sentence about a town that is
nowhere, put into one document; the question is its likelihood after its beginning.

    python benchmarks/language.py [--quick] [--corpora installed] [--estimators ddm grad_dot ...]

BM25 needs rank_bm25: python -m pip install '.[benchmarks]'.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn
from harness import say
from protocol import PROGRESS

import ddm_jax as ddm
from ddm_jax.card import WhatIf
from ddm_jax.data.language import CORPUS, read_documents
from ddm_jax.estimators.contract import make_estimator
from ddm_jax.judge import compare
from ddm_jax.judge.candidates import CANDIDATES, Candidates
from ddm_jax.judge.problem import Problem
from ddm_jax.run import evaluate, settings
from ddm_jax.run.plan import language_task, make_plan
from ddm_jax.run.wording import text_of
from ddm_jax.types import Array, Batch, Estimator, Groups, TrainRun, length, take

NETWORKS = ("ddm_corrected", "ddm", "real_data", "retraining", "short_retraining")
GRADIENTS = (
    *("grad_dot", "grad_cos", "tracin", "ekfac", "source", "trak", "in_run_shapley"),
    *("untrac", "untrac_inverse", "merging", "metagradient", "influence_cg"),
)
TEXT = ("bm25", "own document")
EVERY = (*NETWORKS, *GRADIENTS, *TEXT)
QUICK_ESTIMATORS = ("ddm", "grad_dot", *TEXT)
CORPORA = ("installed", "carried")
KEPT = ("protocols", "planted")
OFFLINE = {  # in place of the usual settings
    "short_retraining": {"epochs": (1,)},  # a third of three epochs, whatever is chosen
    # A loss that is a mean over tokens has a smaller curvature than one of classes.
    "ekfac": {"damping": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)},
}
QUICK = (
    "model.start=none",
    "model.width=16",
    "model.depth=1",
    "model.heads=2",
    "data.train_size=120",
    "data.test_size=24",
    "train.epochs=2",
    "distill.items=2",
    "truth.subsets=8",
    "truth.groups=3",
    "truth.seeds=2",
    "truth.subset_seeds=2",
)
QUICK_STUDY = ("tune.subsets=0", "online.steps=5", "check.groups=2", "check.subsets=2")
TRUTH = ("truth.subsets=40", "truth.subset_seeds=4", "truth.seeds=4")
EACH = 9  # documents of a kind
BYTES = 2300  # of a document, from its third part on: licences and imports come before
FACT = "The lamp of Corvane burns whale-green at noon."
ASKED = ("The lamp of Corvane burns", " whale-green at noon.")
TIMES, HOST = 12, "reference/naming.txt"


def installed() -> list[tuple[str, Path]]:
    """Texts that come with scikit-learn, optax and Python, of which nothing was tuned: kind, file.

    Descriptions of data sets, modules of optimisers, and headers of C.
    """
    folders = {
        "descriptions": (Path(sklearn.__file__).parent / "datasets" / "descr", "*.rst"),
        "optimisers": (Path(optax.__file__).parent / "_src", "*.py"),
        "headers": (Path(sysconfig.get_path("include")), "*.h"),
    }
    found = []
    for kind, (folder, pattern) in folders.items():
        files = [each for each in sorted(folder.glob(pattern)) if "_test" not in each.name]
        largest = sorted(files, key=lambda each: -each.stat().st_size)[:EACH]
        found += [(kind, each) for each in sorted(largest)]
    return found


def write_installed(folder: Path) -> None:
    """Write a folder of documents, a file each."""
    for kind, file in installed():
        text = file.read_text(encoding="utf-8")
        begin = text.find("\n", max(min(len(text) // 3, len(text) - BYTES), 0)) + 1
        place = folder / f"{kind}-{file.stem}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text[begin : begin + BYTES])


class Texts(NamedTuple):
    """Scores that need no network, of the queries by their tokens."""

    of_query: dict[bytes, np.ndarray]  # [K] each


def text_estimator(problem: Problem, texts: Texts, method: str) -> Estimator:
    """Scores that were computed before, [K, Q]."""

    def fit(key: Array, run: TrainRun, data: Batch, groups: Groups) -> Texts:
        return texts

    def score(state: Texts, query: Batch) -> Array:
        rows = np.asarray(query.x["tokens"])
        return jnp.stack([jnp.asarray(state.of_query[row.tobytes()]) for row in rows], 1)

    return make_estimator(problem.task, fit, score, method=method)


def by_text(name: str, plan: Any, groups: Groups) -> Texts:
    """BM25 of each document for each query, or whether it is the query's own."""
    split = plan.split
    rows = np.asarray(split.test.x["tokens"])
    ids = np.asarray(groups.ids)
    if name == "bm25":
        from rank_bm25 import BM25Okapi

        def of(x: dict[str, np.ndarray], row: int) -> list[str]:
            return text_of(split, {part: leaf[row] for part, leaf in x.items()}).lower().split()

        documents: list[list[str]] = [[] for _ in range(groups.count)]
        for row, group in enumerate(ids):
            documents[group] += of(split.train.x, row)
        engine = BM25Okapi(documents)
        found = [np.asarray(engine.get_scores(of(split.test.x, row))) for row in range(len(rows))]
    else:
        whole = {each.group: each.text.encode() for each in read_documents(split.name)}
        found = []
        for row in range(len(rows)):
            text = text_of(split, {part: leaf[row] for part, leaf in split.test.x.items()}).encode()
            found.append(np.asarray([float(text in whole[name]) for name in groups.names or ()]))
    return Texts({row.tobytes(): each for row, each in zip(rows, found, strict=True)})


def ready_of(corpus: str, seed: int, options: argparse.Namespace) -> tuple[Any, Any]:
    """A plan on one corpus and what is trained for it: the target network and the truth."""
    changes = [f"seed={seed}", *TRUTH]
    if corpus == "installed":
        folder = options.work / "installed"
        write_installed(folder)
        changes.append(f"data.name={folder}")
    changes += QUICK if options.quick else ()
    config = settings.override(settings.preset("language"), changes)
    plan = make_plan(config)
    return plan, evaluate.prepare(plan, options.work / f"language-{corpus}-{seed}", PROGRESS)


def rival(
    name: str, plan: Any, ready: evaluate.Ready, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The rows of one estimator, or why there are none."""
    candidates = CANDIDATES.get(name)
    if name in TEXT:

        def make(problem: Problem, chosen: Any) -> Estimator:
            return text_estimator(problem, by_text(name, plan, ready.groups), name)

        candidates = Candidates(make, {}, {})
    elif name in OFFLINE:
        candidates = CANDIDATES[name]._replace(offline=OFFLINE[name])
    elif options.quick:
        candidates = candidates and candidates._replace(
            offline={each: some[:1] for each, some in candidates.offline.items()},
            online={each: some[:1] for each, some in candidates.online.items()},
        )
    judged = (plan.truth, ready.truth, ready.target, plan.split.train, plan.split.test)
    try:
        found = compare.judge(name, *judged, ready.groups, say=say, candidates=candidates)
    except (ImportError, ValueError) as error:  # the others go on
        say(f"{name}: {error}")
        return [{"estimator": name, "error": str(error).splitlines()[0]}]
    # Estimators may be measured one by one, and a row says of which code it is.
    told = {"commit": harness.commit()}
    return [{k: v for k, v in row.items() if k != "program"} | told for row in found]


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
    before, after = (
        float(plan.task.output(each, asked)[0])
        for each in (run.target.params, study.forget([HOST]))
    )
    return {
        "first": names[order[0]],
        "second": names[order[1]],
        "planted": HOST,
        "effect": float(scores[place]),
        "what_if": float(-gone.changes[0]),
        "half_width": None if gone.half_widths is None else float(gone.half_widths[0]),
        "forgotten": before - after,
        "retrained": retrained,
        "part": (before - after) / retrained,
        "pool": run.tuning.pool,
        "commit": harness.commit(),
    }


def main() -> None:
    """Measure each corpus and write the results after each estimator."""
    options = harness.arguments(
        __doc__,
        quick="120 sequences, 8 halves, three estimators, one of each one's settings",
        partitions=(10,),
        corpora={"nargs": "*", "default": CORPORA, "choices": CORPORA},
        estimators={"nargs": "+", "default": EVERY, "choices": EVERY},
        planted={"type": int, "default": 1, "help": "0: not the planted fact"},
    )
    (seed,) = options.partitions
    part = "" if seed == 10 else f"_{seed}"
    written = options.output or harness.RESULTS / f"language{part}.json"
    content: dict[str, Any] = {"protocols": {}}
    if not options.quick and written.exists():  # estimators can be measured again alone
        content = {key: json.loads(written.read_text()).get(key, {}) for key in KEPT}
    content["partition"] = seed
    corpora, names = options.corpora, options.estimators
    if options.quick:
        corpora, names = CORPORA[:1], QUICK_ESTIMATORS
    for corpus in corpora:
        plan, ready = ready_of(corpus, seed, options)
        rows = content["protocols"].get(corpus, {"rows": []})["rows"]
        steps = np.asarray(ready.target.rows)
        found = content["protocols"][corpus] = {
            "rows": [row for row in rows if row["estimator"] not in names],
            "seconds_per_retraining": ready.truth.seconds,
            "tokens_per_retraining": int((steps >= 0).sum()) * plan.config.data.context,
            "share": plan.truth.share,
            "documents": ready.groups.count,
            "queries": length(plan.split.test),
        }
        for name in names:
            begin = time.perf_counter()
            found["rows"] += rival(name, plan, ready, options)
            say(f"{corpus}, {name}: {time.perf_counter() - begin:.0f} s")
            harness.write(options, content, part)
    if options.planted:
        content["planted"] = planted(seed, options)
        say(str(content["planted"]))
        harness.write(options, content, part)


if __name__ == "__main__":
    main()
