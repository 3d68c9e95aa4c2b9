"""The picture of a run's spectra, from the rows of spectra.jsonl."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.outputs.atomic import write_atomically
from normlab.signals import postponed

if TYPE_CHECKING:  # it takes a second to import, and only a run that draws needs it
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, Any]]
Line = list[tuple[float, float]]

INCHES, DOTS_PER_INCH = (17.0, 7.2), 90
# Where the columns and rows of panels begin, from the left and the bottom, and their size, in parts of the figure.
COLUMNS, WIDTH = (0.03, 0.232, 0.505, 0.757), 0.173
ROWS, HEIGHT = (0.585, 0.11), 0.335
MOST_LABELS = 12  # of a legend, and along an axis
LONGEST_UPRIGHT = 3  # letters of a layer's name that stands upright below an axis
MOST_STEPS = 5  # whose gradients are drawn
LOG_FROM = 20.0  # the ratio of the largest to the smallest value from which an axis is logarithmic
NETWORKS = ("generator", "discriminator")
PLACES = ("real", "between", "fake")  # where the discriminator's slope is measured


class SpectraPicture:
    """Keeps a picture of spectra up to date. A view only: if it cannot be drawn, it warns once and training goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._draws = True

    def draw(self, rows: Rows) -> None:
        if not self._draws:
            return
        try:
            write_atomically(self.path, spectra_picture(rows, self.path.parent.name))
        except Exception as error:  # matplotlib may raise anything, or be missing
            self._draws = False
            logger.warning("%s is not drawn any more in this run: %s", self.path.name, error)


def spectra_picture(rows: Rows, title: str) -> bytes:
    """Return a PNG: of each network sigma and operator norm over the steps, and norms of gradients over its depth.

    Beside those of the discriminator stands its slope in the images, which alone compares across techniques.
    """
    with postponed():
        from matplotlib.figure import Figure  # not pyplot, whose state is everybody's

    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH)
    figure.text(0.5, 0.985, title, ha="center", va="top", fontsize=9)
    for network, bottom in zip(NETWORKS, ROWS, strict=True):
        of_sigma, of_operator, of_gradient = (figure.add_axes((left, bottom, WIDTH, HEIGHT)) for left in COLUMNS[:3])
        own = [row for row in rows if row.get("network") == network and row.get("layer") is not None]
        layers = list(dict.fromkeys(str(row["layer"]) for row in own))
        _over_steps(of_sigma, own, layers, "sigma", f"{network}: largest singular value of the weight")
        _over_steps(of_operator, own, layers, "operator_norm", f"{network}: norm of the layer as a map")
        _name_lines(of_operator, "layer")
        _over_depth(of_gradient, own, layers, f"{network}: norm of the gradient at each layer")
        _name_lines(of_gradient, "at step")
    of_slope = figure.add_axes((COLUMNS[3], ROWS[1], WIDTH, HEIGHT))
    _slopes(of_slope, [row for row in rows if row.get("network") == "discriminator" and row.get("layer") is None])
    _name_lines(of_slope, "at images")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _over_steps(axes: "Axes", rows: Rows, layers: list[str], key: str, title: str) -> None:
    """Draw a line per layer, coloured by its depth."""
    lines: dict[str, Line] = {layer: [] for layer in layers}
    for row in rows:
        if row.get(key) is not None:
            lines[str(row["layer"])].append((row["step"], row[key]))
    _draw_over_steps(axes, lines, title)


def _slopes(axes: "Axes", rows: Rows) -> None:
    """Draw a line per place that the norm of the score's gradient in the image was taken at."""
    lines: dict[str, Line] = {
        place: [(row["step"], value) for row in rows if (value := row.get(f"input_gradient/{place}")) is not None]
        for place in PLACES
    }
    _draw_over_steps(axes, lines, "discriminator: gradient of the score in the image")


def _draw_over_steps(axes: "Axes", lines: Mapping[str, Line], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    _draw(axes, lines, title)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("step", fontsize=8)


def _over_depth(axes: "Axes", rows: Rows, layers: list[str], title: str) -> None:
    """Draw a line per step, coloured by its time."""
    steps = spread(sorted({row["step"] for row in rows}), MOST_STEPS)
    lines: dict[str, Line] = {f"{step:,}": [] for step in steps}
    for row in rows:
        if row["step"] in steps and row.get("gradient_norm") is not None:
            lines[f"{row['step']:,}"].append((layers.index(str(row["layer"])), row["gradient_norm"]))
    _draw(axes, lines, title)
    places = spread(list(range(len(layers))), MOST_LABELS)
    axes.set_xticks(places, [layers[place] for place in places])
    if any(len(layer) > LONGEST_UPRIGHT for layer in layers):
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")


def _draw(axes: "Axes", lines: Mapping[str, Line], title: str) -> None:
    """Draw lines in the order of a scale of colours that tells them apart in grey, and to the colour-blind, too."""
    from matplotlib import colormaps

    for number, (name, points) in enumerate(lines.items()):
        colour = colormaps["viridis"](0.9 * number / max(len(lines) - 1, 1))  # the last tenth is too light on white
        places, values = zip(*points, strict=True) if points else ((), ())
        axes.plot(places, values, label=name, color=colour, marker="o", markersize=3, linewidth=1.3)
    _scale(axes, [value for points in lines.values() for _, value in points])
    axes.set_title(title, fontsize=9, loc="left", y=1.02)
    axes.tick_params(labelsize=7)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _scale(axes: "Axes", values: list[float]) -> None:
    """Let the vertical axis begin at 0, or be logarithmic where the values span far."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    if not values:
        return
    least, most = min(values), max(values)
    if least <= 0 or most <= LOG_FROM * least:
        axes.set_ylim(0, 1.1 * most or 1)
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 1000 * least else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _name_lines(axes: "Axes", what: str) -> None:
    """Say beside a panel what its lines are, or some of them where they are many."""
    named = spread(list(axes.lines), MOST_LABELS)
    if named:
        beside = axes.legend(handles=named, title=what, loc="upper left", bbox_to_anchor=(1.0, 1.07), frameon=False)
        for text in (beside.get_title(), *beside.get_texts()):
            text.set_fontsize(7)


def spread(values: list[Any], most: int) -> list[Any]:
    """Return at most so many of the values, the first and the last among them and the others evenly between."""
    if len(values) <= most:
        return values
    return [values[round(number * (len(values) - 1) / (most - 1))] for number in range(most)]
