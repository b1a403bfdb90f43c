"""Four fake CPU devices for every test, and small problems that several files share."""

import os
import tempfile

# Tests compile much and compute little: without the compiler's optimisations that takes less.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
    ]
)

# Programs that the tests compile are kept for the processes that they start, and nowhere else.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp())
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax.matching import trajectory_indices
from ddm_jax.synset import initial_synset

# Fixtures that take half a minute, a truth store and a whole study: whoever needs one is slow.
LONG = {"filled", "regression"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if LONG & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


class Ready:
    """A trained tiny network on 150 digits, with 10 groups."""

    def __init__(self):
        split = ddm.data.load("digits", train_size=150, test_size=50, seed=3)
        self.split = split
        self.data = jax.device_put(split.train)
        self.query = jax.device_put(split.test)
        self.task = ddm.classification(ddm.models.MLP(10, (12,)), (8, 8, 1))
        self.train = self.recipe(self.task)
        self.run = jax.jit(self.train)(jax.random.key(0), self.data, jnp.ones(150))
        self.groups = ddm.make_groups(
            "class", features=split.train.x, labels=split.train.y.argmax(1), num_groups=10
        )
        self.num_groups = 10

    @staticmethod
    def recipe(task):
        """How networks are trained here."""
        return ddm.make_train(
            task,
            steps=60,
            batch_size=50,
            learning_rate=0.3,
            momentum=0.5,
            weight_decay=1e-3,
            checkpoint_every=6,
        )


class Planted(Ready):
    """The same, with six zeros called one, in a group of their own: the eleventh."""

    def __init__(self):
        super().__init__()
        labels = np.asarray(self.data.y).argmax(1)
        bad = np.flatnonzero(labels == 0)[:6]
        self.data = self.data._replace(y=self.data.y.at[bad].set(jnp.eye(10)[1]))
        ids = np.asarray(self.groups.ids).copy()
        ids[bad] = 10
        self.groups = ddm.as_groups(ids)
        self.num_groups = 11
        self.run = jax.jit(self.train)(jax.random.key(0), self.data, jnp.ones(150))


@pytest.fixture(scope="session")
def ready():
    return Ready()


@pytest.fixture(scope="session")
def planted():
    return Planted()


@pytest.fixture(scope="session")
def synset(ready):
    """Two items a group, at the pursuit's start."""
    indices, _ = trajectory_indices(10, 1.0)
    return initial_synset(
        jax.random.key(1), ready.task, "pursuit", ready.run, ready.data, ready.groups, 2, indices
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)
