"""The cost model of docs/speed.md, against counts by hand."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import ddm_jax as ddm

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import cost_model

WORK = cost_model.Work(
    1000, 20, 10, 5, 100, 50_000, 1e6, first=2e5, checkpoints=8, distill_steps=30, steps=50
)


def test_the_stages_count_what_they_do():
    found = cost_model.flops(WORK)
    assert found["training"] == 2.8e6 * 1000 * 20
    assert found["retraining"] == 11 * found["training"]
    assert found["updates"] == 11 * 50 * 50 * 2.8e6
    assert found["queries"] == 11 * 100 * 1e6
    assert found["distillation"] == 30 * 50 * 6.6e6
    assert found["gradients"] == 8 * 1000 * 2.8e6


def test_rounds_are_those_of_the_memory():
    gradients = 4 * 8 * 10 * 50_000
    machine = cost_model.Machine("two", 2, 1e9, 4 * gradients / 2)
    assert cost_model.rounds(WORK, machine) == 1
    assert cost_model.rounds(WORK, machine._replace(bytes_a_device=4 * gradients / 7)) == 4
    fast = cost_model.seconds(WORK, machine)
    assert fast["updates"] == cost_model.flops(WORK)["updates"] / 2e9
    assert fast["training"] == cost_model.flops(WORK)["training"] / 1e9


@pytest.mark.parametrize(
    ("module", "shape", "forward"),
    [
        (ddm.models.MLP(10, (128, 64)), (28, 28, 1), cost_model.mlp_forward(784, 128, 64, 10)),
        (ddm.models.ConvNet(10, 32), (28, 28, 1), cost_model.convnet_forward(32, 28, 1)),
        (ddm.models.ConvNet(10, 128), (32, 32, 3), cost_model.convnet_forward(128, 32, 3)),
    ],
)
def test_a_forward_pass_has_the_operations_that_xla_counts(module, shape, forward):
    """XLA leaves the zeros of the border out, and counts activations and norms too."""
    task = ddm.classification(module, shape)
    params = jax.eval_shape(task.init, jax.random.key(0))
    lowered = jax.jit(task.apply).lower(params, jnp.zeros((1, *shape)))
    counted = lowered.compile().cost_analysis()["flops"]
    assert 0.8 * forward < counted < 1.3 * forward


def test_rates_are_fitted_to_the_cases_on_one_device():
    rows = [
        {"model": "mlp", "devices": 1, "width": 128, "points": 100, "groups": 10, "items": 1}
        | {"queries": 10, "num_params": 1, "checkpoints": 8}
        | {"distill_step_seconds": scale, "online_seconds": scale}
        for scale in (1.0, 2.0, 4.0)
    ]
    rows.append(rows[0] | {"devices": 2, "online_seconds": 1e9})
    fitted = cost_model.fit_rates(rows, 10)["mlp, distillation"]
    matching = 7 * 2 * (784 * 128 + 128 * 64 + 640) - 2 * 2 * 784 * 128
    assert fitted["gflops_a_second"] == pytest.approx(10 * matching / 2.0 / 1e9)
    assert fitted["off_by"] == 2
