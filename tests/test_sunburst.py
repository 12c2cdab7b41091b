"""The page of preferences: its tree, what is inside the file, and how it behaves in a browser."""

import json
import re

import pytest

from janus_min.errors import UserError
from janus_min.mini_data import collection
from janus_min.sunburst import TEMPLATE, page, tree_of_hierarchy, tree_of_rows, write_page
from tests.browser import Browser, started

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "\"quoted\" & 'quoted' \\ `${window.hacked = 1}` {} {0} $& $1 %s \\1",
    "line\u2028and\u2029paragraph",
    "@@TITLE@@ @@TREE@@",
    "쉬운 말로 설명",
]


def write_rows(path, *sets):
    """A file of rows with these preference sets, and one of plain text between them."""
    rows = [{"preference_set": entries, "output": "Yes."} for entries in sets]
    lines = [json.dumps(row, ensure_ascii=False) for row in [*rows[:1], {"text": "T"}, *rows[1:]]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def entry(dimension, subdimension, preference, description="D"):
    names = {"dimension": dimension, "subdimension": subdimension, "preference": preference}
    return names | {"description": description}


def leaf(name, count, description="D"):
    return {"name": name, "count": count, "description": description}


def parent(name, count, *children, description=""):
    return leaf(name, count, description) | {"children": list(children)}


def assert_counts_add_up(node):
    if children := node.get("children"):
        assert node["count"] == sum(child["count"] for child in children), node["name"]
        for child in children:
            assert_counts_add_up(child)


def names(node):
    return [child["name"] for child in node["children"]]


# Trees


def test_the_tree_of_rows_keeps_the_most_frequent_and_gathers_the_rest(tmp_path):
    tone = [entry("style", "tone", name) for name in ("warm", "warm", "warm", "dry", "dry", "odd")]
    tone[2]["description"] = "a later one"
    other = [entry("style", name, "x") for name in ("form", "form", "voice", "pace")]
    more = {"dimension": "safety", "subdimension": "care", "preference": "warns"}
    path = write_rows(tmp_path / "rows.jsonl", [*tone, *other[:1]], [], [*other[1:], more])
    assert tree_of_rows(path, subdimensions=2, preferences=2) == parent(
        "all preferences",
        11,
        parent(
            "style",
            10,
            parent(
                "tone",
                6,
                leaf("warm", 3),
                leaf("dry", 2),
                leaf("1 other", 1, "Not shown one by one: odd"),
            ),
            parent("form", 2, leaf("x", 2)),
            tree_of_rows(path, 2, 2)["children"][0]["children"][2],
        ),
        parent("safety", 1, parent("care", 1, leaf("warns", 1, ""))),
        description="11 mentions in 2 rows: 2 dimensions, 5 subdimensions, 7 preferences.",
    )
    others = tree_of_rows(path, 2, 2)["children"][0]["children"][2]
    assert others["name"] == "2 others" and others["count"] == 2 and "children" not in others
    assert {"pace", "voice"} == set(others["description"].split(": ")[1].split("; "))


@pytest.mark.parametrize("sizes", [(8, 6), (2, 1), (1, 3)])
def test_counts_add_up_at_every_level(tmp_path, sizes):
    rows = [row["preference_set"] for row in collection()]
    tree = tree_of_rows(write_rows(tmp_path / "rows.jsonl", *rows), *sizes)
    assert_counts_add_up(tree)
    assert tree["count"] == 4 * len(rows)
    assert all(node["count"] == len(rows) for node in tree["children"])
    for dimension in tree["children"]:
        assert len(dimension["children"]) <= sizes[0] + 1
        assert all(len(part.get("children", ())) <= sizes[1] + 1 for part in dimension["children"])


def test_preferences_that_occur_equally_often_are_drawn_by_the_seed(tmp_path):
    entries = [entry("style", "tone", f"p{i}") for i in range(30)] + [entry("style", "tone", "p7")]
    path = write_rows(tmp_path / "rows.jsonl", entries)
    turned = write_rows(tmp_path / "turned.jsonl", entries[::-1])

    def shown(seed, path=path):
        return names(tree_of_rows(path, preferences=4, seed=seed)["children"][0]["children"][0])

    assert shown(0) == shown(0) == shown(0, turned) != shown(1)
    for seed in range(5):
        assert shown(seed)[0] == "p7" and shown(seed)[-1] == "26 others"
    # 60 draws of 3 from 29: each has its share, and none is drawn always.
    drawn = [name for seed in range(60) for name in shown(seed)[1:-1]]
    assert len(set(drawn)) == 29 and max(map(drawn.count, drawn)) < 20
    others = tree_of_rows(path, preferences=4)["children"][0]["children"][0]["children"][-1]
    assert others["description"].count("; ") == 3 and others["description"].endswith("; …")


PART = {"dimension": "style", "subdimension": "tone"}
FORM = (
    "'preference_set' must be a list of objects with 'dimension', 'subdimension' and 'preference'"
)


@pytest.mark.parametrize(
    ("rows", "sizes", "message"),
    [
        ([{"text": "T"}, {"prompt": "P"}], {},
         "rows.jsonl: no row has 'preference_set', found ['prompt', 'text']; needed is a list of "
         "objects with 'dimension', 'subdimension' and 'preference', as in the collection that "
         "datagen.py makes"),
        ([{"preference_set": []}, {"preference_set": None}], {}, "no row has 'preference_set'"),
        ([{"preference_set": "style"}], {}, f"rows.jsonl:1: {FORM}"),
        ([{"preference_set": ["style"]}], {}, f"rows.jsonl:1: {FORM}"),
        ([{"preference_set": [PART]}], {}, "rows.jsonl:1: 'preference_set': key 'preference' is "),
        ([{"preference_set": [PART | {"preference": 3}]}], {}, "'preference' must be text, found"),
        ([], {"subdimensions": 0}, "--subdimensions is 0, must be at least 1"),
        ([], {"preferences": -1}, "--preferences is -1, must be at least 1"),
    ],
)  # fmt: skip
def test_rows_that_make_no_tree_are_refused(tmp_path, rows, sizes, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=re.escape(message)):
        tree_of_rows(path, **sizes)


def test_the_tree_of_a_hierarchy_has_one_of_each(tmp_path):
    path = tmp_path / "seeds.json"
    seeds = [{"preference": "warm", "description": "W"}, {"preference": "dry", "description": "D"}]
    path.write_text(json.dumps({"style": {"tone": seeds, "pace": seeds[:1]}}))
    tree = tree_of_hierarchy(path)
    assert tree["children"] == [
        parent(
            "style",
            3,
            parent("tone", 2, leaf("warm", 1, "W"), leaf("dry", 1, "D")),
            parent("pace", 1, leaf("warm", 1, "W")),
        )
    ]
    assert tree["count"] == 3
    assert tree["description"] == "The seeds: 1 dimension, 2 subdimensions, 3 preferences."


def test_the_tree_of_our_seeds():
    tree = tree_of_hierarchy(TEMPLATE.with_name("hierarchy.json"))
    assert_counts_add_up(tree)
    assert set(names(tree)) == {
        "style",
        "background_knowledge",
        "informativeness",
        "harmlessness",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "seeds.json not found: a JSON file of seed preferences is needed"),
        ("{", "seeds.json is damaged"),
        ('{"style": []}', "'style' must be an object of subdimensions"),
        ('{"style": {"tone": ["warm"]}}',
         "'style', 'tone' must be a list of objects with 'preference' and 'description'"),
        ('{"style": {"tone": [{"preference": "warm"}]}}', "key 'description' is needed"),
        ('{"style": {"tone": []}}', "has no preference: each subdimension needs a list of them"),
        ('{"\\ud800": {}}', "lone surrogate"),
    ],
)  # fmt: skip
def test_a_hierarchy_of_another_form_is_refused(tmp_path, content, message):
    path = tmp_path / "seeds.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        tree_of_hierarchy(path)


# The page


def hostile_page(tmp_path):
    """Names that try to be code, as dimension, subdimension, preference, description and title."""
    entries = [entry(name, name, name, name) for name in HOSTILE]
    tree = tree_of_rows(write_rows(tmp_path / "rows.jsonl", entries))
    return tree, page(tree, HOSTILE[0])


def test_names_in_the_page_stay_names(tmp_path):
    tree, text = hostile_page(tmp_path)
    template = TEMPLATE.read_text(encoding="utf-8")
    for tag in ("<script", "</script", "<img", "<title", "<!--"):
        assert text.lower().count(tag) == template.lower().count(tag)
    data = re.search('<script type="application/json" id="tree">(.*)</script>', text)[1]
    assert json.loads(data) == tree and names(tree) == HOSTILE
    assert not set("<>&\u2028\u2029") & set(data) and "쉬운 말로 설명" in data
    assert text.count("&lt;/script&gt;&lt;script&gt;window.hacked = 1&lt;/script&gt;") == 2
    assert f"<p>{tree['description']} Click an arc" in text


def test_the_page_asks_the_network_for_nothing():
    text = page(tree_of_hierarchy(TEMPLATE.with_name("hierarchy.json")), "Seeds")
    assert "<h1>Seeds</h1>" in text and "@@" not in text
    assert not re.search(r"https?:|//[a-z]|\bsrc=|\bhref=|@import|fetch\(|XMLHttp|import\(", text)
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    assert "default-src 'none'" in text


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    tree, text = hostile_page(tmp_path)
    out = tmp_path / "page.html"
    out.write_text("old")
    write_page(tree, HOSTILE[0], out)
    assert out.read_bytes().decode("utf-8") == text
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "rows.jsonl"}
    with pytest.raises(UserError, match="none is not a directory: --out is the file to write"):
        write_page(tree, "T", tmp_path / "none" / "page.html")
    with pytest.raises(UserError, match="--title holds a lone surrogate"):
        page(tree, "\ud800")


# In a browser


class Sunburst(Browser):
    """A browser that knows its way around the page."""

    def open(self, path):
        super().open(path.as_uri(), "nav b")

    def pointer(self, name, *kinds):
        """Real events of the mouse in the middle of the arc with this name."""
        self.mouse(SPOT.replace("NAME", json.dumps(name)), *kinds)

    def click(self, name):
        self.pointer(name, "mouseMoved", "mousePressed", "mouseReleased")


SPOT = """(() => {
  const [start, end, inner, outer] = nodes.find(node => node.name === NAME).shape;
  const angle = (start + end) / 2, radius = (inner + outer) / 2;
  const point = new DOMPoint(radius * Math.sin(angle), -radius * Math.cos(angle));
  const {x, y} = point.matrixTransform(picture.getScreenCTM());
  return [x, y];
})()"""
CRUMBS = "crumbs.textContent"
VISIBLE = "[...arcs.children].filter(arc => arc.style.display !== 'none').length"
PLACE = "labels.childElementCount ? crumbs.textContent : 'on the way'"
HEADLINE = "panel.querySelector('h2').textContent"
FOCUSED = "document.activeElement.getAttribute('aria-label')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with started(Sunburst, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def opened(browser, tmp_path):
    """A page of two dimensions, three subdimensions and six preferences."""
    seeds = {"style": {"tone": "warm dry", "pace": "slow quick"}, "safety": {"care": "kind sure"}}
    hierarchy = {
        dimension: {
            part: [{"preference": name, "description": f"It is {name}."} for name in words.split()]
            for part, words in parts.items()
        }
        for dimension, parts in seeds.items()
    }
    (tmp_path / "seeds.json").write_text(json.dumps(hierarchy))
    write_page(tree_of_hierarchy(tmp_path / "seeds.json"), "Seeds", tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    yield browser
    assert [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown",)] == []
    assert [e for e in browser.events if e["method"] == "Log.entryAdded"] == []


def test_clicks_zoom_and_lead_back(opened):
    assert (opened.value(CRUMBS), opened.value(VISIBLE)) == ("all preferences", 11)
    assert opened.value("labels.textContent").startswith("styletonewarmdry")
    opened.click("style")
    opened.wait_for(PLACE, "all preferences › style")
    assert opened.value(VISIBLE) == 6
    assert opened.value(FOCUSED) == "style, back to all preferences"
    opened.click("slow")  # a preference: it is shown among its siblings
    opened.wait_for(PLACE, "all preferences › style › pace")
    assert opened.value(VISIBLE) == 2
    assert opened.value("panel.textContent") == (
        "slowPathstyle › pace › slowCount1Share50% of paceShare25% of styleShare17% of all"
        "It is slow."
    )
    opened.value("centre.dispatchEvent(new Event('click'))")
    opened.wait_for(PLACE, "all preferences › style")
    opened.value("crumbs.querySelector('button').click()")
    opened.wait_for(PLACE, "all preferences")
    assert opened.value(VISIBLE) == 11


def test_what_occurs_once_can_be_seen_beside_what_occurs_often(browser, tmp_path):
    often = [entry("style", "tone", "often")] * 990 + [entry("style", "pace", "slow")] * 1000
    path = write_rows(
        tmp_path / "rows.jsonl", [*often, *(entry("style", "tone", n) for n in "abc")]
    )
    write_page(tree_of_rows(path), "Rows", tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    share = "nodes.map(n => (n.shape[1] - n.shape[0]) / TURN - n.count / root.count)"
    assert max(map(abs, browser.value(share))) < 1e-9  # all angles are true
    browser.value("zoom(nodes.find(node => node.name === 'tone'))")
    browser.wait_for(PLACE, "all preferences › style › tone")
    browser.click("b")
    browser.wait_for(HEADLINE, "b")
    shape = "nodes.find(node => node.name === 'NAME').shape.map(x => x / TURN)"
    (start, end), often = (browser.value(shape.replace("NAME", n))[:2] for n in ("b", "often"))
    total = 990 / 993 + 3 / 20
    assert end - start == pytest.approx(1 / 20 / total)
    assert often[1] - often[0] == pytest.approx(990 / 993 / total)


def test_the_pointer_shows_what_it_is_on(opened):
    opened.pointer("kind", "mouseMoved")
    opened.wait_for(HEADLINE, "kind")
    assert opened.value("mark.getAttribute('d') === nodes.find(n => n.name === 'kind')"
                        ".path.getAttribute('d')")  # fmt: skip
    opened("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    opened.wait_for(HEADLINE, "all preferences")


def test_the_keyboard_alone_is_enough(opened):
    opened.key("Tab")
    assert opened.value(FOCUSED) == "style: 4, 67% of all. "
    opened.key("Tab")
    assert opened.value(FOCUSED) == "style › tone: 2, 33% of all. "
    opened.pointer("kind", "mouseMoved")
    opened.wait_for(HEADLINE, "kind")
    opened("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    opened.wait_for(HEADLINE, "tone")  # what the keyboard is on
    opened.key("Enter")
    opened.wait_for(PLACE, "all preferences › style › tone")
    assert opened.value(FOCUSED) == "tone, back to style"
    opened.key("ArrowDown")
    opened.key("ArrowRight")
    assert opened.value(FOCUSED) == "style › tone › dry: 1, 17% of all. It is dry."
    opened.key("Escape")
    opened.wait_for(PLACE, "all preferences › style")
    assert opened.value(FOCUSED).startswith("style › tone: 2")  # where the keyboard has been
    opened.key("ArrowUp")
    opened.key("Enter")
    opened.wait_for(PLACE, "all preferences")
    opened.key("Escape")  # nowhere to go
    assert opened.value(CRUMBS) == "all preferences"


def test_who_wants_no_motion_gets_none(opened):
    calm = {"name": "prefers-reduced-motion", "value": "reduce"}
    start = "choose(root.children[0]), labels.childElementCount"
    assert opened.value(start) == 0  # labels come when the transition is over
    opened("Emulation.setEmulatedMedia", features=[calm])
    opened.value("zoom(root)")
    assert opened.value(start) == 6
    opened("Emulation.setEmulatedMedia", features=[])


def test_the_whole_tree_is_there_as_text(opened):
    text = opened.value("byId('list').textContent")
    assert text.startswith("style 4, 67% of all tone 2, 33% of all warm 1, 17% of all It is warm.")
    assert opened.value("byId('list').querySelectorAll('ul > li').length") == 11
    assert opened.value("byId('list').querySelectorAll('details[open]').length") == 0
    opened.value("dispatchEvent(new Event('beforeprint'))")
    assert opened.value("byId('list').querySelectorAll('details[open]').length") == 5


def test_dark_and_light(opened):
    shades = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        opened("Emulation.setEmulatedMedia", features=[feature])
        shades.append(opened.value("getComputedStyle(document.body).backgroundColor"))
    opened("Emulation.setEmulatedMedia", features=[])
    assert shades == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]


def test_hostile_names_do_nothing_in_a_browser(browser, tmp_path):
    tree, _ = hostile_page(tmp_path)
    write_page(tree, HOSTILE[0], tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    for name in HOSTILE:
        browser.value(f"choose(root.children.find(node => node.name === {json.dumps(name)}))")
        browser.wait_for(PLACE, f"all preferences › {name}")
        assert browser.value(HEADLINE) == name
    assert browser.value("document.title") == HOSTILE[0]
    assert browser.value("typeof window.hacked + document.images.length") == "undefined0"
    requests = [e for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    asked = [event["params"]["request"]["url"] for event in requests]
    assert asked == [(tmp_path / "page.html").as_uri()]
