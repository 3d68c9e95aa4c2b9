"""The picture of what a benchmark found, from the values that it prints."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot, whose state is everybody's
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

DOTS_PER_INCH = 90
PANEL_INCHES = 3.4
BAND = "0.88"  # grey of what a control does not tell from itself
Values = Mapping[str, Any]
Interval = tuple[float, float, float]  # the median and what encloses it


class Dots(NamedTuple):
    """A panel with a row for each arm: a median and its interval, and the control's interval as a band around 1."""

    title: str
    rows: dict[str, Interval]
    control: Interval | None = None
    marks: tuple[float, ...] = ()


class Curve(NamedTuple):
    """A panel with a line over the points of an axis, and the control's interval around the line at the reference."""

    title: str
    label: str
    points: Sequence[float]
    values: Sequence[Interval]
    control: Interval | None = None
    reference: float | None = None


Panel = Dots | Curve


def picture(values: Values) -> bytes:
    """Return a PNG of a benchmark's values."""
    panels = PANELS[values["benchmark"]](values)
    height = max(2.0, *(1.3 + 0.3 * len(panel.rows) if isinstance(panel, Dots) else PANEL_INCHES for panel in panels))
    width = sum(6.0 if isinstance(panel, Dots) else 3.6 for panel in panels)
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if isinstance(panel, Dots):
            _draw_dots(axes, panel)
        else:
            _draw_curve(axes, panel)
    environment = values.get("environment", {})
    where = f"{values['benchmark']}: {environment.get('device_name') or environment.get('cpu')}"
    figure.suptitle(f"{where}, {environment.get('threads')} thread(s)", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


# --- Panels of each benchmark ---------------------------------------------------------------------------------------


def _trainer(values: Values) -> list[Panel]:
    if "against" not in values:
        rows = {"CPU time": _interval(values), "wall time": _interval(values, "wall_")}
        return [Dots("time of normlab's trainer / loop by hand", rows, _control(values))]
    arms = {
        "normlab, same numerics": "same_numerics",
        "normlab, best settings": "best_settings",
        "its networks by hand": "by_hand",
    }
    rows = {
        f"{name}, {time}": _interval(values[key][f"{time.lower()}_speedup"])
        for name, key in arms.items()
        for time in ("CPU", "wall")
    }
    return [Dots(f"images a second / {values['against']}'s trainer", rows, _control(values))]


def _monitors(values: Values) -> list[Panel]:
    rows = {"CPU time": _interval(values), "wall time": _interval(values, "wall_"), "rows alone": _rows(values)}
    return [Dots("time with all that is measured / without", rows, _control(values))]


def _rows(values: Values) -> Interval:
    return values["rows_ratio"], values["rows_low"], values["rows_high"]


def _saving(values: Values) -> list[Panel]:
    rows = {name: (share, share, share) for name, share in (("CPU", values["share"]), ("wall", values["wall_share"]))}
    return [Dots("share of the time that saving takes", rows)]


def _memory(values: Values) -> list[Panel]:
    most = [(bytes_ / 1e6,) * 3 for bytes_ in values["most_bytes_by_tenths"]]
    return [Curve("most memory held, MB", "tenth of the run", range(1, len(most) + 1), most)]


def _normalizations(values: Values) -> list[Panel]:
    rows = {name: _interval(ratio) for name, ratio in values["ratios"].items()}
    return [Dots("CPU time of a step / with no technique", rows, _control(values))]


def _evaluation(values: Values) -> list[Panel]:
    seconds = {name: (taken,) * 3 for name, taken in values["seconds_of_each"].items()}
    return [
        Dots("CPU time of all scores / a pass of Inception", {"all scores": _interval(values)}, _control(values)),
        Dots("CPU seconds behind the pass", seconds),
    ]


def _gpu(values: Values) -> list[Panel]:
    width = abs(values["control"] - 1)
    control = (1.0, 1 - width, 1 + width)
    rows = [row for row in values["rows"] if row["capture"] != "none"]
    named = {f"{row['case']}, {row['technique']}, {row['capture']}": row for row in rows}
    costs = {name: _interval(row["cost"]) for name, row in named.items() if row["technique"] != "none"}
    return [
        Dots("steps anew / replayed, time", {name: _interval(row["speedup"]) for name, row in named.items()}, control),
        Dots("with a technique / with none, time", costs, control),
    ]


def _startup(values: Values) -> list[Panel]:
    claims: dict[str, str] = {
        name: f"{name}, at most {seconds:g} claimed" for name, seconds in values["claims"].items()
    }
    rows = {claims.get(str(name), str(name)): _interval(taken) for name, taken in values["wall_seconds"].items()}
    marks = tuple(values["claims"].values())
    return [Dots("seconds to start; of runs, from torch's import to the first step", rows, marks=marks)]


def _reporting(values: Values) -> list[Panel]:
    claims = values["claims"]
    rows = {f"{name}, at most {claims[name]:g} claimed": (taken,) * 3 for name, taken in values["seconds"].items()}
    return [Dots(f"seconds of {values['runs']} runs", rows, marks=tuple(claims[name] for name in values["seconds"]))]


def _scaling(values: Values) -> list[Panel]:
    return [
        Curve(
            f"images a second by {axis}",
            LABELS[axis],
            [row["point"] for row in table["rows"]],
            [_interval(row["images_per_second"]) for row in table["rows"]],
            _control(table),
            values["reference"][axis],
        )
        for axis, table in values["axes"].items()
        if "rows" in table
    ]


def _streaming(values: Values) -> list[Panel]:
    curves = [
        Curve(
            f"images a second read at {size} px",
            "threads that decode",
            [row["threads"] for row in table["reading"]["rows"]],
            [_interval(row["images_per_second"]) for row in table["reading"]["rows"]],
            _control(table["reading"]),
            1,
        )
        for size, table in values["sizes"].items()
    ]
    of_training = {size: table["training"] for size, table in values["sizes"].items()}
    rows = {
        f"{size} px, {time}": _interval(table[f"{time}_ratio"])
        for size, table in of_training.items()
        for time in ("wall", "cpu")
    }
    widest = max((_control(table) for table in of_training.values()), key=lambda control: control[2] - control[1])
    return [*curves, Dots("time of training, streamed / in memory", rows, widest)]


LABELS = {
    "batch": "images of a batch",
    "width": "width of the networks",
    "resolution": "pixels of a side",
    "runs": "runs at a time",
    "ranks": "ranks of a run",
}
PANELS: dict[str, Callable[[Values], list[Panel]]] = {
    "trainer": _trainer,
    "saving": _saving,
    "monitors": _monitors,
    "memory": _memory,
    "normalizations": _normalizations,
    "evaluation": _evaluation,
    "scaling": _scaling,
    "streaming": _streaming,
    "startup": _startup,
    "reporting": _reporting,
    "gpu": _gpu,
}


def _interval(values: Values, prefix: str = "") -> Interval:
    median = values["median"] if "median" in values else values[f"{prefix}ratio"]
    return median, values[f"{prefix}low"], values[f"{prefix}high"]


def _control(values: Values) -> Interval:
    return values["control"], values["control_low"], values["control_high"]


# --- Drawing --------------------------------------------------------------------------------------------------------


def _draw_dots(axes: Axes, panel: Dots) -> None:
    """Draw the rows from top to bottom, in the order that they have."""
    places = range(len(panel.rows), 0, -1)
    medians, _, highs = zip(*panel.rows.values(), strict=True)
    if panel.control is not None:
        axes.axvspan(panel.control[1], panel.control[2], color=BAND, linewidth=0, label="noise control")
        axes.axvline(1, color="0.5", linewidth=0.8)
    for mark in panel.marks:
        axes.axvline(mark, color="0.5", linewidth=0.8, linestyle=":")
    spans = _spans(panel.rows.values())
    axes.errorbar(medians, places, xerr=spans, fmt="o", color=_colour(0.35), markersize=4, linewidth=1.3, capsize=2)
    for place, median, high in zip(places, medians, highs, strict=True):
        axes.annotate(f"{median:.3g}", (high, place), (4, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(places, list(panel.rows))
    axes.set_ylim(0.4, len(panel.rows) + 0.6)
    axes.margins(x=0.12)
    if panel.control is None:
        axes.set_xlim(left=0)
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), frameon=False, fontsize=7)
    _plain(axes, panel.title)


def _draw_curve(axes: Axes, panel: Curve) -> None:
    """Draw a line over the points, on scales of ratios unless it is of memory, which begins at 0."""
    medians, _, highs = zip(*panel.values, strict=True)
    if panel.control is not None and panel.reference is not None:
        at = medians[list(panel.points).index(panel.reference)]
        low, high = (at * edge for edge in panel.control[1:])
        axes.axhspan(low, high, color=BAND, linewidth=0, label="noise of the reference")
        axes.legend(frameon=False, fontsize=7)
    spans = _spans(panel.values)
    axes.errorbar(
        panel.points, medians, yerr=spans, color=_colour(0.35), marker="o", markersize=4, linewidth=1.3, capsize=2
    )
    if panel.reference is not None:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.4g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.1 * max(highs))
    axes.set_xticks(list(panel.points), [f"{point:g}" for point in panel.points])
    axes.set_xlabel(panel.label, fontsize=8)
    _plain(axes, panel.title)


def _spans(intervals: Iterable[Interval]) -> list[list[float]]:
    """Return how far each interval reaches below its median, and above."""
    return [[median - low for median, low, _ in intervals], [high - median for median, _, high in intervals]]


def _colour(place: float) -> Any:
    return colormaps["viridis"](place)


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
