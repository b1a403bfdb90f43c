"""traker's TRAK, with its own random projection and with none."""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import torch
from problem import NETWORKS, Arrays, Record, network, state, tensors
from trak import TRAKer
from trak.projectors import BasicProjector, NoOpProjector, ProjectionType


def trak(problem: Arrays, name: str, projector: Any, regularization: float) -> Any:
    """Scores [N, Q]; positive where a point raises the query's margin, on a scale of their own."""
    model = network(problem, name).float()
    train, query = ((x.float(), labels) for x, labels in tensors(problem))
    weights = {key: leaf.float() for key, leaf in state(problem, name).items()}
    with tempfile.TemporaryDirectory() as folder:
        method = TRAKer(
            model=model,
            task="image_classification",
            train_set_size=len(train[0]),
            save_dir=folder,
            device="cpu",
            projector=projector,
            use_half_precision=False,
            logging_level=logging.ERROR,
            lambda_reg=regularization,
        )
        method.load_checkpoint(weights, model_id=0)
        method.featurize(train, num_samples=len(train[0]))
        method.finalize_features()
        method.start_scoring_checkpoint("q", weights, model_id=0, num_targets=len(query[0]))
        method.score(query, num_samples=len(query[0]))
        return torch.tensor(method.finalize_scores("q"))


def score(problem: Arrays) -> Record:
    """Both networks."""
    torch.set_default_dtype(torch.float32)  # the library's own
    record = Record("traker", "torch")
    for name in NETWORKS:
        size = sum(leaf.numel() for leaf in network(problem, name).parameters())
        exact = NoOpProjector(
            grad_dim=0,
            proj_dim=0,
            seed=0,
            proj_type=ProjectionType.normal,
            device="cpu",
            dtype=torch.float32,
        )
        record.add(f"{name}.trak", trak(problem, name, exact, 1e-3), regularization=1e-3)
        projector = BasicProjector(
            grad_dim=size,
            proj_dim=2048,
            seed=0,
            proj_type=ProjectionType.normal,
            device="cpu",
            dtype=torch.float32,
        )
        # A sketch of 2,048 dimensions is that much longer than a gradient of P/P.
        settings = {"dimensions": 2048, "regularization": 2.048}
        record.add(f"{name}.trak_projected", trak(problem, name, projector, 2.048), **settings)
    return record
