"""Pictures of a comparison, for the screen and for print: told apart by colour and by shape."""

import io
import math
import textwrap
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from normlab.reports import convergence
from normlab.reports.arms import short_labels
from normlab.reports.comparison import Comparison, Ended, Result, best_first
from normlab.reports.convergence import Point
from normlab.reports.measured import is_finite
from normlab.reports.series import DRAWN, GAP, Array
from normlab.reports.sheets import sheet
from normlab.reports.statistics import Mean, by_seed, mean

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008), which the colour-blind tell apart; the baseline is drawn in the colour of text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7B5EA7")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vPX*"
LOG_FROM = 20.0  # the ratio of the largest to the smallest value from which an axis is logarithmic
EVEN_UP_TO = 5.0  # the same up to which one that is logarithmic all the same has evenly spaced numbers
MOST_DECADES = 1e3  # the same up to which its decades are divided
MOST_ARMS = 12  # that lines and panels can be told apart of
MAY_BE_NEGATIVE = ("kid", "kernel_distance")  # unbiased estimates of what is not
COLUMNS = 4
SINGLE_SEEDS = 16  # what the thin lines of all seeds come to together, in opaque ones; more would bury the means
SHOWN_FROM = 3  # seeds from which on an interval is drawn: that of two is thirteen times as wide as they are apart
BESIDE = 0.007  # of the axis, by which lines that share their places stand beside each other
LABEL = 28  # characters of a line of a label
LINE = 0.17  # height of one, in inches
NAMES = ("--text", "--line", "--paper")
LIGHT, DARK = ("#1b1f24", "#d0d7de", "#fefefe"), ("#e6edf3", "#3d444d", "#0d1117")  # of text, lines and paper


@dataclass(frozen=True)
class Picture:
    """A figure, drawn; `caption` says what is seen, and how to read it."""

    name: str
    caption: str
    svg: bytes
    png: bytes

    @property
    def word(self) -> str:
        """What it is called in a list of contents."""
        return self.name.replace("_", " ")

    def for_a_page(self) -> bytes:
        """Return the SVG with the colours of text, lines and paper as variables, which are others on a dark page."""
        text = self.svg.decode()
        for name, colour in zip(NAMES, LIGHT, strict=True):
            text = text.replace(colour, f"var({name})")
        dark = f"@media screen and (prefers-color-scheme:dark){{{_variables(DARK)}}}"
        return text.replace("<defs>", f"<style>{_variables(LIGHT)}{dark}</style><defs>", 1).encode()


def _variables(colours: Sequence[str]) -> str:
    return f":root{{{';'.join(map(':'.join, zip(NAMES, colours, strict=True)))}}}"


@dataclass(frozen=True)
class Look:
    """How an arm is drawn."""

    label: str
    colour: str
    dashes: Any
    marker: str


def pictures(comparison: Comparison) -> list[Picture]:
    """Return the figures that a comparison has something for; the same runs give the same bytes."""
    looks = _looks(comparison)
    fewer, note = _fewer(comparison)
    with _style():
        return [
            *(_drawn(name, caption + note, figure) for name, caption, figure in _curves(fewer, looks)),
            *(_drawn(*parts) for parts in _finals(comparison, looks)),
            *(
                _drawn(name, caption + note, figure)
                for make in (_scalars, _spectra, _gradients)
                for name, caption, figure in make(fewer, looks)
            ),
            *(_drawn(*parts) for parts in _sensitivity(comparison, looks)),
            *(_drawn(name, caption + note, figure) for name, caption, figure in _samples(fewer, looks)),
        ]


def _fewer(comparison: Comparison) -> tuple[Comparison, str]:
    """Return a comparison of as many arms as lines and panels can be told apart, and what to say of it."""
    first, *others = comparison.results
    if len(others) < MOST_ARMS:
        return comparison, ""
    best = best_first(others, comparison.terms.metric)[: MOST_ARMS - 1]
    kept = [each for each in comparison.results if each is first or any(each is other for other in best)]
    return replace(comparison, results=kept), f" The baseline and the {len(best)} best of {len(others)} other arms."


def _drawn(name: str, caption: str, figure: "Figure") -> Picture:
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # it stays as it has been laid out, which takes as long as drawing
    figure.savefig(png, format="png")
    return Picture(name, caption, svg.getvalue(), png.getvalue())


def _looks(comparison: Comparison) -> dict[str, Look]:
    labels = short_labels([result.arm for result in comparison.results])
    looks: dict[str, Look] = {}
    for number, result in enumerate(comparison.results):
        turn, place = divmod(number - 1, len(COLOURS))
        colour = COLOURS[place] if number else LIGHT[0]
        label = _wrapped(labels[number] + ("" if number else " (baseline)"))
        looks[result.arm.label] = Look(
            label, colour, DASHES[(place + turn + 1) % 4 if number else 0], MARKERS[number % 8]
        )
    return looks


def _wrapped(label: str) -> str:
    plain = label.replace("$", r"\$")  # which begins a formula
    return textwrap.fill(plain, LABEL, break_long_words=False, break_on_hyphens=False)


def _curves(comparison: Comparison, looks: Mapping[str, Look]) -> Iterator[tuple[str, str, "Figure"]]:
    metric = comparison.terms.metric
    units = [unit for unit in ("images_seen", "seconds") if unit in comparison.terms.horizon]
    followed = [run for result in comparison.results for run in result.ended if run.has_values]
    if not units or max((len(_after_the_start(run)) for run in followed), default=0) < 2:
        return

    figure, axes = _panels(len(units), columns=2, height=3.6)
    for panel, unit in zip(axes, units, strict=True):
        for result in comparison.results:
            _curve(panel, result, unit, looks[result.arm.label], alpha=min(0.35, SINGLE_SEEDS / len(followed)))
        if unit == "images_seen":
            _count_images(panel)
        else:
            panel.set_xlabel("seconds")
        panel.set_ylabel(metric)
        _maybe_logarithmic(panel, [point.value for run in followed for point in _after_the_start(run)])
    _legend(figure, axes[0])

    caption = (
        f"{metric} over training, from the first evaluation after its start: means over seeds with bands of 95 % "
        f"(from {SHOWN_FROM} seeds on), but where they would reach 0; each run is a thin line."
    )
    yield "curves", caption, figure


def _after_the_start(run: Ended) -> list[Point]:
    """Return points without that of step 0, beside which no others could be told apart."""
    return [point for point in run.points if point.at["step"] > 0]


def _curve(panel: "Axes", result: Result, unit: str, look: Look, alpha: float) -> None:
    """Draw the mean with its band, and every seed as a thin line of this opacity."""
    at: dict[float, list[tuple[int, float, float]]] = {}
    for run in result.ended:
        points = _after_the_start(run)
        known = [(point.at[unit], point.value, point.at["step"]) for point in points if point.value is not None]
        panel.plot([x for x, _, _ in known], [y for _, y, _ in known], color=look.colour, lw=0.5, alpha=alpha)
        for x, y, step in known:
            at.setdefault(step, []).append((run.seed, x, y))
    full = sum(run.is_done and run.has_values for run in result.ended) or 1
    steps = [step for step in sorted(at) if len(at[step]) >= full]
    xs = [float(np.mean([x for _, x, _ in at[step]])) for step in steps]
    means = [each for step in steps if (each := mean([*by_seed((seed, y) for seed, _, y in at[step]).values()]))]
    panel.plot(xs, [each.value for each in means], color=look.colour, ls=look.dashes, lw=1.8, label=look.label)
    low, high = _intervals(means)
    possible = low > 0 if all(y > 0 for points in at.values() for _, _, y in points) else np.full(len(low), True)
    panel.fill_between(xs, low, high, where=possible, color=look.colour, alpha=0.12, lw=0)


def _intervals(means: Sequence[Mean]) -> tuple[Array, Array]:
    """Return the low ends and the high ones, of too few seeds the means themselves."""
    known = [(each.low, each.high) if each.seeds >= SHOWN_FROM else (each.value, each.value) for each in means]
    low, high = np.array(known, dtype=float).reshape(-1, 2).T
    return low, high


def _finals(comparison: Comparison, looks: Mapping[str, Look]) -> Iterator[tuple[str, str, "Figure"]]:
    known = [result for result in comparison.results if result.quality is not None]
    if not known:
        return
    lost = [result for result in comparison.results if result.values and result.quality is None]
    results = [*best_first(known, comparison.terms.metric), *lost]

    labels = [_with_count(looks[each.arm.label].label, each) for each in results]
    row = max(0.36, LINE * max(_lines(label) for label in labels))
    figure, (panel,) = _panels(1, columns=1, height=0.8 + row * len(results))
    for place, result in enumerate(results):
        look, quality = looks[result.arm.label], result.quality
        if quality is None:
            continue  # its label says so
        values = [value for value in result.values.values() if value is not None]
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [0.0]
        panel.scatter(values, place + np.asarray(spread), s=14, color=look.colour, marker=look.marker, alpha=0.55)
        panel.hlines(place, *_intervals([quality]), color=look.colour, lw=2.4, alpha=0.9)
        panel.plot(quality.value, place, marker="|", ms=15, mew=2.2, color=look.colour)
    first = comparison.results[0].quality
    if first is not None:
        panel.axvline(first.value, color=LIGHT[0], lw=0.8, ls=(0, (4, 3)))
    panel.set_yticks(range(len(results)), labels)
    panel.set_ylim(len(results) - 0.5, -0.5)
    panel.set_xlabel(comparison.terms.metric)
    panel.grid(axis="y", visible=False)
    values = [value for result in results for value in result.values.values()]
    _maybe_logarithmic(panel, values, axis="x")
    cut = _cut_at_zero(panel, comparison.terms.metric, axis="x")

    better = "right" if convergence.direction(comparison.terms.metric) > 0 else "left"
    caption = (
        f"Final {comparison.terms.metric}: a point for each seed, the mean and its 95 % interval (from {SHOWN_FROM} "
        f"seeds on); better to the {better}. The dashed line is the baseline's mean.{cut}"
    )
    yield "finals", caption, figure


def _lines(label: str) -> int:
    return label.count("\n") + 1


def _with_count(label: str, result: Result) -> str:
    lost = len(result.values) - result.survived
    return f"{label}\n{lost} of {len(result.values)} did not survive" if lost else label


def _scalars(comparison: Comparison, looks: Mapping[str, Look]) -> Iterator[tuple[str, str, "Figure"]]:
    keys = [key for key in (*DRAWN[:2], GAP, *DRAWN[2:]) if _any(comparison, key)]
    if not keys:
        return

    figure, axes = _panels(len(keys), columns=3, height=2.6)
    for panel, key in zip(axes, keys, strict=True):
        for result in comparison.results:
            look = looks[result.arm.label]
            series = [run.scalars[key] for run in result.ended if key in run.scalars]
            if not series:
                continue
            xs, middle = _averaged(series)
            panel.plot(xs, middle, color=look.colour, ls=look.dashes, lw=1.2, label=look.label)
        panel.set_title(key.replace("_", " ").replace("/", ", "))
        _count_images(panel)
        _maybe_logarithmic(panel, [value for line in panel.lines for value in np.asarray(line.get_ydata())])
    _legend(figure, axes[0])

    caption = (
        "Losses, score gap (real less fake) and gradient norms over training: means over seeds, of stretches of rows. "
        "Losses of different kinds do not compare."
    )
    yield "scalars", caption, figure


def _any(comparison: Comparison, key: str) -> bool:
    return any(key in run.scalars for result in comparison.results for run in result.ended)


def _averaged(series: Sequence[Array]) -> tuple[Array, Array]:
    """Return the mean of several series, at each place over those that span it."""
    xs = max(series, key=len)[:, 0]
    values = [np.interp(xs, each[:, 0], each[:, 1], left=np.nan, right=np.nan) for each in series]
    return xs, np.nanmean(values, axis=0)


def _spectra(comparison: Comparison, looks: Mapping[str, Look]) -> Iterator[tuple[str, str, "Figure"]]:
    for network in ("discriminator", "generator"):
        shown = [each for each in comparison.results if _times(each, network) > 1]
        if not shown:
            continue

        figure, axes = _panels(len(shown), columns=COLUMNS, height=2.2, share=True)
        for panel, result in zip(axes, shown, strict=True):
            names, xs, sigma = _mean_layers(result.ended, network, "sigma")
            for place in range(len(names)):
                panel.plot(xs, sigma[:, place], color=_depth(place, len(names)), lw=1.2)
            panel.set_title(looks[result.arm.label].label)
            _logarithmic(panel)
            _count_images(panel)
        _depth_bar(figure, axes)

        caption = (
            f"Largest singular value of every effective weight of the {network} over training, geometric means over "
            "seeds, from the first layer to the last."
        )
        yield f"spectra_{network}", caption, figure


def _gradients(comparison: Comparison, looks: Mapping[str, Look]) -> Iterator[tuple[str, str, "Figure"]]:
    networks = [
        network
        for network in ("discriminator", "generator")
        if any(
            np.isfinite(run.layers[network].gradient_norm).any()
            for result in comparison.results
            for run in result.ended
            if network in run.layers
        )
    ]
    if not networks:
        return

    from matplotlib.ticker import MaxNLocator

    figure, axes = _panels(len(networks), columns=2, height=3.2)
    for panel, network in zip(axes, networks, strict=True):
        for result in comparison.results:
            if not any(network in run.layers for run in result.ended):
                continue
            _, _, norms = _mean_layers(result.ended, network, "gradient_norm")
            look, last = looks[result.arm.label], _last_known(norms)
            if last is not None:
                panel.plot(
                    range(1, len(last) + 1),
                    last,
                    color=look.colour,
                    ls=look.dashes,
                    marker=look.marker,
                    ms=4,
                    lw=1.2,
                    label=look.label,
                )
        _logarithmic(panel)
        panel.set_title(network)
        panel.set_xlabel("weight layer, first to last")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("gradient norm")
    _legend(figure, axes[0])

    caption = (
        "Gradient norm of each layer at the last measurement, geometric means over seeds: rising towards the first "
        "layer it explodes, falling it vanishes."
    )
    yield "gradients", caption, figure


def _times(result: Result, network: str) -> int:
    return max((len(run.layers[network].images) for run in result.ended if network in run.layers), default=0)


def _mean_layers(runs: Sequence[Ended], network: str, key: str) -> tuple[tuple[str, ...], Array, Array]:
    """Return the layers of a network, at which images, and the geometric means over runs that have the same ones."""
    own = [run.layers[network] for run in runs if network in run.layers]
    longest = max(own, key=lambda each: len(each.images))
    xs, logarithms = longest.images, list[Array]()
    for each in own:
        if each.names == longest.names:
            placed = np.full((len(xs), len(each.names)), np.nan)
            _, here, there = np.intersect1d(xs, each.images, return_indices=True)
            placed[here] = getattr(each, key)[there]
            logarithms.append(np.log(np.where(placed > 0, placed, np.nan)))
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # where no run has a number
        return longest.names, xs, np.exp(np.nanmean(logarithms, axis=0))


def _last_known(norms: Array) -> Array | None:
    known = [row for row in norms if np.isfinite(row).any()]
    return known[-1] if known else None


def _sensitivity(comparison: Comparison, looks: Mapping[str, Look]) -> Iterator[tuple[str, str, "Figure"]]:
    """Yield for each numeric setting in which arms differ how the metric follows it, all else the same."""
    arms = [result for result in comparison.results if result.values]
    keys = dict.fromkeys(key for result in arms for key, value in result.arm.settings.items() if is_finite(value))
    for key in keys:
        groups: dict[str, list[Result]] = {}
        for result in arms:
            if is_finite(result.arm.settings.get(key)):
                rest = {other: value for other, value in result.arm.settings.items() if other != key}
                groups.setdefault(repr(sorted(rest.items(), key=str)), []).append(result)
        lines = [sorted(own, key=lambda each: each.arm.settings[key]) for own in groups.values() if len(own) > 1]
        if not lines:
            continue

        figure, (panel,) = _panels(1, columns=1, height=3.4)
        labels = [*map(_wrapped, short_labels([own[0].arm for own in lines], without=key))]
        every = [float(each.arm.settings[key]) for own in lines for each in own]
        scale = "log" if min(every) > 0 and max(every) / min(every) >= 4 else "linear"
        for number, (own, label) in enumerate(zip(lines, labels, strict=True)):
            look = Look(label, COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % 4], MARKERS[number % 8])
            height = 0.99 - 0.04 * (number % 24)
            xs = [float(each.arm.settings[key]) for each in own]
            beside = (number - (len(lines) - 1) / 2) * BESIDE
            _line_of_means(panel, _moved(xs, beside, every, scale), own, look, height)
        panel.set_xscale(scale)
        panel.set_xticks(sorted({*every}), [f"{value:g}" for value in sorted({*every})])
        panel.minorticks_off()
        panel.set_xlabel(key)
        panel.set_ylabel(comparison.terms.metric)
        _maybe_logarithmic(panel, [each.quality.value for own in lines for each in own if each.quality])
        cut = _cut_at_zero(panel, comparison.terms.metric)
        _legend(figure, panel)

        caption = (
            f"{comparison.terms.metric} against {key}, all else the same: means over the seeds that survived with "
            f"95 % intervals (from {SHOWN_FROM} seeds on); each seed is a dot.{cut}"
        )
        if alone := sum(len(own) == 1 for own in groups.values()):
            caption += f" Arms with a single value of it are not drawn ({alone})."
        if any(each.quality is None for own in lines for each in own):
            caption += " A cross at the top: no seed survived there."
        yield f"sensitivity_{key.replace('.', '_')}", caption, figure


def _samples(comparison: Comparison, looks: Mapping[str, Look]) -> Iterator[tuple[str, str, "Figure"]]:
    found = sheet(comparison)
    if found is None:
        return

    from matplotlib.figure import Figure

    rows, columns = len(found.arms), len(found.steps)
    figure = Figure(figsize=(1.6 + 1.35 * columns, 0.3 + 1.35 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, arm in enumerate(found.arms):
        for column, piece in enumerate(found.cells[row]):
            panel = grid[row][column]
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            if piece is not None:
                panel.imshow(np.asarray(Image.open(io.BytesIO(piece)).convert("RGB")), interpolation="none")
        grid[row][0].set_ylabel(looks[arm].label, rotation=0, ha="right", va="center")
    for column, step in enumerate(found.steps):
        grid[0][column].set_title(f"step {step}")

    yield "samples", f"Samples from the same latents: seed {found.seed}, the first images of each run's grid.", figure


def _moved(xs: Sequence[float], share: float, span: Sequence[float], scale: str) -> list[float]:
    """Return places to the right by a share of the axis, so that one interval does not hide another."""
    low, high = min(span), max(span)
    return [x * (high / low) ** share if scale == "log" else x + share * (high - low) for x in xs]


def _line_of_means(panel: "Axes", xs: Sequence[float], results: Sequence[Result], look: Look, height: float) -> None:
    """Draw means, intervals and every seed; where nothing survived, a gap and, at a height of the panel, a cross."""
    means = [each.quality or Mean(math.nan, 0) for each in results]
    ys = np.array([each.value for each in means])
    low, high = _intervals(means)
    drawn: dict[str, Any] = {"color": look.colour, "ls": look.dashes, "marker": look.marker, "label": look.label}
    panel.errorbar(xs, ys, yerr=[ys - low, high - ys], ms=5, lw=1.4, capsize=3, **drawn)
    for x, result in zip(xs, results, strict=True):
        seeds = [value for value in result.values.values() if value is not None]
        panel.plot([x] * len(seeds), seeds, color=look.colour, marker=".", ls="", ms=4, alpha=0.55)

    gone = [x for x, each in zip(xs, means, strict=True) if math.isnan(each.value)]
    if gone:  # a line without points takes room, too
        across = panel.get_xaxis_transform()
        panel.plot(gone, [height] * len(gone), color=look.colour, marker="x", ls="", transform=across, clip_on=False)


def _panels(count: int, *, columns: int, height: float, share: bool = False) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure  # not pyplot, whose state is everybody's

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(8.4, rows * height + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share).ravel().tolist()
    for spare in grid[count:]:
        spare.set_visible(False)
    return figure, grid[:count]


def _legend(figure: "Figure", panel: "Axes") -> None:
    handles, labels = panel.get_legend_handles_labels()
    if len(labels) > 1:
        columns = min(3 if any("\n" in label for label in labels) else 4, len(labels))
        lines = -(-len(labels) // columns) * max(map(_lines, labels))
        figure.set_figheight(figure.get_figheight() + LINE * lines)  # or it takes the room of the panels
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3.2)


def _depth(place: int, count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.25 + 0.57 * place / max(count - 1, 1))  # seen on white and on black


def _depth_bar(figure: "Figure", axes: Sequence["Axes"]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    colours = ScalarMappable(cmap=ListedColormap([_depth(place, 64) for place in range(64)]))
    bar = figure.colorbar(colours, ax=list(axes), shrink=0.7, aspect=30, pad=0.01)
    bar.set_ticks([0, 1], labels=["first\nlayer", "last\nlayer"])


def _maybe_logarithmic(panel: "Axes", values: Sequence[float | None], axis: str = "y") -> None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    if known and min(known) > 0 and max(known) / min(known) >= LOG_FROM:
        _logarithmic(panel, axis)


def _cut_at_zero(panel: "Axes", metric: str, axis: str = "y") -> str:
    """End an axis at 0 if intervals reach below while no value of the metric can be, and return what to say of it."""
    own = panel.yaxis if axis == "y" else panel.xaxis
    lowest = panel.dataLim.ymin if axis == "y" else panel.dataLim.xmin
    if metric in MAY_BE_NEGATIVE or lowest >= 0 or own.get_scale() == "log":
        return ""
    panel.set(**{f"{axis}lim": (0, None)})
    return " Intervals are cut at 0, below which no value can be."


def _logarithmic(panel: "Axes", axis: str = "y") -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of each decade; of many decades at each.

    A span that may hold but one of these has evenly spaced ones.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    panel.set(**{f"{axis}scale": "log"})
    own = panel.yaxis if axis == "y" else panel.xaxis
    low, high = own.get_view_interval()
    logarithmic = LogLocator(subs=(1.0, 2.0, 5.0) if high / low < MOST_DECADES else (1.0,))
    own.set_major_locator(logarithmic if high / low > EVEN_UP_TO else MaxNLocator(4))
    own.set_major_formatter("{x:g}")
    own.set_minor_formatter(NullFormatter())


def _count_images(panel: "Axes") -> None:
    """Label the axis of images seen with few and short numbers."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    panel.set_xlabel("real images seen")
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))


@contextmanager
def _style() -> Generator[None]:
    from matplotlib import rc_context

    text, line, paper = LIGHT
    settings: Any = {
        "font.size": 9,
        "axes.titlesize": 9,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.linewidth": 0.5,
        "grid.color": line,
        "axes.axisbelow": True,
        "axes.edgecolor": line,
        "text.color": text,
        "axes.labelcolor": text,
        "axes.titlecolor": text,
        "xtick.color": text,
        "ytick.color": text,
        "axes.facecolor": paper,
        "figure.facecolor": paper,
        "savefig.facecolor": paper,
        "savefig.dpi": 200,
        "svg.hashsalt": "normlab",
    }
    with rc_context(settings):
        yield
