"""The package's GPT in PyTorch, and dattri's TRAK and TracIn on it, a network or several.

Sequences are examples: the loss is the mean of the tokens', and TRAK's margin the log-odds of the
probability that the loss is of.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # of dattri

import jax
import numpy as np
import torch_forms  # says what to install where PyTorch is missing

torch, F = torch_forms.torch, torch_forms.F

BATCH = 512  # 7 GB of gradients; dattri takes those of the queries once more for each batch


class TorchGPT(torch.nn.Module):
    """Tokens [B, L] -> logits [B, L, V], with the parameters of `tasks.language`.

    They are one vector: dattri flattens parameters, and for each that there is its gradient of a
    point would be one more vector of all of them (fifteen times slower here).
    """

    def __init__(self, params: dict[str, Any], heads: int):
        super().__init__()
        self.heads, self.depth = heads, len(params["blocks"])
        leaves = jax.tree_util.tree_leaves_with_path(params)
        self.names = ["_".join(str(key.key) for key in path) for path, _ in leaves]
        self.shapes = [np.shape(leaf) for _, leaf in leaves]
        flat = np.concatenate([np.asarray(leaf).ravel() for _, leaf in leaves])
        self.weights = torch.nn.Parameter(torch.tensor(flat))

    def forward(self, tokens: Any) -> Any:
        parts = self.weights.split([int(np.prod(shape)) for shape in self.shapes])
        named = zip(self.names, parts, self.shapes, strict=True)
        params = {name: part.view(shape) for name, part, shape in named}

        def linear(x: Any, name: str) -> Any:
            return x @ params[f"{name}_kernel"] + params[f"{name}_bias"]

        def norm(x: Any, name: str) -> Any:
            scale, bias = params[f"{name}_scale"], params[f"{name}_bias"]
            return F.layer_norm(x, x.shape[-1:], scale, bias, eps=1e-5)

        embedding = params["tokens_embedding"]
        length = tokens.shape[-1]
        x = embedding[tokens] + params["places_embedding"][:length]
        later = torch.tril(torch.ones(length, length, dtype=torch.bool))
        for index in range(self.depth):
            block = f"blocks_{index}"
            mixed = linear(norm(x, f"{block}_norm_in"), f"{block}_mix")
            parts = mixed.unflatten(-1, (3, self.heads, -1))
            query, key, value = (parts[..., which, :, :].transpose(-3, -2) for which in range(3))
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            weights = torch.where(later, scores, -torch.inf).softmax(-1)
            x = x + linear((weights @ value).transpose(-3, -2).flatten(-2), f"{block}_mixed")
            inner = linear(norm(x, f"{block}_norm_out"), f"{block}_up")
            x = x + linear(F.gelu(inner, approximate="tanh"), f"{block}_down")
        return norm(x, "norm") @ embedding.T


def check_same(model: TorchGPT, tokens: np.ndarray, ours: np.ndarray) -> None:
    """Refuse a network that says something else.

    Raises:
        AssertionError: for logits that differ by more than 1e-4.
    """
    with torch.no_grad():
        theirs = model(torch.tensor(tokens, dtype=torch.long)).numpy()
    if np.abs(theirs - ours).max() > 1e-4:
        raise AssertionError(f"logits differ by {np.abs(theirs - ours).max()}")


def loader(tokens: np.ndarray, batch: int) -> Any:
    """Sequences in their order."""
    data = torch.utils.data.TensorDataset(torch.tensor(tokens, dtype=torch.long))
    return torch.utils.data.DataLoader(data, batch_size=batch, shuffle=False)


def make_loss(model: TorchGPT) -> Any:
    """`loss(params, (tokens [L],))`, a mean over its tokens."""

    def loss(params: Any, point: Any) -> Any:
        (tokens,) = point
        logits = torch.func.functional_call(model, params, tokens[None])[0, :-1]
        return F.cross_entropy(logits, tokens[1:])

    return loss


def dattri_tracin(
    models: Sequence[TorchGPT], rates: Sequence[float], train: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, float]:
    """TracIn over checkpoints: [N, Q], positive where a sequence helps the query; seconds."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    task = AttributionTask(make_loss(models[0]), models[0], [each.state_dict() for each in models])
    method = TracInAttributor(task, weight_list=torch.tensor(rates), normalized_grad=False)
    method.projector_kwargs = None
    begin = time.perf_counter()
    with torch.no_grad():
        scores = method.attribute(loader(train, BATCH), loader(test, len(test)))
    return scores.numpy(), time.perf_counter() - begin


def dattri_trak(model: TorchGPT, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, float]:
    """TRAK with one network, its default 512 dimensions; as `dattri_tracin`."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    loss = make_loss(model)

    def margin(params: Any, point: Any) -> Any:
        likely = torch.exp(-loss(params, point))
        return torch.log(likely / (1 - likely))

    def probability(params: Any, point: Any) -> Any:
        return torch.exp(-loss(params, point))

    method = TRAKAttributor(AttributionTask(margin, model, model.state_dict()), probability)
    begin = time.perf_counter()
    with torch.no_grad():
        method.cache(loader(train, BATCH))
        scores = method.attribute(loader(test, len(test)))
    return scores.numpy(), time.perf_counter() - begin
