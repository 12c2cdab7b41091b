"""Results of evaluations as a picture: bars with 95 % intervals, one panel for each kind.

Every bar has its name beside it and every number is written out, so that nothing is said by colour
alone; the shades differ in lightness, for eyes that see few colours and for print in grey.
"""

import textwrap
from importlib import import_module
from pathlib import Path

import numpy as np

from janus_min.comparison import about, by_kind, differences, labels
from janus_min.errors import UserError
from janus_min.kinds import KINDS
from janus_min.multifaceted import outcomes
from janus_min.tables import NO_SCORE, percent, shown

BEST, WORST = 1.0, 0.5  # of the map of colours: light enough for black letters
NARROWEST = 6  # percent of a bar that have room for their number
NAME, LINE = 44, 90  # characters in a line of a name, and of a title
BEYOND = 0.0125  # of an axis, from its end to the numbers
WIDTH, AROUND = 10, 2.1  # inches: of the picture, and above and below the bars of a panel


def draw(results: list[dict], path: Path) -> None:
    """Draws the results into a .png or .svg file. Raises UserError for other names of files, and
    if matplotlib is not installed.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise UserError(f"{path}: a picture is a .png or .svg file")
    try:  # the programs run without it
        figure = import_module("matplotlib.figure").Figure(layout="constrained")
        colours = import_module("matplotlib").colormaps["cividis"]
    except ImportError:
        raise UserError("a picture needs matplotlib: pip install matplotlib") from None
    groups = by_kind(results)
    heights = [AROUND + _height(group) for group in groups]
    figure.set_size_inches(WIDTH, sum(heights))
    panels = figure.subfigures(len(groups), squeeze=False, height_ratios=heights)[:, 0]
    for panel, group in zip(panels, groups):
        axes = panel.subplots()
        panel_of = _bars if KINDS[group[0]["kind"]].bars else _outcomes
        panel_of(axes, group, colours)
        panel.suptitle(_title(group), x=0.01, ha="left", fontsize="medium")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.savefig(path)


def _height(results: list[dict]) -> float:
    """Inches for the bars of a panel: flat ones under their heads, or high ones alone."""
    if bars := KINDS[results[0]["kind"]].bars:
        return 0.34 * len(bars(results)) * (len(results) + 1)
    return 0.6 * len(results)


def _title(results: list[dict]) -> str:
    lines = [KINDS[results[0]["kind"]].title, *about(results)]
    if differing := differences(results):
        what = ", ".join(shown(name) for name, _ in differing)
        lines.append(f"Not comparable: these results differ in {what}")
    return _plain("\n".join(textwrap.fill(line, LINE) for line in lines))


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # what stands between two of them would be a formula


def _names(results: list[dict]) -> list[str]:
    return [_plain(textwrap.fill(name, NAME)) for name in labels(results)]


def _interval(axes: object, bounds: list[float] | None, height: float) -> None:
    if bounds:
        style = dict(color="black", marker="|", linewidth=1.5, markersize=8)
        axes.plot(bounds, [height, height], **style)


def _bars(axes: object, results: list[dict], colours: object) -> None:
    """Bars of the models under each head."""
    kind = KINDS[results[0]["kind"]]
    label, low, high = kind.axis
    shades, names = colours(np.linspace(BEST, WORST, len(results))), _names(results)
    ticks: list[str] = []
    heads = []
    for head, bars in kind.bars(results):
        heads.append(len(ticks))
        ticks.append(_plain(shown(head)))
        for name, bar, shade in zip(names, bars, shades):
            row = len(ticks)
            ticks.append(name)
            axes.text(high + BEYOND * (high - low), row, bar.text, va="center")
            if bar.value is not None:
                axes.barh(row, bar.value - low, left=low, color=shade, edgecolor="black")
                _interval(axes, bar.interval, row)
    axes.set_yticks(range(len(ticks)), ticks)
    for row in heads:
        axes.get_yticklabels()[row].set_fontweight("bold")
    axes.set(xlim=(low, high), ylim=(len(ticks) - 0.4, -0.6), xlabel=label)


def _outcomes(axes: object, results: list[dict], colours: object) -> None:
    """One bar for each pair of models, divided into the outcomes; the interval is of tie+win."""
    names = outcomes(results[0])
    shades = colours(np.linspace(BEST, WORST, len(names)))
    ends = np.zeros(len(results))
    for name, shade in zip(names, shades):
        shares = [100 * ((result["rates"] or {}).get(name) or 0) for result in results]
        edges = ["black" if result["rates"] else "none" for result in results]
        rows = range(len(results))
        bars = axes.barh(rows, shares, left=ends, color=shade, edgecolor=edges)
        bars[0].set_label(name)
        texts = [f"{share:.0f} %" if share > NARROWEST else "" for share in shares]
        axes.bar_label(bars, texts, label_type="center")
        ends += shares
    for row, result in enumerate(results):
        win, bounds = result["tie_win"], result["interval"]
        text = NO_SCORE if win is None else f"tie+win {percent(win)}"
        axes.text(100 * (1 + BEYOND), row, text, va="center")
        # Below the numbers, which it would cross.
        _interval(axes, bounds and [100 * bound for bound in bounds], row + 0.28)
    axes.set_yticks(range(len(results)), _names(results))
    label, *limits = KINDS[results[0]["kind"]].axis
    axes.set(xlim=limits, ylim=(len(results) - 0.4, -0.6), xlabel=label)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=3.5, ncols=len(names))
