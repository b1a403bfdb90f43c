"""scikit-learn's handwritten digits: 1,797 images of 8x8, without a download."""

from __future__ import annotations

import numpy as np

from ddm_jax.data.split import Source, resize

TRAIN = 1000  # of 1,797; the rest is the test set


def digits_source(draw: np.random.Generator, original: bool) -> Source:
    """The digits, cut at random or in their original order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    count = len(digits.target)
    order = np.arange(count) if original else draw.permutation(count)

    def read(split: str, rows: np.ndarray, image_size: int | None):
        pixels = (digits.images[rows, :, :, None] / 16.0).astype(np.float32)
        if image_size is not None:
            pixels = np.stack([resize(image, image_size) for image in pixels])
        return pixels, digits.target[rows]

    names = tuple(str(c) for c in range(10))
    return Source(names, "digits", "digits", order[:TRAIN], order[TRAIN:], read)
