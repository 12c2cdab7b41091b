"""People compare two models: the page in a browser, and what its exports add up to, by hand."""

import json
import re
import time
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from janus_min.errors import UserError
from janus_min.people import TEMPLATE, agreement, read_sheets, write_sheet
from tests.browser import Browser, started

MODELS, BENCH = ("janus-7b", "plain-model"), {"name": "bench.jsonl", "hash": "c0ffee", "items": 12}
HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!-- <script> \"quoted\" & 'quoted' \\ `${window.hacked = 1}` $& \\1 &lt;",
    "line\u2028and\u2029paragraph\ttab\r\nline",
    "@@SHEET@@ [[A]] @@ITEMS@@",
    "👩‍👩‍👧 e\u0301 쉬운 말로 설명",
    "שלום \u202e abc",
    "x" * 5000,
    "  two spaces\n\n   and lines  ",
    "\0\x1b\x7f\ufeff",
]


def item(name, system="S", prompt="P", ours=None, theirs=None, source="alpaca"):
    texts = {"id": name, "source": source, "system": system, "prompt": prompt}
    return texts | {"responses": (ours or f"first of {name}", theirs or f"second of {name}")}


def ten(**more):
    return [item(f"q{i}", **more) for i in range(10)]


def shown(page):
    """What the page has inside it."""
    text = page.read_bytes().decode("utf-8")
    data = re.search('<script type="application/json" id="sheet">(.*)</script>', text)[1]
    return json.loads(data)


def key_of(path):
    return json.loads(path.read_text(encoding="utf-8"))


# The page as a file


def test_the_page_is_blind_and_the_key_knows(tmp_path):
    out = tmp_path / "sheet.html"
    key = write_sheet(ten(), MODELS, BENCH, out, seed=41)
    assert key == tmp_path / "sheet.key.json"
    assert {path.name for path in tmp_path.iterdir()} == {"sheet.html", "sheet.key.json"}
    text, content, about = out.read_text(encoding="utf-8"), shown(out), key_of(key)
    for word in (*MODELS, "bench.jsonl", "c0ffee", "ours", "theirs", "alpaca", "@@"):
        assert not re.search(rf"\b{word}\b", text), word
    assert content.keys() == {"sheet", "items"}
    assert list(about) == ["sheet", "models", "bench", "items"]
    assert (about["models"], about["bench"]) == (list(MODELS), BENCH)
    assert about["sheet"] == content["sheet"] and len(content["sheet"]) == 16
    for i, (asked, side) in enumerate(zip(content["items"], about["items"], strict=True)):
        assert side == {"id": f"q{i}", "source": "alpaca", "left": side["left"]}
        texts = {"ours": f"first of q{i}", "theirs": f"second of q{i}"}
        left = texts.pop(side["left"])
        right = texts.popitem()[1]
        common = {"id": f"q{i}", "system": "S", "prompt": "P"}
        assert asked == common | {"left": left, "right": right}


@pytest.mark.parametrize(("count", "allowed"), [(1, {0, 1}), (10, {5}), (11, {5, 6})])
def test_sides_are_balanced_and_drawn_by_the_seed(tmp_path, count, allowed):
    def sides(seed):
        (tmp_path / str(seed)).mkdir(exist_ok=True)
        out = tmp_path / str(seed) / "sheet.html"
        key = write_sheet([item(str(i)) for i in range(count)], MODELS, BENCH, out, seed)
        return [side["left"] for side in key_of(key)["items"]]

    drawn = [sides(seed) for seed in range(20)]
    assert {side.count("ours") for side in drawn} == allowed
    assert sides(3) == drawn[3]
    assert len(set(map(tuple, drawn))) > (1 if count == 1 else 15)
    # No item has its side for ever.
    assert all({*column} == {"ours", "theirs"} for column in zip(*drawn))


def test_another_sheet_has_another_id(tmp_path):
    def sheet(items, models=MODELS, bench=BENCH, seed=0):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.html"
        return key_of(write_sheet(items, models, bench, out, seed))["sheet"]

    assert sheet(ten()) == sheet(ten())
    others = [
        sheet(ten(ours="x")),
        sheet(ten(system="x")),
        sheet(ten(prompt="x")),
        sheet(ten(source="x")),
        sheet(ten()[:9]),
        sheet(ten()[::-1]),
        sheet(ten(), seed=1),
        sheet(ten(), MODELS[::-1]),
        sheet(ten(), bench=BENCH | {"hash": "0"}),
    ]
    assert len({sheet(ten()), *others}) == 10


def test_a_key_is_kept_from_another_sheet(tmp_path):
    out = tmp_path / "sheet.html"
    key = write_sheet(ten(), MODELS, BENCH, out, 0)
    before = out.read_bytes(), key.read_bytes()
    write_sheet(ten(), MODELS, BENCH, out, 0)
    assert (out.read_bytes(), key.read_bytes()) == before
    sheet = key_of(key)["sheet"]
    message = (
        f"{key} is the key of another sheet, {sheet}, whose judgments are lost without it: "
        "give the new one, "
    )
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        write_sheet(ten(), MODELS, BENCH, out, 1)
    assert (out.read_bytes(), key.read_bytes()) == before
    key.unlink()
    write_sheet(ten(), MODELS, BENCH, out, 1)
    assert key_of(key)["sheet"] == shown(out)["sheet"] != sheet
    assert f"{message}{shown(out)['sheet']}, another name" in str(raised.value)


NAME = "needed is a name that ends in .html, in a directory that exists"


@pytest.mark.parametrize(
    ("items", "models", "name", "message"),
    [
        ([], MODELS, "sheet.html", "sheet.html: there is no item to judge"),
        (ten(), MODELS, "none/sheet.html", f"none/sheet.html: {NAME}"),
        (ten(), MODELS, "sheet.json", f"sheet.json: {NAME}"),
        ([item("1"), item("2", prompt="\ud800")], MODELS, "sheet.html",
         "item '2' holds a lone surrogate, which is no Unicode text"),
        ([item("1", theirs="\udfff")], MODELS, "sheet.html", "item '1' holds a lone surrogate"),
        (ten(), ("\udcff", "b"), "sheet.html",
         "sheet.html: the name of a model, bench or source holds a lone surrogate"),
    ],
)  # fmt: skip
def test_what_makes_no_page_is_refused(tmp_path, items, models, name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        write_sheet(items, models, BENCH, tmp_path / name, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_key_is_not_written_over(tmp_path):
    (tmp_path / "sheet.key.json").write_text("{")
    with pytest.raises(UserError, match=re.escape("sheet.key.json is damaged")):
        write_sheet(ten(), MODELS, BENCH, tmp_path / "sheet.html", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.key.json"]


def hostile():
    """Items whose every text is a different hostile one."""
    turned = [HOSTILE[i:] + HOSTILE[:i] for i in range(len(HOSTILE))]
    return [item(f"{a[:40]} {i}", a, b, c, d) for i, (a, b, c, d, *_) in enumerate(turned)]


def test_texts_in_the_page_stay_texts(tmp_path):
    out = tmp_path / "sheet.html"
    write_sheet(hostile(), MODELS, BENCH, out, 0)
    text, template = out.read_bytes().decode("utf-8"), TEMPLATE.read_text(encoding="utf-8")
    for tag in ("<script", "</script", "<img", "<!--"):
        assert text.lower().count(tag) == template.lower().count(tag)
    for asked, given in zip(shown(out)["items"], hostile(), strict=True):
        assert {asked["left"], asked["right"]} == {*given["responses"]}
        assert [asked[name] for name in ("id", "system", "prompt")] == [
            given[name] for name in ("id", "system", "prompt")
        ]
    assert "쉬운 말로 설명" in text


def test_the_page_asks_the_network_for_nothing():
    text = TEMPLATE.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|\bsrc=|\bhref=|@import|fetch\(|XMLHttp|import\(", text)
    assert "url(" not in text and "default-src 'none'" in text and "innerHTML" not in text


# What people answered


def write_key(tmp_path, sheet="s1"):
    """The key of four items of two sources; the first model is on the left of q1 and q3."""
    sides = [("q1", "a", "ours"), ("q2", "a", "theirs"), ("q3", "b", "ours"), ("q4", "b", "theirs")]
    items = [dict(zip(("id", "source", "left"), side)) for side in sides]
    key = {"sheet": sheet, "models": list(MODELS), "bench": BENCH, "items": items}
    (tmp_path / "key.json").write_text(json.dumps(key))
    return tmp_path / "key.json"


def export(tmp_path, name, annotator, judgments, sheet="s1"):
    content = {"sheet": sheet, "annotator": annotator, "judgments": judgments}
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / name


ANN = {"q1": "left", "q2": "left", "q3": "both good", "q4": "right"}  # win, lose, good, win
BOB = {"q1": "right", "q2": "left", "q3": "both bad"}  # lose, lose, bad
RATES = ("win", "both good", "both bad", "lose")


def test_a_result_by_hand(tmp_path):
    files = [
        export(tmp_path, "1.json", "Ann", ANN),
        export(tmp_path, "2.json", "Bob", BOB),
    ]
    result = read_sheets(write_key(tmp_path), files)
    assert result == {
        "kind": "people",
        "model": "janus-7b",
        "opponent": "plain-model",
        "judge": "people",
        "bench": BENCH,
        "settings": {"sheet": "s1"},
        "counts": {"ok": 7, "failed": 0, "missing": 1},
        "annotators": {"Ann": 4, "Bob": 3},
        "rates": pytest.approx(dict(zip(RATES, (2 / 7, 1 / 7, 1 / 7, 3 / 7)))),
        "tie_win": pytest.approx(3 / 7),
        "interval": pytest.approx([0.115430, 0.811697], abs=1e-5),  # Wilson's of 3/7 in 4 items
        # Shared are q1 to q3, alike is q2; n = 6, D_o = 1 - 2/6, D_e = 1 - 3 · 2/30.
        "agreement": pytest.approx({"observed": 1 / 3, "alpha": 1 / 6, "items": 3}),
        "by_source": {
            "a": {"items": 2, "rates": dict(zip(RATES, (0.25, 0, 0, 0.75))), "tie_win": 0.25},
            "b": {
                "items": 2,
                "rates": pytest.approx(dict(zip(RATES, (1 / 3, 1 / 3, 1 / 3, 0)))),
                "tie_win": pytest.approx(2 / 3),
            },
        },
    }
    assert json.loads(json.dumps(result)) == result


ALL, NONE = [0.20655, 1], [0, 0.79345]  # Wilson's intervals of 1 and 0 in 1


@pytest.mark.parametrize(
    ("item", "choice", "outcome", "tie_win", "interval"),
    [
        ("q1", "left", "win", 1, ALL),
        ("q1", "right", "lose", 0, NONE),
        ("q2", "left", "lose", 0, NONE),
        ("q2", "right", "win", 1, ALL),
        ("q1", "both good", "both good", 1, ALL),
        ("q2", "both bad", "both bad", 0, NONE),
    ],
)
def test_one_judgment_is_a_result(tmp_path, item, choice, outcome, tie_win, interval):
    """Nothing is said about what nobody judged."""
    files = [export(tmp_path, "1.json", "Ann", {item: choice})]
    result = read_sheets(write_key(tmp_path), files)
    assert result["rates"] == dict.fromkeys(RATES, 0) | {outcome: 1}
    assert result["tie_win"] == tie_win
    assert result["counts"] == {"ok": 1, "failed": 0, "missing": 3}
    assert result["interval"] == pytest.approx(interval, abs=1e-5)
    assert result["agreement"] == {"observed": None, "alpha": None, "items": 0}
    assert list(result["by_source"]) == ["a"] and result["by_source"]["a"]["items"] == 1


def test_files_of_one_annotator_are_joined(tmp_path):
    files = [
        export(tmp_path, "1.json", "Ann Lee", {"q1": "left", "q2": "left"}),
        export(tmp_path, "2.json", " Ann\n Lee ", {"q2": "left", "q3": "both good"}),
        export(tmp_path, "3.json", "Ann", {"q2": "left", "q1": "left"}),
    ]
    result = read_sheets(write_key(tmp_path), [*files, files[0]])
    assert result["annotators"] == {"Ann Lee": 3, "Ann": 2}
    assert result["counts"] == {"ok": 5, "failed": 0, "missing": 3}
    assert result["agreement"] == {"observed": 1, "alpha": 1, "items": 2}


def test_an_annotator_who_contradicts_themselves_is_named(tmp_path):
    first = export(tmp_path, "1.json", "Ann", {"q1": "left", "q2": "left"})
    second = export(tmp_path, "2.json", "Ann", {"q1": "left", "q2": "both bad"})
    message = (
        f"{second}: Ann judges item 'q2' 'both bad', but 'left' in {first}: leave out the file "
        "that does not hold"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        read_sheets(write_key(tmp_path), [first, second])


KEYS = "needed are the keys ['sheet', 'annotator', 'judgments'] of an export of the sheet's page"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "export.json not found: needed is an export of the sheet's page"),
        ("{", "export.json is damaged: Expecting"),
        ("[]", "export.json is damaged: a JSON object is needed"),
        ('{"sheet": "s1", "name": 1}', f"export.json: {KEYS}, found ['sheet', 'name']"),
        ({"sheet": "s2"}, "export.json is of sheet 's2', needed is one of sheet 's1'"),
        ({"annotator": 3}, "export.json: 'annotator' must be text, found int"),
        ({"annotator": " \n"}, "export.json: 'annotator' is empty, needed is a name"),
        ({"annotator": "\ud800"}, "export.json: 'annotator' holds a lone surrogate"),
        ({"judgments": {}}, "export.json: no item is judged in it"),
        ({"judgments": ["left"]},
         "export.json: 'judgments' must be an object of choices by item, found list"),
        ({"judgments": {"q1": "left", "q9": "left"}},
         "export.json: item 'q9' is not one of the sheet's"),
        ({"judgments": {"q1": "win"}},
         "export.json: the judgment of item 'q1' is 'win', must be one of ['left', 'both good', "
         "'both bad', 'right']"),
        ({"judgments": {"q1": ["left"]}}, "the judgment of item 'q1' is ['left'], must be one of"),
    ],
)  # fmt: skip
def test_what_is_no_export_is_refused(tmp_path, content, message):
    path = tmp_path / "export.json"
    if isinstance(content, dict):
        whole = {"sheet": "s1", "annotator": "Ann", "judgments": {"q1": "left"}} | content
        path.write_text(json.dumps(whole))
    elif content is not None:
        path.write_text(content)
    good = export(tmp_path, "good.json", "Bob", BOB)
    with pytest.raises(UserError, match=re.escape(message)):
        read_sheets(write_key(tmp_path), [good, path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no.json not found: needed is a key file, which is written beside the sheet"),
        ("{}", "no.json: needed are the keys ['sheet', 'models', 'bench', 'items'] of a key file"),
        ('{"sheet": "s1", "models": ["a", "b"], "bench": {}, "items": [{"id": "q1"}]}',
         "no.json: 'items' must be objects with ['id', 'source', 'left'], found {'id': 'q1'}"),
        ('{"sheet": "s1", "models": ["a", "b"], "bench": {}, "items": ["q1"]}',
         "no.json: 'items' must be objects with ['id', 'source', 'left'], found 'q1'"),
    ],
)  # fmt: skip
def test_what_is_no_key_is_refused(tmp_path, content, message):
    path = tmp_path / "no.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_sheets(path, [export(tmp_path, "1.json", "Ann", ANN)])


def test_without_exports_there_is_no_result(tmp_path):
    message = re.escape("key.json: no export of this sheet is given, needed is at least one")
    with pytest.raises(UserError, match=message):
        read_sheets(write_key(tmp_path), [])


@pytest.mark.parametrize(
    ("items", "observed", "alpha", "shared"),
    [
        ([], None, None, 0),
        (["w", "l"], None, None, 0),
        (["ww", "www", "l"], 1, None, 2),  # one outcome wherever two could agree
        (["ww", "ll"], 1, 1, 2),
        (["wl", "wl"], 0, -1 / 2, 2),  # D_o = 1, D_e = 1 - (2 + 2)/12
        (["ww", "wl", "llw", "b"], 4 / 10, 0, 3),  # D_o = 1 - (2 + 2/2)/7, D_e = 1 - (12 + 6)/42
        (["www", "ll", "wb"], 8 / 10, 4 / 7, 3),  # D_o = 1 - (6/2 + 2)/7, D_e = 1 - (12 + 2)/42
    ],
)
def test_agreement_by_hand(items, observed, alpha, shared):
    found = agreement([Counter(choices) for choices in items])
    expected = {"observed": observed, "alpha": alpha, "items": shared}
    assert found == pytest.approx(expected, abs=1e-12)


def test_alpha_of_the_published_example():
    """Four observers, twelve units, five values, some missing: 0.743 (Krippendorff 2011, C)."""
    observers = ["123321412   ", "1233224125 3", " 3332342251 ", "12332441251 "]
    units = [Counter("".join(unit).replace(" ", "")) for unit in zip(*observers)]
    assert agreement(units)["alpha"] == pytest.approx(0.743, abs=5e-4)


# In a browser


class Sheet(Browser):
    """A browser that knows its way around the page."""

    def open_context(self):
        """A part of the browser that shares nothing with the others."""
        self.session = {}
        return {"browserContextId": self("Target.createBrowserContext")["browserContextId"]}

    def close_context(self, context):
        self.session = {}
        self("Target.disposeBrowserContext", **context)

    def open(self, url):
        super().open(url, "#size:not(:empty)")

    def reload(self):
        self.value("window.old = 1")
        self("Page.reload")
        self.wait_for("document.readyState + typeof window.old", "completeundefined")

    def begin(self, name="Ann"):
        """Types a name and starts."""
        self("Input.insertText", text=name)
        self.key("Enter")

    def keys(self, keys):
        for key in keys:
            self.key(key)

    def click(self, selector, count=1):
        """Real events of the mouse in the middle of what the selector finds."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.value(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
        for i in range(1, count + 1):
            for kind in ("mousePressed", "mouseReleased"):
                event = dict(type=kind, x=x, y=y, button="left", clickCount=i)
                self("Input.dispatchMouseEvent", **event)

    def wait_for_event(self, method):
        deadline = time.monotonic() + 20
        while not (found := [event for event in self.events if event["method"] == method]):
            assert time.monotonic() < deadline, f"no {method}"
            self("Target.getTargets")  # whose answer comes after all events before it
            time.sleep(0.02)
        self.events.remove(found[0])
        return found[0]["params"]

    def answer(self, accept):
        """Answers the question that the page asks, and returns it."""
        question = self.wait_for_event("Page.javascriptDialogOpening")["message"]
        self("Page.handleJavaScriptDialog", accept=accept)
        return question

    def hand_in(self, path):
        """Chooses a file where the page asks for one."""
        self("Page.setInterceptFileChooserDialog", enabled=True)
        self.click("#import")
        node = self.wait_for_event("Page.fileChooserOpened")["backendNodeId"]
        self("DOM.setFileInputFiles", files=[str(path)], backendNodeId=node)

    def state(self):
        return self.value("[position, annotator, [...judgments.values()].join()]")

    def saved(self, path):
        """A file that the browser has written to its end."""
        deadline = time.monotonic() + 20
        while not path.is_file() or not path.read_bytes().endswith(b"}\n"):
            assert time.monotonic() < deadline, f"{path} is not there"
            time.sleep(0.02)
        return path


PROGRESS, NOTICE = "byId('progress').textContent", "byId('notice').textContent"
PRESSED = "choices.map(button => button.ariaPressed === 'true' ? 1 : 0).join('')"
DISABLED = "[...document.querySelectorAll('#moves :disabled')].map(b => b.id).join()"
SHOWN = "['start', 'judging'].filter(id => !byId(id).hidden).join()"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with started(Sheet, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that says nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    """The address of the files in tmp_path. After one file:// page has followed another in a tab,
    Chromium 156 forgets what the page keeps, in one of a hundred cases; from a server, in none."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def fresh(browser, site, tmp_path):
    """Opens a page of these items, in a tab of a browser that has kept nothing; its downloads go to
    tmp_path. Afterwards, nothing has gone wrong in the page, and nothing was asked of others."""

    def opened(items):
        write_sheet(items, MODELS, BENCH, tmp_path / "sheet.html", 0)
        browser.open(f"{site}/sheet.html")
        return browser

    browser.open_tab(**(context := browser.open_context()))
    folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser("Browser.setDownloadBehavior", **folder, **context)
    yield opened
    browser.close_context(context)
    assert [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"] == []
    assert [e for e in browser.events if e["method"] == "Log.entryAdded"] == []
    requests = [e for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    asked = {event["params"]["request"]["url"] for event in requests}
    pages = {f"{site}/sheet.html", f"{site}/other.html", (tmp_path / "sheet.html").as_uri()}
    assert {url for url in asked if not url.startswith("blob:")} <= pages


def test_ten_items_by_keyboard_alone(fresh, tmp_path):
    page = fresh(ten())
    about = key_of(tmp_path / "sheet.key.json")
    wanted = ["win"] * 4 + ["both good"] * 3 + ["both bad"] + ["lose"] * 2
    lefts = [side["left"] for side in about["items"]]
    places = {"win": "ours", "lose": "theirs"}
    keys = [
        {"both good": "2", "both bad": "3"}.get(
            outcome, "1" if places.get(outcome) == left else "4"
        )
        for outcome, left in zip(wanted, lefts)
    ]
    assert {*keys} == {"1", "2", "3", "4"}
    page.begin("Ann Lee")
    assert page.value(PROGRESS) == "1 of 10, 0 judged"
    page.keys([*keys[:2], "3", *keys[3:5]])  # the third one is changed later
    assert page.value(PROGRESS) == "6 of 10, 5 judged"
    page.reload()
    assert page.value(PROGRESS) == "6 of 10, 5 judged"
    assert page.value("byId('annotator').textContent") == "Ann Lee"
    page.keys(keys[5:])
    done = "All items are judged: export your judgments, and hand the file in."
    assert (page.value(PROGRESS), page.value(NOTICE)) == ("10 of 10, 10 judged", done)
    page.keys(["ArrowLeft"] * 7)
    assert (page.value(PROGRESS), page.value(PRESSED)) == ("3 of 10, 10 judged", "0010")
    page.key(keys[2])
    assert page.value(PROGRESS) == "4 of 10, 10 judged"
    page.key("ArrowLeft")
    assert page.value(PRESSED) == {"1": "1000", "4": "0001"}[keys[2]]
    page.key("E")
    file = page.saved(tmp_path / f"Ann Lee-{about['sheet']}.json")
    assert page.value(NOTICE) == f"Exported to {file.name}."
    result = read_sheets(tmp_path / "sheet.key.json", [file])
    assert result["rates"] == dict(zip(RATES, (0.4, 0.3, 0.1, 0.2)))
    assert result["tie_win"] == 0.7
    assert result["interval"] == pytest.approx([0.39678, 0.89221], abs=1e-5)
    assert (result["annotators"], result["counts"]["missing"]) == ({"Ann Lee": 10}, 0)


def test_what_is_not_judged_yet_is_found_and_said(fresh, tmp_path):
    page = fresh(ten()[:4])
    page.begin('A/n:n "<é>.json')
    page.key("e")
    assert page.value(NOTICE) == "No item is judged yet: there is nothing to export."
    assert page.value(DISABLED) == "back"
    page.keys(["1", "ArrowRight", "2"])
    page.key("3")
    assert page.value(PROGRESS) == "4 of 4, 3 judged"
    assert page.value(NOTICE) == "1 item not judged yet."
    assert page.value(DISABLED) == "next"
    page.key("e")
    name = f"A_n_n __é_.json-{key_of(tmp_path / 'sheet.key.json')['sheet']}.json"
    assert page.value(NOTICE) == f"Exported to {name}; 1 not judged yet."
    found = json.loads(page.saved(tmp_path / name).read_text(encoding="utf-8"))
    assert found["annotator"] == 'A/n:n "<é>.json'
    assert found["judgments"] == {"q0": "left", "q2": "both good", "q3": "both bad"}
    page.key("n")
    assert (page.value(PROGRESS), page.value(PRESSED)) == ("2 of 4, 3 judged", "0000")
    page.key("4")
    assert page.value(DISABLED) == "open"
    assert [*read_sheets(tmp_path / "sheet.key.json", [tmp_path / name])["annotators"]] == [
        'A/n:n "<é>.json'
    ]


def test_keys_that_must_do_nothing_do_nothing(fresh):
    page = fresh(ten())
    page.keys("1234ne")  # on the first screen
    page.key("Enter")  # without a name
    assert (page.value(SHOWN), page.state()) == ("start", [0, "", ""])
    page("Input.insertText", text=" ")
    page.key("Enter")
    assert page.value(SHOWN) == "start"
    page.begin("Ann")
    for modifier in (1, 2, 4, 8):  # Alt, Control, Meta, Shift
        page.key("1", modifiers=modifier)
    page.keys(["0", "5", "x", "ArrowLeft"])
    assert page.state() == [0, "Ann", ""]
    page.key("1", repeats=5)
    assert page.state() == [1, "Ann", "left"]
    page.value("choices[1].focus()")
    page.key("Enter", repeats=5)
    assert page.state() == [2, "Ann", "left,both good"]
    page.click("#choices button:nth-child(4)", count=2)
    assert page.state() == [3, "Ann", "left,both good,right"]
    page.key("&", code="Digit3")  # the third digit of a keyboard that has them above Shift
    assert page.state() == [4, "Ann", "left,both good,right,both bad"]
    page.value("byId('help').click()")
    page.key("2")  # where the name can be changed
    assert (page.value(SHOWN), page.state()[0]) == ("start", 4)


def test_buttons_do_what_keys_do(fresh):
    page = fresh(ten())
    page("Input.insertText", text=" Ann ")
    page.click("#go")
    for i, outcome in enumerate(("left", "both good", "both bad", "right"), start=1):
        page.click(f"#choices button:nth-child({i})")
        assert page.state() == [i, "Ann", page.value("[...judgments.values()].join()")]
        assert page.value(f"judgments.get('q{i - 1}')") == outcome
    page.click("#back")
    assert (page.value(PROGRESS), page.value(PRESSED)) == ("4 of 10, 4 judged", "0001")
    page.click("#next")
    page.click("#next")
    assert page.state()[0] == 5
    page.click("#open")
    assert page.state()[0] == 4
    page.click("#help")
    assert page.value("byId('so-far').textContent") == "Ann has judged 4 of 10 in this browser."
    page.value("byId('name').value = 'Eve'")
    page.click("#go")  # on, with the name changed
    assert page.state()[:2] == [4, "Eve"]
    page.reload()
    assert page.state()[:2] == [4, "Eve"]


def test_long_items_start_at_their_top_and_the_choices_stay_in_sight(fresh):
    page = fresh([item(name, ours="long\n" * 300) for name in "abc"])
    page.begin()
    top = "document.querySelector('header').getBoundingClientRect().top"
    inside = "Math.abs(byId('bar').getBoundingClientRect().bottom - innerHeight) < 2"
    assert page.value(inside)
    for key in ("2", "ArrowRight", "ArrowLeft", "n"):
        page.value("scrollTo(0, 2000)")
        assert page.value(top) == -2000 and page.value(inside)
        page.key(key)
        assert page.value(top) == 0, key
        assert page.value("document.activeElement.id") == "item"


def test_responses_are_side_by_side_or_below_each_other(fresh):
    page = fresh(ten())
    page.begin()
    boxes = "['left', 'right'].map(id => byId(id).getBoundingClientRect()).map(b => [b.x, b.y])"
    (x0, y0), (x1, y1) = page.value(boxes)
    assert x0 < x1 and y0 == y1
    try:
        page("Emulation.setDeviceMetricsOverride",
             width=390, height=844, deviceScaleFactor=1, mobile=True)  # fmt: skip
        (x0, y0), (x1, y1) = page.value(boxes)
        assert x0 == x1 and y0 < y1
        assert page.value("document.documentElement.scrollWidth") == 390
    finally:
        page("Emulation.clearDeviceMetricsOverride")


def test_dark_and_light(fresh):
    page, shades = fresh(ten()), []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page("Emulation.setEmulatedMedia", features=[feature])
        shades.append(page.value("getComputedStyle(document.body).backgroundColor"))
    page("Emulation.setEmulatedMedia", features=[])
    assert shades == ["rgb(243, 244, 246)", "rgb(17, 20, 22)"]


def test_hostile_texts_are_shown_as_they_are(fresh, tmp_path):
    page = fresh(hostile())
    page.open((tmp_path / "sheet.html").as_uri())  # as people open it
    page.begin("<b>Ann</b>")
    lefts = [side["left"] for side in key_of(tmp_path / "sheet.key.json")["items"]]
    for given, left in zip(hostile(), lefts):
        ours, theirs = given["responses"]
        texts = [ours, theirs] if left == "ours" else [theirs, ours]
        texts = [given["system"], given["prompt"], *texts]
        found = "['system', 'prompt', 'left', 'right'].map(id => byId(id).textContent)"
        assert page.value(found) == texts
        assert page.value("document.documentElement.scrollWidth <= innerWidth")
        page.key("2")
    assert page.value("byId('annotator').textContent") == "<b>Ann</b>"
    assert page.value("typeof window.hacked + document.images.length") == "undefined0"
    assert page.value("getComputedStyle(byId('left')).whiteSpaceCollapse") == "preserve"
    page.key("e")
    sheet = key_of(tmp_path / "sheet.key.json")["sheet"]
    file = page.saved(tmp_path / f"_b_Ann__b_-{sheet}.json")
    result = read_sheets(tmp_path / "sheet.key.json", [file])
    assert result["counts"]["ok"] == len(HOSTILE) and result["rates"]["both good"] == 1


def test_an_export_is_taken_up_again(fresh, tmp_path):
    page = fresh(ten())
    sheet = key_of(tmp_path / "sheet.key.json")["sheet"]
    judgments = {"q0": "right", "q1": "both bad", "q3": "left"}
    page.hand_in(export(tmp_path, "good.json", "Bob", judgments, sheet))
    page.wait_for(SHOWN, "judging")
    assert page.state() == [2, "Bob", "right,both bad,left"]
    page.reload()
    assert page.state() == [2, "Bob", "right,both bad,left"]
    page.click("#help")
    page.hand_in(export(tmp_path, "other.json", "Ann", {"q0": "left"}, sheet))
    assert page.answer(False) == (
        "The 3 judgments of Bob in this browser will be replaced by the 1 of Ann in the file."
    )
    assert page.state()[1] == "Bob"
    page.hand_in(tmp_path / "other.json")
    page.answer(True)
    page.wait_for(SHOWN, "judging")
    assert page.state() == [1, "Ann", "left"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "it is not JSON"),
        ("null", "it is no export of judgments"),
        ({"sheet": 3}, "it is no export of judgments"),
        ({"annotator": None}, "it is no export of judgments"),
        ({"judgments": {}}, "it is no export of judgments"),
        ({"judgments": None}, "it is no export of judgments"),
        ({"sheet": "s9"}, "it is of another sheet, s9; this is SHEET"),
        ({"judgments": {"q99": "left"}}, "it holds judgments that this sheet does not know"),
        ({"judgments": {"q0": "win"}}, "it holds judgments that this sheet does not know"),
    ],
)
def test_another_file_is_not_taken_up(fresh, tmp_path, content, reason):
    page = fresh(ten())
    sheet = key_of(tmp_path / "sheet.key.json")["sheet"]
    if isinstance(content, dict):
        whole = {"sheet": sheet, "annotator": "Ann", "judgments": {"q0": "left"}} | content
        content = json.dumps(whole)
    (tmp_path / "bad.json").write_text(content)
    page.hand_in(tmp_path / "bad.json")
    message = f"bad.json is refused: {reason.replace('SHEET', sheet)}."
    page.wait_for("byId('so-far').textContent", message)
    assert (page.value(SHOWN), page.state()) == ("start", [0, "", ""])


def test_to_start_over_is_asked_twice(fresh):
    page = fresh(ten())
    assert page.value("byId('over').hidden")  # there is nothing to start over from
    page.begin("Ann")
    page.keys("12")
    page.click("#help")
    for accept in (False, True):
        page.value("setTimeout(() => byId('over').click())")
        assert page.answer(accept) == (
            "The 2 judgments of Ann will be removed from this browser. What is not exported is "
            "lost."
        )
        page.wait_for("judgments.size", 0 if accept else 2)
    assert (page.value(SHOWN), page.value("byId('name').value")) == ("start", "")
    page.reload()
    assert (page.value(SHOWN), page.state()) == ("start", [0, "", ""])
    page.begin("Bob")
    page.keys("12")
    page.click("#help")
    page.value("setTimeout(() => byId('over').click())")
    page.answer(True)
    page.wait_for("judgments.size", 0)
    page.begin("Eve")
    assert page.state() == [0, "Eve", ""]


def test_two_sheets_do_not_share_their_state(fresh, browser, site, tmp_path):
    page = fresh(ten())
    page.begin()
    page.keys("12")
    write_sheet(ten(ours="x"), MODELS, BENCH, tmp_path / "other.html", 0)
    browser.open(f"{site}/other.html")
    assert (page.value(SHOWN), page.state()) == ("start", [0, "", ""])
    assert page.value("localStorage.length") == 1  # where nothing is done, nothing is written
    browser.open(f"{site}/sheet.html")
    assert page.state() == [2, "Ann", "left,both good"]


def test_a_browser_that_keeps_nothing_says_so(fresh, browser, site):
    page = fresh(ten())
    assert page.value("byId('unsaved').hidden")
    refusal = (
        "Object.defineProperty(window, 'localStorage', "
        "{get() { throw new DOMException('refused', 'SecurityError'); }})"
    )
    script = browser("Page.addScriptToEvaluateOnNewDocument", source=refusal)["identifier"]
    try:
        browser.open(f"{site}/sheet.html")
        assert page.value("byId('unsaved').checkVisibility()")
        assert "export yours before you close" in page.value("byId('unsaved').textContent")
        page.begin()
        page.keys("12")
        assert page.state() == [2, "Ann", "left,both good"]
        assert page.value("byId('unsaved').checkVisibility()")
    finally:
        browser("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


def test_storage_that_is_full_is_said_at_once(fresh):
    page = fresh(ten())
    page.begin()
    page.value(
        "for (let size = 1 << 20, rest = ''; size; size >>= 1)"
        "  try { while (true) localStorage.setItem('rest', rest += 'x'.repeat(size)); }"
        "  catch { rest = localStorage.getItem('rest') ?? ''; }"
    )
    page.key("1")
    assert not page.value("byId('unsaved').hidden")
    page.value("localStorage.removeItem('rest')")
    page.key("1")
    assert page.value("byId('unsaved').hidden")


def test_two_tabs_of_a_sheet_are_one(fresh, browser, site):
    """What is judged in one is not lost when the other goes on."""
    fresh(ten())
    first, target = browser.session, browser("Target.getTargetInfo")["targetInfo"]
    browser.open_tab(browserContextId=target["browserContextId"])
    browser.open(f"{site}/sheet.html")
    second, browser.session = browser.session, first
    browser.begin()
    browser.key("1")
    browser.session = second
    browser.wait_for("byId('so-far').textContent", "Ann has judged 1 of 10 in this browser.")
    assert browser.value(SHOWN) == "start" and browser.value("byId('name').value") == "Ann"
    browser.click("#go")
    browser.keys(["ArrowRight", "2", "3"])
    browser.session = first
    browser.wait_for("judgments.size", 3)
    browser.key("4")
    assert browser.state() == [2, "Ann", "left,right,both bad"]
    browser.session = second
    browser.wait_for("judgments.get('q1')", "right")
