"""The attribution matrix, and everything needed to read it alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SIGN = "positive = having the group raises the query's output"
AXES = "scores[k, q]: group k (rows) on query q (columns)"


class Ranking(NamedTuple):
    """Groups by effect on each query: row 0 is the strongest."""

    helpful: np.ndarray  # [k, Q] groups that raise the output most
    harmful: np.ndarray  # [k, Q] groups that lower it most


class Attribution(NamedTuple):
    """How much each group of training data raises each query's output.

    `scores[k, q] = output with everything - output without group k`, so positive means that
    having the group raises the query's output. `metadata` holds JSON values only.
    """

    scores: np.ndarray  # [K, Q]
    groups: np.ndarray  # [N] int32, the group of each training point
    query_ids: np.ndarray  # [Q] int
    metadata: dict[str, Any]

    def top(self, k: int = 5) -> Ranking:
        """The k most helpful and the k most harmful groups of each query.

        Raises:
            ValueError: for a k outside 1..K.
        """
        if not 1 <= k <= len(self.scores):
            raise ValueError(f"k={k}; it must be in 1..{len(self.scores)}, the number of groups")
        order = np.argsort(self.scores, axis=0, kind="stable")
        return Ranking(helpful=order[::-1][:k], harmful=order[:k])

    def members(self, group: int) -> np.ndarray:
        """The training points of a group."""
        return np.flatnonzero(self.groups == group)

    def to_dataframe(self):
        """A pandas frame with a row for each pair: group, size, query, score."""
        import pandas

        sizes = np.bincount(self.groups, minlength=len(self.scores))
        group, query = np.indices(self.scores.shape)
        return pandas.DataFrame(
            {
                "group": group.ravel(),
                "size": sizes[group.ravel()],
                "query": self.query_ids[query.ravel()],
                "score": self.scores.ravel(),
            }
        )

    def save(self, path: str | Path) -> None:
        """Write one .npz: `scores`, `groups`, `query_ids` and `metadata` (JSON text)."""
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file,
                scores=self.scores,
                groups=self.groups,
                query_ids=self.query_ids,
                metadata=np.asarray(json.dumps(self.metadata)),
            )

    @classmethod
    def load(cls, path: str | Path) -> Attribution:
        """Read what `save` wrote.

        Raises:
            ValueError: when the file is no attribution or is damaged.
        """
        try:
            with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                metadata = json.loads(str(file["metadata"]))
                return make_attribution(file["scores"], file["groups"], file["query_ids"], metadata)
        except FileNotFoundError as error:
            raise ValueError(f"there is no file {path}") from error
        except (KeyError, OSError, EOFError, ValueError) as error:
            raise ValueError(
                f"{path} is no attribution or is damaged ({type(error).__name__}: {error}); "
                "make it again with `ddm attribute`"
            ) from error
        except Exception as error:  # zipfile and zlib have errors of their own
            raise ValueError(f"{path} is damaged ({error}); make it again") from error


def make_attribution(
    scores: Any,
    groups: Any,
    query_ids: Any = None,
    metadata: dict[str, Any] | None = None,
) -> Attribution:
    """Check the parts and build an `Attribution`; `query_ids` default to 0..Q-1.

    Raises:
        ValueError: for shapes that do not fit, scores that are not finite, or an empty group.
    """
    from ddm_jax.cluster import check_groups

    scores = np.asarray(scores, np.float32)
    if scores.ndim != 2:
        raise ValueError(f"scores have shape {scores.shape}; they must be [K, Q]")
    groups = check_groups(groups, len(np.asarray(groups)), len(scores))
    query_ids = np.arange(scores.shape[1]) if query_ids is None else np.asarray(query_ids)
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
    return Attribution(scores, groups, query_ids, {"sign": SIGN, "axes": AXES} | (metadata or {}))
