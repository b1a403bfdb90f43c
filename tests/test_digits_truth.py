"""The truth of the digits protocol comes out as it did."""

import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddm_jax.judge import store, truth
from ddm_jax.run import evaluate, settings
from ddm_jax.run.plan import make_plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
STORED = json.loads((ROOT / "benchmarks" / "results" / "digits_truth.json").read_text())


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory):
    """What the benchmark writes, of `ddm truth digits`."""
    config, folder = settings.preset("digits"), tmp_path_factory.mktemp("truth") / "run"
    summary = evaluate.fill_truth(config, folder)
    opened = store.inspect_store(folder / evaluate.TRUTH)
    found = truth.read_truth(make_plan(config).truth, opened)
    assert summary["truth"] == truth.checksum(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import digits_truth

        yield digits_truth.summary(SimpleNamespace(truth=found))
    for name in ("digits_truth", "protocol", "harness"):
        sys.modules.pop(name, None)


def test_the_checksum_is_the_stored_one(regenerated):
    stored = STORED["truth"]
    if metadata.version("jax") != STORED["versions"]["jax"]:
        pytest.skip(f"the checksum is that of JAX {STORED['versions']['jax']}")
    if regenerated["checksum"] != stored["checksum"] and regenerated["cpu"] != stored["cpu"]:
        pytest.skip("another checksum, on another kind of CPU")
    assert regenerated["checksum"] == stored["checksum"]


def test_the_mean_losses_are_the_stored_ones(regenerated):
    """On any CPU and JAX: a truth of something else would be elsewhere."""
    assert regenerated["mean_loss"] == pytest.approx(STORED["truth"]["mean_loss"], abs=0.01)
    losses = list(regenerated["mean_loss"].values())
    assert losses == sorted(losses), "less data, more loss"
