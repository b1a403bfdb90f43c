"""The what-if card: one file that answers "what if these were gone?" without the training data.

It holds the trained parameters, the point where updates start, the synset, how the updates go, the
names of the groups, and how far to trust an answer. Nothing in it is pickled.

A synset is made from training data, and may hold some of them as they are: a card says how many,
and those are written only where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ddm_jax
from ddm_jax.checks import is_concrete
from ddm_jax.compute.compiled import compiled
from ddm_jax.data.preparation import prepare
from ddm_jax.data.split import Preparation
from ddm_jax.estimators.ddm import DDMState, make_outputs, undistilled
from ddm_jax.files import DamagedFileError, check_destination, read_any_arrays, write_arrays
from ddm_jax.items import items_of
from ddm_jax.masks import check_masks, leave_one_out_masks, moved_share
from ddm_jax.metrics.intervals import Intervals, expected, half_widths, reach
from ddm_jax.metrics.privacy import nearest_training_points
from ddm_jax.online import explained_outputs, trajectory_point
from ddm_jax.types import Array, Batch, Groups, Leaf, Synset, Task, length, take
from ddm_jax.updates import UpdateSettings, settled

PROBED = 20  # items whose losses and outputs tell whether a task is the card's
TOLERANCE = 1e-3  # of the largest of them, in single precision: devices round differently
HALF_TOLERANCE = 2e-2
MEND = "get the card again from where it was made"
FORMAT = 1


class Card(NamedTuple):
    """All that answers need, without the training data."""

    state: DDMState  # its checkpoints are where updates start and, where they differ, the end
    update: UpdateSettings
    names: tuple[str, ...] | None  # of the groups
    intervals: Intervals | None  # of `metrics.fit_intervals`, for these updates
    told: dict[str, Any]  # JSON values: what it says of itself
    stable: float | None = None  # the stable rate of these updates on this state, where known

    def __repr__(self) -> str:
        synset = self.state.synset
        said = [f"{len(synset.share)} groups, {length(synset.items)} items"]
        if self.state.residual is not None:
            said.append("the groups' gradients as far as the items leave them")
        said += [
            f"{name}: {self.told[name]}" for name in ("data", "objective") if name in self.told
        ]
        said += [  # what is undefined is NaN, and null in a file
            f"{'undefined' if value is None or value != value else f'{value:.3f}'} on {name}"
            for name, value in self.told.get("agreement", {}).items()
        ]
        if self.intervals is not None:
            times = ", ".join(f"{each:.2g}" for each in self.intervals.times)
            said.append(f"changes at {times} times what the updates say, with error bars")
        return f"Card({'; '.join(said)})"

    def queries(self, examples: Any, labels: Any = None) -> Batch:
        """New examples as the network takes them, prepared as the training data were.

        As `data.prepare`: rows of a table, images, texts or arrays, with names of their classes.

        Raises:
            ValueError: for a card of data that came as numbers, or as `data.prepare`.
        """
        told = self.told.get("preparation")
        if told is None:
            raise ValueError(
                "this card's data came as a network takes them, and so do its queries: pass a "
                "ddm.Batch of arrays"
            )
        return prepare(Preparation(**told), examples, labels)


class WhatIf(NamedTuple):
    """The answer to R questions about Q queries.

    With error bars, of single retrainings, changes are their middle, `metrics.expected`, and
    outputs those of the trained network changed by them.
    """

    outputs: Leaf  # [R, Q] `task.output` of the networks without what each mask leaves out
    changes: Leaf  # [R, Q] against everything kept
    half_widths: np.ndarray | None  # [R, Q] of the 90 % interval of each change


def make_card(
    state: DDMState,
    update: UpdateSettings,
    groups: Groups,
    *,
    intervals: Intervals | None = None,
    told: dict[str, Any] | None = None,
    stable: float | None = None,
) -> Card:
    """Make a card of a distilled run, `make_ddm(...).fit`, with what was chosen by `tune`.

    `stable` is the rate as of `Tuned`, which no answer then looks for. Of the trajectory two points
    stay, of the distillation nothing but what it made.

    Raises:
        ValueError: for another number of groups than the synset's.
    """
    rewind = settled(update).rewind
    if groups.count != len(state.synset.share):
        raise ValueError(
            f"there are {groups.count} groups, and the synset has {len(state.synset.share)}; pass "
            "those that it was distilled of"
        )
    trees = {"checkpoints": state.checkpoints, "second_moments": state.second_moments}
    for name, tree in trees.items():
        if tree is not None:
            points = [trajectory_point(tree, at) for at in ((rewind, 0.0) if rewind else (0.0,))]
            trees[name] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    kept = state._replace(info=undistilled(state.synset), **trees)
    # Of two points the first is half of the way back.
    halfway = UpdateSettings(**{**vars(update), "rewind": 0.5 if rewind else 0.0})
    names = None if groups.names is None else tuple(map(str, groups.names))
    return Card(kept, halfway, names, intervals, told or {}, stable)


def save_card(
    path: str | Path, card: Card, task: Task, data: Batch, *, include_examples: bool = False
) -> None:
    """Write a card; `data` are the training data, which are counted and not written.

    Raises:
        ValueError: where items of the synset are training examples, word for word or nearly (nearer
            than a tenth of what two of them are apart), or where its steps are corrected by what
            the items leave of each group's gradient, which can show examples too (Zhu, Liu & Han,
            "Deep leakage from gradients", NeurIPS 2019); and that was not asked for.
    """
    check_destination(Path(path))
    copies = count_copies(card.state.synset, task, data)
    shown, mends = [], []
    if copies:
        items = card.state.synset.items
        shown.append(
            f"{copies} of {length(items)} items of the synset are training examples, or nearly so"
        )
        if all(np.issubdtype(leaf.dtype, np.floating) for leaf in jax.tree.leaves(items.x)):
            mends.append("distil from noise (distill.start=noise)")
    if card.state.residual is not None:
        shown.append(
            "the card holds what the items leave of each group's gradient, from which examples can "
            "be read"
        )
        mends.append("choose updates without it (tune.pools=synset,data)")
    if shown and not include_examples:
        mend = f", or {' and '.join(mends)}" if mends else ""
        raise ValueError(
            f"{', and '.join(shown)}: write it with --include-examples (include_examples=True) if "
            f"it may show them{mend}"
        )
    arrays, shapes = {}, {}
    for name, tree in _trees(card).items():
        shapes[name] = None if tree is None else _skeleton(tree)
        if name in ("x", "y") and "parameters" in str(shapes[name]):
            raise ValueError(
                f"{name} of an item is {type(tree).__name__}; a card holds arrays, and dicts by "
                "name, lists and tuples of them"
            )
        for number, leaf in enumerate(jax.tree.leaves(tree)):
            arrays[f"{name}.{number}"] = leaf
    types = {name: str(np.asarray(leaf).dtype) for name, leaf in arrays.items()}
    # What numpy cannot write it holds exactly in float32.
    arrays = {
        name: np.asarray(leaf, np.float32) if np.asarray(leaf).dtype.kind == "V" else leaf
        for name, leaf in arrays.items()
    }
    told = {
        "format": FORMAT,
        "shapes": shapes,
        "types": types,
        "update": vars(card.update),
        "stable": card.stable,
        "names": None if card.names is None else list(card.names),
        "probe": _probe(task, card.state),
        "lower_is_better": task.lower_is_better,
        "told": card.told
        | {
            "training examples among the items": copies,
            "ddm_jax": ddm_jax.__version__,
            "jax": packages.version("jax"),
        },
    }
    write_arrays(Path(path), arrays, told)


def load_card(path: str | Path, task: Task) -> Card:
    """Read a card for the task that it was made with.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is damaged or no card, or says other things of its items than `task`.
    """
    path = Path(path)
    arrays, told = read_any_arrays(path, MEND)
    if not {"format", "shapes", "types", "update", "probe"} <= told.keys():
        raise DamagedFileError(f"{path} is no card; `save_card` writes one")
    if told["format"] != FORMAT:
        raise ValueError(f"{path} has the format {told['format']}; a newer ddm_jax reads it")
    like = jax.eval_shape(task.init, jax.random.key(0))

    def tree(name: str) -> Any:
        skeleton = told["shapes"][name]
        if skeleton is None:
            return None
        count = sum(each.startswith(f"{name}.") for each in arrays)
        leaves = [arrays[f"{name}.{n}"] for n in range(count)]
        if name == "intervals":  # stay numbers of the host
            return _filled(skeleton, iter(leaves))
        kinds = [jax.dtypes.canonicalize_dtype(told["types"][f"{name}.{n}"]) for n in range(count)]
        placed = [jnp.asarray(leaf, kind) for leaf, kind in zip(leaves, kinds, strict=True)]
        if name in ("checkpoints", "second_moments", "residual"):
            return _as_parameters(path, like, placed)
        return _filled(skeleton, iter(placed))

    found = {name: tree(name) for name in told["shapes"]}
    synset = Synset(
        Batch(found["x"], found["y"]),
        *(found[name] for name in ("group", "mass", "share", "background")),
    )
    state = DDMState(
        found["checkpoints"],
        found["weight_decay"],
        synset,
        undistilled(synset),
        found["second_moments"],
        found["decoupled_decay"],
        found.get("residual"),
    )
    intervals = None
    if found["intervals"] is not None:
        slopes, floor, sizes, widths, *times = map(np.asarray, found["intervals"])
        # Bars of before 0.12 are around the predictions themselves.
        intervals = Intervals(
            slopes, float(floor), sizes, widths, *(times or [np.ones(len(sizes))])
        )
    names = None if told["names"] is None else tuple(told["names"])
    update = UpdateSettings(**told["update"])
    card = Card(state, update, names, intervals, told["told"], told.get("stable"))
    if told["lower_is_better"] != task.lower_is_better:
        raise ValueError(
            f"{path} was made where lower_is_better={told['lower_is_better']}; pass that task"
        )
    half = any(leaf.dtype.itemsize < 4 for leaf in jax.tree.leaves(like))
    for what, said in _probe(task, state).items():
        wanted = np.asarray(told["probe"][what])
        near = (HALF_TOLERANCE if half else TOLERANCE) * np.abs(wanted).max(initial=0)
        if len(said) != len(wanted) or not np.allclose(said, wanted, rtol=0, atol=near + 1e-9):
            raise ValueError(
                f"the {what} of this task are not those of the task that {path} was made with; "
                "pass that one, with the same output (`objectives.explain`)"
            )
    return card


def make_what_if(task: Task, card: Card) -> Callable[[Any, Batch], WhatIf]:
    """Make `what_if(masks [R, K] or [K], query) -> WhatIf`: weights of the groups, 1 kept, 0 gone.

    Where the card has intervals, all groups are left out one by one beside what is asked: how far
    they move a query says how wide its interval is. Changes are then told at the size that
    retraining gave such changes, where the intervals were learnt. Everything is one compiled step,
    and the next call with as many masks and queries takes no compilation.

    Raises:
        ValueError: (when called) for masks that do not fit the card, or queries without labels
            where the output needs them.
    """
    outputs = make_outputs(task, card.update, stable=card.stable)
    count = len(card.state.synset.share)

    def what_if(masks: Any, query: Batch) -> WhatIf:
        there = card.state.synset.background is not None
        masks = np.asarray(check_masks(np.atleast_2d(masks), count, background=there))
        query = _labelled(task, card.state, query)
        alone = leave_one_out_masks(count) if card.intervals is not None else np.ones((1, count))
        every = np.concatenate([np.asarray(alone), masks]).astype(np.float32)
        said = outputs(card.state, every, query)
        whole, asked = said[:1], said[len(alone) :]
        if card.intervals is None:
            return WhatIf(asked, asked - whole, None)
        moved = np.asarray(asked - whole)
        far = reach(np.asarray(whole - said[1 : len(alone)]))
        away = moved_share(masks, card.state.synset.share)
        wide = half_widths(card.intervals, moved, away, far)
        changes = jnp.asarray(expected(card.intervals, moved, away), asked.dtype)
        trained = explained_outputs(task, trajectory_point(card.state.checkpoints, 0.0), query)
        return WhatIf(trained + changes, changes, wide)

    return what_if


def _labelled(task: Task, state: DDMState, query: Batch) -> Batch:
    """Queries without labels with some in their place, where the output is the same with any.

    Raises:
        ValueError: where it is not.
    """
    y = query.y
    if not isinstance(y, np.ndarray | jax.Array) or not is_concrete(y) or not np.isnan(y).any():
        return query
    params = trajectory_point(state.checkpoints, 0.0)
    one, other = np.zeros((2, *y.shape), y.dtype)
    one[..., 0], other[..., -1] = 1, y.shape[-1] > 1
    said, again = (task.output(params, query._replace(y=each)) for each in (one, other))
    if not np.array_equal(said, again):
        raise ValueError(
            f"{int(np.isnan(y).any(-1).sum())} queries have no label, and this objective needs "
            "it: card.queries(examples, labels), or a card of another, such as logit:0"
        )
    return query._replace(y=one)


def count_copies(synset: Synset, task: Task, data: Batch) -> int:
    """How many items of a synset are training examples, exactly or nearly, by their inputs."""
    items = items_of(task).batch(synset.items)
    ours, theirs = (
        np.concatenate(
            [np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in jax.tree.leaves(x)], 1
        )
        for x in (items.x, data.x)
    )
    found = nearest_training_points(ours, theirs)
    return round(found.copies * len(ours))


def _trees(card: Card) -> dict[str, Any]:
    """What is written, by its name."""
    state, synset = card.state, card.state.synset
    return {
        "checkpoints": state.checkpoints,
        "second_moments": state.second_moments,
        "weight_decay": state.weight_decay,
        "decoupled_decay": state.decoupled_decay,
        "residual": state.residual,
        "x": synset.items.x,
        "y": synset.items.y,
        "group": synset.group,
        "mass": synset.mass,
        "share": synset.share,
        "background": synset.background,
        "intervals": None if card.intervals is None else tuple(card.intervals),
    }


def _probe(task: Task, state: DDMState) -> dict[str, list[float]]:
    """What the trained network says of the first items."""
    params = trajectory_point(state.checkpoints, 0.0)
    items = items_of(task).batch(take(state.synset.items, slice(PROBED)))
    both = compiled(lambda params, items: (task.loss(params, items), task.output(params, items)))
    said = dict(zip(("losses", "outputs"), both(params, items), strict=True))
    return {name: np.asarray(each, float).ravel().tolist() for name, each in said.items()}


def _skeleton(tree: Any) -> Any:
    """A pytree of dicts, lists and tuples without its leaves, as JSON; parameters need none."""
    if isinstance(tree, dict) and all(isinstance(name, str) for name in tree):
        return {"dict": {name: _skeleton(tree[name]) for name in sorted(tree)}}
    if isinstance(tree, list | tuple) and not hasattr(tree, "_fields"):
        return {type(tree).__name__: [_skeleton(each) for each in tree]}
    if tree is None:
        return {"none": 0}
    return "leaf" if jax.tree_util.all_leaves([tree]) else "parameters"


def _filled(skeleton: Any, leaves: Any) -> Any:
    if skeleton == "leaf":
        return next(leaves)
    ((kind, inside),) = skeleton.items()
    if kind == "dict":
        return {name: _filled(inside[name], leaves) for name in sorted(inside)}
    if kind == "none":
        return None
    return (list if kind == "list" else tuple)(_filled(each, leaves) for each in inside)


def _as_parameters(path: Path, like: Any, leaves: list[Array]) -> Any:
    wanted = [leaf.shape for leaf in jax.tree.leaves(like)]
    if [leaf.shape[1:] for leaf in leaves] != wanted:
        raise ValueError(
            f"the parameters of this task have the shapes {wanted}, those of {path} "
            f"{[leaf.shape[1:] for leaf in leaves]}: pass the task that it was made with"
        )
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
