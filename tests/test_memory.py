import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax.compute import memory


def test_the_device_has_some_memory_and_the_devices_of_a_cpu_share_it():
    assert 2**27 < memory.machine_memory() < 2**50
    assert memory.device_memory() == memory.machine_memory() // 4


def test_a_device_that_says_what_it_has_is_believed(monkeypatch):
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 12345})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert memory.device_memory() == 12345


def machine(folder, groups, limits):
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in limits.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V1 = "5:cpu,cpuacct:/a\n4:memory:/docker/12ab\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "limits", "want"),
    [
        ("0::/\n", {"memory.max": "2048\n"}, [2048]),
        ("0::/\n", {"memory.max": "max\n"}, []),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "7\n"}, [7]),
        ("0::/../../host\n", {"memory.max": "9\n"}, [9]),
        (V1, {"memory/docker/12ab/memory.limit_in_bytes": "4096\n"}, [4096]),
        (V1, {"memory/memory.limit_in_bytes": "4096\n", "cpu/a/memory.max": "1\n"}, [4096]),
        (V1, {}, []),
    ],
)
def test_the_limits_of_containers_are_read(tmp_path, groups, limits, want):
    """Of both versions of control groups, also where the path is the host's."""
    machine(tmp_path, groups, limits)
    assert list(memory._container_limits(tmp_path)) == want


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert list(memory._container_limits(tmp_path)) == []


@pytest.mark.parametrize(
    ("limits", "want"), [([], 300 * 4096), ([5000], 5000), ([0, 2**62], 300 * 4096)]
)
def test_the_least_of_the_machine_and_its_containers_counts(monkeypatch, limits, want):
    monkeypatch.setattr(memory, "_container_limits", lambda: iter(limits))
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 300}.get)
    assert memory.machine_memory() == want


def test_a_machine_that_does_not_say_has_no_limit(monkeypatch):
    monkeypatch.setattr(memory, "_container_limits", lambda: iter([]))
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.machine_memory() == sys.maxsize
    memory.refuse_larger("everything", 2**60, "nothing to mend")


@pytest.mark.parametrize(
    ("kind", "each", "want"),
    [
        ("rows", 2**20, 64),
        ("rows", 2**30, 1),
        ("vectors", 4, 64),
        ("vectors", 2**20, 2),
        ("groups", 2**18, 4),
        ("groups", 0, 5),
    ],
)
def test_as_many_as_the_caches_of_a_cpu_hold(kind, each, want):
    assert memory.at_once(kind, each) == want


def test_elsewhere_a_part_of_the_device_is_filled(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(memory, "device_memory", lambda: 2**34)
    assert memory.at_once("rows", 2**20) == 64
    assert memory.at_once("groups", 2**20) == 4096
    assert memory.examples_a_piece(10_000, 2**20) == 1000


@pytest.mark.parametrize(
    ("count", "each", "size"),
    [(100, 1, 100), (100, 2**20, 6), (100, 2**19, 12), (7, 2**21, 2), (7, 2**22, 1), (5, 2**30, 1)],
)
def test_pieces_are_as_few_as_fit_and_about_equal(count, each, size):
    assert memory.examples_a_piece(count, each) == size


def test_what_is_too_large_is_refused_with_its_size_and_the_mend(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 2**31)
    memory.refuse_larger("a matrix", 2**29, "use fewer rows", part=4)
    message = "a matrix takes 1 GiB, and a device has 0.5 GiB for it: use fewer rows"
    with pytest.raises(ValueError, match=message):
        memory.refuse_larger("a matrix", 2**30, "use fewer rows", part=4)


def test_bytes_of_arrays_of_either_kind_keys_and_shapes():
    tree = {
        "host": np.zeros(3, np.float64),
        "device": jnp.zeros((2, 5), jnp.bfloat16),
        "keys": jax.random.split(jax.random.key(0), 4),
        "shape": jax.ShapeDtypeStruct((7,), jnp.int8),
    }
    assert memory.bytes_of(tree) == 24 + 20 + 32 + 7


def test_a_program_fits_with_its_arguments_results_and_what_is_between(monkeypatch):
    """A MiB of arguments and sixteen of results."""

    def wide(x):
        return jnp.sort(jnp.tile(x, 16))

    program = jax.jit(wide).lower(jnp.ones(2**18)).compile()
    found = program.memory_analysis()
    total = found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes
    assert total >= 17 * 2**20
    for limit, want in ((total, True), (total - 1, False)):
        monkeypatch.setattr(memory, "device_memory", lambda limit=limit: limit)
        assert memory.fits(program) == want
    assert memory.fits(SimpleNamespace(memory_analysis=lambda: None))


@pytest.mark.parametrize("name", ["grad_dot", "tracin", "source", "ekfac"])
def test_groups_whose_gradients_do_not_fit_are_scored_without_holding_them(
    ready, monkeypatch, name
):
    """15,000 groups of a network of a million parameters: the process was killed."""
    estimator = getattr(ddm.estimators, f"make_{name}")(ready.task)
    given = jax.random.key(2), ready.run, ready.data, ready.groups
    held = estimator.fit(*given)
    monkeypatch.setattr("ddm_jax.estimators._shared.device_memory", lambda: 4 * 5000)
    light = estimator.fit(*given)
    size = memory.bytes_of(jax.tree.leaves((ready.run.params,)))
    assert memory.bytes_of(jax.tree.leaves(held)) > ready.num_groups * size
    assert type(light) is not type(held) or any(each is None for each in light)
    wanted, found = (np.asarray(estimator.score(each, ready.query)) for each in (held, light))
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())
