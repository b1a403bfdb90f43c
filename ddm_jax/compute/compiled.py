"""`jax.jit` in whose programs the arrays that a function closes over are arguments.

A task may close over arrays that nobody trains: a frozen backbone, the statistics of a
normalisation. `jax.jit` would make them constants of every program that it compiles, in memory
once a program, and compiled with it. Here they are held once, and passed beside the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core


class Program(NamedTuple):
    """A traced function, ready to be called with flat arguments."""

    traced: core.ClosedJaxpr
    closed: list[Any]  # the arrays that it closes over
    run: Any  # jitted: closed-over arrays, flat arguments -> flat results
    results: Any  # tree structure


def compiled(
    fn: Callable[..., Any],
    *,
    static_argnames: Any = (),
    donate_first: bool = False,
    place: Callable[[Any], Any] = lambda tree: tree,
    **options: Any,
) -> Any:
    """Compile `fn(*args, **static)`: its results, and bits, are those of `jax.jit(fn)`.

    Args:
        static_argnames: arguments that are given by name and are no arrays.
        donate_first: give the buffers of the first argument to the results.
        place: puts the closed-over arrays where the program needs them.
        options: others of `jax.jit`, such as `out_shardings`.

    `compiled(fn).lower(*args, **static)` is the program before it is compiled.
    """
    whole = jax.jit(fn, static_argnames=static_argnames)
    programs: dict[int, Program] = {}  # a trace that is kept alive here keeps its number

    def program_of(args: tuple[Any, ...], static: dict[str, Any]) -> Program:
        traced = whole.trace(*args, **static)
        found = programs.get(id(traced.jaxpr))
        if found is None:
            inner = traced.jaxpr

            def run(closed: list[Any], first: list[Any], rest: list[Any]) -> list[Any]:
                program = core.ClosedJaxpr(inner.jaxpr, closed)
                return core.jaxpr_as_fun(program)(*first, *rest)

            made = jax.jit(run, donate_argnums=(1,) if donate_first else (), **options)
            results = jax.tree.structure(traced.out_info)
            with jax.ensure_compile_time_eval():
                closed = place(inner.consts)
            found = Program(inner, closed, made, results)
            programs[id(inner)] = found
        return found

    def arguments(program: Program, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return program.closed, jax.tree.leaves(args[:1]), jax.tree.leaves(args[1:])

    def call(*args: Any, **static: Any) -> Any:
        leaves = jax.tree.leaves((args, static))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return whole(*args, **static)  # the program outside of it is compiled
        program = program_of(args, static)
        if len(program.traced.in_avals) != len(jax.tree.leaves(args)):
            # It closes over what is being traced outside, or has arrays among the keywords.
            return whole(*args, **static)
        return jax.tree.unflatten(program.results, program.run(*arguments(program, args)))

    def lower(*args: Any, **static: Any) -> Any:
        program = program_of(args, static)
        return program.run.lower(*arguments(program, args))

    made: Any = call
    made.lower = lower
    return made
