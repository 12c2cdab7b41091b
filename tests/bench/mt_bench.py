"""Recorded judgments of MT-Bench through the whole of `evaluate.py mt-bench`.

python -m tests.bench.mt_bench FOLDER [--judge-prompt judge_prompts.jsonl]

FOLDER has question.jsonl of FastChat (lm-sys/FastChat, fastchat/llm_judge/data, Apache-2.0) and
judgments in its format: judgment_llama2_gpt-4_single.jsonl, judgment_granite_gpt-4_single.jsonl.
Their scores must be the recorded ones, and the averages those that were published.

With FastChat's prompts, the recorded prompts are taken apart into answers and references. Put
together again by our code they must be the recorded ones, letter by letter. A server replies what
the judge replied, and the result must be the same once more.

The averages of FastChat's show_result.py are computed by pandas, if it is there.
"""

import argparse
import re
import tempfile
from collections import defaultdict
from pathlib import Path

from janus_min.connection import Connection
from janus_min.files import as_line
from janus_min.formats import read_jsonl
from janus_min.judging import Work
from janus_min.loopback import served
from janus_min.mt_bench import ERROR, JUDGED, Options, Sampling, evaluate, rescore
from janus_min.ratings import rating_in
from janus_min.replies import ReplyError
from janus_min.templates import TEMPLATES, read_template

PUBLISHED = {  # file, model -> score, means of the turns, failures
    ("judgment_llama2_gpt-4_single.jsonl", "llama-2-chat-7b"): (6.4062, None, 0),
    ("judgment_llama2_gpt-4_single.jsonl", "llama-2-chat-7b-0.1-0.1"): (None, None, 0),
    ("judgment_granite_gpt-4_single.jsonl", "granite-7b-lab"): (7.4, (7.6216, 4.6667), 120),
}
UPSTREAM = dict(
    zip(
        ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn"),
        TEMPLATES["mt-bench"],
    )
)


def read(path: Path) -> list[dict]:
    """The records of a JSONL file."""
    return [record for _, record in read_jsonl(path)]


def score_of(text: str) -> float:
    """The score of a judgment, as FastChat writes it."""
    try:
        return rating_in(text)
    except ReplyError:
        return -1


def check(result: dict, published: tuple) -> None:
    """Compares a result with the published numbers."""
    score, turns, failed = published
    assert score is None or round(result["score"], 4) == score, result["score"]
    assert turns is None or tuple(round(t, 4) for t in result["turns"].values()) == turns
    assert result["counts"]["failed"] == failed and result["counts"]["ok"] == 160 - failed
    assert result["counts"]["missing"] == 0


def check_pandas(path: Path, model: str, result: dict) -> bool:
    """Compares a result with the means that FastChat's show_result.py shows; False without pandas.
    The steps are those of the script: failures are dropped, then means are taken by turn.
    """
    try:
        import pandas
    except ImportError:
        return False
    rows = pandas.read_json(path, lines=True)
    rows = rows[(rows["model"] == model) & (rows["score"] != -1)]
    turns = rows.groupby("turn")["score"].mean()
    assert abs(rows["score"].mean() - result["score"]) < 1e-12
    assert all(abs(turns[int(turn)] - own) < 1e-12 for turn, own in result["turns"].items())
    return True


def taken_apart(prompt: str, template: str, known: dict[str, str]) -> dict[str, str]:
    """What was filled into a template, of which some is known."""
    seen = set()
    parts = re.split(r"\{(\w+)\}", template)
    for n in range(1, len(parts), 2):
        name = parts[n]
        pattern = re.escape(known[name]) if name in known else "(?s:.*)"
        parts[n] = f"(?P={name})" if name in seen else f"(?P<{name}>{pattern})"
        seen.add(name)
    parts[::2] = map(re.escape, parts[::2])
    return re.fullmatch("".join(parts), prompt).groupdict()


def rebuilt(folder: Path, questions: list[dict], rows: list[dict], prompts: Path) -> list[Path]:
    """Files of answers and references, from the prompts of one model."""
    texts: dict[int, dict[str, str]] = defaultdict(dict)
    by_id = {question["question_id"]: question for question in questions}
    for row in sorted(rows, key=lambda row: row["turn"]):  # the first turn tells its answer
        turns, own = by_id[row["question_id"]]["turns"], texts[row["question_id"]]
        known = own | {"question": turns[0], "question_1": turns[0], "question_2": turns[1]}
        template = read_template(prompts, UPSTREAM[row["judge"][1]]).user
        found = taken_apart(row["user_prompt"], template, known)
        own |= {"answer_1": found["answer"]} if row["turn"] == 1 else found
        own |= {name: text for name, text in found.items() if name.startswith("ref_")}
    paths = [folder / "answers.jsonl", folder / "references.jsonl"]
    for path, name in zip(paths, ("answer", "ref_answer")):
        records = []
        for key, own in texts.items():
            if f"{name}_2" in own:
                turns = [own[f"{name}_1"], own[f"{name}_2"]]
                choices = [{"index": 0, "turns": turns}]
                records.append({"question_id": key, "model_id": "m", "choices": choices})
        path.write_bytes(b"".join(map(as_line, records)))
    return paths


def replay(bench: Path, rows: list[dict], prompts: Path, published: tuple) -> dict:
    """The result of an evaluation by a judge that replies what the recorded one did."""
    replies = {row["user_prompt"]: row["judgment"] for row in rows}
    assert len(replies) == len(rows), "two prompts are equal"
    systems = {row["user_prompt"]: UPSTREAM[row["judge"][1]] for row in rows}

    def judge(messages: list[dict]) -> str:
        """The recorded reply to exactly this prompt."""
        system, user = (message["content"] for message in messages)
        assert system == read_template(prompts, systems[user]).system
        return replies.pop(user)

    with tempfile.TemporaryDirectory() as name, served(judge) as url:
        folder = Path(name)
        answers, references = rebuilt(folder, read(bench), rows, prompts)
        options = Options(
            bench,
            answers,
            name=rows[0]["model"],
            out=folder / "out",
            judge="gpt-4",
            judge_prompt=prompts,
            references=references,
        )
        work = Work(options, Sampling(), Connection(url, workers=1), "mt-bench")
        result = evaluate(work)
        written = {(r["question_id"], r["turn"]): r for r in read(folder / "out" / JUDGED)}
        again = rescore(Options(rescore=(folder / "out",)))
        exported = rescore(Options(rescore=(folder / "out" / JUDGED,)))
    assert not replies, "a recorded reply was not asked for"
    assert again == result
    assert all(exported[key] == result[key] for key in ("score", "turns", "interval"))
    check(result, published)
    for row in rows:
        own = written[row["question_id"], row["turn"]]
        for key in ("model", "user_prompt", "judgment", "score"):
            assert own[key] == row[key] or row["judgment"] == ERROR, (key, own, row)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--judge-prompt", type=Path)
    arguments = parser.parse_args()
    bench = arguments.folder / "question.jsonl"
    for (file, model), published in PUBLISHED.items():
        path = arguments.folder / file
        rows = [row for row in read(path) if row["model"] == model]
        different = [row for row in rows if score_of(row["judgment"]) != row["score"]]
        assert len(rows) == 160 and not different
        result = rescore(Options(rescore=(path,), bench=bench, name=model))
        check(result, published)
        turns = " and ".join(f"{turn:.4f}" for turn in result["turns"].values())
        ends = " to ".join(f"{end:.4f}" for end in result["interval"])
        print(f"{model}: 160 scores equal the recorded ones, {result['counts']['failed']} failed")
        print(f"  score {result['score']:.4f}, turns {turns}, 95 % interval {ends}")
        print("  " + ", ".join(f"{k} {v:.2f}" for k, v in result["by_category"].items()))
        if check_pandas(path, model, result):
            print("  equal to the means of FastChat's show_result.py")
        if arguments.judge_prompt:
            other = replay(bench, rows, arguments.judge_prompt, published)
            assert all(other[key] == result[key] for key in ("score", "turns", "by_category"))
            print("  160 prompts equal the recorded ones; the same result by a server")


if __name__ == "__main__":
    main()
