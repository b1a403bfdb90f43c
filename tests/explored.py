"""A finished run as the page shows it, and a server of its own."""

from __future__ import annotations

import shutil
import threading

import pytest

from ddm_jax.explore import server, view
from ddm_jax.run.finished import open_finished


@pytest.fixture(scope="module")
def workdir(finished, tmp_path_factory):
    """A copy, for retraining writes."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("explored") / "digits")


@pytest.fixture(scope="module")
def run(workdir):
    return open_finished(workdir)


@pytest.fixture(scope="module")
def shown(run):
    return view.make_view(run)


def started(shown):
    """The address of a server of its own."""
    address = []
    there = threading.Event()

    def ready(text):
        address.append(text)
        there.set()

    threading.Thread(
        target=server.serve, args=(shown, "127.0.0.1", None, ready), daemon=True
    ).start()
    assert there.wait(30)
    return address[0]
