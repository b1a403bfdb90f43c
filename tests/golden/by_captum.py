"""Captum's influence methods. They explain the loss; their Hessian is of the sum of losses."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from captum.influence import SimilarityInfluence, TracInCP, TracInCPFast
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
from captum.influence._core.influence_function import NaiveInfluenceFunction
from captum.influence._core.similarity_influence import cosine_similarity, euclidean_distance
from problem import NETWORKS, RATES, STEPS, Arrays, Record, loader, network, state, tensors

DAMPING = {"linear": 0.02, "mlp": 0.8}


def score(problem: Arrays) -> Record:
    """Every method on both networks; all of theirs are [Q, N]."""
    record = Record("captum", "torch")
    train, query = tensors(problem)
    for name in NETWORKS:
        tracin(record, problem, name, train, query)
        influence(record, problem, name, train, query)
    similarity(record, problem, train, query)
    return record


def load(problem: Arrays, name: str) -> Any:
    """What puts the parameters after so many steps into a model; the learning rate."""

    def into(model: Any, step: str) -> float:
        model.load_state_dict(state(problem, name, int(step)))
        return RATES[name]

    return into


def tracin(record: Record, problem: Arrays, name: str, train: Any, query: Any) -> None:
    """TracIn over checkpoints, of all layers and of the last, and of a point on itself."""
    model = network(problem, name)
    settings = {"steps": [8, 16, 24], "learning_rate": RATES[name]}
    every = TracInCP(
        model,
        loader(train),
        ["8", "16", "24"],
        load(problem, name),
        loss_fn=torch.nn.CrossEntropyLoss(reduction="none"),
    )
    record.add(f"{name}.tracin", every.influence(query).T, **settings)
    record.add(f"{name}.self_influence", every.self_influence(), **settings)
    last = TracInCPFast(
        model,
        model.last,
        loader(train),
        ["8", "16", "24"],
        load(problem, name),
        loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
    )
    record.add(f"{name}.tracin_last_layer", last.influence(query).T, **settings)


def influence(record: Record, problem: Arrays, name: str, train: Any, query: Any) -> None:
    """The inverse of the Hessian, whole and of the largest eigenvalues."""
    model = network(problem, name)
    size = sum(leaf.numel() for leaf in model.parameters())
    shared = {
        "checkpoint": str(STEPS),
        "checkpoints_load_func": load(problem, name),
        "loss_fn": torch.nn.CrossEntropyLoss(reduction="none"),
    }
    settings = {
        "projection_dim": size,
        "hessian_reg": DAMPING[name] * len(train[0]),
        "hessian_inverse_tol": 0.0,
    }
    exact = NaiveInfluenceFunction(model, loader(train), **shared, **settings)
    record.add(f"{name}.influence_exact", exact.influence(query).T, **settings)
    settings = {
        "projection_dim": 20 if name == "linear" else 5,
        "arnoldi_dim": 150,
        "arnoldi_tol": 1e-6,
        "hessian_reg": 0.0,
    }
    arnoldi = ArnoldiInfluenceFunction(model, loader(train), **shared, **settings)
    record.add(f"{name}.influence_arnoldi", arnoldi.influence(query).T, **settings)


def similarity(record: Record, problem: Arrays, train: Any, query: Any) -> None:
    """Of the perceptron's features; it fails for one layer alone, so the logits go with them."""
    metrics = {
        "similarity_cosine": (cosine_similarity, "max"),
        "similarity_euclidean": (euclidean_distance, "min"),
    }
    for method, (metric, direction) in metrics.items():
        with tempfile.TemporaryDirectory() as folder:
            found = SimilarityInfluence(
                network(problem, "mlp"),
                ["relu", "last"],
                torch.utils.data.TensorDataset(train[0]),
                folder,
                similarity_metric=metric,
                similarity_direction=direction,
                batch_size=len(train[0]),
            ).influence(query[0], top_k=len(train[0]))["relu"]
        rows, values = found
        scores = torch.empty_like(values).scatter(1, rows, values)
        record.add(f"mlp.{method}", scores.T, layer="relu", metric=metric.__name__)
