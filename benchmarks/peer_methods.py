"""dattri's and traker's attributors, and our grad-dot, as `run() -> Scored` of one network.

All of them score every training point for every query; `peers.py` judges them.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TQDM_DISABLE", "1")  # of the libraries below

import harness
import jax
import numpy as np
import protocol
import torch_forms  # says what to install where PyTorch is missing

from ddm_jax.estimators import make_grad_dot
from ddm_jax.run.evaluate import Ready

torch, F = torch_forms.torch, torch_forms.F

DAMPINGS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
THEIRS = "dattri: grad-dot"
BATCH = 500
MOST_BYTES = 2**32  # of the gradients of one batch
HESSIAN_BYTES = 2**28  # of the activations of one batch of Hessian products, a few of them alive


class Scored(NamedTuple):
    """What a method gives."""

    scores: np.ndarray  # [N, Q], positive where having the point raises the query's loss
    offline_seconds: float
    online_seconds: float


class Side(NamedTuple):
    """PyTorch's side of a preset."""

    model: Any
    train: tuple[Any, Any]  # x [N, F], labels [N]
    test: tuple[Any, Any]

    def loader(self, part: str, batch: int) -> Any:
        """One part in its order."""
        data = torch.utils.data.TensorDataset(*getattr(self, part))
        return torch.utils.data.DataLoader(data, batch_size=batch, shuffle=False)

    def train_batch(self) -> int:
        """All training points where their gradients fit."""
        size = sum(leaf.numel() for leaf in self.model.parameters())
        whole = len(self.train[0])
        return whole if 4 * size * whole < MOST_BYTES else min(BATCH, whole)

    def query_batch(self) -> int:
        """Queries whose Hessian products go side by side, each over all training points."""
        units = sum(layer.out_features for layer in self.model if hasattr(layer, "out_features"))
        return max(min(BATCH, HESSIAN_BYTES // (4 * units * len(self.train[0]))), 1)

    def logits(self, params: Any, x: Any) -> Any:
        """The network as a function of its parameters."""
        return torch.func.functional_call(self.model, params, x)


def to_torch(ready: Ready) -> Side:
    """The trained network and the data, after a check that the logits agree."""
    leaves = torch_forms.from_flax(jax.tree.map(np.asarray, ready.target.params))
    layers: list[Any] = []
    for weight, bias in zip(leaves[::2], leaves[1::2], strict=True):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1]).eval()
    split = ready.plan.split
    parts = []
    for part in (split.train, split.test):
        x = torch.tensor(np.asarray(part.x).reshape(len(part.x), -1))
        parts.append((x, torch.tensor(np.asarray(part.y).argmax(1))))
        theirs = model(x).detach().numpy()
        ours = np.asarray(ready.plan.task.apply(ready.target.params, part.x))
        if np.abs(theirs - ours).max() > 1e-4:
            raise AssertionError(f"logits differ by {np.abs(theirs - ours).max()}")
    return Side(model, *parts)


def ours(ready: Ready) -> Callable[[], Scored]:
    """Grad-dot by point."""
    estimator = make_grad_dot(ready.plan.truth.task)
    data, query = protocol.placed(ready)

    def run() -> Scored:
        key = jax.random.key(0)
        state, offline = harness.once(estimator.fit, key, ready.target, data, ready.groups)
        scores, online = harness.once(estimator.score, state, query)
        return Scored(np.asarray(scores), offline, online)

    return run


def _point_loss(side: Side) -> Callable[[Any, Any], Any]:
    def loss(params: Any, point: Any) -> Any:
        x, label = point
        return F.cross_entropy(side.logits(params, x[None]), label[None])

    return loss


def dattri_grad_dot(side: Side, projected: bool) -> Callable[[], Scored]:
    """TracIn with one checkpoint."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    task = AttributionTask(_point_loss(side), side.model, side.model.state_dict())

    def run() -> Scored:
        method = TracInAttributor(task, weight_list=torch.ones(1), normalized_grad=False)
        if not projected:
            method.projector_kwargs = None
        begin = time.perf_counter()
        with torch.no_grad():
            scores = method.attribute(
                side.loader("train", side.train_batch()), side.loader("test", len(side.test[0]))
            )
        return Scored(-scores.numpy(), 0.0, time.perf_counter() - begin)

    return run


def dattri_influence(side: Side, damping: float) -> Callable[[], Scored]:
    """Influence function by conjugate gradients, its default ten iterations."""
    from dattri.algorithm.influence_function import IFAttributorCG
    from dattri.task import AttributionTask

    def loss(params: Any, batch: Any) -> Any:
        x, label = batch
        return F.cross_entropy(side.logits(params, x), label)

    task = AttributionTask(loss, side.model, side.model.state_dict())

    def run() -> Scored:
        method = IFAttributorCG(task, regularization=damping)
        method.cache(side.loader("train", len(side.train[0])))
        begin = time.perf_counter()
        with torch.no_grad():
            scores = method.attribute(
                side.loader("train", side.train_batch()), side.loader("test", side.query_batch())
            )
        return Scored(-scores.numpy(), 0.0, time.perf_counter() - begin)

    return run


def dattri_trak(side: Side) -> Callable[[], Scored]:
    """TRAK with one model, its default 512 dimensions."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    def margin(params: Any, point: Any) -> Any:
        x, label = point
        logits = side.logits(params, x[None])[0]
        correct = torch.arange(len(logits)) == label
        others = torch.where(correct, -torch.inf, logits)
        return (logits * correct).sum() - others.logsumexp(0)

    def probability(params: Any, point: Any) -> Any:
        return torch.exp(-_point_loss(side)(params, point))

    task = AttributionTask(margin, side.model, side.model.state_dict())

    def run() -> Scored:
        method = TRAKAttributor(task, probability)
        begin = time.perf_counter()
        with torch.no_grad():
            method.cache(side.loader("train", BATCH))
            cached = time.perf_counter()
            scores = method.attribute(side.loader("test", BATCH))
        return Scored(-scores.numpy(), cached - begin, time.perf_counter() - cached)

    return run


def traker_trak(side: Side) -> Callable[[], Scored]:
    """TRAK with one model, its default 2,048 dimensions, and its projector for a CPU."""
    from trak import TRAKer

    def run() -> Scored:
        size, queries = len(side.train[0]), len(side.test[0])
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            method = TRAKer(
                model=side.model,
                task="image_classification",
                train_set_size=size,
                save_dir=folder,
                device="cpu",
                use_half_precision=False,
                logging_level="ERROR",
            )
            weights = side.model.state_dict()
            method.load_checkpoint(weights, model_id=0)
            for batch in side.loader("train", BATCH):
                method.featurize(batch, num_samples=len(batch[0]))
            method.finalize_features()
            ready = time.perf_counter()
            method.start_scoring_checkpoint("test", weights, model_id=0, num_targets=queries)
            for batch in side.loader("test", BATCH):
                method.score(batch, num_samples=len(batch[0]))
            scores = np.array(method.finalize_scores("test"))
        return Scored(-scores, ready - begin, time.perf_counter() - ready)

    return run


METHODS: dict[str, Callable[[Side], dict[float, Callable[[], Scored]]]] = {
    THEIRS: lambda side: {0.0: dattri_grad_dot(side, projected=False)},
    "dattri: grad-dot, projected by default": lambda side: {0.0: dattri_grad_dot(side, True)},
    "dattri: influence, CG": lambda side: {each: dattri_influence(side, each) for each in DAMPINGS},
    "dattri: TRAK-1": lambda side: {0.0: dattri_trak(side)},
    "traker: TRAK-1": lambda side: {0.0: traker_trak(side)},
}
