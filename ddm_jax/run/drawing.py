"""What the figures are drawn with: text that is text, colours, galleries of examples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure, FigureBase
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, MaxNLocator

from ddm_jax.run.targets import label
from ddm_jax.run.wording import describe
from ddm_jax.types import take

if TYPE_CHECKING:
    from ddm_jax.data import Split
    from ddm_jax.types import Groups

INK, BLUE, RED, GREY = "#222222", "#2f6db3", "#c8452f", "#9aa0a6"
MARKERS = "os^Dv"  # where there are more estimators than colours
PALETTE = (BLUE, RED, "#3a7d44", "#7b52ab", "#b8860b", "#008080", "#b0307c", "#555555")
SHOWN_GROUPS = 12
SHOWN_QUERIES = 4
WORDS_WIDTH = 1.75  # inches of an example in words
SMALL = {"frameon": False, "fontsize": 8}  # legends


class TextFigure(Figure):
    """A figure whose text is text: a class may be called `$\\frac$`."""

    def draw(self, renderer) -> None:
        for text in self.findobj(Text):
            text.set_parse_math(False)
        with matplotlib.rc_context({"text.parse_math": False}):  # of ticks that are made here
            super().draw(renderer)


class Shown(NamedTuple):
    """A picture of a gallery, or an example in words."""

    pixels: np.ndarray | str  # [H, W, D] in [0, 1]
    title: str = ""
    colour: str | None = None  # of its frame


Row = list[Shown | str]  # of a gallery: pictures and texts


def png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def group_names(groups: Groups) -> Sequence[str]:
    """The names of the groups where they have some, else their numbers."""
    return groups.names or [f"group {k}" for k in range(groups.count)]


def one_panel(
    width: float, height: float, xlabel: str = "", ylabel: str = ""
) -> tuple[Figure, Any]:
    """A figure of one panel."""
    figure = TextFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(subplot_kw={"xlabel": xlabel, "ylabel": ylabel})


def gallery(rows: Sequence[Row], width: float = 0.85, titles: Any = "center") -> Figure:
    """Rows of pictures and texts."""
    shown = [each.pixels for row in rows for each in row if isinstance(each, Shown)]
    if any(isinstance(each, str) for each in shown):
        width = WORDS_WIDTH
    size = (width * max(map(len, rows)) + 0.4, 1.0 * len(rows) + 0.1)
    figure = TextFigure(figsize=size, layout="constrained")
    draw_rows(figure, rows, titles)
    return figure


def draw_rows(figure: FigureBase, rows: Sequence[Row], titles: Any = "center") -> None:
    """Draw a gallery; a text that begins a row stands at its first picture."""
    grid = figure.subplots(len(rows), max(map(len, rows)), squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for place, (axes, shown) in enumerate(zip(line, filled(row, len(line)), strict=True)):
            if isinstance(shown, str):
                axes.set_axis_off()
                at, side = (0.5, "center") if place else (1.0, "right")
                axes.text(at, 0.5, shown, ha=side, va="center", fontsize=8)
                continue
            if isinstance(shown.pixels, str):
                axes.text(0.03, 0.5, shown.pixels, va="center", fontsize=6, clip_on=True)
            else:
                grey = shown.pixels.shape[-1] == 1
                pixels = shown.pixels[..., 0] if grey else shown.pixels
                axes.imshow(pixels, cmap="gray_r" if grey else None, vmin=0, vmax=1)
            colour = INK if shown.colour in (None, GREY) else shown.colour
            axes.set_title(shown.title, fontsize=7, loc=titles, color=colour)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color(shown.colour or GREY)
                spine.set_linewidth(1.2 if shown.colour else 0.4)


def filled(row: Sequence[Shown | str], count: int) -> Row:
    """A row of `count` places, the rest of them empty."""
    return [*row, *[""] * (count - len(row))]


def member_pictures(split: Split, groups: Groups, group: int, count: int) -> Row:
    """The first members of a group, with their labels."""
    count = fewer(split, count)
    rows = np.flatnonzero(np.asarray(groups.ids) == group)[:count]
    return filled([point_picture(split, row) for row in rows], count)


def point_picture(
    split: Split, row: int, title: str | None = None, colour: str | None = None, after: str = ""
) -> Shown:
    """A training point, by default under its label."""
    if title is None:
        title = label(split, take(split.train.y, row)) + after
    return Shown(example(split, take(split.train.x, row), split.shown_train, row), title, colour)


def example(split: Split, x: Any, originals: Any = None, row: Any = 0) -> np.ndarray | str:
    """An example [...] as a figure shows it: pixels, or words."""
    if split.kind == "images":
        return split.pixels(np.asarray(x))
    if originals is None:
        return describe(split, x)
    return describe(
        split, x, originals[row] if isinstance(originals, list) else originals.iloc[row]
    )


def fewer(split: Split, count: int) -> int:
    """How many examples stand side by side where so many images would."""
    return count if split.kind == "images" else max(2 * count // 5, 1)


def query_pictures(split: Split, query: Any, said: str, head: str = "") -> Row:
    """The first two places of a row: what a query is, and was taken for, and its picture."""
    wanted = label(split, take(split.test.y, query))
    taken = "taken for" if split.classes else "said"
    mistake = f",\n{taken}\n{said}" if said != wanted else ""
    shown = example(split, take(split.test.x, query), split.shown_test, query)
    return [f"{head}{wanted}{mistake}", Shown(shown, "", INK)]


def spread_groups(count: int) -> np.ndarray:
    """Places of groups to show, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(SHOWN_GROUPS, count)).round().astype(int))


def nearest(x: np.ndarray, members: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Members of a group, those nearest to the query [F] among x [N, F] first."""
    # Bytes would wrap, and booleans do not subtract.
    away = ((x[members].astype(np.float64) - query) ** 2).sum(1)
    return members[np.argsort(away, kind="stable")]


def diagonal(axes, one: np.ndarray, two: np.ndarray, label: str | None) -> None:
    """Draw the line on which both are equal."""
    ends = [min(one.min(), two.min()), max(one.max(), two.max())]
    axes.plot(ends, ends, color=GREY, linewidth=1, label=label)
    if label is not None:
        axes.legend(**SMALL)


def whole_ticks(axis) -> None:
    """Put ticks at whole numbers alone."""
    axis.set_major_locator(MaxNLocator(integer=True))


class PlainLog(LogFormatter):
    """Some of the ticks inside of a decade, 0.6 and not 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def make_log(axes, which: str) -> None:
    """Make the axis "x" or "y" logarithmic, with ticks in plain text."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(PlainLog(minor_thresholds=(1, 0.4)))
