"""The one small problem that every library scores: digits, two networks, their training.

Only numpy, scikit-learn and PyTorch, so that each library can be run in an environment of its own.
"""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

FOLDER = Path(__file__).parent
CLASSES = (3, 5, 8, 9)  # those that are confused most, so that no gradient is almost zero
WRONG = (0, 11, 22, 33)  # training points with the label of the next class
NETWORKS = {"linear": (64, 4), "mlp": (64, 8, 4)}
STEPS, BATCH = 24, 16
RATES = {"linear": 0.2, "mlp": 0.5}
# The points of the training that are kept: all of one, a few of the other.
KEPT = {"linear": tuple(range(STEPS + 1)), "mlp": (8, 16, 24)}

Arrays = dict[str, np.ndarray]


class Network(torch.nn.Module):
    """A linear layer `last`, and in a perceptron a layer `hidden` with a ReLU before it."""

    def __init__(self, sizes: tuple[int, ...]):
        super().__init__()
        if len(sizes) == 3:
            self.hidden = torch.nn.Linear(sizes[0], sizes[1])
            self.relu = torch.nn.ReLU()
        self.last = torch.nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Any) -> Any:
        """Logits [B, C] of inputs [B, 64]."""
        if hasattr(self, "hidden"):
            x = self.relu(self.hidden(x))
        return self.last(x)


def make_problem() -> Arrays:
    """Draw 48 training digits and 10 queries, and train both networks by 24 steps of SGD."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.flatnonzero(np.isin(digits.target, CLASSES))
    rows = np.random.default_rng(0).permutation(rows)[:58]
    labels = np.searchsorted(CLASSES, digits.target[rows])
    labels[list(WRONG)] = (labels[list(WRONG)] + 1) % len(CLASSES)
    problem: Arrays = {
        "pixels": digits.data[rows].astype(np.uint8),  # 0 to 16; the inputs are a 16th of them
        "labels": labels.astype(np.int32),
        "train_size": np.int32(48),
        "groups": (np.arange(48) % 8).astype(np.int32),
    }
    generator = np.random.default_rng(1)
    order = [generator.permutation(48) for _ in range(STEPS * BATCH // 48)]
    problem["rows"] = np.concatenate(order).reshape(STEPS, BATCH).astype(np.int32)
    for name, sizes in NETWORKS.items():
        problem |= _train(name, sizes, problem)
        problem[f"learning_rate.{name}"] = np.float32(RATES[name])
    return problem


def _train(name: str, sizes: tuple[int, ...], problem: Arrays) -> Arrays:
    """The points of the training that are kept, `network.layer.weight` [T, out, in], in float32."""
    torch.manual_seed(2)
    network = Network(sizes)
    (x, labels), _ = tensors(problem)
    points = [_parameters(network)]
    for rows in problem["rows"].astype(np.int64):
        network.zero_grad()
        functional.cross_entropy(network(x[rows]), labels[rows]).backward()
        with torch.no_grad():
            for leaf in network.parameters():
                leaf -= RATES[name] * leaf.grad
        points.append(_parameters(network))
    points = [points[step] for step in KEPT[name]]
    stacked = {key: np.stack([point[key] for point in points]) for key in points[0]}
    return {f"{name}.{key}": leaf.astype(np.float32) for key, leaf in stacked.items()}


def _parameters(network: Network) -> Arrays:
    return {key: leaf.detach().numpy().copy() for key, leaf in network.named_parameters()}


def load_problem() -> Arrays:
    """Read what `make_problem` made."""
    with np.load(FOLDER / "problem.npz") as file:
        return dict(file)


def tensors(problem: Arrays) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The training points and the queries, as `x [B, 64]` and `labels [B]`."""
    x = torch.tensor(problem["pixels"] / 16.0)
    labels = torch.tensor(problem["labels"].astype(np.int64))
    size = int(problem["train_size"])
    return (x[:size], labels[:size]), (x[size:], labels[size:])


def state(problem: Arrays, name: str, step: int = STEPS) -> dict[str, Any]:
    """The parameters of a network after so many steps, as a state dictionary."""
    prefix = name + "."
    return {
        key.removeprefix(prefix): torch.tensor(leaf[KEPT[name].index(step)].astype(np.float64))
        for key, leaf in problem.items()
        if key.startswith(prefix)
    }


def network(problem: Arrays, name: str, step: int = STEPS) -> Network:
    """A network after so many steps."""
    found = Network(NETWORKS[name])
    found.load_state_dict(state(problem, name, step))
    return found.eval()


def loader(points: tuple[Any, Any], batch: int | None = None) -> Any:
    """Points in their order, in one batch unless told."""
    data = torch.utils.data.TensorDataset(*points)
    return torch.utils.data.DataLoader(data, batch_size=batch or len(points[0]), shuffle=False)


def digest(path: Path = FOLDER / "problem.npz") -> str:
    """What tells whether scores are of this problem."""
    with np.load(path) as file:
        content = b"".join(key.encode() + file[key].tobytes() for key in sorted(file.files))
    return hashlib.sha256(content).hexdigest()


class Record:
    """The scores of one library, each with its settings."""

    def __init__(self, *packages: str):
        self.versions = [f"{name} {metadata.version(name)}" for name in packages]
        self.scores: Arrays = {}
        self.settings: dict[str, dict[str, Any]] = {}

    def add(self, name: str, scores: Any, **settings: Any) -> None:
        """Keep scores [N, Q] (or values), as the library gives them but for their axes."""
        found = np.asarray(scores.detach().numpy() if hasattr(scores, "detach") else scores)
        if not np.isfinite(found).all():
            raise ValueError(f"{name}: scores that are not finite")
        self.scores[name] = found.astype(np.float32)
        self.settings[name] = settings

    def save(self, library: str) -> None:
        """Write `<library>.npz`: scores, and settings, versions and digest as strings."""
        told = np.array(json.dumps(self.settings))
        path = FOLDER / f"{library}.npz"
        np.savez_compressed(
            path,
            settings=told,
            versions=np.array(self.versions),
            problem=np.array(digest()),
            **self.scores,
        )
        print(f"{path.name}: {len(self.scores)} scores, {path.stat().st_size} bytes")
