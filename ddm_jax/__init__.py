"""Distilled datamodels in JAX: which training data made a model do this, and what if it were gone?

The public names are declared once, in `__init__.pyi`, in the order of use; they are imported when
they are first used, so that the `ddm` command answers at once. Everything else goes by its module.
"""

import lazy_loader

__version__ = "0.12.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
