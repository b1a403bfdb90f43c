"""The cut into files, where neither import-linter nor ruff sees it (`pyproject.toml` has those)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ddm_jax

PACKAGE = Path(ddm_jax.__file__).parent
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in PACKAGE.rglob("*.py")
}


def mentioned(tree: ast.AST) -> set[str]:
    """Names in the code itself, not in comments or docstrings."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.alias):
            names |= set(node.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            names |= set((node.module or "").split("."))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            never = isinstance(node.value, ast.Constant) and node.value.value is False
            names |= set() if never else {"allow_pickle"}
    return names


def test_the_helper_sees_nested_and_aliased_names():
    source = "def f():\n    from jax.sharding import Mesh as M\n    np.load(p, allow_pickle=p)"
    assert {"sharding", "Mesh", "load", "allow_pickle"} <= mentioned(ast.parse(source))
    assert "allow_pickle" not in mentioned(ast.parse("np.load(p, allow_pickle=False)"))


@pytest.mark.parametrize(
    ("names", "home"),
    [
        ({"pmap", "shard_map", "Mesh", "make_mesh", "NamedSharding"}, "compute/placement.py"),
        ({"orbax"}, "checkpoints.py"),
        ({"pickle", "cloudpickle", "dill", "joblib", "shelve", "allow_pickle"}, None),
    ],
)
def test_what_only_one_file_knows(names, home):
    """Devices are placement's, orbax is checkpoints', and nothing is pickled."""
    assert {name for name, tree in TREES.items() if mentioned(tree) & names} == {home} - {None}


def test_importing_the_package_leaves_heavy_things_alone():
    heavy = ("jax", "tensorflow", "torch", "tensorflow_datasets", "matplotlib", "typer", "pandas")
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


def test_public_names_are_those_of_the_stub_and_exist():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    declared = [
        alias.asname
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(ddm_jax.__all__) == sorted(declared)
    assert len(declared) == len(set(declared)) <= 45
    assert set(declared) <= set(dir(ddm_jax))
    for name in declared:
        assert getattr(ddm_jax, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        ddm_jax.nothing  # noqa: B018
