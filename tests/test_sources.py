"""Files of instructions in, unique usable instructions out."""

import json
import subprocess
import sys

import pytest

from janus_min.cli import Parser, add_fields, given_fields
from janus_min.errors import UserError
from janus_min.sources import Filters, Instruction, read_instructions, read_records, select
from tests.programs import environment


def write(path, *records):
    """A file in the format that its suffix says; bytes are written as they are."""
    if path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    else:
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def prompts(path):
    return [(reason or read.prompt) for read, reason in read_instructions(path)]


def message(role, content):
    return {"role": role, "content": content}


CHAT = [message("user", "What is rain?"), message("assistant", "Water."), message("user", "Why?")]
ANSWERS = {"answers": [{"answer": "a", "model": "m", "rank": 1.0}], "turns": 1, "num_responses": 7}
NECTAR = ANSWERS | {"source": ["anthropic-hh"], "good_natured": True}


# The five data sets


def test_nectar(tmp_path):
    several = "\n\nHuman: What is rain?\n\nAssistant: Water.\n\nHuman: Why?\n\nAssistant: "
    inside = '\n\nHuman: Go on:\n\nHuman: hi\n\nA: "Assistant: yes"\n\nAssistant: '
    texts = [several, inside, "\n\nHuman: \n\nAssistant: ", "\n\nAssistant: ", None]
    rows = [NECTAR | {"prompt": text} for text in texts]
    rows[1]["source"] = ["ultrachat", "sharegpt"]
    read = list(read_instructions(write(tmp_path / "n.jsonl", *rows)))
    first = Instruction(
        "berkeley-nest/Nectar", "anthropic-hh", "What is rain?", None, f"{tmp_path}/n.jsonl:1"
    )
    assert read[0] == (first, None)
    assert read[1][0].prompt == 'Go on:\n\nHuman: hi\n\nA: "Assistant: yes"'
    assert read[1][0].original_source == "ultrachat, sharegpt"
    assert [reason for _, reason in read[2:]] == ["empty", "no user turn", "no user turn"]


def test_openhermes(tmp_path):
    row = {"source": "airoboros2.2", "category": "orca", "prompt": "What is rain?"}
    row |= {"candidates_completions": ["a", "b"], "candidate_policies": ["m", "n"]}
    row |= {"ranks": [0, 1], "chosen": CHAT[:2], "rejected": CHAT[:2]}
    rows = [row, row | {"source": None}, row | {"source": None, "category": None}]
    read = [read for read, _ in read_instructions(write(tmp_path / "o.jsonl", *rows))]
    assert {(r.main_source, r.prompt) for r in read} == {
        ("argilla/OpenHermesPreferences", "What is rain?")
    }
    originals = ["airoboros2.2", "orca", "argilla/OpenHermesPreferences"]
    assert [r.original_source for r in read] == originals


def test_ultrafeedback(tmp_path):
    row = {"source": "flan", "prompt": "What is rain?", "prompt_id": "1", "messages": CHAT[:2]}
    row |= {"chosen": CHAT[:2], "rejected": CHAT[:2], "score_chosen": 8.0, "score_rejected": 1.0}
    ((read, reason),) = read_instructions(write(tmp_path / "u.jsonl", row))
    assert read[:3] == ("allenai/ultrafeedback_binarized_cleaned", "flan", "What is rain?")
    assert reason is None
    del row["source"]  # a data set of another publisher
    ((read, _),) = read_instructions(write(tmp_path / "u.jsonl", row))
    assert read[:3] == ("u", "u", "What is rain?")


def test_chatbot_arena(tmp_path):
    row = {"question_id": "1", "model_a": "m", "model_b": "n", "winner": "tie", "turn": 2}
    row |= {"conversation_a": CHAT, "conversation_b": CHAT, "language": "German"}
    ((read, reason),) = read_instructions(write(tmp_path / "a.jsonl", row))
    assert read[:2] == ("lmsys/chatbot_arena_conversations", "chatbot_arena")
    assert read[2:4] == ("What is rain?", "German") and reason is None


def test_dsp(tmp_path):
    row = {"query": "What is rain?", "responses": {"academy": "a", "business": "b"}}
    path = write(tmp_path / "domain_specific_preference.train.json", row, row | {"query": "Why?"})
    reads = [read for read, _ in read_instructions(path)]
    assert reads[1] == ("Linear95/DSP", "alpaca", "Why?", None, f"{path}:2")


# All others


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"messages": [message("system", "Be brief."), *CHAT]}, "What is rain?"),
        ({"messages": [message("system", "Be brief.")]}, "no user turn"),
        ({"messages": []}, "no user turn"),
        ({"messages": None}, "no user turn"),
        ({"messages": [message("user", None)]}, "no user turn"),
        ({"messages": [message("user", " ")]}, "empty"),
        ({"conversations": [{"from": "system", "value": "a"}, {"from": "human", "value": "b"}]},
         "b"),
        ({"conversations": [{"from": "gpt", "value": "a"}, {"from": "user", "value": "b"}]}, "b"),
        ({"question_id": 81, "category": "writing", "turns": ["One", "Two"]}, "One"),
        ({"turns": [{"content": "One"}]}, "One"),  # Arena-Hard
        ({"turns": []}, "no user turn"),
        ({"instruction": "Add.", "instances": [{"input": "1, 2", "output": "3"}, {"input": "x"}]},
         "Add.\n\n1, 2"),
        ({"instruction": "Add.", "instances": [{"input": "", "output": "3"}]}, "Add."),
        ({"instruction": "Add.", "instances": []}, "Add."),
        ({"instruction": "Add.\n", "input": "1\n 2", "output": "3"}, "Add.\n\n1\n 2"),
        ({"instruction": "Add.", "input": " \n", "output": "3"}, "Add."),
        ({"instruction": "Add.", "input": None}, "Add."),
        ({"instruction": None, "input": "1"}, "no user turn"),
        ({"instruction": " ", "input": "1"}, "empty"),
        ({"prompt": "Water?"}, "Water?"),
        ({"question": "Water?"}, "Water?"),
        ({"text": "Water?"}, "Water?"),
        ({"text": " \u3000 a  \n b \n"}, "a  \n b"),  # only outer space goes
        ({"text": "\u200b \ufeff"}, "empty"),  # nothing to see
        ({"text": "a\0"}, "not text"),
        ({"text": "a\ud800"}, "not text"),
        ({"text": "a", "source": "\udfff"}, "not text"),
        ({"text": "a", "language": "\0"}, "not text"),
        # precedence
        ({"messages": CHAT, "prompt": "b", "text": "c"}, "What is rain?"),
        ({"conversations": CHAT, "turns": ["a"]}, "What is rain?"),
        ({"turns": ["a"], "instruction": "b"}, "a"),
        ({"instruction": "a", "prompt": "b", "question": "c", "text": "d"}, "a"),
        ({"prompt": "b", "question": "c", "text": "d"}, "b"),
        ({"question": "c", "text": "d"}, "c"),
    ],
)  # fmt: skip
def test_generic_records(tmp_path, row, prompt):
    path = write(tmp_path / "stem.jsonl", row)
    assert prompts(path) == [prompt]
    ((read, _),) = read_instructions(path)
    assert read.main_source == "stem" and read.where == f"{path}:1"


def test_original_sources(tmp_path):
    rows = [{"dataset": "d", "category": "c"}, {"category": "c"}, {}, {"source": 3, "category": ""}]
    path = write(tmp_path / "stem.jsonl", *(row | {"text": "a"} for row in rows))
    assert [read.original_source for read, _ in read_instructions(path)] == ["d", "c"] + 2 * [
        "stem"
    ]


# Files


def test_csv(tmp_path):
    path = tmp_path / "a.CSV"
    lines = 'instruction,input\r\n"Say ""hi"",\nplease",\r\n\r\nÄdd.,"1\n2"\r\nEnd.,\r\n'
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + lines.encode())
        assert prompts(path) == ['Say "hi",\nplease', "Ädd.\n\n1\n2", "End."]
        wheres = [where for where, _ in read_records(path)]
        assert wheres == [f"{path}:2", f"{path}:5", f"{path}:7"]
    path.write_text("text\n" + "long " * 50_000)
    assert len(prompts(path)[0]) == 249_999


def test_json_is_a_list_or_lines(tmp_path):
    path = tmp_path / "a.json"
    rows = [{"text": "Ä"}, {"text": "b\n"}]
    texts = [json.dumps(rows), json.dumps(rows, indent=2), "\n".join(map(json.dumps, rows))]
    for text in (*texts, "\ufeff" + texts[0], "\n" + texts[1], "\n" + texts[2] + "\n\n"):
        path.write_text(text)
        assert prompts(path) == ["Ä", "b"]


OTHER = b'{"other": 1}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", None, "a.jsonl not found: a .jsonl, .json or .csv file is needed"),
        ("a.parquet", b"", "a.parquet: Parquet is not read; convert it once: python -c"),
        ("a.txt", b"a", "a.txt: .txt; needed is .jsonl, .json or .csv"),
        ("a", b"a", "a: no suffix; needed is .jsonl, .json or .csv"),
        ("a.jsonl", b"", "a.jsonl is empty: at least one record is needed"),
        ("a.json", b" \n", "a.json is empty"),
        ("a.json", b"[]", "a.json is empty"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"text\n", "a.csv is empty"),
        ("a.jsonl", b'{"text": 1', "a.jsonl:1: not JSON"),
        ("a.json", b'{"text": "a"}\n{"tex', "a.json:2: not JSON"),
        ("a.json", b'[{"text": "a"},', "a.json: not JSON"),
        ("a.json", b"[" * 100_000, "a.json: not JSON"),
        ("a.json", b'{\n"text": "a"}', "a.json: a list of objects is needed, or one object per"),
        ("a.json", b'[{"text": "a"}, "b"]', "a.json: a list of objects is needed, or one object"),
        ("a.json", b'"a"', "a.json: a list of objects is needed, or one object per line"),
        ("a.json", b'[\n"\xff"]', "a.json:2: not UTF-8"),
        ("a.jsonl", b'{"text": "\xff"}', "a.jsonl:1: not UTF-8"),
        ("a.csv", b"text\na\n\xff\n", "a.csv:3: not UTF-8"),
        ("a.csv", b"text,id\na,1\nb\n", "a.csv:3: 1 values, the header has 2"),
        ("a.csv", b'text\n"a\nb', "a.csv:3: not CSV"),
        ("a.csv", b"What is rain?\nAnd why?\n",
         r"a.csv:2: one of the columns messages, conversations, .*, text \(a .csv file's first "
         r"line names them\) is needed; found \['What is rain\?'\]"),
        ("a.csv", b"x" * 1000 + b"\n1\n", rf"found \['{'x' * 40}'\]$"),
        ("a.jsonl", OTHER, r"a.jsonl:1: one of the columns .* is needed; found \['other'\]"),
        ("a.jsonl", b'{"text": "a"}\n' + OTHER,
         r"a.jsonl:2: as in the file's first record, each of the columns text is needed; found "
         r"\['other'\]"),
        ("a.jsonl", b'{"text": 1}', "a.jsonl:1: 'text' must be text, found int"),
        ("a.jsonl", b'{"messages": "a"}', "a.jsonl:1: 'messages' must be a list, found str"),
        ("a.jsonl", b'{"messages": [1]}', "'messages\\[…\\]' must be an object, found int"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": []}]}',
         "'messages\\[…\\].content' must be text, found list"),
        ("a.jsonl", b'{"instruction": "a", "input": 1}', "'input' must be text, found int"),
        ("a.jsonl", b'{"instruction": "a", "instances": {}}', "'instances' must be a list"),
        ("a.jsonl", b'{"instruction": "a", "instances": [1]}', r"'instances\[0\]' must be an obj"),
    ],
)  # fmt: skip
def test_broken_files_say_where_and_what(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(read_instructions(path))
    assert "\n" not in str(error.value)


def test_all_files_are_looked_for_before_the_first_is_read(tmp_path):
    good = write(tmp_path / "a.jsonl", {"text": "a"})
    for paths, bench in [((good, tmp_path / "b.jsonl"), None), ((good,), (tmp_path / "b.csv",))]:
        with pytest.raises(UserError, match=r"b\.(jsonl|csv) not found"):
            next(select(paths, Filters(bench=bench)))


# Filters


def outcome(tmp_path, texts, **filters):
    rows = [text if isinstance(text, dict) else {"text": text} for text in texts]
    selected = select((write(tmp_path / "a.jsonl", *rows),), Filters(**filters))
    return [reason for _, reason, _ in selected]


@pytest.mark.parametrize(
    ("filters", "texts", "reasons"),
    [
        ({"min_characters": 3}, [" ab ", "abc", "äöü"], ["shorter than 3 characters", None, None]),
        ({"max_characters": 3}, [" abc ", "abcd"], [None, "longer than 3 characters"]),
        ({}, ["a" * 8000, "a" * 8001], [None, "longer than 8000 characters"]),
        ({"latin_share": 0.5}, ["abc где", "ab где", "12 + 3", "日本", "ÄÖ 日本"],
         [None, "not Latin", None, "not Latin", None]),
        ({"latin_share": 1}, ["abc", "abc д"], [None, "not Latin"]),
        ({}, ["日本"], [None]),
        ({"language": "ENGlish"},
         [{"text": "a", "language": "English"}, {"text": "b", "language": "German"},
          {"text": "c", "language": None}, {"text": "d"}],
         [None, "language", None, None]),
        ({}, [{"text": "a", "language": "German"}], [None]),
        ({}, ["What is rain?", "what is rain", "1+1", "1-1", "?!", "!?"],
         [None, "exact duplicate", None, None, None, None]),
        ({"limit": 2}, ["a", "a", "b", "c", " ", "b"],
         [None, "exact duplicate", None, "beyond the limit", "empty", "beyond the limit"]),
    ],
)  # fmt: skip
def test_reasons(tmp_path, filters, texts, reasons):
    assert outcome(tmp_path, texts, **filters) == reasons


LONG = "please explain in a few short words how rain is made over the sea in summer"


def test_near_duplicates_are_dropped_from_a_threshold_on(tmp_path):
    texts = [LONG, LONG.replace("summer", "winter")]  # 13 of 15 trigrams
    assert outcome(tmp_path, texts) == [None, "near duplicate"]
    assert outcome(tmp_path, texts, near_duplicates=0.9) == [None, None]
    assert outcome(tmp_path, texts, near_duplicates=1) == [None, None]


def test_the_bench_is_counted_and_left_out_when_wanted(tmp_path):
    bench = write(tmp_path / "bench.jsonl", {"turns": ["Why is rain wet?"]}, {"turns": []})
    more = write(tmp_path / "more.json", {"instruction": LONG})
    leak = "Tell me why is rain wet"
    texts = [leak, "Why is rain warm?", leak, LONG + " or in winter", " ", LONG + " or in winters"]
    path = write(tmp_path / "a.jsonl", *({"text": text} for text in texts))

    def selected(**filters):
        settings = Filters(bench=(bench, more), **filters)
        return [(reason, overlaps) for _, reason, overlaps in select((path,), settings)]

    assert selected() == [
        (None, True), (None, False), ("exact duplicate", True), (None, True), ("empty", False),
        ("near duplicate", True),
    ]  # fmt: skip
    dropped = ("overlaps the bench", True)
    assert selected(keep_overlap=False) == [
        dropped, (None, False), dropped, dropped, ("empty", False), dropped,
    ]  # fmt: skip
    assert selected(limit=1)[1:4] == 3 * [("beyond the limit", False)]


def test_files_are_taken_in_order(tmp_path):
    first = write(tmp_path / "z.jsonl", {"text": "What is rain?"})
    second = write(tmp_path / "a.json", {"prompt": "what is rain"}, {"prompt": "Why?"})
    selected = list(select((first, second), Filters()))
    assert [(read.where.rpartition("/")[2], reason) for read, reason, _ in selected] == [
        ("z.jsonl:1", None),
        ("a.json:1", "exact duplicate"),
        ("a.json:2", None),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_characters": 0}, "--min-characters is 0, must be at least 1"),
        ({"max_characters": 0}, "--max-characters is 0, must be at least 1"),
        ({"min_characters": 9, "max_characters": 8}, "--max-characters is 8, must be at least 9"),
        ({"latin_share": 1.1}, r"--latin-share is 1.1, must be in \[0, 1\]"),
        ({"latin_share": float("nan")}, "--latin-share is nan"),
        ({"near_duplicates": 0}, r"--near-duplicates is 0, must be in \(0, 1\]"),
        ({"near_duplicates": float("nan")}, "--near-duplicates is nan"),
        ({"limit": 0}, "--limit is 0, must be at least 1"),
        ({"keep_overlap": False}, "--keep-overlap is False, must be True without --bench"),
    ],
)
def test_filters_have_bounds(values, message):
    with pytest.raises(UserError, match=message):
        Filters(**values)


def test_filters_are_flags():
    parser = Parser("")
    add_fields(parser, Filters)
    given = "--bench a.csv b.csv --no-keep-overlap --limit 3 --near-duplicates 0.5".split()
    filters = Filters(**given_fields(parser.parse_args(given), Filters))
    assert [path.name for path in filters.bench] == ["a.csv", "b.csv"]
    assert (filters.keep_overlap, filters.limit, filters.near_duplicates) == (False, 3, 0.5)
    assert "such as English" in parser.format_help() and "(8000)" in parser.format_help()


def test_every_process_selects_the_same(tmp_path):
    """Also where Python's own hashes differ: which half of the hidden pairs is found."""
    words = [f"w{i}" for i in range(60 * 200)]
    rows = [words[60 * i : 60 * i + 57] + [f"{word}{i // 2}" for word in "xyz"] for i in range(200)]
    path = write(tmp_path / "a.jsonl", *({"text": " ".join(row)} for row in rows))
    code = "import sys; from pathlib import Path; from janus_min.sources import Filters, select\n"
    code += "for item in select((Path(sys.argv[1]),), Filters(near_duplicates=0.008)): print(item)"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, path],
            env=environment(PYTHONHASHSEED=seed),
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] and 20 < outputs[0].count(b"near duplicate") < 80
