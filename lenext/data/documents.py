"""Documents of one's own in several formats, as plain text: txt, Markdown, jsonl, HTML and PDF."""

import codecs
import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lenext.data.text_files import WIDE, look_at, mark_of, read_lines, read_parts
from lenext.data.text_paths import LINES, errors_of
from lenext.errors import UserError

HTML = (".html", ".htm")
PDF = (".pdf",)
SUFFIXES = (".txt", ".md", *LINES, *HTML, *PDF)  # in lower case; files' may be in any
PACKAGES = {"bs4": "beautifulsoup4>=4.14,<5", "pypdf": "pypdf>=6,<8"}  # as the extra documents has

EMPTY = "empty"
ENCRYPTED = "encrypted"
SCANNED = "PDF without text, as of scanned pages"

# Of HTML: what is no text of the page, what stands between blank lines, and on lines of its own.
LEFT_OUT = {"script", "style", "template", "noscript", "title", "svg", "iframe"}
PARAGRAPHS = {
    "article", "aside", "blockquote", "dl", "fieldset", "figure", "footer", "form", "h1", "h2",
    "h3", "h4", "h5", "h6", "header", "hr", "main", "nav", "ol", "p", "pre", "section", "table",
    "ul",
}  # fmt: skip
BLOCKS = {
    "address", "body", "caption", "dd", "details", "div", "dt", "figcaption", "html", "legend",
    "li", "option", "summary", "tr",
}  # fmt: skip
CELLS = {"td", "th"}
WHITE_SPACE = re.compile(r"[ \t\n\r\f]+")  # HTML's own, of which any amount is one space


class Document(NamedTuple):
    """What was read as one document.

    Attributes:
      name: the file's path, of a line in a .jsonl PATH:LINE, as in text_files.
      text: all of it; "" where it is to be left out.
      replaced: characters that are no text in the file's encoding, and became U+FFFD or "?".
      reason: why there is no text; "" where there is.
    """

    name: str
    text: str
    replaced: int = 0
    reason: str = ""


def read_documents(root: Path, path: str, field: str) -> Iterator[Document]:
    """Yields the documents of a file: each line of a .jsonl or .jsonl.gz, all of any other.

    Text and Markdown are taken as they are, in UTF-8 or by a byte-order mark. Of HTML it is the
    text that a page shows, each block on a line of its own and paragraphs between blank lines; the
    encoding is that of the mark, the one that the file declares, UTF-8 or windows-1252. Of a PDF it
    is the text of its pages, in order.

    Args:
      root: the folder that `path` starts from.
      path: the file's, with one of `SUFFIXES`.
      field: the key of a JSON object's text.

    Raises:
      UserError: the file cannot be read, or is not what it should be; or a package is missing that
        reads it.
    """
    kind = path.lower()
    if kind.endswith(HTML):
        yield _named(path, *_read_html(root / path))
    elif kind.endswith(PDF):
        yield _read_pdf(root / path, path)
    elif kind.endswith(LINES):
        for name, text in read_lines(root, path, field):
            valid = text.encode(errors="replace").decode()  # JSON can spell half a surrogate pair
            yield _named(name, valid, valid.count("?") - text.count("?"))
    else:
        look_at(root, path)  # which refuses UTF-16 without a mark
        content = b"".join(part for _, part in read_parts(root, path, field))
        text = content.decode(errors="replace")
        yield _named(path, text, text.count("\ufffd") - content.count("\ufffd".encode()))


def _named(name: str, text: str, replaced: int) -> Document:
    blank = not text or text.isspace()
    return Document(name, "" if blank else text, replaced, EMPTY if blank else "")


def _missing(path: Path, module: str) -> UserError:
    package = PACKAGES[module]
    name = re.split("[<>=]", package)[0]
    return UserError(
        f"{path}: reading it takes the package {name}, of lenext's extra documents: "
        f'python -m pip install "{package}"'
    )


def _read_html(path: Path) -> tuple[str, int]:
    """The text that a page shows, and how many characters of it are replaced."""
    try:
        import bs4  # pyright: ignore[reportMissingImports]
        import bs4.dammit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing(path, "bs4") from None
    with errors_of(path):
        content = path.read_bytes()
        mark, size = mark_of(content)
        if mark in WIDE:
            markup = content.decode(mark)
        else:
            content = content[size:]
            find = bs4.dammit.EncodingDetector.find_declared_encoding
            markup = _decode(content, mark or find(content, is_html=True) or "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it looks like XML, or like a file's name
            soup = bs4.BeautifulSoup(markup, "html.parser")
    except Exception as error:  # whatever a library may raise of a file that it cannot do with
        raise UserError(f"{path}: cannot be read as HTML ({error})") from None
    return _shown(soup, bs4), markup.count("\ufffd")


def _decode(content: bytes, declared: str) -> str:
    """By the encoding that is declared, or else UTF-8, or else windows-1252, which most bytes are.

    As browsers have it, latin-1 and ASCII stand for windows-1252, and who can read a declaration of
    UTF-16 does not read UTF-16.
    """
    names = ["utf-8", "cp1252"]
    with contextlib.suppress(LookupError, ValueError):  # a name that is none
        name = codecs.lookup(declared).name
        names.insert(0, "cp1252" if name in ("iso8859-1", "ascii") else name)
    for name in names:
        if not name.startswith(WIDE):
            with contextlib.suppress(LookupError, ValueError):  # of bytes that it does not have
                return content.decode(name)
    return content.decode("cp1252", errors="replace")


def _shown(soup: Any, bs4: Any) -> str:
    """The text of a tree of tags, with its blocks on lines of their own."""
    out: list[str] = []
    gap = 0  # line ends that are due before the next text
    # Not by recursion: a stranger's tags may be nested to any depth. Numbers stand for gaps.
    stack: list[tuple[Any, bool]] = [(soup, False)]
    while stack:
        node, verbatim = stack.pop()
        if isinstance(node, int):
            gap = max(gap, node)
        elif isinstance(node, bs4.Tag):
            if node.name in LEFT_OUT:
                continue
            if node.name == "br":
                gap = min(gap + 1, 2)
                continue
            verbatim = verbatim or node.name == "pre"
            around = 2 if node.name in PARAGRAPHS else 1 if node.name in BLOCKS else 0
            stack += [(around, False), *((child, verbatim) for child in reversed(node.contents))]
            stack += [(" ", False)] * (node.name in CELLS) + [(around, False)]
        elif not isinstance(node, bs4.element.PreformattedString):  # comments and the like
            text = str(node) if verbatim else WHITE_SPACE.sub(" ", node)
            begins = not out or gap > 0 or out[-1].endswith((" ", "\n"))
            if not verbatim:
                text = text.lstrip(" ") if begins else text
            elif gap:
                text = text.removeprefix("\n")  # the one after <pre>
            if not text:
                continue
            if out and gap:
                out[-1] = out[-1].rstrip(" \n")
                out.append("\n" * gap)
            gap = 0
            out.append(text)
    return "".join(out).strip(" \n")


def _read_pdf(path: Path, name: str) -> Document:
    """The text of all pages, a line end between them."""
    try:
        import pypdf  # pyright: ignore[reportMissingImports]
        import pypdf.errors  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing(path, "pypdf") from None
    logger = logging.getLogger("pypdf")  # which tells of each thing that it puts right
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with errors_of(path), path.open("rb") as file:
            try:
                reader = pypdf.PdfReader(file)
                if reader.is_encrypted and not _opens(reader):
                    return Document(name, "", reason=ENCRYPTED)
                pages = [page.extract_text() for page in reader.pages]
            except pypdf.errors.DependencyError:  # for a cipher that it does not have by itself
                return Document(name, "", reason=ENCRYPTED)
            except Exception as error:  # whatever a library may raise of a file
                said = str(error) or type(error).__name__
                raise UserError(f"{path}: is a broken PDF ({said})") from None
    finally:
        logger.setLevel(level)
    # Characters of fonts that do not say what they stand for may be half a surrogate pair.
    text = "\n".join(page.strip() for page in pages if page.strip())
    valid = text.encode(errors="replace").decode()
    if not valid:
        return Document(name, "", reason=SCANNED)
    return Document(name, valid, text.count("\ufffd") + valid.count("?") - text.count("?"))


def _opens(reader: Any) -> bool:
    """Whether an encrypted PDF may be read without a password."""
    return bool(reader.decrypt(""))
