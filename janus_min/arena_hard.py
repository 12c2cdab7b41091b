"""Arena-Hard-Auto v0.1 (arXiv 2406.11939): a judge compares a model's answers with a baseline's, in
both orders. What its labels are worth is in `battles.py`, upstream's files are in `arena_files.py`.

    Note: labels are read as upstream reads them: [[…]] with A, B, <, = and > in it, wherever it
    stands, also where the judge only quotes it. A reply without any is followed by a message that
    asks to go on, and both replies are read as one. Different labels are no verdict, and the judge
    is not asked again; a judge that repeats our prompt, which names all five, gives none. A label
    that is none of the five has no weight. Upstream also reads a reply that was cut off; here
    another one is asked for in its place.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from janus_min import judging, judgments, pipeline
from janus_min.answers import model_of, read_answers, read_questions
from janus_min.arena_files import (
    BATTLES,
    JUDGMENTS,
    read_recorded,
    write_battles,
    write_judgments,
)
from janus_min.battles import (
    OUTCOMES,
    Battle,
    Game,
    battles_of,
    label_counts,
    label_in,
    labels_in,
    scores,
    verdict_counts,
)
from janus_min.bench import about_bench, one_name, read_records, with_response
from janus_min.errors import UserError, require
from janus_min.files import read_json
from janus_min.formats import read_jsonl
from janus_min.judge_prompts import ARENA_HARD_AGAIN
from janus_min.judging import Work
from janus_min.judgments import QUESTIONS
from janus_min.kinds import RESULT

KIND = "arena-hard"
BASELINE = "gpt-4-0314"  # of the published judgments, which do not name it
BOOTSTRAP = {"rounds": 1000, "seed": 42}


@dataclass(frozen=True)
class Sampling(pipeline.Sampling):
    """What is asked of the judge beside the messages."""

    temperature: float = 0.0  # of sampling
    top_p: float = 1.0  # of sampling


@dataclass(frozen=True)
class Options(judging.Judged):
    """What is compared, by whom, and where the judgments are kept."""

    bench: Path | None = None  # questions, as Arena-Hard's question.jsonl
    responses: Path | None = None  # answers of the model, as Arena-Hard has them
    against: Path | None = None  # answers of the baseline, as Arena-Hard has them
    name: str | None = None  # of the model; what its answers say unless given
    against_name: str | None = None  # of the baseline; what its answers say unless given
    attempts: int = 2  # replies that a judge may need until they have a label
    max_tokens: int = 4096  # of a reply
    rounds: int | None = None  # of resampling battles, for the interval; 1,000 unless given
    seed: int | None = None  # of resampling; 42 unless given

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = self.rounds is None or 1 <= self.rounds <= 100_000
        require(valid, self, "rounds", "1 to 100000")
        require(self.seed is None or self.seed >= 0, self, "seed", "0 or more")


# Results


def bootstrap_of(options: Options, before: dict | None = None) -> dict[str, int]:
    """Rounds and seed that are given, or else those of a result before, or else our own."""
    given = {"rounds": options.rounds, "seed": options.seed}
    return BOOTSTRAP | (before or {}) | {k: v for k, v in given.items() if v is not None}


def measured(model: str, battles: list[Battle], bootstrap: dict[str, int]) -> dict:
    """What a result says about a model's battles, which may stand among those of others."""
    score, interval = scores(battles, **bootstrap).get(model, (None, None))
    outcomes = [battle.outcome for battle in battles if battle.model == model]
    return {
        "score": score,
        "interval": interval,
        "weights": {outcome: outcomes.count(outcome) for outcome in OUTCOMES},
        "bootstrap": bootstrap,
    }


def mean_length(lengths: Iterable[int | None]) -> float | None:
    """The mean of the lengths that are known, in tokens; None if none is."""
    known = [length for length in lengths if length is not None]
    return sum(known) / len(known) if known else None


# A judge that is asked


def read_duels(work: Work) -> tuple[list[dict], list[dict], dict]:
    """The questions of the bench; two games, as they are asked, for each one that both models
    answered; and counts.
    """
    options = work.options
    items = read_items(options.bench)
    ours, theirs = (
        answered(items, path, options.allow_missing, options.limit)
        for path in (options.responses, options.against)
    )
    taken = items[: options.limit]
    both = [item for item in taken if item["id"] in ours and item["id"] in theirs]
    if not both:
        raise UserError(f"{options.responses} and {options.against} have no question in common")
    template, games = work.template(), []
    for item in both:
        key, [question] = item["id"], item["turns"]
        for number, (first, second) in enumerate(((theirs, ours), (ours, theirs))):
            slots = dict.fromkeys(("question", "question_1"), question)
            slots |= {"answer_1": first[key]["text"], "answer_2": second[key]["text"]}
            system, user = template.filled(**slots)
            about = {"id": key, "source": item["source"], "game": number}
            prompts = {"system_prompt": system, "user_prompt": user}
            games.append(about | prompts | {"length": ours[key]["length"]})
    pairs = [(ours[item["id"]], theirs[item["id"]]) for item in both]
    counts = {
        "missing": len(taken) - len(both),
        "marked": sum(any(labels_in(own["text"]) for own in pair) for pair in pairs),
        "cut": sum(any(own["stop"] == "length" for own in pair) for pair in pairs),
        "empty": sum(not all(own["text"].strip() for own in pair) for pair in pairs),
    }
    return items, games, counts


def names_of(options: Options) -> tuple[str, str]:
    """What the model and the baseline are called. Raises UserError if it is the same."""
    options.require_flags("bench", "responses", "against")
    files = (options.responses, options.name), (options.against, options.against_name)
    model, baseline = (model_of(read_answers(path), path, name) for path, name in files)
    if model == baseline:
        raise UserError("both models have one name; give --name and --against-name")
    return model, baseline


def read_items(path: Path) -> list[dict]:
    """The questions of a bench: what `answers.read_questions` finds, without the whole records."""
    found = read_questions(path, KIND)
    return [{key: item[key] for key in ("id", "source", "turns")} for item in found]


def answered(
    items: list[dict], path: Path, allow_missing: bool, limit: int | None
) -> dict[str, dict]:
    """Answers to the first `limit` items by their ids: "text", "stop" (None: not known) and
    "length" (tokens, as the file says; None: it does not).

    Raises UserError for answers to unknown questions, for missing ones unless they are allowed,
    and if all are missing.
    """
    answers = read_answers(path)
    chosen = with_response(items, answers, path, allow_missing, limit)
    lengths, found = token_lengths(path), {}
    for key in (item["id"] for item in chosen):
        turns, stop = answers[key]["turns"], answers[key]["stop"]
        if len(turns) != 1:
            raise UserError(f"{path}: the answer to {key!r} has {len(turns)} turns, needed is one")
        found[key] = {"text": turns[0], "stop": stop[0] if stop else None, "length": lengths[key]}
    return found


def token_lengths(path: Path) -> dict[str, int | None]:
    """The token_len of the first turn of each answer, by question_id; None where there is none."""
    found = {}
    for _, _, record in read_records(path):
        [turn, *_] = record["choices"][0]["turns"] or [None]
        places = turn, record.get("conv_metadata")  # the latter in newer files
        lengths = [place.get("token_len") for place in places if isinstance(place, dict)]
        known = [length for length in lengths if type(length) is int and length >= 0]
        found[str(record["question_id"])] = known[0] if known else None
    return found


def evaluate(work: Work, say: Callable[[str], None] = print) -> dict | None:
    """Has all games judged. Returns the result, which is in FOLDER/result.json, too; after a dry
    run there is none.
    """
    options = work.options
    names = names_of(options)
    items, games, counts = read_duels(work)
    more = {"again": ARENA_HARD_AGAIN, "joined": True}
    stage = judging.judge_stage(lambda game: [game], judging.prompt_of, label_in, options, **more)
    if options.dry_run:
        judging.estimate(work, games, stage, say)
        return None
    options.require_flags("out", "judge")
    work = replace(work, options=replace(options, name=names[0]))
    head = judging.about(work, items, opponent=names[1])
    head = judging.ask_judge(work, head, games, stage, say)
    result = score_folder(options.out, head, counts, bootstrap_of(options))
    return judgments.keep(result, options.out)


def score_folder(folder: Path, head: dict, counts: dict, bootstrap: dict[str, int]) -> dict:
    """Scores what a folder holds. Writes its result, and upstream's files."""
    records = {(r["id"], r["game"]): r for r in judgments.stored_judgments(folder, label_in)}
    games, lengths = [], {}
    for _, question in read_jsonl(folder / f"{QUESTIONS}.jsonl"):
        key, number = question["id"], question["game"]
        text = records[key, number].get("reply", "")
        game = Game(key, number, labels_in(text))
        games.append((game, question["user_prompt"], text))
        lengths[key] = question["length"]
    played = [game for game, _, _ in games]
    unanswered = sum("unanswered" in record for record in records.values())
    found = verdict_counts(played) | {"unanswered": unanswered}
    battles = list(battles_of(head["model"], played))
    result = (
        head
        | {"counts": found | counts}
        | measured(head["model"], battles, bootstrap)
        | {"labels": label_counts(played), "length": mean_length(lengths.values())}
    )
    names = (head[key] for key in ("model", "judge", "opponent"))
    write_judgments(folder / JUDGMENTS, *names, games)
    write_battles(folder / BATTLES, head["opponent"], battles)
    return result


# Judgments that there are already


def rescore(options: Options) -> dict:
    """The result of stored judgments: of one folder of `evaluate`, whose replies are read once
    more, or of a file of upstream's, judgments or battles. Nobody is asked anything.
    """

    def of_folder(folder: Path, head: dict, counts: dict) -> dict:
        """By as many rounds as the result in the folder, unless others are given."""
        before = read_json(folder / RESULT).get("bootstrap", {})
        return score_folder(folder, head, counts, bootstrap_of(options, before))

    return judging.rescored(options, KIND, of_folder, lambda path: score_file(path, options))


def score_file(path: Path, options: Options) -> dict:
    """The result of one model in a file of upstream's: the one that --name picks, if there are
    several. With --bench, its questions without a judgment are missing; else nobody knows them.
    """
    recorded = read_recorded(path)
    model = one_name(recorded.ids, f"{path}: 'model'", options.name, "--name")
    own, games = recorded.ids[model], recorded.games.get(model, [])
    items, missing = [{"id": key} for key in sorted(own)], 0
    if options.bench:
        items = read_items(options.bench)
        known = {item["id"] for item in items}
        if unknown := [key for key in own if key not in known]:
            raise UserError(
                f"{path}: judgments of {len(unknown):,} questions that {options.bench} does not "
                f"have, such as {unknown[0]!r}"
            )
        missing = len(items) - len(own)
    battles = sum(battle.model == model for battle in recorded.battles)
    counts = verdict_counts(games) if games else {"ok": battles, "failed": 0}
    counts |= {"unanswered": 0, "missing": missing}
    counts |= {"twice": recorded.twice[model], "differ": recorded.differ[model]} if games else {}
    return {
        "kind": KIND,
        "model": options.name or model,
        "opponent": options.against_name or recorded.opponent or BASELINE,
        "judge": options.judge or recorded.judge or "unknown",
        "bench": about_bench(items, options.bench or path),
        "settings": {"recorded": True},
        "counts": counts,
        **measured(model, recorded.battles, bootstrap_of(options)),
        "labels": label_counts(games) if games else {},
        "length": None,
    }
