from html.parser import HTMLParser

import pytest

from kd.page import Code, Page, Section, Table, as_html, as_markdown
from kd.pictures import intervals

EVIL = "<script>alert('x')</script> & \"quoted\" | pipe\nline `tick` *star* $title"


@pytest.fixture
def page():
    picture = intervals([("a", 1.0, 0.5, 1.5)])
    blocks = [
        EVIL,
        Table("rows & co", ["text", "share"], [[EVIL, "10%"]]),
        Table("facts", ["", ""], [["seed", "1"]], words=2),
        picture,
        picture,
        Code(EVIL),
        Code(EVIL, title="folded"),
    ]
    return Page("Title <1>", "lead & verdict", [Section("Does it help?", blocks)], "the end")


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_html_shows_every_text_as_text(page):
    read = Reader(as_html(page))
    assert not read.attributes("script")
    assert read.texts.count(EVIL) == 4  # a sentence, a cell, two blocks of code


def test_html_is_one_file_that_may_load_nothing(page):
    text = as_html(page)
    read = Reader(text)
    policy = next(a["content"] for a in read.attributes("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert all(link["href"] == "data:," for link in read.attributes("link"))
    assert not [tag for tag, a in read.tags if "src" in a]


def test_html_is_structured_for_those_who_do_not_see_it(page):
    read = Reader(as_html(page))
    assert read.attributes("html") == [{"lang": "en"}]
    assert {"header", "nav", "main", "h1", "h2"} <= {tag for tag, _ in read.tags}
    assert [a["scope"] for a in read.attributes("th")] == ["col", "col", "row", "row"]
    (section,) = read.attributes("section")
    assert section["aria-labelledby"] == read.attributes("h2")[0]["id"] == "does-it-help"
    assert read.attributes("a") == [{"href": "#does-it-help"}]
    assert all(a["role"] == "img" and a["aria-label"] for a in read.attributes("svg"))
    boxes = [a for a in read.attributes("div") if a["class"] == "scroll"]
    assert [a["aria-label"] for a in boxes] == ["rows & co", "facts"]


def test_pictures_that_follow_each_other_share_a_row(page):
    read = Reader(as_html(page))
    assert len([a for a in read.attributes("div") if a["class"] == "pictures"]) == 1
    assert len(read.attributes("figure")) == len(list(page.pictures())) == 2


def test_markdown_shows_every_text_as_text(page):
    lines = as_markdown(page).splitlines()
    assert lines[0] == "# Title \\<1\\>"
    row = next(line for line in lines if line.endswith("| 10% |"))
    assert row.startswith("| \\<script\\>alert('x')\\</script\\> &amp; \"quoted\" \\| pipe line")
    assert "\\`tick\\` \\*star\\*" in row
    assert f"    {EVIL.splitlines()[0]}" in lines  # code, as it is typed
    assert "| :-- | --: |" in lines
    assert sum(line.startswith("![Differences") for line in lines) == 2
    assert "](intervals.png)" in as_markdown(page)
