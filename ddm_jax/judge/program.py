"""What a function computes, as a short text that its name, comments and layout do not change.

The function is traced, and every value of its jaxpr named by a hash of what made it:

    hash(value) = H(operation, its parameters, the hashes of its operands)

and the digest is that of the outputs. Constants count by their bytes, wherever they are closed
over. What does not reach an output, the order of independent operations, and how operations are
cut into functions do not count, so that a refactoring leaves the digest as it is, and an edited
loss does not. A rule for derivatives counts where a derivative is taken with it: digest a training
step, not a loss. What a callback to Python does is not seen.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.extend import core

# Operations that only call the one program among their parameters.
CALLS = {
    "jit",
    "closed_call",
    "core_call",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vmap_call",
}
PACKAGE = __name__.partition(".")[0]
UNTOLD = {"name", "in_tree", "out_tree", "out_trees"}  # parameters that say nothing of values


def program_digest(fn: Callable[..., Any], *args: Any) -> str:
    """Hash what `fn(*args)` computes, 16 characters: one digest for one computation.

    Args:
        fn: a function that JAX can trace.
        args: pytrees of arrays, or of their `jax.ShapeDtypeStruct`; only shapes and types count.
    """
    traced = jax.make_jaxpr(fn)(*args)
    return text_digest(*_inputs(traced.jaxpr), _of_program(traced))


def source_digest(*functions: Callable[..., Any]) -> str:
    """Hash the code of this package that functions may reach, 16 characters.

    For functions that cannot be traced because they work on the host. Of every module that they
    and what they close over come from, and of those that these import; without docstrings,
    comments and layout.
    """
    names: set[str] = set()
    seen: dict[int, Any] = {}
    left: list[Any] = list(functions)
    while left:
        value = left.pop()
        is_module = isinstance(value, ModuleType)
        name = str(getattr(value, "__name__" if is_module else "__module__", ""))
        if name.startswith(PACKAGE) and name not in names:
            names.add(name)
            left += vars(sys.modules[name]).values()
        if callable(value) and id(value) not in seen:
            seen[id(value)] = value
            left.append(getattr(value, "__wrapped__", None))
            for cell in getattr(value, "__closure__", None) or ():
                with contextlib.suppress(ValueError):  # not filled yet
                    left.append(cell.cell_contents)
    return text_digest(*(_source(sys.modules[name]) for name in sorted(names)))


def _source(module: ModuleType) -> str:
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_bare_constant(line)]  # type: ignore
    return ast.dump(tree)


def _is_bare_constant(line: ast.AST) -> bool:
    """A docstring, say."""
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def programs(params: Mapping[str, Any]) -> list[Any]:
    """The programs inside an operation: not what only says how to differentiate it."""
    parts = (p for v in params.values() for p in (v if isinstance(v, tuple | list) else (v,)))
    return [part for part in parts if isinstance(part, core.Jaxpr | core.ClosedJaxpr)]


def _of_program(program: Any) -> str:
    """Hash a program with inputs of its own."""
    jaxpr = getattr(program, "jaxpr", program)
    return _digest(*_values(program, _inputs(jaxpr)))


def _inputs(jaxpr: Any) -> list[str]:
    return [f"input {i} {_shape(variable)}" for i, variable in enumerate(jaxpr.invars)]


def _values(program: Any, inputs: list[str]) -> list[str]:
    """Hash the outputs of a program that is called with inputs of these hashes."""
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= dict(zip(jaxpr.constvars, map(_plain, consts), strict=True))
    done = ""  # what operations did beside giving a value, in order

    def read(atom: Any) -> str:
        return _plain(atom.val) if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        operands = [read(atom) for atom in equation.invars]
        if name in CALLS and len(programs(params)) == 1:
            results = _values(programs(params)[0], operands)
        else:
            told = sorted((key, _plain(params[key])) for key in params.keys() - UNTOLD)
            one = _digest(name, *operands, repr(told), done if equation.effects else "")
            done = one if equation.effects else done
            results = [
                _digest(one, str(index), _shape(variable))
                for index, variable in enumerate(equation.outvars)
            ]
        known |= dict(zip(equation.outvars, results, strict=True))
    return [_digest(read(atom), done) if done else read(atom) for atom in jaxpr.outvars]


def _plain(value: Any) -> str:
    """A constant or a parameter as text, the same in every process and on every Python."""
    if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        return _of_program(value)
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__array__"):
        array = np.asarray(value)
        return f"{array.dtype}{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Mapping):
        return repr(sorted((str(key), _plain(part)) for key, part in value.items()))
    if isinstance(value, tuple | list):
        return repr([_plain(part) for part in value])
    if isinstance(value, set | frozenset):
        return repr(sorted(map(_plain, value)))
    if hasattr(value, "call_wrapped") or (callable(value) and not isinstance(value, type)):
        return "function"
    return re.sub("0x[0-9a-f]+", "", str(value))


def _shape(variable: Any) -> str:
    aval = variable.aval
    return f"{getattr(aval, 'dtype', '')}{getattr(aval, 'shape', aval)}"


def text_digest(*texts: str) -> str:
    """SHA-256 of texts, 16 characters."""
    return _digest(*texts)[:16]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
