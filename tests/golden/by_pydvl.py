"""pyDVL's influence functions, which explain the loss, and its data values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from problem import NETWORKS, Arrays, Record, loader, network, tensors
from pydvl.influence.torch import (
    ArnoldiInfluence,
    BlockMode,
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    InverseHarmonicMeanInfluence,
    LissaInfluence,
    NystroemSketchInfluence,
    influence_function_model,
)
from pydvl.valuation import (
    BanzhafValuation,
    BetaShapleyValuation,
    DataOOBValuation,
    Dataset,
    DeterministicUniformSampler,
    KNNShapleyValuation,
    LOOValuation,
    NoStopping,
    ShapleyValuation,
)
from pydvl.valuation.utility.base import UtilityBase
from sklearn.ensemble import BaggingClassifier
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional

DAMPING = {"linear": 0.02, "mlp": 0.8}
RIDGE = 1.0


def influence(record: Record, problem: Arrays, name: str) -> None:
    """Every inverse of a curvature; theirs are [Q, N].

    But not of its Gauss-Newton matrix: `PointAveraging` of pyDVL 0.10 divides by the length of
    what a batch gives, which is the number of parameters there, and of vectors in DataInf.
    """
    model = network(problem, name)
    train, query = tensors(problem)
    damping = DAMPING[name]
    largest = 20 if name == "linear" else 5
    accurate = {"rtol": 1e-10, "atol": 1e-10}
    layers = {"block_structure": BlockMode.LAYER_WISE}
    methods: dict[str, tuple[Any, dict[str, Any]]] = {
        "influence_exact": (DirectInfluence, {}),
        "influence_exact_by_layer": (DirectInfluence, layers),
        "influence_cg": (CgInfluence, accurate),
        "influence_lissa": (LissaInfluence, {"scale": 10.0, "maxiter": 2000, "rtol": 1e-6}),
        "influence_arnoldi": (ArnoldiInfluence, {"rank": largest, "tol": 1e-10}),
        "influence_nystroem": (NystroemSketchInfluence, {"rank": 150}),
        "datainf": (InverseHarmonicMeanInfluence, {}),
        "datainf_by_layer": (InverseHarmonicMeanInfluence, layers),
    }
    if name == "mlp":
        del methods["influence_nystroem"]  # of a positive matrix
    else:
        del methods["influence_exact_by_layer"], methods["datainf_by_layer"]  # it has only one
    for method, (make, settings) in methods.items():
        torch.manual_seed(0)
        found = make(model, functional.cross_entropy, regularization=damping, **settings)
        found = found.fit(loader(train))
        told = {key: getattr(value, "value", value) for key, value in settings.items()}
        scores = found.influences(*query, *train)
        record.add(f"{name}.{method}", scores.T, regularization=damping, **told)
    for update in (False, True):
        method = f"{name}.{'ekfac' if update else 'kfac'}"
        found = ekfac(model, loader(train), update, damping)
        record.add(method, found.influences(*query, *train).T, regularization=damping)
        found = ekfac_of_fisher(model, train, update, damping)
        scores = found.influences(*query, *train).T / NETWORKS[name][-1]
        record.add(f"{method}_of_fisher", scores, regularization=damping)


def ekfac(model: Any, train: Any, update: bool, damping: float) -> Any:
    """As it is: the square of `sum_c sqrt(p_c) grad log p_c`, which is not the Fisher matrix."""
    found = EkfacInfluence(model, update_diagonal=update, hessian_regularization=damping)
    return found.fit(train)


def ekfac_of_fisher(model: Any, train: Any, update: bool, damping: float) -> Any:
    """With the Fisher matrix: every point once a class, with the gradient `sqrt(p_c) grad log p_c`.

    The library then divides by C too often, so the damping is a C-th, and so are the scores.
    """
    x, _ = train
    classes = model.last.out_features
    kept = influence_function_model.empirical_cross_entropy_loss_fn

    def loss(logits: Any, *_: Any, **__: Any) -> Any:
        logs = logits.log_softmax(1).reshape(-1, classes, classes).diagonal(dim1=1, dim2=2)
        return (logs * logs.exp().sqrt().detach()).sum()

    influence_function_model.empirical_cross_entropy_loss_fn = loss
    try:
        repeated = x.repeat_interleave(classes, 0)
        labels = torch.arange(classes).repeat(len(x))
        return ekfac(model, loader((repeated, labels)), update, damping / classes)
    finally:
        influence_function_model.empirical_cross_entropy_loss_fn = kept


class RidgeUtility(UtilityBase):
    """The output of one query's class, of a ridge regression on the groups that are kept."""

    def __init__(self, outputs: dict[tuple[int, ...], np.ndarray], query: int):
        self.outputs, self.query = outputs, query

    def __call__(self, sample: Any) -> float:
        kept = () if sample is None else tuple(sorted(int(row) for row in sample.subset))
        return float(self.outputs[kept][self.query])


def ridge_outputs(problem: Arrays) -> dict[tuple[int, ...], np.ndarray]:
    """Each query's output of its own class for every set of groups, without an intercept.

    The weights are `(X^T X + ridge I)^-1 X^T Y`, over the points of the groups, with 1 in Y for
    a point's class and -1 for the others, as scikit-learn's ridge classifier has it.
    """
    (x, labels), (queries, wanted) = tensors(problem)
    count = int(problem["groups"].max()) + 1
    found = {}
    for code in range(2**count):
        kept = tuple(group for group in range(count) if code >> group & 1)
        rows = np.isin(problem["groups"], kept)
        some, targets = x[rows], 2 * functional.one_hot(labels[rows], 4) - 1.0
        gram = some.T @ some + RIDGE * torch.eye(x.shape[1])
        outputs = queries @ torch.linalg.solve(gram, some.T @ targets)
        found[kept] = outputs[torch.arange(len(wanted)), wanted].numpy()
    return found


def semivalues(record: Record, problem: Arrays) -> None:
    """Exact, over all sets of groups; [K, Q]."""
    outputs = ridge_outputs(problem)
    groups = np.arange(problem["groups"].max() + 1)
    data = Dataset(groups[:, None].astype(float), np.zeros(len(groups)))

    def exact(make: Any, **settings: Any) -> Any:
        def of_query(utility: Any) -> Any:
            sampler = DeterministicUniformSampler()
            return make(utility, sampler=sampler, is_done=NoStopping(), **settings)

        return of_query

    methods = {
        "leave_one_out": (LOOValuation, {}),
        "banzhaf": (exact(BanzhafValuation), {}),
        "shapley": (exact(ShapleyValuation), {}),
        "beta_shapley": (exact(BetaShapleyValuation, alpha=16.0, beta=1.0), {"alpha": 16.0}),
    }
    for method, (make, settings) in methods.items():
        values = []
        for query in range(len(next(iter(outputs.values())))):
            found = make(RidgeUtility(outputs, query)).fit(data).result
            values.append(found.values[np.argsort(found.indices)])
        record.add(f"ridge.{method}", np.stack(values, 1), ridge=RIDGE, **settings)


def values(record: Record, problem: Arrays) -> None:
    """Of points, on pixels: KNN-Shapley as a mean over the queries, and Data-OOB."""
    train, query = ((part[0].numpy(), part[1].numpy()) for part in tensors(problem))
    nearest = KNeighborsClassifier(n_neighbors=5)
    found = KNNShapleyValuation(nearest, Dataset(*query), progress=False).fit(Dataset(*train))
    record.add("pixels.knn_shapley", found.result.values, neighbours=5)
    settings = {"n_estimators": 4000, "random_state": 0}
    ridge = RidgeClassifier(alpha=RIDGE, fit_intercept=False)
    bags = BaggingClassifier(ridge, **settings).fit(*train)
    found = DataOOBValuation(bags).fit(Dataset(*train)).result
    record.add("ridge.data_oob", found.values[np.argsort(found.indices)], ridge=RIDGE, **settings)


def score(problem: Arrays) -> Record:
    """Every method."""
    record = Record("pydvl", "torch", "scikit-learn", "numpy")
    for name in NETWORKS:
        influence(record, problem, name)
    semivalues(record, problem)
    values(record, problem)
    return record
