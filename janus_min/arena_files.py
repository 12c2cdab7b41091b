"""Upstream's files of Arena-Hard-Auto v0.1 (arXiv 2406.11939), read and written: JSON lines.

    judgments   question_id, model, judge, games: two times user_prompt, judgment, score
    battles     question_id, model_a (the baseline), model_b, winner: model_a, model_b or tie

Score is the label that was found in judgment, the text; where there is a text, it is read again.
Since 2025 upstream keeps the same judgments with uid for question_id, and with the baseline's name.

    Note: of two judgments of one question and model the first counts, where upstream takes both. A
    file of battles does not show whether a question was judged twice, nor which games had no
    verdict.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from janus_min.battles import WINNERS, Battle, Game, battles_of, labels_in
from janus_min.bench import read_records
from janus_min.errors import UserError
from janus_min.files import as_line, replace_file
from janus_min.formats import text_field, unicode_text

JUDGMENTS, BATTLES = "model_judgment.jsonl", "battles.jsonl"  # in a folder of judgments
KEYS = {
    "games": ("question_id", "model", "games"),
    "winner": ("question_id", "model_a", "model_b", "winner"),
}
GAMES = 2  # of a question


@dataclass
class Recorded:
    """What a file of judgments or battles has."""

    ids: dict[str, dict[str, None]] = field(default_factory=dict)  # questions of each model
    games: dict[str, list[Game]] = field(default_factory=dict)  # of each model; none in battles
    battles: list[Battle] = field(default_factory=list)  # of all models
    judge: str | None = None
    opponent: str | None = None  # the baseline; not all files of judgments name it
    twice: Counter[str] = field(default_factory=Counter)  # judgments left out, of each model
    differ: Counter[str] = field(default_factory=Counter)  # games whose score is not in the text


# Reading


def read_recorded(path: Path) -> Recorded:
    """What a file has, which is one of judgments if its first record has games. Raises UserError
    that names the entry, what it has and what is needed.
    """
    records = [(where, record) for where, _, record in read_records(path)]
    if not records:
        raise UserError(f"{path} has no judgment")
    kind = next((key for key in KEYS if key in records[0][1]), None)
    found = Recorded()
    for where, record in records:
        record = {"question_id": record["uid"], **record} if "uid" in record else record
        if kind is None or not record.keys() >= {*KEYS[kind]}:
            needed = " or ".join(str(list(keys)) for keys in KEYS.values())
            raise UserError(f"{where}: keys {needed} are needed, found {list(record)}")
        key = record["question_id"]
        if type(key) not in (str, int):
            name = type(key).__name__
            raise UserError(f"{where}: 'question_id' must be text or an integer, found {name}")
        key = unicode_text(str(key), f"{where}: 'question_id'")
        (_add_judgment if kind == "games" else _add_battle)(found, key, record, where)
    for model, games in found.games.items():
        found.battles += battles_of(model, games)
    return found


def _add_judgment(found: Recorded, key: str, record: dict, where: str) -> None:
    model = text_field(record, ("model",), where)
    names = [text_field(record, (key,), where, True) or None for key in ("judge", "baseline")]
    before = [found.judge, found.opponent]
    if found.ids and names != before:
        raise UserError(
            f"{where}: judge and baseline are {names}, before they were {before}; one file has the "
            "judgments of one judge against one baseline"
        )
    found.judge, found.opponent = names
    ids = found.ids.setdefault(model, {})
    if key in ids:
        found.twice[model] += 1
        return
    ids[key] = None
    games = record["games"]
    if not isinstance(games, list) or len(games) > GAMES:
        kind = f"{len(games)} of them" if isinstance(games, list) else type(games).__name__
        raise UserError(f"{where}: 'games' must be a list of {GAMES}, found {kind}")
    for number in range(GAMES):
        said = games[number] if number < len(games) else None  # one that is not there has failed
        game, differs = _game(key, number, said, where)
        found.games.setdefault(model, []).append(game)
        found.differ[model] += differs


def _game(key: str, number: int, said: object, where: str) -> tuple[Game, bool]:
    """A game, and whether its score is another one than that of its text."""
    said = {} if said is None else said
    if not isinstance(said, dict) or not isinstance(said.get("score"), str | None):
        raise UserError(
            f"{where}: a game must be an object with a label or null as 'score', found {said!r:.60}"
        )
    score = said.get("score")
    stored = Game(key, number, () if score is None else (score,))
    if not isinstance(said.get("judgment"), str):
        return stored, False
    game = Game(key, number, labels_in(said["judgment"]))
    return game, "score" in said and game.label() != score


def _add_battle(found: Recorded, key: str, record: dict, where: str) -> None:
    baseline, model = (text_field(record, (name,), where) for name in ("model_a", "model_b"))
    found.opponent = found.opponent or baseline
    if baseline != found.opponent or model == found.opponent:
        raise UserError(
            f"{where}: 'model_a' must be the baseline, {found.opponent!r}, and 'model_b' another "
            f"model, found {baseline!r} and {model!r}"
        )
    winner = text_field(record, ("winner",), where)
    if winner not in WINNERS:
        raise UserError(f"{where}: 'winner' must be one of {list(WINNERS)}, found {winner!r}")
    found.ids.setdefault(model, {})[key] = None
    found.battles.append(Battle(key, model, WINNERS[winner]))


# Writing


def write_judgments(
    path: Path,
    model: str,
    judge: str | None,
    opponent: str,
    games: Iterable[tuple[Game, str, str]],
) -> None:
    """Writes a file of judgments against one opponent, which stands there as in newer files of
    upstream's; `games` have their prompt and the judge's text with them.
    """
    rows: dict[str, dict] = {}
    for game, prompt, text in games:
        row = {"question_id": game.id, "model": model, "judge": judge, "baseline": opponent}
        row |= {"games": []}
        said = {"user_prompt": prompt, "judgment": text, "score": game.label()}
        rows.setdefault(game.id, row)["games"].append(said)
    replace_file(path, b"".join(map(as_line, rows.values())))


def write_battles(path: Path, opponent: str, battles: Iterable[Battle]) -> None:
    """Writes a file of battles against one opponent."""
    winners = {outcome: winner for winner, outcome in WINNERS.items()}
    rows = (
        {"question_id": battle.id, "model_a": opponent, "model_b": battle.model}
        | {"winner": winners[battle.outcome]}
        for battle in battles
    )
    replace_file(path, b"".join(map(as_line, rows)))
