"""Markdown pages and their pictures as one HTML file that needs no other, on- or offline."""

import base64
import html
import io
import posixpath
import re
import struct
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lenext.reporting.stylesheet import STYLE

Token = Any
"""Of markdown-it-py, which is imported where a file is made: nothing else needs it."""

TITLE_LEVEL, SECTION_LEVEL = 1, 2  # of the file's own heading, and of a page's name
FILLED = 0.05  # share of dark pixels from which a picture has areas of them, not lines and letters
DARK = 0.3  # luminance, of 0 to 1
PNG_START = b"\x89PNG\r\n\x1a\n"


class Page(NamedTuple):
    """One section of the file.

    Attributes:
      name: in the sidebar and, the same, as the section's heading; any text.
      text: Markdown; a heading of first level, where it begins with one, stands below the name.
        HTML in it is shown as text.
      pictures: PNGs by the name of their file, shown above the text.
      path: where links of other pages find it, with "/" between folders; links of its own are
        read from there. Pages of one path: the first is found.
      group: what the sidebar lists it under; "" for nothing.
    """

    name: str
    text: str
    pictures: Mapping[str, bytes] = {}
    path: str = ""
    group: str = ""


class _Read(NamedTuple):
    """A page's ids and parsed Markdown; `anchors` are ids of its headings by GitHub's names."""

    page: Page
    id: str
    title: list[Token]
    body: list[Token]
    anchors: dict[str, str]


def html_page(title: str, pages: Iterable[Page], about: Sequence[tuple[str, str]] = ()) -> str:
    """One HTML file: a sidebar, and a section a page.

    Links of a page to another page, or to a heading in it, lead to its section here. What leads to
    files that are not here becomes text; addresses in the web remain links, and nothing is loaded
    from there. Pictures open at their full size by a click or a key, without a script.

    Args:
      title: of the file.
      pages: in their order; those of a group are taken together where it first comes.
      about: label and text of what stands on top, such as a date.

    Raises:
      ModuleNotFoundError: markdown-it-py is missing; `lenext[dev]` has it.
    """
    from markdown_it import MarkdownIt

    # Runs of anyone may be in here: text that looks like HTML is to be text.
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    groups: dict[str, list[Page]] = {}
    for page in pages:
        groups.setdefault(page.group, []).append(page)
    taken = {"top"}
    # Sections first: their ids are short, and what headings are called depends on them.
    named = [(page, _unique(heading_slug(page.name), taken)) for g in groups.values() for page in g]
    found = [_read(markdown, page, place, taken) for page, place in named]
    places: dict[str, _Read] = {}
    for one in found:
        if one.page.path:
            places.setdefault(one.page.path, one)

    sections = [_section(markdown, one, places, taken) for one in found]
    lines = "".join(f"<dt>{html.escape(a)}</dt><dd>{html.escape(b)}</dd>" for a, b in about)
    named_title = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Not even what a page of Markdown might smuggle in is fetched from elsewhere.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{named_title}</title><style>{STYLE}</style></head>\n<body>"
        f'<header id="top"><h{TITLE_LEVEL}>{named_title}</h{TITLE_LEVEL}>'
        f"{f'<dl>{lines}</dl>' if lines else ''}</header>\n"
        f"{_sidebar(found)}\n<main>{''.join(sections)}</main></body></html>\n"
    )


def _sidebar(found: Sequence[_Read]) -> str:
    parts, group = ['<nav aria-label="Pages">'], ""
    for one in found:
        if one.page.group != group:
            group = one.page.group
            parts.append(f"<p>{html.escape(group)}</p>")
        parts.append(f'<a href="#{one.id}">{_breakable(one.page.name)}</a>')
    return "".join([*parts, "</nav>"])


def _section(markdown, one: _Read, places: Mapping[str, _Read], taken: set[str]) -> str:
    for token in (*one.title, *one.body):
        if token.children:
            token.children = _linked(token.children, one, places)
    title, body = (
        markdown.renderer.render(tokens, markdown.options, {}) for tokens in (one.title, one.body)
    )
    name, group = _breakable(one.page.name), html.escape(one.page.group)
    pictures = "".join(
        _picture(file, data, f"{one.id}-picture", one.page.name, taken)
        for file, data in one.page.pictures.items()
    )
    return (
        f'<section id="{one.id}"><header>'
        + (f'<p class="group">{group}</p>' if group else "")
        + f"<h{SECTION_LEVEL}>{name}</h{SECTION_LEVEL}>"
        + (f'<p class="title">{title.strip()}</p>' if title else "")
        + f'<a class="up" href="#top">To the top</a></header>{pictures}{body}</section>\n'
    )


def _read(markdown, page: Page, place: str, taken: set[str]) -> _Read:
    """Parses a page, and gives ids to its headings and what tables need."""
    tokens = markdown.parse(page.text)
    title: list[Token] = []
    if tokens and tokens[0].type == "heading_open" and tokens[0].tag == "h1":
        title, tokens = [tokens[1]], tokens[3:]
    anchors: dict[str, str] = {}
    called: set[str] = set()
    for i, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            # One below the section's own, whatever the page begins with.
            token.tag = f"h{min(max(int(token.tag[1]), 2) + SECTION_LEVEL - 1, 6)}"
        if token.type == "heading_open":
            name = _unique(heading_slug(_plain(tokens[i + 1])), called)
            anchors[name] = _unique(f"{place}--{name}", taken)
            token.attrSet("id", anchors[name])
    return _Read(page, place, title, list(_with_wrapped_tables(tokens)), anchors)


def _with_wrapped_tables(tokens: Sequence[Token]) -> Iterable[Token]:
    """Puts a table into a box that scrolls; one of words is marked, its cells told their heading.

    Words are what a table without a column to the right holds: they break into lines, and where
    there is no room the table becomes a list of rows, in which every cell names its column.
    """
    from markdown_it.token import Token as New

    columns: list[str] = []
    cell, words = 0, True
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            end = next(j for j in range(i, len(tokens)) if tokens[j].type == "thead_close")
            head = tokens[i:end]
            columns = [
                _plain(head[j + 1]) for j, x in enumerate(head) if x.type == "th_open"
            ]  # fmt: skip
            words = not any("right" in str(x.attrGet("style")) for x in head if x.tag == "th")
            # Whoever scrolls by keys has to be able to come there.
            opening = '<div class="words">' if words else '<div class="figures" tabindex="0">'
            yield New("html_block", "", 0, content=opening)
        if token.type == "tr_open":
            cell = 0
        if token.type == "td_open":
            if words:
                token.attrSet("data-label", columns[cell])
            elif not cell:  # a method's name, which has no spaces
                for child in tokens[i + 1].children or ():
                    if child.type == "text":
                        child.type, child.content = "html_inline", _breakable(child.content)
            cell += 1
        yield token
        if token.type == "table_close":
            yield New("html_block", "", 0, content="</div>\n")


def _linked(tokens: Sequence[Token], of: _Read, places: Mapping[str, _Read]) -> list[Token]:
    """Inline tokens whose links lead somewhere; what a picture shows becomes its words."""
    from markdown_it.token import Token as New

    kept, dropped = [], False
    for token in tokens:
        if token.type == "link_open":
            address = _address(str(token.attrGet("href")), of, places)
            dropped = address is None
            if address is not None:
                token.attrSet("href", address)
                kept.append(token)
        elif token.type == "image":
            kept.append(New("text", "", 0, content=token.content))
        elif token.type != "link_close" or not dropped:
            kept.append(token)
    return kept


def _address(target: str, of: _Read, places: Mapping[str, _Read]) -> str | None:
    """Where a link of a page leads to in the file; None for nowhere."""
    if re.match(r"https?://", target):
        return target
    path, _, name = urllib.parse.unquote(target).partition("#")
    if path:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(of.page.path), path))
        if path not in places:
            return None
        of = places[path]
    elif name not in of.anchors:
        return None
    return f"#{of.anchors.get(name, of.id)}"


def _picture(file: str, data: bytes, name: str, page: str, taken: set[str]) -> str:
    """A picture in its place and, over all else, as large as it is: one element, so held once.

    It is a popover that shows while closed too. Its frame keeps the room when it opens.
    """
    place = _unique(name, taken)
    wide, high = _size(data)
    stem = html.escape(posixpath.splitext(file)[0])
    alt = html.escape(f"{posixpath.splitext(file)[0]}, a picture of {page}")
    size = f' width="{wide}" height="{high}"' if wide else ""
    filled = ' class="filled"' if _dark_share(data) > FILLED else ""
    room = f' style="aspect-ratio: {wide} / {high}; max-width: {wide}px"' if wide else ""
    return (
        f'<figure><div class="frame"{room}><div id="{place}" popover class="picture">'
        f'<button type="button" popovertarget="{place}" aria-label="{alt}; open or close it large">'
        f'<img alt="{alt}"{size}{filled} loading="lazy" src="data:image/png;base64,'
        f'{base64.b64encode(data).decode()}"></button></div></div>'
        f"<figcaption>{stem}</figcaption></figure>"
    )


def _size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, or zeros for what is no PNG."""
    if not png.startswith(PNG_START) or len(png) < 24:
        return 0, 0
    return struct.unpack(">II", png[16:24])


def _dark_share(png: bytes) -> float:
    """Share of the pixels that are dark, 0 to 1; 0 of what cannot be read.

    Where much is, as in a heat map, the picture turned over would glare.
    """
    import matplotlib.image
    import numpy as np

    try:
        pixels = np.asarray(matplotlib.image.imread(io.BytesIO(png), format="png"))
    except (OSError, SyntaxError, ValueError):  # what Pillow raises of files that are broken
        return 0.0
    colours = pixels[..., :3] if pixels.ndim == 3 and pixels.shape[-1] >= 3 else pixels[..., None]
    return float(np.mean(colours.mean(-1) < DARK))


def _plain(token: Token) -> str:
    """The words of an inline token."""
    return "".join(child.content for child in token.children or ())


def _breakable(text: str) -> str:
    """HTML of a name that, where there is no room, breaks at what parts it rather than anywhere."""
    return re.sub(r"(?<=[/,])|(?=[+(])", "<wbr>", html.escape(text))


def heading_slug(text: str) -> str:
    """A heading's name in addresses, as GitHub makes it; letters, digits, hyphens, underscores."""
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") or "page"


def _unique(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken; it is then."""
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    taken.add(found)
    return found
