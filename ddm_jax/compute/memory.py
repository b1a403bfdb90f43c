"""The one memory budget: how many things fit side by side, and what is too large to be held.

A device has what it says itself. Those of a CPU share the machine's memory, or what the container
gives of it. Whatever is cut into pieces, chunks or blocks asks here how large they may be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Budget(NamedTuple):
    """What may be held at once of one kind of thing."""

    on_cpu: int  # bytes, where the caches decide
    most_on_cpu: int  # things
    part: int  # elsewhere: one in so many of the device's bytes


BUDGETS = {
    # What a gradient keeps of a batch's examples: near what one core has of its last cache.
    "examples": Budget(6 * 2**20, sys.maxsize, 16),
    "rows": Budget(2**26, sys.maxsize, 256),  # the gradients of single examples
    "vectors": Budget(2**21, 64, 256),  # which a Hessian is multiplied with
    "groups": Budget(2**20, 5, 4),  # what the gradients of their items keep while they are matched
}


def at_once(kind: str, each: int) -> int:
    """How many things of a kind of `BUDGETS`, of `each` bytes, are held at once; at least 1."""
    budget = BUDGETS[kind]
    if jax.default_backend() == "cpu":
        return min(max(budget.on_cpu // max(each, 1), 1), budget.most_on_cpu)
    return max(device_memory() // budget.part // max(each, 1), 1)


def examples_a_piece(num_examples: int, each: int) -> int:
    """Examples a piece, 1 to `num_examples`: as few pieces as fit, and all of about one size.

    An even one, where there are several of more than one: odd ones are a fifth slower on a CPU.
    """
    most = at_once("examples", each)
    if most >= num_examples:
        return num_examples
    most = max(most // 2 * 2, 1)
    pieces = -(-num_examples // most)
    size = -(-num_examples // pieces)
    return min(size + size % 2, most)


def fits(program: Any) -> bool:
    """Whether a compiled program (`jax.stages.Compiled`) fits a device, by its own analysis."""
    found = program.memory_analysis()
    if found is None:
        return True
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + found.temp_size_in_bytes + results <= device_memory()


def refuse_larger(what: str, size: int, mend: str, part: int = 1) -> None:
    """Refuse what takes more bytes than one in `part` of those that a device has.

    Raises:
        ValueError: saying what takes how much, what there is, and the mend.
    """
    room = device_memory() // part
    if size > room:
        needed, there = (f"{some / 2**30:.2g} GiB" for some in (size, room))
        raise ValueError(f"{what} takes {needed}, and a device has {there} for it: {mend}")


def bytes_of(tree: Any) -> int:
    """Bytes of the arrays of a pytree, on the host or on a device, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def device_memory() -> int:
    """Bytes that each device of this process has; `sys.maxsize` where nobody says."""
    told = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in told:
        return int(told["bytes_limit"])
    return machine_memory() // jax.local_device_count()


def machine_memory() -> int:
    """The least of the machine's memory and the limits of the containers around this process."""
    found = [sys.maxsize, *_container_limits()]
    with suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(size for size in found if size > 0)


def _container_limits(root: Path = Path("/")) -> Iterator[int]:
    """The limits of the control groups, version 1 or 2, that this process is in, the outer too."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, inside = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            folder = root / "sys/fs/cgroup" / ("memory" if controllers else "")
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            group = folder / inside.strip("/")
            # In a container the path may be the host's: what stands there is at the top then.
            for place in (group, *group.parents):
                if place.is_relative_to(folder):
                    with suppress(OSError, ValueError):  # no limit is called "max"
                        yield int((place / name).read_text())
