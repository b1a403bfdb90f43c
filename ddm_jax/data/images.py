"""Images: decoded by pillow, a subfolder a class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.data.examples import Examples, Fitted
from ddm_jax.data.folders import Folder
from ddm_jax.data.split import resize

ENDINGS = (".png", ".jpg", ".jpeg")


def pixels_of(file: Any, depth: int) -> np.ndarray:
    """An opened image as bytes, `[H, W]` where depth is 1 and else `[H, W, 3]`."""
    from PIL import Image

    # Of 16 bits the upper eight, as `convert` would clip them.
    read = np.asarray(file) // 256 if file.mode.startswith("I") else None
    eight = file if read is None else Image.fromarray(read.astype(np.uint8))
    return np.asarray(eight.convert("L" if depth == 1 else "RGB"))


def image_examples(folder: Folder) -> Examples:
    """The images of a folder, read when they are wanted.

    Raises:
        ValueError: (also in `read`) for an image that is broken, or sizes that differ.
    """
    heads = [_open(path, lambda file: (file.mode, file.size)) for path in folder.files]

    def pixels(row: int, depth: int) -> np.ndarray:
        return _open(folder.files[row], lambda file: pixels_of(file, depth))

    return Examples(
        where=folder.where,
        kind="images",
        labels=folder.labels,
        fit=stacked(folder.where, heads, pixels),
        test_from=folder.test_from,
        groups=folder.groups,
        told=(f"{folder.where}: {len(folder.files):,} images", *folder.told),
    )


def stacked(
    where: str, heads: list[tuple[str, tuple[int, int]]], pixels: Callable[[int, int], np.ndarray]
) -> Callable[[np.ndarray], Fitted]:
    """How images become one array; grey where all are.

    Args:
        heads: the mode and the size of each image.
        pixels: of a row's image as bytes, for the depth 1 or 3.
    """
    depth = 1 if all(mode == "L" or mode.startswith(("1", "I")) for mode, _ in heads) else 3
    sizes = sorted({size for _, size in heads})

    def read(rows: np.ndarray, image_size: int | None) -> np.ndarray:
        if len(sizes) > 1 and image_size is None:
            width, height = sizes[0]
            raise ValueError(
                f"the images of {where} have {len(sizes)} different sizes, for example "
                f"{width}x{height} and {sizes[1][0]}x{sizes[1][1]}; set data.image_size to "
                "resize them all"
            )
        found = [pixels(row, depth) for row in rows]
        if image_size is not None:
            found = [resize(image, image_size) for image in found]
        together = np.stack(found)
        together = together[..., None] if depth == 1 else together
        return together.astype(np.float32) / np.float32(255)

    return lambda rows: Fitted(read)


def _open(path: Path, take: Any) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as file:
            return take(file)
    except Exception as error:  # pillow raises many kinds
        said = "it is no image, or broken" if "cannot identify" in str(error) else str(error)
        raise ValueError(f"{path} cannot be read ({said}); repair or remove it") from error
