"""dattri's attributors. They explain the loss, and most give `<g_i, H^-1 g_q>` as it is."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from dattri.algorithm import trak as dattri_trak
from dattri.algorithm.data_shapley import KNNShapleyAttributor
from dattri.algorithm.dvemb import DVEmbAttributor
from dattri.algorithm.influence_function import (
    IFAttributorArnoldi,
    IFAttributorCG,
    IFAttributorDataInf,
    IFAttributorExplicit,
    IFAttributorLiSSA,
)
from dattri.algorithm.rps import RPSAttributor
from dattri.algorithm.tracin import TracInAttributor
from dattri.task import AttributionTask
from problem import (
    NETWORKS,
    RATES,
    STEPS,
    Arrays,
    Network,
    Record,
    loader,
    network,
    state,
    tensors,
)
from torch.nn import functional

DAMPING = {"linear": 0.02, "mlp": 0.8}  # the perceptron's Hessian is not positive


def logits(model: Any, params: Any, point: tuple[Any, Any]) -> tuple[Any, Any]:
    """Of one point or of a batch, `[B, C]` and `[B]`."""
    x, label = point
    if x.ndim == 1:
        x, label = x[None], label[None]
    # LiSSA hands both over in single precision.
    return torch.func.functional_call(model, params, x.double()), label.long()


def tasks(problem: Arrays, name: str, steps: list[int]) -> tuple[Any, Any]:
    """The mean loss, and the margin, of the networks after so many steps."""
    model = network(problem, name)

    def loss(params: Any, point: Any) -> Any:
        return functional.cross_entropy(*logits(model, params, point))

    def margin(params: Any, point: Any) -> Any:
        found, label = logits(model, params, point)
        correct = torch.arange(found.shape[1]) == label[:, None]
        others = torch.where(correct, -torch.inf, found)
        return ((found * correct).sum(1) - others.logsumexp(1)).sum()

    states = [state(problem, name, step) for step in steps]
    return AttributionTask(loss, model, states), AttributionTask(margin, model, states)


def tracin(record: Record, problem: Arrays, name: str, train: Any, query: Any) -> None:
    """Without the projection to 512 dimensions that is otherwise its default."""
    steps = {"grad_dot": [STEPS], "grad_cos": [STEPS], "tracin": [8, 16, 24]}
    for method, points in steps.items():
        weights = torch.full((len(points),), RATES[name]) if method == "tracin" else torch.ones(1)
        attributor = TracInAttributor(
            tasks(problem, name, points)[0], weights, normalized_grad=method == "grad_cos"
        )
        attributor.projector_kwargs = None
        scores = attributor.attribute(train, query)
        record.add(f"{name}.{method}", scores, steps=points, weights=weights.tolist())


def in_run(record: Record, problem: Arrays, name: str, points: Any) -> None:
    """In-Run Data Shapley of the first order: grad-dot of each step with its batch."""
    (x, labels), query = points
    scores = torch.zeros(len(x), len(query[0]))
    for step, rows in enumerate(torch.tensor(problem["rows"]).long()):
        weights = torch.tensor([RATES[name] / len(rows)])
        task, _ = tasks(problem, name, [step])
        attributor = TracInAttributor(task, weights, normalized_grad=False)
        attributor.projector_kwargs = None
        scores[rows] += attributor.attribute(loader((x[rows], labels[rows])), loader(query))
    record.add(f"{name}.in_run_shapley", scores, order=1)


def influence(record: Record, problem: Arrays, name: str, train: Any, query: Any) -> None:
    """Every inverse of a curvature but that of EK-FAC.

    dattri 0.3 turns into the eigenbasis by the eigenvectors' rows (`q_s @ v @ q_a.T` in
    `IFAttributorEKFAC` and `func.fisher`), and its weights are shifted by the bias that it appends
    to them flat; so its scores depend on the basis that LAPACK gives the null space.
    """
    task, _ = tasks(problem, name, [STEPS])
    damping = DAMPING[name]
    size = len(train.dataset)
    methods = {
        "influence_exact": (IFAttributorExplicit, {"regularization": damping}),
        "influence_cg": (IFAttributorCG, {"regularization": damping, "max_iter": 60}),
        "influence_cg_few": (IFAttributorCG, {"regularization": damping, "max_iter": 5}),
        "influence_arnoldi": (
            IFAttributorArnoldi,
            # The largest eigenvalues, which the iteration finds wherever it starts.
            {"proj_dim": 20 if name == "linear" else 5, "max_iter": 150, "regularization": 0.0},
        ),
        "influence_lissa": (
            IFAttributorLiSSA,
            # (H + damping * scaling) here; every step over all the data, so nothing is random
            {"batch_size": size, "recursion_depth": 40, "scaling": 10.0, "damping": damping / 10},
        ),
        "datainf": (IFAttributorDataInf, {"regularization": damping}),
    }
    for method, (make, settings) in methods.items():
        attributor = make(task, **settings)
        attributor.cache(train)
        record.add(f"{name}.{method}", attributor.attribute(train, query), **settings)


def trak(record: Record, problem: Arrays, name: str, train: Any, query: Any) -> None:
    """TRAK with an identity in the place of its random projection."""
    _, task = tasks(problem, name, [STEPS])
    model = network(problem, name)

    def probability(params: Any, point: Any) -> Any:
        return torch.exp(-functional.cross_entropy(*logits(model, params, point)))

    kept = dattri_trak.random_project
    dattri_trak.random_project = lambda *_, **__: lambda gradients, ensemble_id: gradients
    try:
        attributor = dattri_trak.TRAKAttributor(task, probability, regularization=1e-3)
        attributor.cache(train)
        record.add(f"{name}.trak", attributor.attribute(query), regularization=1e-3)
    finally:
        dattri_trak.random_project = kept


def representer(record: Record, problem: Arrays, name: str, train: Any, query: Any) -> None:
    """Its last layer has no bias in the fine-tune: here it is the weight of a constant feature.

    The labels that it fits are the network's own probabilities.
    """
    model = network(problem, name)
    weights = torch.cat([model.last.weight, model.last.bias[:, None]], 1).detach()
    last = torch.nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    last.load_state_dict({"weight": weights})
    model = torch.nn.Sequential()
    model.add_module("last", last)
    parts = []
    for part in (train, query):
        x, labels = part.dataset.tensors
        x = hidden(problem, name, x)
        parts.append(loader((torch.cat([x, torch.ones(len(x), 1)], 1), labels)))
    task = AttributionTask(functional.cross_entropy, model, model.state_dict())
    settings = {"l2_strength": 0.01, "epoch": 20000}
    attributor = RPSAttributor(task, "last", **settings)
    attributor.cache(parts[0])
    record.add(f"{name}.representer", attributor.attribute(*parts), **settings)


def hidden(problem: Arrays, name: str, x: Any) -> Any:
    """The features that the last layer sees."""
    model = network(problem, name)
    return model.relu(model.hidden(x)).detach() if name == "mlp" else x


def knn_shapley(record: Record, train: Any, query: Any) -> None:
    """On pixels."""
    attributor = KNNShapleyAttributor(k_neighbors=5)
    record.add("pixels.knn_shapley", attributor.attribute(train, query).T, neighbours=5)


def data_value_embedding(record: Record, problem: Arrays, name: str, points: Any) -> None:
    """The training step by step, without projection."""
    model = Network(NETWORKS[name])
    (x, labels), query = points

    def loss(params: Any, point: Any) -> Any:
        return functional.cross_entropy(*logits(model, params, point))

    model.load_state_dict(state(problem, name, 0))
    attributor = DVEmbAttributor(AttributionTask(loss, model, state(problem, name, 0)))
    for step, rows in enumerate(torch.tensor(problem["rows"]).long()):
        model.load_state_dict(state(problem, name, step))
        attributor.cache_gradients(step // 3, (x[rows], labels[rows]), rows, RATES[name])
    attributor.cache()
    model.load_state_dict(state(problem, name))
    record.add(f"{name}.data_value_embedding", attributor.attribute(loader(query)))


def score(problem: Arrays) -> Record:
    """Every method on both networks."""
    record = Record("dattri", "torch")
    points = tensors(problem)
    train, query = (loader(part) for part in points)
    for name in NETWORKS:
        for method in (tracin, influence, trak, representer):
            method(record, problem, name, train, query)
    in_run(record, problem, "linear", points)
    data_value_embedding(record, problem, "linear", points)
    knn_shapley(record, train, query)
    return record
