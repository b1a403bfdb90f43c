"""Networks that any Python function trains, one after another, each kept in a folder when done."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax import files
from ddm_jax.checks import check_run
from ddm_jax.compute.compiled import compiled
from ddm_jax.train import params_of
from ddm_jax.types import Array, Batch, Params, Task, TrainRun

# key, data, weights [N] -> TrainRun or parameters; it needs not be traceable
AnyTrain = Callable[[Array, Batch, Any], Any]
Tell = Callable[[int, int], None]  # networks done, networks in all


class KeptNetworks:
    """The networks of a folder: read where they are there, trained where they are not.

    A network is known by the name of the training and the text of its function, its key, the data
    and the points' weights, and by nothing else: where what the function takes from elsewhere was
    changed, it needs another name, or another folder.
    """

    def __init__(self, task: Task, train: AnyTrain, folder: Path, name: str) -> None:
        self.task, self.train, self.folder, self.name = task, train, folder, name
        self.like = jax.eval_shape(task.init, jax.random.key(0))
        self.ask = compiled(task.output)
        try:
            text = inspect.getsource(train)
        except (OSError, TypeError):  # of a session without files, or of an object
            text = ""
        self.text = files.digest(np.frombuffer(text.encode(), np.uint8))

    def outputs(
        self, keys: Array, data: Batch, weights: np.ndarray, query: Batch, tell: Tell
    ) -> np.ndarray:
        """What the networks of all keys and weights `[R, N]` say of a query, `[E, R, Q]`."""
        known, done = files.digest(*jax.tree.leaves(data)), 0
        found = []
        for key in keys:
            for row in weights:
                found.append(np.asarray(self.ask(self.params(key, data, row, known), query)))
                done += 1
                tell(done, len(keys) * len(weights))
        return np.stack(found).reshape(len(keys), len(weights), -1)

    def params(self, key: Array, data: Batch, weights: np.ndarray, known: str) -> Params:
        """One network; `known` is the digest of the data.

        Raises:
            ValueError: for parameters that are not the task's, or that are not finite.
        """
        identity = {
            "training": self.name,
            "text": self.text,
            "key": files.digest(jax.random.key_data(key)),
            "data": known,
            "weights": files.digest(weights),
        }
        path = self.folder / files.digest(np.frombuffer(repr(identity).encode(), np.uint8))
        if files.exists(path):
            return files.load(path, self.like)
        found = self.train(key, data, weights)
        params = params_of(found)
        check_run(self.task, TrainRun(key, params, params))
        params = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), params, self.like)
        files.save(path, params, identity)
        return params
