"""What every source of data becomes: a `Split`, and batches of one's own arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ddm_jax.checks import check_integer
from ddm_jax.types import Batch, Groups


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
    kind: str = "images"  # or table, texts, arrays
    features: tuple[tuple[str, str | None], ...] = ()  # D columns or words, and of which category
    shown_train: Any = None  # what to show: a DataFrame of N rows, or N texts
    shown_test: Any = None  # the same of Q
    groups: Groups | None = None  # of the training part, where the data bring them
    told: tuple[str, ...] = ()  # how the data were read, in lines for the user
    # What y holds, in the words of `Task.targets`: "distribution", one-hot rows of classes;
    # "labels", 1 for each label that holds; or "any", numbers.
    targets: str = "distribution"

    def pixels(self, x: np.ndarray) -> np.ndarray:
        """Undo the normalisation: pixels in [0, 1]."""
        return np.clip(self.numbers(x), 0.0, 1.0)

    def numbers(self, x: np.ndarray) -> np.ndarray:
        """Undo the normalisation."""
        return np.asarray(x) * self.scale + self.offset


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
