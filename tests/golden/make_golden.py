"""Score the problem by the libraries that others wrote, into an `.npz` file for each library.

Run by hand, a library at a time, in an environment that has PyTorch and that library:

    python tests/golden/make_golden.py problem
    python tests/golden/make_golden.py dattri|traker|pydvl|captum

`tests/test_golden.py` compares our estimators with the files; it needs none of the libraries.
pyDVL wants numpy below 2, so it has an environment without JAX.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings

os.environ["TQDM_DISABLE"] = "1"  # of the libraries, and before any of them

import numpy as np
import torch
from problem import FOLDER, load_problem, make_problem

LIBRARIES = ("dattri", "traker", "pydvl", "captum")


def main(arguments: list[str]) -> None:
    """Make the problem, or the scores of one library."""
    if len(arguments) != 1 or arguments[0] not in ("problem", *LIBRARIES):
        raise SystemExit(__doc__)
    # The libraries compute in the default precision; ours is then the only one that rounds.
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    if arguments[0] == "problem":
        np.savez_compressed(FOLDER / "problem.npz", **make_problem())
        return
    warnings.simplefilter("ignore")  # of theirs
    importlib.import_module(f"by_{arguments[0]}").score(load_problem()).save(arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
