"""The ground truth of a problem: which networks are retrained exactly, and what they say.

    masks: everything kept | single groups left out | random subsets, for each keep fraction
    rows:  every mask with several seeds, kept in a truth store

Rows with the same seed share initialisation and batch order, so effects are paired
(`truth.paired`). No seed is the target network's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax import files
from ddm_jax.compute.compiled import compiled
from ddm_jax.compute.placement import replicate
from ddm_jax.estimators.retraining import retrained_outputs
from ddm_jax.files import plain
from ddm_jax.judge import filling, store
from ddm_jax.judge.filling import Compute, Tell
from ddm_jax.judge.problem import Problem, TruthSettings, retraining_of
from ddm_jax.judge.program import program_digest
from ddm_jax.judge.store import Store
from ddm_jax.masks import leave_one_out_masks, random_masks, subset_size
from ddm_jax.train import final_rate
from ddm_jax.types import Batch, Groups

VERSIONS = ("jax", "flax", "optax")  # of what retrains
# Settings of a training that are not told where they are these: 0.9 had no others.
IMPLIED = (("optimizer", "sgd"), ("clip", None))
PROGRAM = "program on "  # and the kind of device: the digest of what is computed
GROUPS_KEY = 10**6  # folded into the truth's key: which single groups are left out
AGREE = (
    1e-3  # outputs of one row, computed by two versions of the package or on two kinds of device
)


class Declared(NamedTuple):
    """The masks of a truth and how many seeds each has."""

    masks: np.ndarray  # [R, K]
    seeds: np.ndarray  # [R]
    groups: np.ndarray  # [G] masks 1 to G leave these out, one each
    keep: np.ndarray  # [R] the keep fraction of a random subset, 0 for the others


class Truth(NamedTuple):
    """What exact retraining says: outputs `[S, R, Q]`, cut by what was removed."""

    full: np.ndarray  # [S, Q] with everything; S = 0 where no group is left out
    single: np.ndarray  # [S, G, Q] without each of some groups
    groups: np.ndarray  # [G] which
    masks: np.ndarray  # [R, K] of the random subsets
    keep: np.ndarray  # [R] their keep fractions
    subsets: np.ndarray  # [S', R, Q]
    seconds: float  # a network, median

    def effects(self) -> np.ndarray:
        """The paired effect of having each group, `[S, G, Q]`."""
        return self.full[:, None] - self.single


def declare(settings: TruthSettings, seed: int, num_groups: int) -> Declared:
    """The rows of a truth."""
    key = truth_key(seed)
    masks = [np.zeros((0, num_groups), np.float32)]
    groups = np.zeros(0, int)
    if settings.leave_one_out:
        order = jax.random.permutation(jax.random.fold_in(key, GROUPS_KEY), num_groups)
        groups = np.sort(np.asarray(order)[: settings.groups])
        masks.append(np.asarray(leave_one_out_masks(num_groups))[np.r_[0, 1 + groups]])
    single = len(masks[-1])
    fractions = settings.keep if settings.subsets else ()
    for index, fraction in enumerate(fractions):
        # 1 and 2 are the keys of the networks and of the estimators.
        of_fraction = jax.random.fold_in(key, index and index + 2)
        masks.append(np.asarray(random_masks(of_fraction, settings.subsets, num_groups, fraction)))
    counts = [single] + [settings.subsets] * len(fractions)
    seeds = np.repeat([settings.seeds] + [settings.subset_seeds] * len(fractions), counts)
    keep = np.repeat([0.0, *fractions], counts)
    return Declared(np.concatenate(masks), seeds, groups, keep)


def truth_key(seed: int) -> jax.Array:
    """The key of a run's truth, apart from those of its stages."""
    return jax.random.fold_in(jax.random.key(seed), 1000)


def open_truth(
    problem: Problem,
    data: Batch,
    query: Batch,
    groups: Groups,
    folder: Path,
    described: Mapping[str, Any] | None = None,
    rows: Declared | None = None,
) -> Store:
    """Make or open the truth store of a problem.

    A store of version 0.8, or one that was filled on other devices, is taken over where
    everything that it names is as it was and two of its rows come out alike, to 1e-3.

    Args:
        described: flat JSON values that tell what the data and the network are, for the messages;
            "data" among them may be the digest of the data, where it is known.
        rows: what to retrain, in place of what the problem's settings say.

    Raises:
        ValueError: when `folder` holds the truth of something else, naming what differs, or for
            subsets of another size than `removal="subset"` trains on.
    """
    rows = declare(problem.truth, problem.seed, groups.count) if rows is None else rows
    if problem.truth.removal == "subset":
        if groups.background:
            raise ValueError(
                "truth.removal=subset has no place for a background (group -1): use "
                "truth.removal=weights"
            )
        size = subset_size(problem.num_points, problem.truth.keep[0])
        kept = rows.masks @ groups.sizes()
        if (kept != size).any():
            raise ValueError(
                f"truth.removal=subset trains on {size} points, and a mask keeps "
                f"{kept[kept != size][0]:g}; it needs groups of single points"
            )
    params = jax.eval_shape(problem.task.init, jax.random.key(0))
    width = jax.eval_shape(problem.task.output, params, query).shape[0]
    told = identity(problem, data, query, groups, described or {})
    compute = _retraining(problem, rows.masks, data, query, groups)

    def renew(
        found: Store, wanted: dict[str, Any], changed: set[str]
    ) -> tuple[set[str], dict[str, Any]]:
        of_08 = {name for name in found.identity if name.startswith("code of ")}
        new = wanted.keys() - found.identity.keys()
        elsewhere = {name for name in found.identity if name.startswith(PROGRAM)} - wanted.keys()
        free = elsewhere | {name for name in new if name.startswith(PROGRAM)}
        if of_08:
            free |= {*of_08, *new, *VERSIONS}
        if changed <= free and not changed <= elsewhere:
            _check_agrees(found, compute)
        serious = changed - free
        # Where settings differ so do programs, which then says nothing more.
        named = {name for name in serious if not name.startswith(PROGRAM)}
        return named or serious, {name: found.identity[name] for name in elsewhere} | wanted

    return store.open_store(folder, told, rows.masks, rows.seeds, width, renew)


def fill(
    problem: Problem,
    opened: Store,
    data: Batch,
    query: Batch,
    groups: Groups,
    chunk: int | None = None,
    tell: Tell = lambda done, note: None,
) -> int:
    """Retrain every network that the store lacks; returns how many."""
    compute = _retraining(problem, opened.masks, data, query, groups)
    return filling.fill(opened, compute, chunk=chunk, tell=tell, least=jax.local_device_count())


def read_truth(problem: Problem, opened: Store) -> Truth:
    """Read a full store.

    Raises:
        ValueError: when rows are missing.
    """
    rows = declare(problem.truth, problem.seed, opened.masks.shape[1])
    outputs = store.read(opened)
    count, subset = len(rows.groups), rows.keep > 0
    single = outputs[: problem.truth.seeds if count else 0]
    return Truth(
        full=single[:, 0],
        single=single[:, 1 : 1 + count],
        groups=rows.groups,
        masks=rows.masks[subset],
        keep=rows.keep[subset],
        subsets=outputs[: problem.truth.subset_seeds, subset],
        seconds=filling.status(opened).seconds_per_row,
    )


def checksum(truth: Truth) -> str:
    """SHA-256 of all outputs, rounded to 3 decimals."""
    outputs = [array.ravel() for array in (truth.full, truth.single, truth.subsets)]
    return store.checksum(np.concatenate(outputs))


def identity(
    problem: Problem, data: Batch, query: Batch, groups: Groups, described: Mapping[str, Any]
) -> dict[str, Any]:
    """What the outputs depend on: settings, data and groups, what is computed, and versions."""
    told: dict[str, Any] = {
        "seed": problem.seed,
        "truth.objective": problem.truth.objective,
        "truth.paired": problem.truth.paired,
        "truth.removal": problem.truth.removal,
    }
    train = dataclasses.asdict(problem.train) | {"final_learning_rate": final_rate(problem.train)}
    told |= {f"train.{name}": each for name, each in train.items() if (name, each) not in IMPLIED}
    told |= {name: packages.version(name) for name in VERSIONS} | plain(dict(described))
    told["groups"] = files.digest(groups.ids)
    if "data" not in told:
        told["data"] = files.digest(*jax.tree.leaves((data, query)))
    args = (jnp.ones(groups.count), jax.random.key(0), data, groups, query)
    # Convolutions take other forms on other devices, and batches are cut into other pieces.
    told[PROGRAM + jax.devices()[0].device_kind] = program_digest(retraining_of(problem), *args)
    return told


def _retraining(
    problem: Problem, masks: np.ndarray, data: Batch, query: Batch, groups: Groups
) -> Compute:
    """What computes rows: `compute(rows of the masks [B], seeds [B]) -> [B, Q]`."""
    retrain = retrained_outputs(retraining_of(problem))
    key = jax.random.fold_in(truth_key(problem.seed), 1)
    placed: list[Any] = []  # only where something is computed

    @compiled
    @jax.vmap
    def key_of(mask: jax.Array, seed: jax.Array) -> jax.Array:
        of_seed = jax.random.fold_in(key, seed)
        return of_seed if problem.truth.paired else jax.random.fold_in(of_seed, mask)

    def compute(index: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        if not placed:
            placed.extend(replicate((data, groups, query)))
        keys = key_of(jnp.asarray(index), jnp.asarray(seeds))
        return np.asarray(retrain(masks[index], keys, *placed))

    return compute


def _check_agrees(found: Store, compute: Compute) -> None:
    """Check that two rows of a store, its first and its last one, come out as they did."""
    done = [row for row in store.declared(found) if store.is_done(found, row)]
    for row in done[:1] + done[1:][-1:]:
        now = filling.compute_rows(compute, [row], jax.local_device_count())[0]
        apart = float(np.abs(now - store.read_row(found, row)).max())
        if not apart <= AGREE:
            raise ValueError(
                f"the truth in {found.folder} was made by another version or on other devices, "
                f"and mask {row.mask} with seed {row.seed} comes out {apart:.2g} away from what it "
                "holds; use another --workdir, or delete that folder to compute it again"
            )
