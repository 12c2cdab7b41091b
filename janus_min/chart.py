"""Results of evaluations as a picture: bars with 95 % intervals, one panel for each kind.

Every bar has its name beside it and every number is written out, so that nothing is said by colour
alone; the shades differ in lightness, for eyes that see few colours and for print in grey.
"""

import textwrap
from importlib import import_module
from pathlib import Path

import numpy as np

from janus_min.errors import UserError
from janus_min.kinds import KINDS, grade, outcomes, percent, shown, sources
from janus_min.report import about, by_kind, differences, labels

BEST, WORST = 1.0, 0.5  # of the map of colours: light enough for black letters
NARROWEST = 6  # percent of a bar that have room for their number
NAME, LINE = 44, 90  # characters in a line of a name, and of a title
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
        PANELS[group[0]["kind"]](axes, group, colours)
        panel.suptitle(_title(group), x=0.01, ha="left", fontsize="medium")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.savefig(path)


def _height(results: list[dict]) -> float:
    """Inches for the bars of a panel: flat ones under their heads, or high ones alone."""
    if PANELS[results[0]["kind"]] is _grades:
        return 0.34 * (len(sources(results)) + 1) * (len(results) + 1)
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


def _grades(axes: object, results: list[dict], colours: object) -> None:
    """Bars of the models under each source, and under the average."""
    shades, names = colours(np.linspace(BEST, WORST, len(results))), _names(results)
    groups = [(s, [r["by_source"].get(s) for r in results]) for s in sources(results)]
    ticks: list[str] = []
    heads = []
    for source, scores in [*groups, ("average", results)]:
        heads.append(len(ticks))
        ticks.append(_plain(shown(source)))
        for name, score, shade in zip(names, scores, shades):
            row = len(ticks)
            ticks.append(name)
            known = score is not None and score["score"] is not None
            text = grade(score) if known else "no score"
            axes.text(5.05, row, text, va="center")
            if known:
                axes.barh(row, score["score"] - 1, left=1, color=shade, edgecolor="black")
                _interval(axes, score["interval"], row)
    axes.set_yticks(range(len(ticks)), ticks)
    for row in heads:
        axes.get_yticklabels()[row].set_fontweight("bold")
    axes.set(xlim=(1, 5), ylim=(len(ticks) - 0.4, -0.6))
    axes.set_xlabel("mean grade, with the 95 % interval over items")


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
        text = "no score" if win is None else f"tie+win {percent(win)}"
        axes.text(101, row, text, va="center")
        # Below the numbers, which it would cross.
        _interval(axes, bounds and [100 * bound for bound in bounds], row + 0.28)
    axes.set_yticks(range(len(results)), _names(results))
    axes.set(xlim=(0, 100), ylim=(len(results) - 0.4, -0.6))
    axes.set_xlabel("%, with the 95 % interval of tie+win over items")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=3.5, ncols=len(names))


PANELS = {"rubric": _grades, "pairwise": _outcomes, "people": _outcomes}
