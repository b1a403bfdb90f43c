"""Networks that any Python function trains, one after another, each kept in a folder when done."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax import checkpoints, files
from ddm_jax.checks import check_run
from ddm_jax.compute.compiled import compiled
from ddm_jax.train import params_of
from ddm_jax.types import Array, Batch, Params, Task, TrainRun

# key, data, weights [N] -> TrainRun or parameters; it needs not be traceable
AnyTrain = Callable[[Array, Batch, Any], Any]
Tell = Callable[[int, int], None]  # networks done, networks in all


# keys [E], data, weights [R, N], query -> outputs [E, R, Q]
Ask = Callable[[Array, Batch, np.ndarray, Batch], np.ndarray]


def make_kept_networks(
    task: Task, train: AnyTrain, folder: Path, name: str, tell: Tell = lambda done, total: None
) -> Ask:
    """Make `outputs(keys, data, weights, query)` of the networks of a folder.

    They are read where they are there, and trained where they are not. A network is known by the
    name of the training and the text of its function, its key, the data and the points' weights,
    and by nothing else: where what the function takes from elsewhere was changed, it needs another
    name, or another folder.

    Raises:
        ValueError: (when called) for parameters that are not the task's, or that are not finite.
    """
    like = jax.eval_shape(task.init, jax.random.key(0))
    ask = compiled(task.output)
    try:
        text = inspect.getsource(train)
    except (OSError, TypeError):  # of a prompt, or of an object
        text = ""

    def digest(told: str) -> str:
        return files.digest(np.frombuffer(told.encode(), np.uint8))

    def params_at(key: Array, data: Batch, weights: np.ndarray, known: str) -> Params:
        identity = {
            "training": name,
            "text": digest(text),
            "key": files.digest(jax.random.key_data(key)),
            "data": known,
            "weights": files.digest(weights),
        }
        path = folder / digest(repr(identity))
        if checkpoints.exists(path):
            return checkpoints.load(path, like)
        params = params_of(train(key, data, weights))
        check_run(task, TrainRun(key, params, params))
        params = jax.tree.map(lambda leaf, shape: jnp.asarray(leaf, shape.dtype), params, like)
        checkpoints.save(path, params, identity)
        return params

    def outputs(keys: Array, data: Batch, weights: np.ndarray, query: Batch) -> np.ndarray:
        known, total = files.digest(*jax.tree.leaves(data)), len(keys) * len(weights)
        found: list[np.ndarray] = []
        for key in keys:
            for row in weights:
                found.append(np.asarray(ask(params_at(key, data, row, known), query)))
                tell(len(found), total)
        return np.stack(found).reshape(len(keys), len(weights), -1)

    return outputs
