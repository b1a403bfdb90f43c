"""The cost model of docs/speed.md: floating-point operations, bytes and seconds of each stage.

Symbols: N points, K groups, M items a group, Q queries, P parameters, T matched checkpoints, E
epochs of training, S online steps, D devices; f operations of a forward pass of one example, f1
of its first layer. A gradient has `g = 3 f - f1` (nobody asks for that of the input) and a matching
step, a gradient of a gradient, `m = 7 f - 2 f1` an item, as `torch_steps.py` counts them.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

PURSUIT_POINTS = 4  # checkpoints at which the start sketches per-example gradients


class Work(NamedTuple):
    """What is computed."""

    points: int  # N
    epochs: float  # E
    groups: int  # K
    items: int  # M
    queries: int  # Q
    params: int  # P
    forward: float  # f
    first: float = 0.0  # f1
    checkpoints: int = 8  # T
    distill_steps: int = 3000
    steps: int = 50  # S


class Machine(NamedTuple):
    """What computes."""

    name: str
    devices: int  # D
    flops_a_second: float  # of one device, as reached and not as sold
    bytes_a_device: float


def flops(work: Work) -> dict[str, float]:
    """Operations of each stage, and of retraining once for each group."""
    gradient = 3 * work.forward - work.first
    matching = 7 * work.forward - 2 * work.first
    updates = work.groups + 1
    return {
        "training": work.points * work.epochs * gradient,
        "start": PURSUIT_POINTS * work.points * gradient,
        "gradients": work.checkpoints * work.points * gradient,
        "distillation": work.distill_steps * work.groups * work.items * matching,
        "updates": updates * work.steps * work.groups * work.items * gradient,
        "queries": updates * work.queries * work.forward,
        "retraining": updates * work.points * work.epochs * gradient,
    }


def rounds(work: Work, machine: Machine) -> int:
    """How often a device takes a block of groups: a quarter of it holds their gradients."""
    gradients = 4 * work.checkpoints * work.groups * work.params
    return max(math.ceil(gradients / machine.devices / (machine.bytes_a_device / 4)), 1)


def stored(work: Work) -> dict[str, float]:
    """Bytes: of all gradients that are matched, of the trajectory, and of all networks' updates."""
    return {
        "gradients": 4.0 * work.checkpoints * work.groups * work.params,
        "trajectory": 4.0 * work.checkpoints * work.params,
        # Parameters, momentum, gradient and the next of the first two.
        "one network": 4.0 * 5 * work.params,
    }


def seconds(work: Work, machine: Machine) -> dict[str, float]:
    """Seconds of each stage where its operations keep every device busy.

    Training the target network is counted on one device, everything else on all.
    """
    rate = machine.flops_a_second
    all_devices = rate * machine.devices
    found = flops(work)
    per_stage = {name: value / all_devices for name, value in found.items()}
    per_stage["training"] = found["training"] / rate
    # Where more than one round is needed, norms take a pass of their own.
    if rounds(work, machine) > 1:
        per_stage["gradients"] *= 2
    return per_stage


def prediction(work: Work, machine: Machine) -> dict[str, float]:
    """Seconds of what a user waits for, where training is data parallel, and what is held."""
    took = seconds(work, machine)
    return {
        "training": took["training"] / machine.devices,
        "offline": took["start"] + took["gradients"] + took["distillation"],
        "online": took["updates"] + took["queries"],
        "retraining": took["retraining"],
        "gradients": stored(work)["gradients"],
        "rounds": rounds(work, machine),
    }


def convnet_forward(width: int, height: int, depth_in: int, classes: int = 10) -> float:
    """f of the ConvNet of three blocks: two operations a multiplication."""
    total, channels = 0.0, depth_in
    for _ in range(3):
        total += 2 * height**2 * 9 * channels * width
        channels, height = width, height // 2
    return total + 2 * height**2 * width * classes


def mlp_forward(*sizes: int) -> float:
    """f of a fully connected network of these layer sizes, the input's first."""
    return 2.0 * sum(a * b for a, b in itertools.pairwise(sizes))


def fit_rates(rows: list[dict[str, Any]], steps: int) -> dict[str, dict[str, float]]:
    """Operations a second that `scaling.py` reached, by kind of network and stage.

    The median over the cases on one device, and the largest factor by which a case misses it.
    """
    found: dict[str, dict[str, float]] = {}
    for model in sorted({row["model"] for row in rows}):
        rates: dict[str, list[float]] = {"distillation": [], "online": []}
        for row in rows:
            if row["model"] != model or row["devices"] != 1:
                continue
            work = work_of(row, steps)
            each = flops(work)
            rates["distillation"].append(each["distillation"] / row["distill_step_seconds"])
            online = each["updates"] + each["queries"]
            rates["online"].append(online / row["online_seconds"])
        for stage, values in rates.items():
            ordered = sorted(values)
            middle = ordered[len(ordered) // 2]
            found[f"{model}, {stage}"] = {
                "gflops_a_second": middle / 1e9,
                "off_by": max(middle / ordered[0], ordered[-1] / middle),
            }
    return found


def work_of(row: dict[str, Any], steps: int) -> Work:
    """A case of `scaling.py`: one distillation step, and `steps` online."""
    if row["model"] == "mlp":
        forward = mlp_forward(784, row["width"], 64, 10)
        first = mlp_forward(784, row["width"])
    else:
        forward = convnet_forward(row["width"], 28, 1)
        first = 2.0 * 28**2 * 9 * row["width"]
    return Work(
        points=row["points"],
        epochs=0,
        groups=row["groups"],
        items=row["items"],
        queries=row["queries"],
        params=row["num_params"],
        forward=forward,
        first=first,
        checkpoints=row["checkpoints"],
        distill_steps=1,
        steps=steps,
    )


# The rates are assumptions: a fifth of a GPU's TF32 peak of 495 TFLOP/s without sparsity, a third
# of a TPU v5e's bf16 peak of 197 TFLOP/s. Nothing was measured on either.
MACHINES = (
    Machine("8 GPUs of 80 GB", 8, 100e12, 80e9),
    Machine("TPU v5e, 256 chips", 256, 65e12, 16e9),
)
CASES = {
    "ResNet-18, CIFAR-10, K = 1,000": Work(50_000, 100, 1000, 1, 10_000, 11_200_000, 1.1e9),
    "ResNet-50, ImageNet-1k, K = 10,000": Work(1_281_167, 90, 10_000, 1, 50_000, 25_600_000, 8.2e9),
}
