"""The cut into files: who may import whom, and what is allowed where."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ddm_jax

PACKAGE = Path(ddm_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {str(f.relative_to(PACKAGE)): ast.parse(f.read_text(), str(f)) for f in FILES}
OUTER = {"config", "checkpoint", "plan", "workdir", "pipeline", "figures", "report", "cli"}
OUTER |= {"flops", "store", "filling", "truth", "candidates", "compare", "evaluate", "terminal"}
OUTER |= {"finished", "answers", "answer_figures"}
STAGES = sorted(set(TREES) - {f"{name}.py" for name in OUTER})

# Who is below whom; a file imports files of lower levels only. The stages follow the data.
LEVELS = (
    {"types"},
    {"pieces"},
    {"parallel", "convolution", "data", "objectives", "metrics", "cluster"},
    {"streaming"},
    {"models", "train", "matching", "attribution"},
    {"distill", "synset", "loo", "gradients"},
    {"offline", "points", "subsets", "hierarchy", "unlearn", "privacy", "profiles"},
    {"estimators"},
    {"quality"},
)


def imported(tree: ast.AST) -> set[str]:
    """Full names of all imported modules and members, nested imports too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def mentioned(tree: ast.AST) -> set[str]:
    """Names in the code itself, not in comments or docstrings."""
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    return names | {part for name in imported(tree) for part in name.split(".")}


def siblings(tree: ast.AST) -> set[str]:
    return {n.split(".")[1] for n in imported(tree) if n.startswith("ddm_jax.")}


def test_there_is_something_to_check():
    assert {"types.py", "loo.py", "estimators/ddm.py", "metrics/ceiling.py"} <= set(STAGES)
    assert all(f"{name}.py" in TREES for name in OUTER)
    assert "ddm_jax.types" in imported(TREES["data.py"])


def test_the_helpers_see_nested_and_aliased_imports():
    tree = ast.parse("def f():\n    from ddm_jax import config as c\n    import jax.numpy as jnp")
    assert imported(tree) == {"ddm_jax", "ddm_jax.config", "jax.numpy"}
    assert siblings(tree) == {"config"}
    assert {"config", "numpy"} <= mentioned(tree)


@pytest.mark.parametrize("name", STAGES)
def test_stage_modules_do_not_import_the_outer_ones(name):
    assert not siblings(TREES[name]) & OUTER


@pytest.mark.parametrize("name", [n for n in STAGES if n != "__init__.py"])
def test_stage_modules_import_lower_levels_only(name):
    own = name.split("/")[0].removesuffix(".py")
    level = next((i for i, names in enumerate(LEVELS) if own in names), len(LEVELS))
    if own not in set().union(*LEVELS):
        pytest.skip(f"{own} has no place in LEVELS yet")
    allowed = set().union(*LEVELS[:level]) | {own}
    if own in ("data", "objectives", "cluster", "attribution", "loo", "synset", "distill"):
        # Neighbours that take one another's types.
        allowed |= LEVELS[level]
    names = {n for n in siblings(TREES[name]) if n.islower()}
    assert names <= allowed, f"{name} imports {sorted(names - allowed)}"


@pytest.mark.parametrize("name", TREES)
def test_only_parallel_knows_about_devices(name):
    placement = {"pmap", "shard_map", "Mesh", "make_mesh", "NamedSharding", "PositionalSharding"}
    found = mentioned(TREES[name]) & placement
    if name == "parallel.py":
        assert found
    else:
        assert not found


@pytest.mark.parametrize("name", TREES)
def test_only_checkpoint_knows_orbax(name):
    uses = "orbax" in {n.split(".")[0] for n in imported(TREES[name])}
    assert uses == (name == "checkpoint.py")


@pytest.mark.parametrize("name", TREES)
def test_nothing_is_pickled(name):
    modules = {n.split(".")[0] for n in imported(TREES[name])}
    assert not modules & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


@pytest.mark.parametrize("name", TREES)
def test_checks_are_errors_and_no_asserts(name):
    """`python -O` drops asserts, and an AssertionError names no setting."""
    assert not [n.lineno for n in ast.walk(TREES[name]) if isinstance(n, ast.Assert)]


@pytest.mark.parametrize("name", TREES)
def test_every_module_and_public_name_has_a_docstring(name):
    tree = TREES[name]
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef) and any(
                isinstance(b, ast.Name) and b.id == "NamedTuple" for b in node.bases
            ):
                continue
            assert ast.get_docstring(node), f"{name}: {node.name}"


def test_public_names_exist_and_are_sorted():
    assert ddm_jax.__all__ == sorted(ddm_jax.__all__)
    for name in ddm_jax.__all__:
        assert hasattr(ddm_jax, name)


def test_importing_the_package_leaves_heavy_things_alone():
    heavy = ("tensorflow", "torch", "tensorflow_datasets", "matplotlib", "typer", "pandas")
    code = f"import sys, ddm_jax\nprint([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_public_names_are_the_same_for_type_checkers_and_when_they_are_used():
    (block,) = (n for n in TREES["__init__.py"].body if isinstance(n, ast.If))
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == set(ddm_jax.__all__)
    assert set(ddm_jax.__all__) <= set(dir(ddm_jax))
    for name in ddm_jax.__all__:
        assert getattr(ddm_jax, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ddm_jax.nothing  # noqa: B018


def test_a_truth_knows_all_code_that_its_networks_run():
    """Beside who is removed, and where it runs, which change no bit."""
    from ddm_jax import truth

    used = set().union(*(siblings(TREES[name]) for name in truth.CODE))
    used = {name for name in used if name.islower()} - {"types", "cluster", "loo", "parallel"}
    assert {"convolution", "pieces"} <= used
    assert {f"{name}.py" for name in used} <= set(truth.CODE)
