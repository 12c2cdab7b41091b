"""The paper's tables in miniature: numbers from folders of results, as text and as a picture.

The numbers of one seed are a dictionary, and a table's cell is a path in it. Over several seeds a
cell is their mean ± their standard deviation (n - 1). What is not there is a dash.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from janus_min.errors import UserError
from janus_min.files import read_json
from janus_min.intervals import deviation, mean
from janus_min.kinds import RESULT
from janus_min.mini_data import SPLITS
from janus_min.tables import Table, document, number, spread, under

ROW = "*"  # in a path: the key of the table's row
UNSEEN = SPLITS[1]
MODELS = {  # recipes, and what such models are called
    "mini-base": "base",
    "mini-uniform": "uniform SFT",
    "mini-sft-small": "Janus*, a sixth of the data",
    "mini-sft": "Janus SFT",
    "mini-dpo": "Janus* + DPO, with own answers",
    "mini-orpo": "base + ORPO",
    "mini-sft-chosen": "base + SFT on the chosen",
}
AGAINST = "mini-uniform"  # what the others are compared with
SAMPLES = (1, 4, 16)  # of which the reward model picks one
COUNTS = {"mini-sft-one": 1, "mini-sft-two": 2, "mini-sft": 3}  # system messages per instruction
TEACHER = "teacher"
WIDTH, AROUND, BAR = 10, 1.3, 0.3  # inches: of the picture, around a panel's bars, of a bar


class Axis(NamedTuple):
    """What a number is, and how it is written."""

    label: str
    low: float
    high: float
    digits: int
    factor: float = 1  # from what is stored to what is shown
    unit: str = ""


GRADE = Axis("mean grade, 1 to 5", 1, 5, 2)
SHARE = Axis("tie+win, percent", 0, 100, 1, 100, " %")
ALIKE = Axis("ROUGE-L", 0, 1, 3)


class Measure(NamedTuple):
    """One column of a table."""

    head: str
    path: tuple[str, ...]
    axis: Axis = GRADE


@dataclass(frozen=True)
class Sheet:
    """What one table shows."""

    title: str
    head: str  # of its rows
    rows: dict[str, str]  # their keys, and what they are called
    measures: tuple[Measure, ...]
    notes: tuple[str, ...]


MAIN = Sheet(
    "Table 1. Grades, and pairs against uniform SFT",
    "model",
    {key: f"{name} ({key})" for key, name in MODELS.items()},
    (
        *(Measure(split, ("grades", ROW, split)) for split in SPLITS),
        Measure("tie+win", ("tie_win", ROW), SHARE),
    ),
    (
        "Mean rubric grades, 1 to 5, of the most likely answers.",
        "tie+win: against uniform SFT on the unseen combinations, judged in both orders.",
        "mini-dpo: on the paper's pairs, and on their chosen responses against its start's own.",
    ),
)
BEST_OF = Sheet(
    "Table 2. Best of n by the reward model",
    "n",
    {str(n): str(n) for n in SAMPLES},
    (Measure(UNSEEN, ("best_of", ROW)),),
    (
        "Janus* (mini-sft-small), sampled with the paper's settings; mini-rm picks one of n.",
        "Mean rubric grades, 1 to 5.",
    ),
)
LIKENESS = Sheet(
    "Table 3. How alike answers to one instruction are",
    "model",
    MAIN.rows | {TEACHER: "the teacher's own answers"},
    (
        Measure("mean ROUGE-L", ("rouge_l", ROW, "average"), ALIKE),
        Measure("max ROUGE-L", ("rouge_l", ROW, "maximum"), ALIKE),
    ),
    (
        "Between the answers under three different system messages, unseen combinations.",
        "Lower is less alike; the teacher's answers, which do as they are asked, are a yardstick.",
    ),
)
ABLATION = Sheet(
    "Table 4. System messages per instruction in training",
    "system messages per instruction",
    {
        f"{how}/{key}": f"{count} ({key}), tested {how} system message"
        for key, count in COUNTS.items()
        for how in ("with", "without")
    },
    tuple(Measure(split, ("ablation", ROW, split)) for split in SPLITS),
    ("Mean rubric grades, 1 to 5, by the same rubrics, with about equally many steps.",),
)


def sheets(ablations: bool) -> list[Sheet]:
    """The tables that are shown."""
    return [MAIN, BEST_OF, LIKENESS, *([ABLATION] if ablations else [])]


# Numbers


def numbers(root: Path, seed: int) -> dict:
    """The numbers of one seed, from the results in the folder `root`, as far as they are there."""
    results = root / f"seed-{seed}" / "results"
    grades = {key: by_split(results / "rubric" / key) for key in (*MODELS, *COUNTS)}
    pairs = {key: result(results / "pairwise" / key) for key in MODELS if key != AGAINST}
    sampled = {str(n): result(results / "rubric" / f"best-of-{n}") for n in SAMPLES}
    alike = {key: result(results / "responses" / key) for key in MODELS}
    alike[TEACHER] = result(root / "results" / "responses" / TEACHER)
    tested = {f"with/{key}": grades[key] for key in COUNTS} | {
        f"without/{key}": by_split(results / "rubric" / f"{key}-silent") for key in COUNTS
    }
    return {
        "seed": seed,
        "grades": {key: grades[key] for key in MODELS},
        "tie_win": {k: under(r, ("by_source", UNSEEN, "tie_win")) for k, r in pairs.items()},
        "best_of": {n: found.get("score") for n, found in sampled.items()},
        "rouge_l": {key: found.get("rouge_l") for key, found in alike.items()},
        "ablation": tested,
    }


def result(folder: Path) -> dict:
    """What an evaluation left in its folder; nothing if there was none."""
    path = folder / RESULT
    return read_json(path) if path.is_file() else {}


def by_split(folder: Path) -> dict[str, float | None]:
    """The score of each split."""
    found = result(folder)
    return {split: under(found, ("by_source", split, "score")) for split in SPLITS}


def values(runs: list[dict], measure: Measure, row: str) -> list[float]:
    """What a cell shows: the number of each seed that has it."""
    path = [row if key == ROW else key for key in measure.path]
    found = [under(run, path) for run in runs]
    return [measure.axis.factor * value for value in found if value is not None]


# Text


def table(sheet: Sheet, runs: list[dict]) -> Table:
    """A column of names, and one for each measure."""
    return [
        (sheet.head, [*sheet.rows.values()]),
        *(
            (m.head, [cell(values(runs, m, row), m.axis) for row in sheet.rows])
            for m in sheet.measures
        ),
    ]


def cell(found: list[float], axis: Axis) -> str:
    """The mean ± the standard deviation, if there are two numbers or more, or a dash."""
    if not found:
        return number(None, axis.digits)
    return spread(mean(found), deviation(found), axis.digits, axis.unit)


def text(chosen: list[Sheet], runs: list[dict], about: list[str], markdown: bool) -> str:
    """All tables; `about` stands above the first one."""
    drawn = [
        document(sheet.title, list(sheet.notes), [table(sheet, runs)], [], markdown)
        for sheet in chosen
    ]
    return "\n\n".join(["\n".join(about), *drawn])


# Picture


def panels(chosen: list[Sheet]) -> Iterator[tuple[Sheet, list[Measure]]]:
    """The measures of each table by their axes: one panel each."""
    for sheet in chosen:
        for axis in dict.fromkeys(measure.axis for measure in sheet.measures):
            yield sheet, [measure for measure in sheet.measures if measure.axis == axis]


def draw(chosen: list[Sheet], runs: list[dict], path: Path) -> None:
    """Draws the tables as bars, with lines of ± one standard deviation over seeds. Raises UserError
    if matplotlib is not installed.
    """
    try:  # the programs run without it
        figure = import_module("matplotlib.figure").Figure(layout="constrained")
        colours = import_module("matplotlib").colormaps["cividis"]
    except ImportError:
        raise UserError("a picture needs matplotlib: pip install matplotlib") from None
    parts = [*panels(chosen)]
    heights = [AROUND + BAR * len(sheet.rows) * len(own) for sheet, own in parts]
    figure.set_size_inches(WIDTH, sum(heights))
    grid = figure.subplots(len(parts), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (sheet, measures) in zip(grid, parts):
        draw_panel(axes, sheet, measures, runs, colours(np.linspace(1, 0.5, len(measures))))
    figure.savefig(path)


def draw_panel(
    axes: object, sheet: Sheet, measures: list[Measure], runs: list[dict], shades: np.ndarray
) -> None:
    """Bars of all measures for each row of a table, with their numbers."""
    axis, room = measures[0].axis, len(measures) + 0.5  # half a bar between rows
    beside = axes.get_yaxis_transform()  # for texts: widths of the panel by heights of bars
    for place, (measure, shade) in enumerate(zip(measures, shades)):
        for at, row in enumerate(sheet.rows):
            found, height = values(runs, measure, row), at * room + place
            axes.text(1.01, height, cell(found, axis), va="center", transform=beside)
            if not found:
                continue
            value, about = mean(found), deviation(found)
            bars = axes.barh(
                height, value - axis.low, left=axis.low, height=1, color=shade, edgecolor="black"
            )
            if measure.head not in axes.get_legend_handles_labels()[1]:
                bars.set_label(measure.head)
            if about is not None:
                style = dict(color="black", marker="|", linewidth=1.5, markersize=8)
                axes.plot([value - about, value + about], [height, height], **style)
    middles = [at * room + (len(measures) - 1) / 2 for at in range(len(sheet.rows))]
    axes.set_yticks(middles, [*sheet.rows.values()])
    axes.set(xlim=(axis.low, axis.high), ylim=(room * len(sheet.rows) - 0.5, -1), xlabel=axis.label)
    axes.set_title(sheet.title, loc="left", fontsize="medium")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if len(measures) > 1 and axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=len(measures))
