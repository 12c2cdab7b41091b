"""Items and responses from files of every format, round trips, and what is wrong with a file."""

import copy
import json

import pytest

from janus_min.bench import about_bench, answered, read_bench, read_records, read_responses
from janus_min.errors import UserError
from janus_min.files import as_line


def rubric(name):
    """A rubric with a key more than it needs."""
    scores = {n: f"{name}, grade {n}" for n in "12345"}
    return {"criteria": f"{name}?", "score_descriptions": scores, "dimension": name}


def record(key, **more):
    item = {"id": key, "source": "own", "system": f"You are {key}.", "prompt": f"Why {key}?"}
    own = {"reference_answer": f"Since {key}.", "rubrics": [rubric("kind"), rubric("짧다")]}
    return item | own | more


ITEMS = [record("0"), record("1"), record("2")]


def write(tmp_path, name, content):
    """A file of bytes, text, JSON lines or JSON, by its name and what it is to hold."""
    path = tmp_path / name
    if isinstance(content, str):
        content = content.encode("utf-8")
    elif not isinstance(content, bytes) and path.suffix == ".jsonl":
        content = b"".join(map(as_line, content))
    elif not isinstance(content, bytes):
        content = json.dumps(content, ensure_ascii=False).encode("utf-8")
    path.write_bytes(content)
    return path


def without(item, *keys):
    return {key: value for key, value in item.items() if key not in keys}


def early(item):
    """With the column names of the first published version."""
    names = {"prompt": "user_prompt", "system": "system_prompt", "source": "original_source"}
    return {names.get(key, key): value for key, value in item.items()}


# Items

FORMS = {
    "lines.jsonl": ITEMS,
    "blank lines.jsonl": b"\n" + b"\n \n".join(map(as_line, ITEMS)),
    "list.json": ITEMS,
    "by-id.json": {item["id"]: without(item, "id") for item in ITEMS},
    "by-id-twice.json": {item["id"]: item for item in ITEMS},
    "by-id-and-integers.json": {item["id"]: item | {"id": int(item["id"])} for item in ITEMS},
    "integers.jsonl": [item | {"id": int(item["id"])} for item in ITEMS],
    "no-ids.jsonl": [without(item, "id") for item in ITEMS],
    "no-ids.json": [without(item, "id") for item in ITEMS],
    "rubric.json": [without(i, "rubrics") | {"rubric": i["rubrics"]} for i in ITEMS],
    "null.json": [i | {"rubrics": None, "rubric": i["rubrics"]} for i in ITEMS],
    "early.jsonl": [early(item) for item in ITEMS],
    "instruction.json": [
        without(i, "prompt") | {"instruction": i["prompt"], "extra": [1]} for i in ITEMS
    ],
    "evaluation.json": {
        i["id"]: i | {"response": "R", "feedback": ["f", "g"], "score": [1, 2]} for i in ITEMS
    },
    "other-order.json": [
        dict(reversed((i | {"rubrics": [dict(reversed(r.items())) for r in i["rubrics"]]}).items()))
        for i in ITEMS
    ],
    "no-ending": json.dumps(ITEMS, ensure_ascii=True, indent=4),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_has_the_same_items(tmp_path, name):
    path = write(tmp_path, name, FORMS[name])
    items = read_bench(path)
    assert items == ITEMS
    assert [list(item) for item in items] == [list(ITEMS[0])] * 3
    about = about_bench(items, path)
    assert about == {"name": name, "hash": about_bench(ITEMS, path)["hash"], "items": 3}
    assert len(about["hash"]) == 16


def test_items_can_be_written_and_read_again(tmp_path):
    first = read_bench(write(tmp_path, "early.jsonl", FORMS["early.jsonl"]))
    again = read_bench(write(tmp_path, "bench.jsonl", first))
    assert again == first
    assert read_bench(write(tmp_path, "bench.json", {i["id"]: i for i in again})) == first


def test_what_an_item_may_lack(tmp_path):
    least = {"prompt": "Why?", "reference_answer": "So.", "rubrics": "Is it kind?"}
    path = write(tmp_path, "own bench.jsonl", [least, least | {"source": None, "system": None}])
    common = {"source": "own bench", "system": "", "prompt": "Why?", "reference_answer": "So."}
    common |= {"rubrics": ["Is it kind?"]}
    assert read_bench(path) == [{"id": "0"} | common, {"id": "1"} | common]


@pytest.mark.parametrize(
    ("given", "rubrics"),
    [
        (rubric("kind"), [rubric("kind")]),
        ([rubric("kind")], [rubric("kind")]),
        ("Is it kind?", ["Is it kind?"]),
        (["Is it kind?", rubric("kind")], ["Is it kind?", rubric("kind")]),
    ],
)
@pytest.mark.parametrize("key", ["rubric", "rubrics"])
def test_rubrics_are_a_list(tmp_path, key, given, rubrics):
    item = without(record("a"), "rubrics") | {key: given}
    assert read_bench(write(tmp_path, "b.jsonl", [item])) == [record("a", rubrics=rubrics)]


def test_comparisons_need_no_rubrics(tmp_path):
    bare = without(record("a"), "rubrics", "reference_answer")
    path = write(tmp_path, "b.json", [bare | {"rubrics": 3}])
    assert read_bench(path, rubrics=False) == [bare]
    with pytest.raises(UserError, match="key 'reference_answer' is needed"):
        read_bench(path)


def test_where_a_record_stands(tmp_path):
    path = write(tmp_path, "r.jsonl", '{"a": 1}\n\n{"a": 2}')
    assert list(read_records(path)) == [(f"{path}:1", 0, {"a": 1}), (f"{path}:3", 2, {"a": 2})]
    path = write(tmp_path, "r.json", [{"a": 1}, {"a": 2}])
    found = [(f"{path}, entry 0", 0, {"a": 1}), (f"{path}, entry 1", 1, {"a": 2})]
    assert list(read_records(path)) == found
    path = write(tmp_path, "r.json", {"x": {"a": 1}, "y": "text"})
    found = [
        (f"{path}, entry 0", 0, {"id": "x", "a": 1}),
        (f"{path}, entry 1", 1, {"id": "y", "response": "text"}),
    ]
    assert list(read_records(path)) == found


CHANGES = [
    {"id": "x"},
    {"system": "You are unkind."},
    {"prompt": "Why not?"},
    {"reference_answer": "So."},
    {"rubrics": [rubric("kind"), rubric("short")]},
    {"rubrics": [rubric("kind")]},
    {"rubrics": [rubric("짧다"), rubric("kind")]},
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_item_is_another_bench(tmp_path, change):
    path = tmp_path / "bench.jsonl"
    changed = [ITEMS[0], ITEMS[1] | change, ITEMS[2]]
    assert about_bench(changed, path)["hash"] != about_bench(ITEMS, path)["hash"]


def test_fewer_items_are_another_bench_and_another_file_name_is_not(tmp_path):
    path = tmp_path / "bench.jsonl"
    assert about_bench(ITEMS[:2], path)["hash"] != about_bench(ITEMS, path)["hash"]
    bare = [without(item, "source") for item in ITEMS]
    one, other = write(tmp_path, "one.jsonl", bare), write(tmp_path, "other.json", bare)
    hashes = {about_bench(read_bench(file), file)["hash"] for file in (one, other)}
    assert hashes == {about_bench(ITEMS, path)["hash"]}


# Responses

RESPONSES = {"0": {"response": "R0"}, "1": {"response": "짧다 \u2028"}, "2": {"response": ""}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("official_responses.json", RESPONSES),
        ("texts.json", {key: value["response"] for key, value in RESPONSES.items()}),
        ("lines.jsonl", [{"id": key} | value for key, value in RESPONSES.items()]),
        ("list.json", [{"id": int(key)} | value for key, value in RESPONSES.items()]),
        ("output.jsonl", [{"id": k, "output": v["response"]} for k, v in RESPONSES.items()]),
        ("output.json", {k: {"output": v["response"], "n": 1} for k, v in RESPONSES.items()}),
        ("both.jsonl", [{"id": k, "output": "O"} | v for k, v in RESPONSES.items()]),
        ("evaluation.json", {k: record(k) | v for k, v in RESPONSES.items()}),
        ("generated.jsonl", [{"line": int(k) + 1, "sample": 0} | v for k, v in RESPONSES.items()]),
        ("generated.json", [{"line": int(k) + 1, "prompt": k} | v for k, v in RESPONSES.items()]),
        ("id-and-line.jsonl", [{"id": k, "line": 9} | v for k, v in RESPONSES.items()]),
    ],
)
def test_every_format_has_the_same_responses(tmp_path, name, content):
    assert read_responses(write(tmp_path, name, content)) == RESPONSES


def test_why_a_response_ended_is_kept(tmp_path):
    records = [{"id": 7, "output": "R", "stop": "length"}, {"id": "b", "output": "S", "stop": None}]
    found = {"7": {"response": "R", "stop": "length"}, "b": {"response": "S", "stop": None}}
    path = write(tmp_path, "r.jsonl", records)
    assert read_responses(path) == found
    assert read_responses(write(tmp_path, "r.json", found)) == found
    items = [record("7"), record("b")]
    answers = answered(items, path, allow_missing=False)
    assert answers == [items[0] | found["7"], items[1] | found["b"]]


def test_lines_of_generated_responses_are_items_without_ids(tmp_path):
    """generate.py counts lines from 1, in any order; with ids in its input it hands these on."""
    lines = [{"line": n, "sample": 0, "response": f"R{n}", "stop": "eos"} for n in (3, 1, 2)]
    path = write(tmp_path, "out.jsonl", lines)
    bench = write(tmp_path, "bench.jsonl", [without(item, "id") for item in ITEMS])
    found = answered(read_bench(bench), path, allow_missing=False)
    assert [(item["id"], item["response"]) for item in found] == [
        ("0", "R1"), ("1", "R2"), ("2", "R3"),
    ]  # fmt: skip
    first, *rest = (json.dumps(without(item, "id")) for item in ITEMS)
    bench = write(tmp_path, "gap.jsonl", "\n".join([first, "", *rest]))  # lines 1, 3 and 4
    some = write(tmp_path, "some.jsonl", [lines[0], lines[1]])
    found = answered(read_bench(bench), some, allow_missing=True)
    assert [(item["prompt"], item["response"]) for item in found] == [
        (ITEMS[0]["prompt"], "R1"), (ITEMS[1]["prompt"], "R3"),
    ]  # fmt: skip
    path = write(tmp_path, "out.jsonl", [record("x") | line for line in lines[:1]])
    assert read_responses(path) == {"x": {"response": "R3", "stop": "eos"}}


def test_responses_of_two_models_do_not_mix(tmp_path):
    """The second file lacks an item that the first one has, and says of none why it ended."""
    first = write(tmp_path, "a.json", {k: {"response": f"A{k}", "stop": "eos"} for k in "012"})
    second = write(tmp_path, "b.json", {"2": {"response": "B2"}, "0": {"response": "B0"}})
    items = copy.deepcopy(ITEMS)
    one, other = (answered(items, path, allow_missing=True) for path in (first, second))
    assert items == ITEMS
    assert [item["response"] for item in one] == ["A0", "A1", "A2"]
    assert other == [ITEMS[0] | {"response": "B0"}, ITEMS[2] | {"response": "B2"}]
    assert answered(items, first, allow_missing=False) == one


def test_a_limit_takes_the_first_items_and_leaves_later_responses(tmp_path):
    whole = write(tmp_path, "whole.json", RESPONSES)
    part = write(tmp_path, "part.json", {"0": "R0", "2": ""})

    def ids(path, allow_missing, limit):
        return [item["id"] for item in answered(ITEMS, path, allow_missing, limit)]

    assert ids(whole, False, None) == ["0", "1", "2"]
    assert ids(whole, False, 1) == ids(part, False, 1) == ["0"]
    assert ids(whole, False, 9) == ["0", "1", "2"]
    assert ids(part, True, 2) == ["0"]
    assert ids(part, True, None) == ["0", "2"]
    with pytest.raises(UserError, match=r"part.json: no response to 1 of 2 items: '1'; --allow"):
        ids(part, False, 2)


LAST = "--allow-missing evaluates the others"


@pytest.mark.parametrize(
    ("responses", "allow_missing", "message"),
    [
        ({"0": "R"}, False, f": no response to 2 of 3 items: '1', '2'; {LAST}"),
        ({"0": "R", "x": "S"}, True, ": responses to 1 items that the bench does not have: 'x'; "
         "its ids are '0', '1', '2'"),
        ({str(n): "R" for n in range(9)}, True, ": responses to 6 items that the bench does not "
         "have: '3', '4', '5', …; its ids are '0', '1', '2'"),
        ({}, True, " has no response"),
    ],
)  # fmt: skip
def test_responses_that_do_not_fit_the_bench(tmp_path, responses, allow_missing, message):
    path = write(tmp_path, "r.json", responses)
    with pytest.raises(UserError) as error:
        answered(ITEMS, path, allow_missing)
    assert str(error.value) == f"{path}{message}"


@pytest.mark.parametrize("allow_missing", [False, True])
def test_a_file_without_a_response_to_any_item_is_a_mistake(tmp_path, allow_missing):
    """Without the advice to allow it."""
    items = [record(str(n)) for n in range(1500)]
    path = write(tmp_path, "r.json", {"1499": "R"})
    with pytest.raises(UserError, match=r"r.json: no response to 2 of 2 items: '0', '1'$"):
        answered(items, path, allow_missing, limit=2)


def test_of_many_missing_responses_three_are_named(tmp_path):
    items = [record(str(n)) for n in range(1500)]
    path = write(tmp_path, "r.json", {"1499": "R"})
    with pytest.raises(UserError, match=r"no response to 1,499 of 1,500 items: '0', '1', '2', …; "):
        answered(items, path, allow_missing=False)


# A user's mistakes

NEEDED = "needs text under 'criteria' and, in 'score_descriptions', under '1' to '5'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "'id' must be text or an integer, found NoneType"),
        ({"id": 1.0}, "'id' must be text or an integer, found float"),
        ({"id": True}, "'id' must be text or an integer, found bool"),
        ({"id": "\ud800"}, "'id' holds a lone surrogate, which is no Unicode text"),
        ({"prompt": None}, "'prompt' must be text, found NoneType"),
        ({"prompt": ["Why?"]}, "'prompt' must be text, found list"),
        ({"prompt": "\udc00"}, "'prompt' holds a lone surrogate, which is no Unicode text"),
        ({"system": 3}, "'system' must be text, found int"),
        ({"source": {}}, "'source' must be text, found dict"),
        ({"reference_answer": None}, "'reference_answer' must be text, found NoneType"),
        ({"rubrics": []}, "'rubrics' is empty"),
        ({"rubrics": None, "rubric": []}, "'rubric' is empty"),
        ({"rubrics": None}, "key 'rubrics' or 'rubric' is needed, found ['id', 'prompt', "
         "'reference_answer', 'rubrics', 'source', 'system']"),
        ({"rubrics": 3}, f"'rubrics' {NEEDED}"),
        ({"rubrics": ""}, f"'rubrics' {NEEDED}"),
        ({"rubrics": [" \n"]}, f"'rubrics' {NEEDED}"),
        ({"rubrics": [rubric("kind"), None]}, f"'rubrics' {NEEDED}"),
        ({"rubrics": [[rubric("kind")]]}, f"'rubrics' {NEEDED}"),
        ({"rubrics": {}}, f"'rubrics' {NEEDED}"),
        ({"rubrics": without(rubric("kind"), "criteria")}, f"'rubrics' {NEEDED}"),
        ({"rubrics": rubric("kind") | {"criteria": 3}}, f"'rubrics' {NEEDED}"),
        ({"rubrics": without(rubric("kind"), "score_descriptions")}, f"'rubrics' {NEEDED}"),
        ({"rubrics": rubric("kind") | {"score_descriptions": ["a"] * 5}}, f"'rubrics' {NEEDED}"),
        ({"rubrics": rubric("kind") | {"score_descriptions": dict.fromkeys("1234", "a")}},
         f"'rubrics' {NEEDED}"),
        ({"rubrics": rubric("kind") | {"score_descriptions": dict.fromkeys("012345", "a")}},
         f"'rubrics' {NEEDED}"),
        ({"rubrics": rubric("kind") | {"score_descriptions": dict.fromkeys("12345")}},
         f"'rubrics' {NEEDED}"),
    ],
)  # fmt: skip
def test_broken_items_say_where_and_what(tmp_path, change, message):
    broken = [ITEMS[0], ITEMS[1] | change]
    lines, listed = "\n".join(map(json.dumps, broken)), json.dumps(broken)
    for name, text, where in (("b.jsonl", lines, ":2"), ("b.json", listed, ", entry 1")):
        path = write(tmp_path, name, text)
        with pytest.raises(UserError) as error:
            read_bench(path)
        assert str(error.value) == f"{path}{where}: {message}"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("prompt", "key 'prompt' or 'user_prompt' or 'instruction' is needed, found ['id', "
         "'reference_answer', 'rubrics', 'source', 'system']"),
        ("reference_answer", "key 'reference_answer' is needed, found ['id', 'prompt', 'rubrics', "
         "'source', 'system']"),
        ("rubrics", "key 'rubrics' or 'rubric' is needed, found ['id', 'prompt', "
         "'reference_answer', 'source', 'system']"),
    ],
)  # fmt: skip
def test_items_that_lack_a_key_say_which_they_have(tmp_path, key, message):
    path = write(tmp_path, "b.jsonl", [without(ITEMS[0], key)])
    with pytest.raises(UserError) as error:
        read_bench(path)
    assert str(error.value) == f"{path}:1: {message}"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"id": "1", "text": "R"}, "key 'response' or 'output' is needed, found ['id', 'text']"),
        ({"response": "R"}, "key 'id' is needed, found ['response']"),
        ({"id": "1", "response": None}, "'response' must be text, found NoneType"),
        ({"id": "1", "response": ["R"]}, "'response' must be text, found list"),
        ({"id": [], "response": "R"}, "'id' must be text or an integer, found list"),
        ({"id": None, "line": 2, "response": "R"},
         "'id' must be text or an integer, found NoneType"),
        ({"line": "2", "response": "R"}, "key 'id' is needed, found ['line', 'response']"),
        ({"line": 2.0, "response": "R"}, "key 'id' is needed, found ['line', 'response']"),
        ({"line": True, "response": "R"}, "key 'id' is needed, found ['line', 'response']"),
        ({"line": None, "response": "R"}, "key 'id' is needed, found ['line', 'response']"),
    ],
)  # fmt: skip
def test_broken_responses_say_where_and_what(tmp_path, broken, message):
    path = write(tmp_path, "r.jsonl", [{"id": "0", "response": "R"}, broken])
    with pytest.raises(UserError) as error:
        read_responses(path)
    assert str(error.value) == f"{path}:2: {message}"


def test_an_id_stands_for_one_item(tmp_path):
    """As text and as a number it is the same, and an item without one has its number."""
    path = write(tmp_path, "b.jsonl", [record("1"), record("a"), record(1)])
    with pytest.raises(UserError) as error:
        read_bench(path)
    assert str(error.value) == f"{path}:3: the id '1' is also that of {path}:1"
    path = write(tmp_path, "b.json", [record("1"), without(record("a"), "id")])
    with pytest.raises(UserError) as error:
        read_bench(path)
    assert str(error.value) == f"{path}, entry 1: the id '1' is also that of {path}, entry 0"
    path = write(tmp_path, "r.jsonl", [{"id": 7, "output": "R"}, {"id": "7", "output": "R"}])
    with pytest.raises(UserError) as error:
        read_responses(path)
    assert str(error.value) == f"{path}:2: the id '7' is also that of {path}:1"
    two_samples = [{"line": 5, "sample": n, "response": "R"} for n in (0, 1)]
    path = write(tmp_path, "r.jsonl", two_samples)
    with pytest.raises(UserError) as error:
        read_responses(path)
    assert str(error.value) == f"{path}:2: the id '4' is also that of {path}:1"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.jsonl", b"", " has no THING"),
        ("f.jsonl", b"\n \n", " has no THING"),
        ("f.json", b"[]", " has no THING"),
        ("f.json", b"{}", " has no THING"),
        ("f.json", b"", ": not JSON (Expecting value: line 1 column 1 (char 0))"),
        ("f.json", b"[{", ": not JSON (Expecting property name enclosed in double quotes"),
        ("f.json", b"{}\n{}", ": not JSON (Extra data: line 2 column 1"),
        ("f.jsonl", as_line(record("a", response="R")) + b"[", ":2: not JSON (Expecting value"),
        ("f.json", b'"text"', ": a JSON list or object is needed, found str"),
        ("f.json", b"null", ": a JSON list or object is needed, found NoneType"),
        ("f.json", b"[3]", ", entry 0: a JSON object is needed, found int"),
        ("f.jsonl", b"[3]", ":1: a JSON object is needed, found list"),
        ("f.json", b'{"a": 3}', ": under 'a', an object or text is needed, found int"),
        ("f.json", b'{"a": {"id": "a"}, "b": null}', ": under 'b', an object or text is needed, "
         "found NoneType"),
        ("f.json", b'{"a": ["R"]}', ": under 'a', an object or text is needed, found list"),
        ("f.json", b'{"a": {"id": "b"}}', ": what stands under 'a' has the id 'b'"),
        ("f.json", b'{"1": {"id": 2}}', ": what stands under '1' has the id 2"),
        ("f.json", b'{"1": {"id": 1.0}}', ": what stands under '1' has the id 1.0"),
        ("f.json", b'{"1": {"id": null}}', ": what stands under '1' has the id None"),
        ("f.json", b'{"a": "R", "b": "R", "c": "R", "b": "S"}',
         ": not JSON (the key 'b' is there twice)"),
        ("f.json", b'{"a": "R", "a": "R"}', ": not JSON (the key 'a' is there twice)"),
        ("f.json", b'[{"id": "a", "prompt": "P", "id": "b"}]',
         ": not JSON (the key 'id' is there twice)"),
        ("f.json", b'[{"id": "a", "x": [{"y": 1, "y": 1}]}]',
         ": not JSON (the key 'y' is there twice)"),
        ("f.json", b'["\xff"]', ": not JSON ('utf-8' codec can't decode byte 0xff in position 2"),
        ("f.jsonl", b'"\xff"', ":1: not UTF-8 (invalid start byte at byte 1)"),
        ("f.json", b"\xef\xbb\xbf[]", ": not JSON (Unexpected UTF-8 BOM"),
        ("f.jsonl", b"\xef\xbb\xbf{}", ":1: not JSON (Unexpected UTF-8 BOM"),
        ("f.json", b"[" * 200_000, ": not JSON (maximum recursion depth exceeded"),
        ("f.jsonl", b"[" * 200_000, ":1: not JSON (maximum recursion depth exceeded"),
        ("f.json", b"[" + b"9" * 5000 + b"]", ": not JSON (Exceeds the limit"),
        ("f.parquet", b"PAR1\x15\x04\xff", ": Parquet is not read; convert it once: python -c "),
        ("f.json", None, " not found: a JSONL file is needed, one JSON object per line"),
        ("f.jsonl", None, " not found: a JSONL file is needed, one JSON object per line"),
        ("f.parquet", None, ": Parquet is not read; convert it once: python -c "),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("read", "thing"), [(read_bench, "item"), (read_responses, "response")])
def test_files_that_cannot_be_read(tmp_path, name, content, message, read, thing):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read(path))
    line = str(error.value)
    assert line.startswith(str(path) + message.replace("THING", thing)) and "\n" not in line


@pytest.mark.parametrize("name", ["folder", "folder.json", "folder.jsonl", "folder.parquet"])
def test_a_folder_is_no_file(tmp_path, name):
    (tmp_path / name).mkdir()
    for read in (read_bench, read_responses):
        with pytest.raises(UserError) as error:
            read(tmp_path / name)
        line = f"{tmp_path / name} is a folder; a JSONL or JSON file is needed"
        assert str(error.value) == line
