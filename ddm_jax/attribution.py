"""The attribution matrix, and everything needed to read it alone."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddm_jax.checks import check_integer
from ddm_jax.cluster import as_groups
from ddm_jax.files import read_arrays, write_arrays
from ddm_jax.types import Groups

SIGN = "positive = having the group raises the query's output"
AXES = "scores[k, q]: group k (rows) on query q (columns)"
KINDS = {"scores": ("float32", 2), "groups": ("int32", 1), "query_ids": ("int64", 1)}
MAY_BE = {"half_widths": ("float32", 2)}
MEND = "make it again with `ddm attribute`"


class Ranking(NamedTuple):
    """Groups by effect on each query, `[k, Q]` each: row 0 is the strongest.

    Which of the two is good for the query depends on the output: `helpful` and `harmful` are None
    where the attribution does not say whether less of it is better.
    """

    raises: np.ndarray  # groups that raise the output most
    lowers: np.ndarray  # groups that lower it most
    helpful: np.ndarray | None  # `lowers` of a loss, `raises` of a margin
    harmful: np.ndarray | None


class Attribution(NamedTuple):
    """How much each group of training data raises each query's output.

    `scores[k, q] = output with everything - output without group k`, so positive means that
    having the group raises the query's output. `metadata` holds JSON values only; its
    `lower_is_better` says whether a larger output is worse.
    """

    scores: np.ndarray  # [K, Q]
    groups: Groups  # of the N training points
    query_ids: np.ndarray  # [Q] int
    metadata: dict[str, Any]
    # [K, Q] of 90 % intervals, where a check was made: a retraining is within `scores +- these`.
    half_widths: np.ndarray | None = None

    def top(self, k: int = 5) -> Ranking:
        """The k groups that raise each query's output most, and the k that lower it most.

        By their names where the groups have names, else by their numbers.

        Raises:
            ValueError: for a k outside 1..K.
        """
        check_integer("k", k, 1, len(self.scores))
        order = np.argsort(self.scores, axis=0, kind="stable")
        if self.groups.names is not None:
            order = np.asarray(self.groups.names)[order]
        raises, lowers = order[::-1][:k], order[:k]
        worse = self.metadata.get("lower_is_better")
        if worse is None:
            return Ranking(raises, lowers, None, None)
        return Ranking(raises, lowers, *((lowers, raises) if worse else (raises, lowers)))

    def members(self, group: int | str) -> np.ndarray:
        """The training points of a group, by its number or its name.

        Raises:
            ValueError: for a group that there is not.
        """
        names, count = self.groups.names or (), self.groups.count
        number = names.index(group) if group in names else group
        if number not in range(count):
            raise ValueError(f"group {group!r}; name one of 0..{count - 1}, or a group's name")
        return np.flatnonzero(np.asarray(self.groups.ids) == number)

    def to_dataframe(self):
        """A pandas frame with a row for each pair: group (its name), size, query, score.

        With the `half_width` of its interval, where there is one.
        """
        import pandas

        group, query = (place.ravel() for place in np.indices(self.scores.shape))
        names = np.arange(self.groups.count) if self.groups.names is None else self.groups.names
        columns = {
            "group": np.asarray(names)[group],
            "size": self.groups.sizes()[group],
            "query": self.query_ids[query],
            "score": self.scores.ravel(),
        }
        if self.half_widths is not None:
            columns["half_width"] = self.half_widths.ravel()
        return pandas.DataFrame(columns)

    def save(self, path: str | Path) -> None:
        """Write one checksummed .npz: `scores`, `groups`, `query_ids` and `metadata` (JSON).

        And `half_widths`, where there are some.
        """
        arrays = {"scores": self.scores, "groups": self.groups.ids, "query_ids": self.query_ids}
        if self.half_widths is not None:
            arrays["half_widths"] = self.half_widths
        names = {} if self.groups.names is None else {"group_names": list(self.groups.names)}
        write_arrays(Path(path), arrays, self.metadata | names)

    @classmethod
    def load(cls, path: str | Path) -> Attribution:
        """Read what `save` wrote, in this version or in 0.8.

        Raises:
            ValueError: when there is no such file, or it is no attribution or is damaged.
        """
        path = Path(path)
        try:
            arrays, metadata = _read_old(path) or read_arrays(
                path, KINDS | MAY_BE, MEND, tuple(MAY_BE)
            )
        except OSError as error:
            raise ValueError(f"there is no file {path} to read ({error.strerror})") from error
        names = metadata.pop("group_names", None)
        groups = as_groups(arrays["groups"], names=None if names is None else tuple(names))
        wide = arrays.get("half_widths")
        return make_attribution(arrays["scores"], groups, arrays["query_ids"], metadata, wide)


def _read_old(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """What 0.8 wrote, the same file without a checksum; None for any other file."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.comment:
                return None
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in KINDS}
            metadata = json.loads(str(file["metadata"]))
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError):
        return None
    if "objective" in metadata:
        metadata.setdefault("lower_is_better", metadata["objective"] == "loss")
    return arrays, metadata


def make_attribution(
    scores: Any,
    groups: Any,
    query_ids: Any = None,
    metadata: dict[str, Any] | None = None,
    half_widths: Any = None,
) -> Attribution:
    """Check the parts and build an `Attribution`.

    Args:
        scores: [K, Q].
        groups: `Groups`, or [N] integers 0..K-1, -1 for the background.
        query_ids: [Q]; default 0..Q-1.
        metadata: JSON values, such as `{"lower_is_better": task.lower_is_better}`.
        half_widths: [K, Q], of `metrics.half_widths`.

    Raises:
        ValueError: for shapes that do not fit, scores that are not finite, or an empty group.
    """
    scores = np.asarray(scores, np.float32)
    if scores.ndim != 2:
        raise ValueError(f"scores have shape {scores.shape}; they must be [K, Q]")
    groups = as_groups(groups)
    if groups.count != len(scores):
        raise ValueError(
            f"scores have shape {scores.shape}; {groups.count} groups need ({groups.count}, Q)"
        )
    query_ids = np.arange(scores.shape[1]) if query_ids is None else np.asarray(query_ids)
    query_ids = query_ids.astype(np.int64)
    if query_ids.shape != (scores.shape[1],):
        raise ValueError(
            f"query_ids have shape {query_ids.shape}; {scores.shape[1]} queries need "
            f"({scores.shape[1]},)"
        )
    bad = np.flatnonzero(~np.isfinite(scores).all(1))
    if bad.size:
        raise ValueError(
            f"the scores of {bad.size} of {len(scores)} groups are not finite, the first is group "
            f"{bad[0]}: the online fine-tune diverged; lower its learning rate or its steps"
        )
    if half_widths is not None:
        half_widths = np.asarray(half_widths, np.float32)
        if half_widths.shape != scores.shape:
            raise ValueError(
                f"half_widths have shape {half_widths.shape}; they must be {scores.shape}, as the "
                "scores"
            )
        if not (np.isfinite(half_widths) & (half_widths >= 0)).all():
            raise ValueError("half_widths must be finite, and not below 0")
    told = {"sign": SIGN, "axes": AXES} | (metadata or {})
    return Attribution(scores, groups, query_ids, told, half_widths)
