"""What every source of data becomes: a `Split`, and batches of one's own arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax.checks import check_choice, check_integer
from ddm_jax.data.columns import Used
from ddm_jax.types import Batch, Groups, length

BYTES = "UTF-8 bytes"


class Tokenizer(NamedTuple):
    """How texts become tokens, and tokens texts."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    vocabulary: int  # V
    written: str | None = None  # as a tokenizer.json, or BYTES; None: of one's own


class Preparation(NamedTuple):
    """How examples become numbers, and labels targets; JSON values all."""

    kind: str  # as of a `Split`
    targets: str
    classes: list[str]  # or labels; none where targets are numbers
    shape: list[int]  # of an example, as the network sees it
    columns: list[Used]  # of a table
    unnamed: int  # how many columns a table had, where they had no names; else 0
    offset: list[float]  # [D]
    scale: list[float]  # [D]
    target_offset: list[float] | None
    target_scale: list[float] | None
    tokenizer: str | None = None  # of documents, as it is written


class Split(NamedTuple):
    """A data set cut into a training and a test part.

    `x = (pixels - offset) / scale` with pixels in [0, 1], so `pixels(x)` can draw them again; of
    tables and arrays likewise, with their numbers.
    """

    name: str
    train: Batch  # x [N, H, W, D] of images, [N, D] of a table or texts; y [N, C]
    test: Batch  # x [Q, ...], y [Q, C]; one-hot, or as `targets` says
    classes: tuple[str, ...]  # C names of classes or labels; none where targets are numbers
    train_ids: np.ndarray  # [N] int, row in the source's training split, or in a file of one's own
    test_ids: np.ndarray  # [Q] int, row in the source's test split, or in that file
    flipped: np.ndarray  # [N] bool, training labels that were flipped
    offset: np.ndarray  # [D]
    scale: np.ndarray  # [D]
    kind: str = "images"  # or table, texts, arrays, language, other
    features: tuple[tuple[str, str | None], ...] = ()  # D columns or words, and of which category
    shown_train: Any = None  # what to show: a DataFrame of N rows, or N texts
    shown_test: Any = None  # the same of Q
    groups: Groups | None = None  # of the training part, where the data bring them
    told: tuple[str, ...] = ()  # how the data were read, in lines for the user
    # What y holds, in the words of `Task.targets`: "distribution", one-hot rows of classes;
    # "labels", 1 for each label that holds; or "any", numbers.
    targets: str = "distribution"
    # [C] of targets that are numbers, where y = (target - offset) / scale; None: as they are.
    target_offset: np.ndarray | None = None
    target_scale: np.ndarray | None = None
    tokenizer: Tokenizer | None = None  # where examples are sequences of tokens
    preparation: Preparation | None = None  # of new examples; None where they come as numbers

    def pixels(self, x: np.ndarray) -> np.ndarray:
        """Undo the normalisation: pixels in [0, 1]."""
        return np.clip(self.numbers(x), 0.0, 1.0)

    def numbers(self, x: np.ndarray) -> np.ndarray:
        """Undo the normalisation."""
        return np.asarray(x) * self.scale + self.offset

    def target_numbers(self, y: np.ndarray) -> np.ndarray:
        """Targets, or predictions of them, in the units of the data: [..., C]."""
        if self.target_scale is None:
            return np.asarray(y)
        return np.asarray(y) * self.target_scale + self.target_offset


TARGETS = ("distribution", "labels", "any")


def given_split(
    train: Batch, test: Batch, classes: Sequence[str] = (), targets: str | None = None
) -> Split:
    """A `Split` of examples that are there already, as a network takes them.

    Numbers become as wide as JAX computes with, see `as_computed`.

    Args:
        train, test: any pytrees whose leaves have the examples in front.
        classes: names of the C classes or labels; default their numbers.
        targets: what y holds, as `Task.targets`; None: rows [N, C >= 2] that are no less than zero
            and sum to one are classes, others of zeros and ones are labels, all else is numbers.

    Raises:
        ValueError: for parts of other shapes or types, no examples, integers [N] as targets, names
            that are not one for each column; or as `as_computed`.
    """
    train, test = as_computed(train, "the training data"), as_computed(test, "the queries")
    if targets is not None:
        check_choice("targets", targets, TARGETS)
    sizes = [length(part) for part in (train, test)]
    if min(sizes) < 1:
        raise ValueError(f"{sizes[0]} training examples and {sizes[1]} queries; both need some")
    like = [jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), part) for part in (train, test)]
    if like[0] != like[1]:
        raise ValueError(
            f"training examples have shapes and types {like[0]}, queries {like[1]}; they must be "
            "the same"
        )
    y = train.y if isinstance(train.y, np.ndarray | jax.Array) else None
    if y is not None and y.ndim == 1 and y.dtype.kind in "iub" and targets is None:
        raise ValueError(
            f"targets are {y.dtype} [N]; make rows of classes of them with `data.make_batch`, or "
            "pass a Task"
        )
    targets = _kind_of(y) if targets is None else targets
    columns = y.shape[1] if y is not None and y.ndim == 2 else 0
    if targets == "distribution" and columns:
        _check_present(np.asarray(y), np.asarray(test.y))
    if isinstance(classes, str) or np.ndim(classes) != 1:
        raise ValueError(f"classes={classes!r}; give a list of names, one for each column")
    classes = tuple(map(str, classes))
    if classes and (len(classes) != columns or len(set(classes)) != columns):
        raise ValueError(
            f"{len(classes)} names of classes, {len(set(classes))} of them different; the targets "
            f"have {columns} columns, and each needs a name of its own"
        )
    if not classes and targets in ("distribution", "labels"):
        classes = tuple(map(str, range(columns)))
    x = train.x if isinstance(train.x, np.ndarray | jax.Array) else None
    offset, scale, kind = np.zeros(1, np.float32), np.ones(1, np.float32), "other"
    if x is not None:
        floats = jax.dtypes.issubdtype(x.dtype, np.floating)
        images = x.ndim == 4 and x.shape[-1] in (1, 3) and floats
        kind = "images" if images else "arrays"
        low, high = float(np.min(x)), float(np.max(x))
        if (
            images and low < high and (low < 0 or high > 1)
        ):  # normalised: shown from the darkest to the brightest
            offset, scale = offset - low / (high - low), scale / (high - low)
    return Split(
        name="your data",
        train=train,
        test=test,
        classes=classes,
        train_ids=np.arange(sizes[0]),
        test_ids=np.arange(sizes[1]),
        flipped=np.zeros(sizes[0], bool),
        offset=offset,
        scale=scale,
        kind=kind,
        targets=targets,
    )


def _check_present(y: np.ndarray, asked: np.ndarray) -> None:
    """What no training example is of, no network says of a query."""
    absent = np.flatnonzero((asked.sum(0) > 0) & (y.sum(0) == 0))
    if absent.size:
        raise ValueError(
            f"class {absent[0]} is among the queries alone; bring training examples of it, or "
            "leave those queries out"
        )


def as_computed(part: Batch, what: str) -> Batch:
    """Examples with their numbers as wide as JAX computes with: float64 as float32, without x64.

    What the stages keep is read back by its type, which is then the one that was computed.

    Raises:
        ValueError: for what is no batch of arrays of numbers that share a leading axis, or an
            integer that does not fit.
    """
    if not isinstance(part, Batch):
        raise ValueError(f"{what} is a {type(part).__name__}; pass a ddm.Batch(x, y) of arrays")
    leaves = jax.tree.leaves(part)
    odd = [leaf for leaf in leaves if not isinstance(leaf, np.ndarray | jax.Array)]
    if odd or not jax.tree.leaves(part.x):
        found = f"a {type(odd[0]).__name__}" if odd else "no inputs"
        raise ValueError(f"{what} holds {found}; pass arrays, their examples in front")
    if len({leaf.shape[:1] for leaf in leaves}) != 1 or not leaves[0].shape:
        shapes = ", ".join(str(leaf.shape) for leaf in leaves)
        raise ValueError(f"{what} has leaves of shapes {shapes}; they must share one leading axis")
    return jax.tree.map(lambda leaf: _computed(leaf, what), part)


def _computed(leaf: Any, what: str) -> Any:
    floats = jax.dtypes.issubdtype(leaf.dtype, np.floating)
    if not floats and leaf.dtype.kind not in "iub":
        raise ValueError(f"{what} holds {leaf.dtype}; it must hold numbers")
    if np.ma.is_masked(leaf):
        raise ValueError(f"{what} holds masked values; fill them in, or leave those examples out")
    wanted = jax.dtypes.canonicalize_dtype(leaf.dtype)
    if wanted == leaf.dtype:  # which may lie in a file
        return leaf
    with np.errstate(over="ignore"):  # what is infinite then is refused with the task
        found = leaf.astype(wanted)
    if not floats and (found != leaf).any():
        largest = max(int(leaf.max()), -int(leaf.min()))
        raise ValueError(
            f"{what} holds integers up to {largest}, beyond {wanted}; number them anew"
        )
    return found


def standardise_targets(split: Split) -> Split:
    """Numbers as targets with mean 0 and deviation 1 over the training part, so that any train.

    Raises:
        ValueError: for a target that is constant there.
    """
    y = np.asarray(split.train.y, np.float64)
    constant = np.flatnonzero((y == y[:1]).all(0))
    if constant.size:
        which = f" {constant[0]}" if y.shape[1] > 1 else ""
        raise ValueError(
            f"{split.name}: the target{which} is {y[0, constant[0]]:g} in all {len(y)} training "
            "examples, of which nothing can be learnt; bring others, or leave it out"
        )
    offset, scale = y.mean(0), y.std(0)
    train, test = (
        part._replace(y=((np.asarray(part.y) - offset) / scale).astype(part.x.dtype))
        for part in (split.train, split.test)
    )
    return split._replace(train=train, test=test, target_offset=offset, target_scale=scale)


def _kind_of(y: Any) -> str:
    """What targets [N, C] are by their values, in the words of `Task.targets`."""
    if y is None or y.ndim != 2 or y.shape[1] < 2:
        zeros_and_ones = y is not None and y.ndim == 2 and bool(np.isin(y, (0, 1)).all())
        return "labels" if zeros_and_ones else "any"
    if (np.asarray(y) >= 0).all() and np.allclose(np.asarray(y, float).sum(1), 1, atol=1e-3):
        return "distribution"
    return "labels" if np.isin(y, (0, 1)).all() else "any"


class Source(NamedTuple):
    """Where a split comes from: its rows, and how to read some of them."""

    classes: tuple[str, ...]
    train_split: str
    test_split: str
    train_rows: np.ndarray
    test_rows: np.ndarray
    # split, rows, image_size -> pixels [n, H, W, D] in [0, 1]; classes [n], or targets [n, C]
    read: Callable[[str, np.ndarray, int | None], tuple[np.ndarray, np.ndarray]]
    kind: str = "images"
    offset: np.ndarray | None = None  # [D]; None: as `normalise` says
    scale: np.ndarray | None = None  # [D]
    features: tuple[tuple[str, str | None], ...] = ()
    groups: Any = None  # of all rows of a file of one's own
    originals: Any = None  # the same: a DataFrame, or texts
    told: tuple[str, ...] = ()
    targets: str = "distribution"
    used: tuple[Used, ...] = ()  # the columns of a table


def make_batch(x: Any, labels: Any, num_classes: int) -> Batch:
    """Make a `Batch` of your own arrays, checked: inputs `[N, ...]`, integer labels `[N]`.

    Inputs keep their kind, in the width that JAX computes with: floats become float32 (float64
    with `jax_enable_x64`; half precision stays), and integers stay integers, as token ids are.
    Bytes are refused: they are pixels, which a network needs as floats. The labels' rows are
    floats like the inputs.

    Raises:
        ValueError: for no examples, lengths that differ, inputs that are no numbers, bytes or not
            finite, or labels that are no integers in [0, num_classes).
    """
    check_integer("num_classes", num_classes, 2)
    if hasattr(x, "toarray"):
        raise ValueError(f"inputs are a sparse {type(x).__name__}; pass `x.toarray()`")
    x, labels = np.asarray(x), np.asarray(labels)
    if x.ndim and len(x) == 0:
        raise ValueError("there are no examples; pass at least one")
    if x.ndim < 2:
        raise ValueError(f"inputs have shape {x.shape}; they must be [N, ...], one row an example")
    if x.dtype == np.uint8:
        raise ValueError("inputs are bytes (uint8); pass pixels as `x.astype(np.float32) / 255`")
    floats = jax.dtypes.issubdtype(x.dtype, np.floating)
    if not (floats or np.issubdtype(x.dtype, np.integer)):
        raise ValueError(f"inputs are {x.dtype}; pass numbers, as by `x.astype(np.float32)`")
    if labels.shape != (len(x),):
        raise ValueError(f"labels have shape {labels.shape}; {len(x)} inputs need ({len(x)},)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels are {labels.dtype}; they must be integers 0..C-1, one class each: "
            "`classes, labels = np.unique(labels, return_inverse=True)` makes them"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise ValueError(
            f"label {labels[wrong[0]]} of example {wrong[0]} is out of range; with "
            f"{num_classes} classes labels must be in 0..{num_classes - 1}"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
        x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype))
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {len(x)} examples hold NaN or infinity, the first is example "
            f"{bad[0]}; remove or repair them"
        )
    return Batch(x, np.eye(num_classes, dtype=x.dtype if floats else np.float32)[labels])


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """The image `[H, W, ...]` with height and width `size`: each new pixel is the mean of its area.

    Bytes stay bytes.
    """
    rows, columns = (_overlaps(side, size) for side in image.shape[:2])
    found = np.tensordot(rows, image.astype(np.float64), 1)  # [size, W, ...]
    found = np.moveaxis(np.tensordot(columns, found, (1, 1)), 0, 1)
    if np.issubdtype(image.dtype, np.integer):
        found = np.rint(found)
    return found.astype(image.dtype)


def _overlaps(old: int, new: int) -> np.ndarray:
    """Which part of each new pixel lies in each old one, [new, old]; rows sum to one."""
    edges, pixels = np.arange(new + 1) * (old / new), np.arange(old)
    low, high = np.maximum(edges[:-1, None], pixels), np.minimum(edges[1:, None], pixels + 1)
    return np.maximum(high - low, 0.0) * (new / old)
