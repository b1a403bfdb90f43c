"""What is computed has one digest: names, layout and processes do not change it, an edit does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ddm_jax import estimators
from ddm_jax.judge import program
from ddm_jax.judge.program import program_digest, source_digest

X = np.ones((3, 4), np.float32)
TABLE = np.arange(4, dtype=np.float32)

# A training step with most of what a jaxpr can hold, written twice.
STEP = """
import jax, jax.numpy as jnp, numpy as np
from jax import lax

@jax.custom_vjp
def odd(x):
    return jnp.tanh(x)

odd.defvjp(lambda x: (odd(x), x), lambda x, slope: (FACTOR * slope * jnp.cos(x),))
table = np.arange(4, dtype=np.float32)

def loss(weights, x, key):
    noise = jax.random.bernoulli(key, 0.25, x.shape)
    inner = odd((x * noise) @ weights + table[0]) + jax.nn.relu(x[:, 0])
    return lax.cond(inner.sum() > 0, lambda: jnp.mean(inner**2), lambda: 0.5)

def train(weights, x, key):
    def step(carry, turn):
        gradient = jax.grad(loss)(carry, x, jax.random.fold_in(key, turn))
        return carry - 0.1 * gradient, None
    return lax.scan(jax.checkpoint(step), weights, jnp.arange(5))[0]
"""
OTHER = """
import jax, jax.numpy as jnp, numpy as np
from jax import lax

# Other names, a helper, docstrings, an operation that nothing reads, and compiled inside.
CONSTANTS = np.arange(4, dtype=np.float32)

@jax.custom_vjp
def curve(value):
    "Bend."
    return jnp.tanh(value)

def backwards(value, bar):
    return (FACTOR * bar * jnp.cos(value),)

curve.defvjp(lambda value: (curve(value), value), backwards)

@jax.jit
def hidden(theta, pixels, dropped):
    return curve((pixels * dropped) @ theta + CONSTANTS[0]) + jax.nn.relu(pixels[:, 0])

def objective(theta, pixels, draw):
    jnp.sin(theta)
    dropped = jax.random.bernoulli(draw, 0.25, pixels.shape)
    deep = hidden(theta, pixels, dropped)
    return lax.cond(deep.sum() > 0, lambda: jnp.mean(deep**2), lambda: 0.5)

def train(theta, pixels, draw):
    def one_turn(at, t):
        key = jax.random.fold_in(draw, t)
        slope = jax.grad(objective)(at, pixels, key)
        return at - 0.1 * slope, None
    return lax.scan(jax.checkpoint(one_turn), theta, jnp.arange(5))[0]
"""


def _train_digest(source: str, **changes: str) -> str:
    for old, new in ({"FACTOR": "2.0"} | changes).items():
        source = source.replace(old, new)
    names: dict = {}
    exec(source, names)
    return program_digest(names["train"], TABLE, X, jax.random.key(0))


def test_names_helpers_layout_and_what_nothing_reads_do_not_count():
    assert _train_digest(STEP) == _train_digest(OTHER)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR", "2.5"),  # in a derivative rule alone
        ("0.25", "0.3"),
        ("np.arange(4", "1 + np.arange(4"),
        ("- 0.1", "- 0.11"),
        ("jnp.arange(5)", "jnp.arange(6)"),
        ("jnp.mean", "jnp.sum"),
        (": 0.5", ": 0.6"),
        ("> 0, ", ">= 0, "),
        ("tanh", "sin"),
        ("x[:, 0]", "x[:, 1]"),
    ],
)
def test_an_edit_counts(old, new):
    assert STEP.count(old) == 1, old
    assert _train_digest(STEP, **{old: new}) != _train_digest(STEP)


def test_an_argument_counts_by_shape_and_type_alone():
    def double(x):
        return 2 * x

    base = program_digest(double, X)
    assert len(base) == 16
    assert program_digest(double, X + 1) == base == program_digest(double, jnp.asarray(X))
    assert program_digest(double, jax.ShapeDtypeStruct(X.shape, X.dtype)) == base
    assert program_digest(double, X.T) != base
    assert program_digest(double, X.astype(np.int32)) != base
    assert program_digest(double, X.astype(np.float16)) != base


@pytest.mark.parametrize("size", [4, 4000])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap, jax.checkpoint])
def test_a_constant_counts_by_its_values(wrap, size):
    def digest(constant):
        return program_digest(wrap(lambda x: x * constant), np.ones((2, size), np.float32))

    table = np.arange(size, dtype=np.float32)
    base = digest(table)
    assert digest(table.copy()) == base == digest(jnp.asarray(table))
    changed = table.copy()
    changed[size // 2] = np.nextafter(changed[size // 2], 9)
    assert digest(changed) != base


def test_a_closed_over_number_and_key_count():
    def digest(number=2.0, seed=0):
        key = jax.random.key(seed)
        return program_digest(lambda x: number * x + jax.random.normal(key, x.shape), X)

    assert digest() == digest()
    assert len({digest(), digest(number=2.5), digest(number=3.0), digest(seed=1)}) == 4


def test_which_operand_and_which_output_count():
    assert program_digest(lambda a, b: a - b, X, X) != program_digest(lambda a, b: b - a, X, X)
    assert program_digest(lambda a: (a, -a), X) != program_digest(lambda a: (-a, a), X)
    assert program_digest(lambda a: (a + 1, a - 1), X) != program_digest(lambda a: a + 1, X)
    split = program_digest(lambda a: jnp.split(a, 2, 1)[0], X)
    assert split != program_digest(lambda a: jnp.split(a, 2, 1)[1], X)


def test_the_order_of_independent_operations_does_not_count():
    def one(a, b):
        left, right = jnp.sin(a), jnp.cos(b)
        return left + right

    def other(a, b):
        right, left = jnp.cos(b), jnp.sin(a)
        return left + right

    assert program_digest(one, X, X) == program_digest(other, X, X)


def test_while_loops_solves_and_sorts_are_told_apart():
    def digest(limit=9.0, matrix=2.0, descending=False):
        def fn(x):
            grown = lax.while_loop(lambda t: t[0, 0] < limit, lambda t: t * 2, x)
            solved = jnp.linalg.solve(matrix * jnp.eye(3), grown)
            return jnp.sort(solved, axis=0, descending=descending)

        return program_digest(fn, X)

    assert digest() == digest()
    assert len({digest(), digest(limit=8.0), digest(matrix=3.0), digest(descending=True)}) == 4


@pytest.mark.parametrize(
    ("module", "old", "new", "same"),
    [
        ("estimators.encoded_ensemble", '"""Encoded', '"""Said otherwise', True),
        ("estimators.encoded_ensemble", "\n    return ", "\n\n    # Said.\n    return ", True),
        ("estimators.encoded_ensemble", "check_integer(", "check_number(", False),
        ("masks", "round(keep", "int(keep", False),  # which it uses
        ("run.report", "def ", "def other_", True),  # which it does not
    ],
)
def test_the_code_of_what_works_on_the_host_counts(ready, monkeypatch, module, old, new, same):
    made = estimators.make_encoded_ensemble(ready.task, ready.train)
    before, source, changed = source_digest(made.fit), program.inspect.getsource, []

    def edited(of):
        text = source(of)
        if of.__name__ != f"ddm_jax.{module}":
            return text
        assert old in text
        changed.append(module)
        return text.replace(old, new)

    monkeypatch.setattr(program.inspect, "getsource", edited)
    assert (source_digest(made.fit) == before) == same
    assert bool(changed) == (module != "run.report")


@pytest.mark.slow
def test_the_digest_is_the_same_in_another_process():
    """Where addresses and the order of sets are others."""
    code = f"SOURCE = {STEP!r}\nimport sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += "import test_program; print(test_program._train_digest(SOURCE))"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert told.split()[-1] == _train_digest(STEP)
