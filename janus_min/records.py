"""What a run writes down while it goes: `recipe.json`, `metrics.jsonl`, and the progress line."""

import json
from dataclasses import asdict

import torch

from janus_min.files import replace_file, sync
from janus_min.progress import Progress
from janus_min.run import Run

SHOWN = ("loss", "eval_loss", "rewards/accuracies", "accuracy", "lr")  # on the progress line


class Records:
    """The records of a run that goes on after its first `first` steps.

    `metrics.jsonl` has one object for each step; those of steps that were made before a crash, but
    are made again after it, are cut off here. Only the first rank writes.
    """

    def __init__(self, run: Run, first: int):
        self.path, self.writes = run.out / "metrics.jsonl", run.ranks.first
        self.progress = Progress(run.last, "tokens", first)
        if not self.writes:
            return
        for stale in run.out.glob("*.json*.tmp"):  # of a run that was killed just here
            stale.unlink()
        about = {"recipe": run.name} | asdict(run.recipe)
        about |= {"model": str(run.start), "data": [str(path) for path in run.data.files]}
        about |= {"kernels": run.impl, "torch": torch.__version__}
        about |= {"device": run.ranks.device, "processes": run.ranks.size}
        replace_file(run.out / "recipe.json", (json.dumps(about, indent=2) + "\n").encode())
        old = self.path.read_bytes().splitlines(keepends=True) if first else []
        replace_file(self.path, b"".join(old[:first]))

    def write(self, metrics: dict[str, float]) -> None:
        """Appends one step."""
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        text = "  ".join(f"{key} {metrics[key]:.4g}" for key in SHOWN if key in metrics)
        self.progress.update(metrics["step"], metrics["tokens"], text)

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.close()

    def sync(self) -> None:
        """Waits until all steps are on the disk, before a state says that they are done."""
        if self.writes:
            sync(self.path)
