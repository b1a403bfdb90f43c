"""What the page shows of a finished run: JSON values, pictures, and answers to "what if?"."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from ddm_jax import files
from ddm_jax.checks import check_integer
from ddm_jax.cluster import flat_features
from ddm_jax.compute.placement import in_batches
from ddm_jax.estimators.ddm import make_outputs
from ddm_jax.explore.cleaning import make_cleaned, make_suspects
from ddm_jax.files import digest
from ddm_jax.items import items_of
from ddm_jax.judge.filling import Tell
from ddm_jax.masks import check_masks
from ddm_jax.metrics.intervals import LEVEL, reach
from ddm_jax.online import explained_outputs, make_explained_outputs
from ddm_jax.run import check as checking
from ddm_jax.run import targets
from ddm_jax.run.drawing import group_names, nearest
from ddm_jax.run.finished import Finished
from ddm_jax.run.passages import make_continuation, make_item_effects
from ddm_jax.run.questions import told_at_size
from ddm_jax.run.removals import retrained_before
from ddm_jax.run.report import agreement_table
from ddm_jax.run.wording import describe, objective_in_words, text_of
from ddm_jax.types import Params, length, take

MEMBERS = 12  # of a group, shown at once
PASSAGES = 2  # of a document
LETTERS = 300  # of a query's text in the list
RETRAINED = "retrained"  # the folder of what was retrained for the page
Json = dict[str, Any]


class View(NamedTuple):
    """A finished run as the page asks for it."""

    overview: Json
    effects: Callable[[int], Json]  # of all groups on a query
    members: Callable[[int, int | None], list[int]]  # of a group, the nearest to a query first
    picture: Callable[[str, int], bytes]  # a PNG of a training point or a query
    words: Callable[[str, int], list[str]]  # the same in lines of text
    passages: Callable[[int, int], list[str]]  # of a document, those that move a query most
    what_if: Callable[[np.ndarray, int | None], Json]  # weights [K], query
    go_on: Callable[[np.ndarray, str], Json]  # weights [K], a prompt
    retrain: Callable[[np.ndarray, Tell], Json]  # weights [K]
    suspects: Callable[[], Json]  # training points that look wrong
    cleaned: Callable[[list[int], dict[int, str]], Json]  # networks without them


def make_view(run: Finished) -> View:
    """Make what the page asks a run for; nothing is computed before it is asked."""
    split, count = run.plan.split, length(run.plan.split.test)
    asked = run.attribution.scores.shape[1]  # queries, or what is explained of all of them

    def of_part(part: str, place: int) -> tuple[Any, Any]:
        if part not in ("train", "test"):
            raise ValueError(f"part {part!r}: train or test")
        batch, shown = (
            (split.train, split.shown_train) if part == "train" else (split.test, split.shown_test)
        )
        check_integer("the place of an example", place, 0, length(batch) - 1)
        original = shown
        if shown is not None:
            original = shown[place] if isinstance(shown, list) else shown.iloc[place]
        return take(batch.x, place), original

    def effects(query: int) -> Json:
        check_integer("query", query, 0, asked - 1)
        wide = run.attribution.half_widths
        found = {"scores": run.attribution.scores[:, query]}
        return found | ({} if wide is None else {"half_widths": wide[:, query]})

    def members(group: int, query: int | None) -> list[int]:
        check_integer("group", group, 0, run.groups.count - 1)
        inside = run.attribution.members(group)
        if query is not None and asked == count and split.kind != "language":
            check_integer("query", query, 0, count - 1)
            one = flat_features(jax.tree.map(lambda leaf: leaf[query : query + 1], split.test.x))
            near = flat_features(take(split.train.x, inside))
            inside = inside[nearest(near, np.arange(len(inside)), one[0])]
        return inside[:MEMBERS].tolist()

    def picture(part: str, place: int) -> bytes:
        if split.kind != "images":
            raise ValueError(f"{split.name} holds no images")
        pixels = split.pixels(np.asarray(of_part(part, place)[0]))
        pixels = np.repeat(pixels, 3, -1) if pixels.shape[-1] == 1 else pixels[..., :3]
        written = io.BytesIO()
        Image.fromarray((255 * pixels).round().astype(np.uint8)).save(written, "PNG")
        return written.getvalue()

    def words(part: str, place: int) -> list[str]:
        x, original = of_part(part, place)
        if split.tokenizer is not None:
            return text_of(split, x).splitlines()
        if isinstance(original, str):
            return original.splitlines()
        if original is not None:  # a row of a table
            return [f"{name} = {value}" for name, value in original.items()]
        return describe(split, x).splitlines()

    network = make_network(run)
    return View(
        overview_of(run),
        effects,
        members,
        picture,
        words,
        make_passages(run),
        make_what_if(run, network),
        make_go_on(run, network),
        lambda weights, tell: retrain(run, weights, tell),
        make_suspects(run),
        make_cleaned(run),
    )


def overview_of(run: Finished) -> Json:
    """What there is, in columns: groups, queries, and how far to trust the rest."""
    plan, split, scores = run.plan, run.plan.split, run.attribution.scores
    told = files.read_json(run.workdir / "metrics.json")
    objective = objective_in_words(split, plan.config.online.objective)
    return {
        "data": split.name,
        "kind": split.kind,
        "objective": objective,
        "neither": ":" in objective,  # whether more of it is better nobody knows
        "lower_is_better": plan.task.lower_is_better,
        "level": None if run.check is None else LEVEL,
        "points": length(split.train),
        "sentences": told["sentences"],
        "agreement": agreement_table(told),
        "seconds_a_network": told["seconds_a_retrained_network"],
        "seeds": plan.check.truth.seeds,
        "groups": _groups(run),
        "queries": _queries(run) if scores.shape[1] == length(split.test) else None,
        "outputs": scores.shape[1],
    }


def _groups(run: Finished) -> Json:
    split, ids = run.plan.split, np.asarray(run.groups.ids)
    found: Json = {"name": list(group_names(run.groups)), "size": run.groups.sizes()}
    if split.targets == "distribution" and split.classes:
        labels = np.asarray(split.train.y).argmax(1)
        inside, classes = ids >= 0, len(split.classes)
        counts = np.zeros((run.groups.count, classes), int)
        np.add.at(counts, (ids[inside], labels[inside]), 1)
        found["kind"] = [split.classes[each] for each in counts.argmax(1)]
    elif run.groups.names and all("/" in name for name in run.groups.names):
        found["kind"] = [name.partition("/")[0] for name in run.groups.names]
    return found


def _queries(run: Finished) -> Json:
    """A column of each thing that is said of queries."""
    split, task, params = run.plan.split, run.plan.task, run.target.params
    count, query = length(split.test), split.test
    found: Json = {
        "output": np.asarray(explained_outputs(task, params, query)),
        "reach": reach(run.attribution.scores),
        "label": [targets.label(split, take(query.y, place)) for place in range(count)]
        if split.classes or targets.are_numbers(split)
        else None,
    }
    if said := targets.said_of(split, task, params, np.arange(count)):
        found["said"] = list(said.values()) if any(said.values()) else None
    if split.targets == "distribution" and task.apply is not None:
        logits = np.asarray(in_batches(task.apply)(params, query.x))
        found["wrong"] = targets.wrong(split, logits, np.asarray(query.y))
        found["confidence"] = np.asarray(jax.nn.softmax(logits)).max(1)
    if split.tokenizer is not None:
        texts = [text_of(split, take(query.x, place)) for place in range(count)]
        found["text"] = [text[:LETTERS] for text in texts]
    elif isinstance(split.shown_test, list):
        found["text"] = [text[:LETTERS] for text in split.shown_test]
    return found


def make_network(run: Finished) -> Callable[[np.ndarray], Params]:
    """Make `network(weights [K])`, what the run's updates make of the trained one."""
    made = make_outputs(run.plan.task, run.tuning.update, known={}, stable=run.tuning.stable)
    nothing: Any = None  # to ask: the networks themselves

    def network(weights: np.ndarray) -> Params:
        check_masks(weights[None], run.groups.count, background=bool(run.groups.background))
        return take(made(run.tuning.state, weights[None].astype(np.float32), nothing), 0)

    return network


def make_passages(run: Finished) -> Callable[[int, int], list[str]]:
    """Make `passages(group, query)`: a document's items whose gradients move a query most."""
    split, synset, task = run.plan.split, run.synset.synset, run.plan.task
    effects, owner = make_item_effects(task), np.asarray(synset.group)
    found: dict[int, np.ndarray] = {}  # of the query that was asked about last

    def passages(group: int, query: int) -> list[str]:
        if split.tokenizer is None:
            raise ValueError(f"{split.name} holds no documents")
        check_integer("group", group, 0, run.groups.count - 1)
        check_integer("query", query, 0, length(split.test) - 1)
        if query not in found:
            one = take(split.test, np.asarray([query]))
            found.clear()
            found[query] = np.asarray(effects(run.target.params, synset, one)[0])[:, 0]
        own = np.flatnonzero(owner == group)
        sign = np.sign(run.attribution.scores[group, query])
        best = own[np.argsort(-sign * found[query][own], kind="stable")][:PASSAGES]
        items = items_of(task).batch(synset.items)
        return [text_of(split, take(items.x, int(item))) for item in best]

    return passages


def make_go_on(run: Finished, network: Callable[[np.ndarray], Params]) -> Callable[..., Json]:
    """Make `go_on(weights [K], prompt)`: what networks with and without the data say after it."""
    split = run.plan.split
    made: list[Callable[[Params, str], str]] = []

    def go_on(weights: np.ndarray, prompt: str) -> Json:
        if split.tokenizer is None or split.kind != "language":
            raise ValueError(f"{split.name} is no language model's, which goes on from a prompt")
        if not made:
            made.append(make_continuation(split, run.plan.task))
        networks = {"before": run.target.params, "without": network(weights)}
        return {name: made[0](params, prompt) for name, params in networks.items()}

    return go_on


def make_what_if(
    run: Finished, network: Callable[[np.ndarray], Params]
) -> Callable[[np.ndarray, int | None], Json]:
    """Make `what_if(weights [K], query) -> JSON values`.

    It says what `questions.what_if` does, the sum of single effects beside it, and of one query
    what the network that the updates made says.
    """
    task, split = run.plan.task, run.plan.split
    explained = make_explained_outputs(task)
    of_one = in_batches(task.apply) if task.apply is not None else None
    base: list[Any] = []  # what everything kept says, once it is asked for

    def said(params: Any, query: int | None) -> Json:
        known = split.classes and of_one is not None
        if query is None or not known or split.targets != "distribution":
            return {}
        one = jax.tree.map(lambda leaf: leaf[query : query + 1], split.test.x)
        sure = np.asarray(jax.nn.softmax(of_one(params, one)))[0]  # type: ignore[misc]
        first = np.argsort(-sure, kind="stable")[:3]
        return {"said": [[split.classes[place], float(sure[place])] for place in first]}

    def what_if(weights: np.ndarray, query: int | None) -> Json:
        if query is not None:
            check_integer("query", query, 0, length(split.test) - 1)
        if not base:
            kept = network(np.ones(run.groups.count))
            base.extend(
                np.asarray(explained(each, split.test)) for each in (run.target.params, kept)
            )
        trained, kept = base
        made = network(weights)
        outputs = np.stack([kept, np.asarray(explained(made, split.test))])
        found = told_at_size(run, weights[None], outputs, trained)
        answer: Json = {
            "outputs": found.outputs[0],
            "changes": found.changes[0],
            "mean": float(found.changes[0].mean()),
            # Of a group that counts w times, w - 1 times what having it does.
            "summed": (weights - 1) @ run.attribution.scores,
            **said(made, query),
        }
        if found.half_widths is not None:
            answer["half_widths"] = found.half_widths[0]
        if run.check is not None:
            answer["retrained"] = retrained_before(run.check, weights)
        return answer

    return what_if


def retrain(run: Finished, weights: np.ndarray, tell: Tell) -> Json:
    """Retrain exactly with the groups weighted, as the run's check does; what is done is kept."""
    weights = np.asarray(weights, np.float32)
    check_masks(weights[None], run.groups.count, background=bool(run.groups.background))
    full = np.zeros((0, 0)) if run.check is None else run.check.truth.full
    folder = run.workdir / RETRAINED / digest(weights)[:16]
    changes = checking.retrained_change(run.plan, folder, run.groups, weights, full, tell)
    return {"retrained": changes}
