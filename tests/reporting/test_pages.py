"""The HTML file of pages: whole by itself, its links lead somewhere, no text is taken for HTML."""

import re
import struct
import zlib
from html.parser import HTMLParser

import pytest

from lenext.reporting.pages import Page, heading_slug, html_page

VOID = ("meta", "img", "br", "hr", "wbr")
LOADED = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("use", "href")}


def png(wide=3, high=2):
    """The start of a PNG, which is all that is read of it."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", wide, high) + b"rest"


class Reader(HTMLParser):
    """What a file holds: tags, ids, addresses, and the text of the sidebar, headings and cells."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.loaded = [], [], [], []
        self.links, self.sidebar, self.headings, self.cells = [], [], [], []
        self.section = None
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "section":
            self.section = found["id"]
        self.loaded += [found[name] for on, name in LOADED if on == tag and name in found]
        if tag == "a":
            (self.sidebar if "nav" in self.open else self.links).append([found["href"], ""])
        if tag in ("h2", "h3"):
            self.headings.append([tag, self.section, found.get("id"), ""])
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag, into in (("a", self.sidebar if "nav" in self.open else self.links),
                          ("h2", self.headings), ("h3", self.headings)):  # fmt: skip
            if tag in self.open:
                into[-1][-1] += data
        if "td" in self.open:
            self.cells[-1] += data

    def names(self):
        """Of the sections, by their ids, as their headings say."""
        return {place: text for tag, place, _, text in self.headings if tag == "h2"}


def of(tag, reader):
    return [attrs for name, attrs in reader.tags if name == tag]


TABLE = "| method | 64 |\n|---|---:|\n| a\\|b | 0.5 |\n"
PAGES = [
    Page("claims", "# The claims\n\n[one](results/one.md#loss-in-nats-lower-is-better), "
         "[two](results/more/two.md), [file](one.py), [out](../up.md), [none](#nowhere), "
         "[web](https://example.org/a), [greek](<results/ö x.md#gap-scale-λ>)\n", path="README.md"),
    Page("one", f"# One of `them`\n\n## loss, in nats (lower is better)\n\n{TABLE}\n\n## loss, in "
         "nats (lower is better)\n\n[below](#loss-in-nats-lower-is-better-1)\n",
         {"one.png": png(), "one_more.png": b"no picture"}, "results/one.md", "Results"),
    Page("two", "Without a title.\n\n[back](../one.md), [all](../../README.md#gone)\n",
         path="results/more/two.md", group="Results"),
    Page("greek", "## gap scale Λ\n", path="results/ö x.md", group="Results"),
]  # fmt: skip


def test_links_lead_to_sections_and_headings():
    reader = Reader(html_page("Report", PAGES))
    links = {text: target for target, text in reader.links}
    assert links["one"] == "#one--loss-in-nats-lower-is-better"
    assert links["below"] == "#one--loss-in-nats-lower-is-better-1"
    assert (links["two"], links["back"], links["all"]) == ("#two", "#one", "#claims")
    assert links["web"] == "https://example.org/a"
    assert links["greek"] == "#greek--gap-scale-λ"
    assert not {"file", "out", "none"} & links.keys()
    below = {place: text for tag, _, place, text in reader.headings if tag == "h3"}
    assert below["one--loss-in-nats-lower-is-better"] == "loss, in nats (lower is better)"


def test_every_link_has_its_target_and_ids_are_unique():
    again = [page._replace(path="", group="Your runs") for page in PAGES]
    trap = Page("one--loss-in-nats-lower-is-better", "## top\n", {"x.png": png()})
    odd = [Page(name, "") for name in ("top", "Ö", "&", "", "one-picture", "one-1")]
    reader = Reader(html_page("Report", [*PAGES, *again, trap, *odd]))
    assert len(reader.ids) == len(set(reader.ids))
    inside = [target for target, _ in reader.links + reader.sidebar if target.startswith("#")]
    assert {target.removeprefix("#") for target in inside} <= set(reader.ids)
    assert all(attrs["popovertarget"] in reader.ids for attrs in of("button", reader))
    # What two pages share a name with leads to the first, and each has its own line.
    assert [target for target, text in reader.sidebar if text == "one"] == ["#one", "#one-2"]


def test_headings_are_as_in_the_sidebar():
    pages = [*PAGES, Page("runs/<b>x&y/a,b", "# t", group="Your runs")]
    text = html_page("Report", pages)
    reader = Reader(text)
    assert reader.names() == {target.removeprefix("#"): name for target, name in reader.sidebar}
    assert list(reader.names().values()) == [
        "claims", "one", "two", "greek", "runs/<b>x&y/a,b",
    ]  # fmt: skip
    assert [t for t, *_ in reader.headings].count("h2") == len(pages)
    # The title stands below, with what is marked in it, and is no second heading.
    assert '<p class="title">One of <code>them</code></p>' in text
    assert text.count("<h1>") == 1
    assert re.findall(r"<p>([^<]*)</p><a", text) == ["Results", "Your runs"]


def test_pages_of_a_group_stand_together():
    pages = [Page(name, "", group=group) for name, group in (("a", "x"), ("b", "y"), ("c", "x"))]
    text = html_page("Report", pages)
    assert list(Reader(text).names().values()) == ["a", "c", "b"]
    assert text.count("<p>x</p>") == 1


def test_what_is_on_top_stands_before_all_pages():
    text = html_page("A <title>", PAGES, [("Made", "2026-01-02"), ("Of", "<script>")])
    assert text.index("<dd>2026-01-02</dd>") < text.index("<nav") < text.index("<section")
    assert "<dd>&lt;script&gt;</dd>" in text
    assert "<title>A &lt;title&gt;</title>" in text


def test_nothing_is_taken_for_html_or_loaded_from_elsewhere():
    evil = (
        "# <script>alert(1)</script>\n\n## <img src=https://example.org/x onerror=a>\n\n"
        "![seen](https://example.org/pixel.png) <iframe src='https://example.org'></iframe>\n\n"
        "<script>alert(2)</script>\n\n[x](javascript:alert(3)) [y](data:text/html,a) [z](//b.org)"
        "\n\n| <b>m | `x` |\n|---|---:|\n| <i>&amp;, | <u> |\n\n"
        '| <b>"w | x |\n|---|---|\n| c | d |\n'
    )  # fmt: skip
    page = Page("<b>x&y", evil, {'"><script>.png': png()}, group="<i>")
    text = html_page("Report", [page, *PAGES])
    reader = Reader(text)
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "iframe", "b", "i", "u", "link", "object", "use"}
    assert reader.loaded
    assert all(address.startswith("data:image/png;base64,") for address in reader.loaded)
    assert "url(" not in text
    assert "@import" not in text
    assert not any("onerror" in attrs for _, attrs in reader.tags)
    assert {t.partition(":")[0] for t, _ in reader.links if not t.startswith("#")} == {"https"}
    assert reader.names()["bxy"] == "<b>x&y"
    assert reader.cells[:2] == ["<i>&,", "<u>"]
    assert "seen" in text
    (policy,) = [a["content"] for a in of("meta", reader) if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")


def test_pictures_are_held_once_and_open():
    text = html_page("Report", PAGES)
    reader = Reader(text)
    known, unknown = of("img", reader)
    assert (known["width"], known["height"]) == ("3", "2")
    assert "aspect-ratio: 3 / 2; max-width: 3px" in text
    assert "width" not in unknown
    assert text.count("data:image/png") == 2
    assert known["alt"] == "one, a picture of one"
    popovers = [attrs for _, attrs in reader.tags if "popover" in attrs]
    assert [attrs["id"] for attrs in popovers] == ["one-picture", "one-picture-1"]
    assert [attrs["popovertarget"] for attrs in of("button", reader)] == [
        attrs["id"] for attrs in popovers
    ]
    # An open picture is over all else; a closed one is seen, though it is a popover.
    assert re.search(r"\.picture:popover-open \{[^}]*position: fixed", text)
    assert re.search(r"\.picture \{[^}]*display: block", text)


def gray(share):
    """A white PNG of which a share of the rows is black."""
    rows = [b"\0" + bytes([255 * (i >= 20 * share)] * 5) for i in range(20)]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 5, 20, 8, 0, 0, 0, 0)),
              (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_what_has_dark_areas_is_not_turned_over():
    pictures = {"lines.png": gray(0.05), "map.png": gray(0.1), "broken.png": gray(0.5)[:50]}
    reader = Reader(html_page("Report", [Page("x", "", pictures)]))
    assert [attrs.get("class") for attrs in of("img", reader)] == [None, "filled", None]
    assert [attrs.get("height") for attrs in of("img", reader)] == ["20"] * 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_turned_over_in_the_dark_alone(scheme):
    style = html_page("Report", PAGES).partition("<style>")[2].partition("</style>")[0]
    dark = re.search(r"@media \(prefers-color-scheme: dark\) \{(.*?)\n\}", style, re.DOTALL)
    assert dark
    rules = dark[1] if scheme == "dark" else style.replace(dark[0], "")
    assert ("invert" in rules) == (scheme == "dark")


def test_tables_scroll_or_name_their_columns():
    words = "| claim | its `source` |\n|---|---|\n| a | b |\n| c | d |\n"
    reader = Reader(html_page("Report", [Page("x", f"{TABLE}\n\n{words}\n\n{TABLE}")]))
    boxes = [attrs for attrs in of("div", reader) if attrs.get("class") in ("figures", "words")]
    assert [box["class"] for box in boxes] == ["figures", "words", "figures"]
    assert [box.get("tabindex") for box in boxes] == ["0", None, "0"]
    labels = [attrs.get("data-label") for attrs in of("td", reader)]
    assert labels == [None] * 2 + ["claim", "its source"] * 2 + [None] * 2
    assert reader.cells == ["a|b", "0.5", "a", "b", "c", "d", "a|b", "0.5"]


def test_headings_are_called_as_github_calls_them():
    # As https://github.com shows them of pages with such headings.
    assert heading_slug("Window of 90% of the weight, by layer") == (
        "window-of-90-of-the-weight-by-layer"
    )
    assert heading_slug("a_b: c + d") == "a_b-c--d"
    assert heading_slug("Λ") == "λ"
