"""PyTorch's side of the comparison: the package's networks, and steps of K of them, in four forms.

- "loop": a Python loop over the models, `torch.autograd.grad` each, one fused update of all;
- "loop, channels last": the same in the other memory format, for convolutions;
- "vmap": `torch.func.vmap` of `torch.func.grad`;
- "stacked": batched matrix products over the models and one backward pass, for dense networks.

Parameters are flat lists of tensors, in the order of the layers and in PyTorch's own layouts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MISSING = "needs PyTorch, which is not installed; run: python -m pip install '.[benchmarks]'"

try:
    import torch
    import torch.nn.functional as F  # noqa: N812
except ImportError:
    sys.exit(f"this benchmark {MISSING}")

Tensors = list[torch.Tensor]
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-3  # of a fine-tuning step

torch.set_num_threads(1)


def from_flax(params: dict[str, Any]) -> list[np.ndarray]:
    """Turn flax parameters of a logistic, MLP or ConvNet into PyTorch's layouts, layer by layer.

    PyTorch flattens channels first, so the last layer of a ConvNet is permuted.
    """
    found: list[np.ndarray] = []
    blocks = sum(name.startswith("Convolution_") for name in params)
    for block in range(blocks):
        kernel = np.asarray(params[f"Convolution_{block}"]["kernel"])
        norm = params[f"GroupNorm_{block}"]
        found += [kernel.transpose(3, 2, 0, 1), params[f"Convolution_{block}"]["bias"]]
        found += [norm["scale"], norm["bias"]]
    for layer in range(sum(name.startswith("Dense_") for name in params)):
        kernel = np.asarray(params[f"Dense_{layer}"]["kernel"])
        if blocks:
            width = len(found[-1])
            side = round((len(kernel) / width) ** 0.5)
            kernel = kernel.reshape(side, side, width, -1).transpose(2, 0, 1, 3)
            kernel = kernel.reshape(-1, kernel.shape[-1])
        found += [kernel.T, params[f"Dense_{layer}"]["bias"]]
    return [np.array(leaf, np.float32, order="C") for leaf in found]


def images_first(x: np.ndarray, convolutional: bool) -> torch.Tensor:
    """Inputs [..., H, W, D] as PyTorch has them: [..., D, H, W], or flat for dense networks."""
    x = np.moveaxis(x, -1, -3) if convolutional else x.reshape(*x.shape[:-3], -1)
    return torch.from_numpy(np.array(x, order="C"))


def apply(params: Sequence[torch.Tensor], x: torch.Tensor, second: bool = False) -> torch.Tensor:
    """Logits of one network.

    Its normalisation is the one of PyTorch's two that is faster: `instance_norm` where it is
    differentiated once, `group_norm` where twice.
    """
    at = 0
    while params[at].ndim == 4:
        weight, bias, scale, shift = params[at : at + 4]
        x = F.conv2d(x, weight, bias, padding=1)
        if second:
            x = F.group_norm(x, x.shape[1], scale, shift, eps=1e-6)
        else:
            x = F.instance_norm(x, weight=scale, bias=shift, eps=1e-6)
        x = F.avg_pool2d(F.relu(x), 2)
        at += 4
    x = x.flatten(1)
    for layer in range(at, len(params), 2):
        x = F.linear(x, params[layer], params[layer + 1])
        x = F.relu(x) if layer + 2 < len(params) else x
    return x


def apply_stacked(params: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Logits [K, B, C] of K dense networks, parameters [K, ...] and inputs [K, B, F]."""
    for layer in range(0, len(params), 2):
        x = torch.baddbmm(params[layer + 1][:, None], x, params[layer].transpose(1, 2))
        x = F.relu(x) if layer + 2 < len(params) else x
    return x


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Losses against label distributions, over the last axis."""
    return -(y * F.log_softmax(logits, -1)).sum(-1)


def formats(convolutional: bool) -> tuple[str, ...]:
    """The forms that suit a network."""
    return ("loop", "loop, channels last" if convolutional else "stacked", "vmap")


def make_finetune(
    form: str, params: Tensors, x: torch.Tensor, y: torch.Tensor, steps: int
) -> Callable[[], Tensors]:
    """Make `run() -> params [K, ...]`: Nesterov steps of K networks, each on a batch of its own.

    `params` have leaves [K, ...], x is [K, B, ...] and y, label logits, [K, B, C].
    """

    def update(leaves: Tensors, slopes: Sequence[torch.Tensor], moved: Tensors) -> None:
        with torch.no_grad():
            slopes = torch._foreach_add(list(slopes), leaves, alpha=DECAY)
            torch._foreach_mul_(moved, MOMENTUM)
            torch._foreach_add_(moved, slopes)
            torch._foreach_add_(slopes, moved, alpha=MOMENTUM)
            torch._foreach_add_(leaves, slopes, alpha=-RATE)

    def loss(params: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(apply(params, x), y).mean()

    def stacked(gradient: Callable[..., Sequence[torch.Tensor]]) -> Tensors:
        leaves = [leaf.clone().requires_grad_() for leaf in params]
        moved = [torch.zeros_like(leaf) for leaf in leaves]
        target = torch.softmax(y, -1)
        for _ in range(steps):
            update(leaves, gradient(leaves, x, target), moved)
        return [leaf.detach() for leaf in leaves]

    def by_batch(params: Tensors, x: torch.Tensor, y: torch.Tensor) -> Sequence[torch.Tensor]:
        return torch.autograd.grad(cross_entropy(apply_stacked(params, x), y).mean(1).sum(), params)

    def loop() -> Tensors:
        last = form == "loop, channels last"
        models = [[_formatted(leaf[k], last) for leaf in params] for k in range(len(x))]
        leaves = [leaf for model in models for leaf in model]
        moved = [torch.zeros_like(leaf) for leaf in leaves]
        inputs = [_formatted(one, last).detach() for one in x]
        target = torch.softmax(y, -1)
        for _ in range(steps):
            slopes: Tensors = []
            for model, one, label in zip(models, inputs, target, strict=True):
                slopes += torch.autograd.grad(loss(model, one, label), model)
            update(leaves, slopes, moved)
        return [torch.stack(same).detach() for same in zip(*models, strict=True)]

    if form == "stacked":
        return lambda: stacked(by_batch)
    if form == "vmap":
        return lambda: stacked(torch.func.vmap(torch.func.grad(loss)))
    return loop


def make_matching(
    form: str,
    params: Tensors,
    gradients: Tensors,
    synset: tuple[torch.Tensor, ...],
    steps: int,
    rate: float,
) -> Callable[[], tuple[torch.Tensor, Tensors]]:
    """Make `run() -> losses [steps], (x, y, mass)`: descent on the matching loss of K groups.

    `params` are one network's, `gradients` [K, ...], and the synset x [K, M, ...], label logits
    y [K, M, C], mass [K, M] and share [K]. Weights and units are `make_distiller`'s.
    """
    x, y, mass, share = synset

    def cost(x, y, mass, share, weight, gradient):
        theta = [leaf.detach().requires_grad_() for leaf in ready]
        total = share * (mass @ cross_entropy(apply(theta, x, True), torch.softmax(y, -1)))
        slopes = torch.autograd.grad(total, theta, create_graph=True)
        parts = [((g - h) ** 2).sum() for g, h in zip(gradient, slopes, strict=True)]
        return weight * torch.stack(parts).sum()

    def pure_cost(x, y, mass, share, weight, gradient):
        def total(theta):
            return share * (mass @ cross_entropy(apply(theta, x, True), torch.softmax(y, -1)))

        slopes = torch.func.grad(total)(params)
        parts = [((g - h) ** 2).sum() for g, h in zip(gradient, slopes, strict=True)]
        return weight * torch.stack(parts).sum()

    def stacked_costs(x, y, mass, share, weight):
        theta = [leaf.expand(len(x), *leaf.shape).detach().requires_grad_() for leaf in params]
        losses = cross_entropy(apply_stacked(theta, x), torch.softmax(y, -1))
        slopes = torch.autograd.grad(
            (share * (mass * losses).sum(1)).sum(), theta, create_graph=True
        )
        parts = [((g - h) ** 2).flatten(1).sum(1) for g, h in zip(gradients, slopes, strict=True)]
        return (weight * torch.stack(parts).sum(0)).sum()

    def weights() -> torch.Tensor:
        norms = torch.stack([leaf.flatten(1).square().sum(1) for leaf in gradients]).sum(0)
        norms = norms + 1e-6 * norms.mean() + 1e-30
        return norms**-0.5 / (norms**0.5).sum()

    def update(leaves: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor], unit: Any) -> None:
        with torch.no_grad():
            slopes = list(slopes)
            slopes[2::3] = torch._foreach_mul(slopes[2::3], unit)
            torch._foreach_add_(list(leaves), slopes, alpha=-rate)

    def together() -> tuple[torch.Tensor, Tensors]:
        leaves = [leaf.clone().requires_grad_() for leaf in (x, y, mass)]
        unit, weight, losses = [mass.abs().mean(1, keepdim=True) ** 2], weights(), []
        for _ in range(steps):
            if form == "vmap":
                slopes, each = gradient_and_cost(*leaves, share, weight, gradients)
                loss = each.sum()
            else:
                loss = stacked_costs(*leaves, share, weight)
                slopes = torch.autograd.grad(loss, leaves)
            update(leaves, slopes, unit)
            losses.append(loss.detach())
        return torch.stack(losses), [leaf.detach() for leaf in leaves]

    def loop() -> tuple[torch.Tensor, Tensors]:
        groups = [
            [
                _formatted(x[k], last),
                y[k].clone().requires_grad_(),
                mass[k].clone().requires_grad_(),
            ]
            for k in range(len(x))
        ]
        leaves = [leaf for group in groups for leaf in group]
        unit, weight, losses = list(mass.abs().mean(1) ** 2), weights(), []
        for _ in range(steps):
            slopes, loss = [], torch.zeros(())
            for k, group in enumerate(groups):
                one = cost(*group, share[k], weight[k], targets[k])
                slopes += torch.autograd.grad(one, group)
                loss = loss + one.detach()
            update(leaves, slopes, unit)
            losses.append(loss)
        return torch.stack(losses), [torch.stack(s).detach() for s in zip(*groups, strict=True)]

    last = form == "loop, channels last"
    ready = [_formatted(leaf, last) for leaf in params]
    targets = [[_formatted(leaf[k], last).detach() for leaf in gradients] for k in range(len(x))]
    gradient_and_cost = torch.func.vmap(torch.func.grad_and_value(pure_cost, (0, 1, 2)))
    return together if form in ("vmap", "stacked") else loop


def _formatted(leaf: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """A copy that can be differentiated, its four-dimensional memory in the chosen order."""
    chosen = channels_last and leaf.ndim == 4
    memory = torch.channels_last if chosen else torch.contiguous_format
    return leaf.clone(memory_format=memory).requires_grad_()
