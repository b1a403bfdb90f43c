"""The ground truth of a run: which networks are retrained exactly, and what they say.

    masks: everything kept | each group left out | random subsets, for each keep fraction
    rows:  every mask with several seeds, kept in the truth store of the work directory

Rows with the same seed share initialisation and batch order, so effects are paired
(`truth.paired`). No seed is the target network's own.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
from collections.abc import Iterable
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ddm_jax
from ddm_jax import filling, store
from ddm_jax.estimators.retraining import retrained_outputs
from ddm_jax.filling import Tell
from ddm_jax.loo import leave_one_out_masks, random_masks
from ddm_jax.parallel import replicate
from ddm_jax.plan import Plan
from ddm_jax.store import Store

SECTIONS = ("data", "model", "train")  # of the settings, that the outputs depend on
# The files whose code the outputs depend on.
CODE = (
    "train.py",
    "models.py",
    "convolution.py",
    "pieces.py",
    "objectives.py",
    "estimators/retraining.py",
)


class Declared(NamedTuple):
    """The masks of a truth and how many seeds each has."""

    masks: np.ndarray  # [R, K]
    seeds: np.ndarray  # [R]
    groups_out: int  # masks 1 to groups_out leave one group out; 0 or K
    keep: np.ndarray  # [R] the keep fraction of a random subset, 0 for the others


class Truth(NamedTuple):
    """What exact retraining says: outputs `[S, R, Q]`, cut by what was removed."""

    full: np.ndarray  # [S, Q] with everything; S = 0 where no group is left out
    single: np.ndarray  # [S, K, Q] without each group
    masks: np.ndarray  # [R, K] of the random subsets
    keep: np.ndarray  # [R] their keep fractions
    subsets: np.ndarray  # [S', R, Q]
    seconds: float  # a network, median

    def effects(self) -> np.ndarray:
        """The paired effect of having each group, `[S, K, Q]`."""
        return self.full[:, None] - self.single


def declare(plan: Plan, num_groups: int) -> Declared:
    """The rows of a run's truth."""
    config = plan.config.truth
    masks: list[np.ndarray] = []
    if config.leave_one_out:
        masks.append(np.asarray(leave_one_out_masks(num_groups)))
    single = sum(map(len, masks))
    for index, fraction in enumerate(config.keep if config.subsets else ()):
        # 1 and 2 are the keys of the networks and of the estimators.
        key = jax.random.fold_in(truth_key(plan), index and index + 2)
        masks.append(np.asarray(random_masks(key, config.subsets, num_groups, fraction)))
    sizes = [single] + [config.subsets] * (len(masks) - bool(single))
    seeds = np.repeat([config.seeds] + [config.subset_seeds] * (len(sizes) - 1), sizes)
    keep = np.repeat([0.0, *config.keep[: len(sizes) - 1]], sizes)
    return Declared(np.concatenate(masks), seeds, max(single - 1, 0), keep)


def truth_key(plan: Plan) -> jax.Array:
    """The key of a run's truth, apart from those of its stages."""
    return jax.random.fold_in(jax.random.key(plan.config.seed), 1000)


def open_truth(plan: Plan, folder: Path, groups: np.ndarray) -> Store:
    """Make or open the truth store of a run.

    Raises:
        ValueError: when `folder` holds the truth of something else, naming what differs.
    """
    rows = declare(plan, int(groups.max()) + 1)
    params = jax.eval_shape(plan.task.init, jax.random.key(0))
    width = jax.eval_shape(plan.truth_output, params, plan.split.test).shape[0]
    return store.open_store(folder, identity(plan, groups), rows.masks, rows.seeds, width)


def fill(plan: Plan, opened: Store, groups: np.ndarray, chunk: int | None, tell: Tell) -> int:
    """Retrain every network that the store lacks; returns how many."""
    retrain = retrained_outputs(plan.truth_retraining)
    data, cut, query = replicate((plan.split.train, groups, plan.split.test))
    key = jax.random.fold_in(truth_key(plan), 1)
    paired = plan.config.truth.paired

    @jax.jit
    @jax.vmap
    def key_of(mask: jax.Array, seed: jax.Array) -> jax.Array:
        of_seed = jax.random.fold_in(key, seed)
        return of_seed if paired else jax.random.fold_in(of_seed, mask)

    def compute(index: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        keys = key_of(jnp.asarray(index), jnp.asarray(seeds))
        return np.asarray(retrain(opened.masks[index], keys, data, cut, query))

    devices = jax.local_device_count()
    return filling.fill(opened, compute, chunk=chunk, tell=tell, least=devices)


def read_truth(plan: Plan, opened: Store) -> Truth:
    """Read a full store.

    Raises:
        ValueError: when rows are missing.
    """
    rows, config = declare(plan, opened.masks.shape[1]), plan.config.truth
    outputs = store.read(opened)
    count = rows.groups_out
    subset = rows.keep > 0
    single = outputs[: config.seeds if count else 0]
    return Truth(
        full=single[:, 0],
        single=single[:, 1 : 1 + count],
        masks=rows.masks[subset],
        keep=rows.keep[subset],
        subsets=outputs[: config.subset_seeds, subset],
        seconds=filling.status(opened).seconds_per_row,
    )


def identity(plan: Plan, groups: np.ndarray) -> dict[str, Any]:
    """What the outputs depend on: settings, data and groups, code and versions."""
    config = plan.config
    told: dict[str, Any] = {
        "seed": config.seed,
        "truth.objective": config.truth.objective,
        "truth.paired": config.truth.paired,
        "truth.removal": config.truth.removal,
    }
    for section in SECTIONS:
        for name, value in dataclasses.asdict(getattr(config, section)).items():
            told[f"{section}.{name}"] = list(value) if isinstance(value, tuple) else value
    # Where the data lies does not matter, what they are does.
    del told["data.data_dir"]
    told["data"] = store.digest(*plan.split.train, *plan.split.test)
    told["groups"] = store.digest(groups)
    return told | code_identity()


def code_identity() -> dict[str, str]:
    """Versions of what retrains: JAX, flax, optax, and this package's own files."""
    folder = Path(ddm_jax.__file__).parent
    told = {name: packages.version(name) for name in ("jax", "flax", "optax")}
    return told | {f"code of {name}": source_digest([folder / name]) for name in CODE}


def source_digest(files: Iterable[Path]) -> str:
    """SHA-256 of Python files, 12 characters: the same on every version of Python.

    Comments, docstrings and layout do not count.
    """
    total = hashlib.sha256()
    for path in files:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_docstring(body[0]):
                del body[0]
        total.update(repr(_plain(tree)).encode())
    return total.hexdigest()[:12]


def _plain(node: Any) -> Any:
    """A syntax tree as lists, without the empty fields that versions of Python differ in."""
    if isinstance(node, list):
        return [_plain(part) for part in node]
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *((name, _plain(value)) for name, value in fields)]
    return node


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
