"""Documents of one's own in each format. HTML and PDF take packages of the extra `documents`."""

import codecs
import json
import sys

import pytest

from lenext.data.documents import ENCRYPTED, SCANNED, read_documents
from lenext.data.text_paths import find_files
from lenext.errors import UserError
from tests.data.pdf_files import AES, make_pdf

HTML_READER, PDF_READER = "bs4", "pypdf"


@pytest.fixture
def read(tmp_path):
    """Returns a reader of one file's content, as names and texts."""

    def read(name, content, field="text"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return [(each.name, each.text) for each in read_documents(tmp_path, name, field)]

    return read


@pytest.fixture
def shown(read):
    """Returns a reader of one page of HTML."""
    pytest.importorskip(HTML_READER, reason="beautifulsoup4 reads HTML")

    def shown(content, name="a.html"):
        ((found, text),) = read(name, content)
        assert found == name
        return text

    return shown


@pytest.fixture
def pdf(tmp_path):
    """Returns a reader of a PDF's bytes."""
    pytest.importorskip(PDF_READER, reason="pypdf reads PDF")

    def pdf(content):
        (tmp_path / "a.pdf").write_bytes(content)
        (document,) = read_documents(tmp_path, "a.pdf", "text")
        assert document.name == "a.pdf"
        return document

    return pdf


class TestText:
    def test_text_and_markdown_are_taken_as_they_are(self, read):
        text = "# T\u00eftle\r\n\n* `code` &amp; <b>\n"
        for name in ("a.txt", "a.md", "A.MD"):
            assert read(name, text) == [(name, text)]
            assert read(name, codecs.BOM_UTF16_LE + text.encode("utf-16-le")) == [(name, text)]

    def test_lines_of_jsonl(self, read):
        lines = [json.dumps({"body": text, "id": 1}) for text in ("one", "", " \n", "four\n")]
        expected = ["one", "", "", "four\n"]
        found = read("a.jsonl", "\n".join([lines[0], "", *lines[1:]]), field="body")
        assert found == [
            (f"a.jsonl:{n:09}", x) for n, x in zip((1, 3, 4, 5), expected, strict=True)
        ]

    @pytest.mark.parametrize("content", ["", " \n\t\n"])
    def test_what_is_empty_says_so(self, tmp_path, content):
        for name in ("a.txt", "a.md"):
            (tmp_path / name).write_text(content)
            (document,) = read_documents(tmp_path, name, "text")
            assert (document.text, document.reason) == ("", "empty")

    @pytest.mark.parametrize(
        ("name", "content", "text", "replaced"),
        [
            ("a.txt", "Gr\u00fc\u00dfe \ufffd".encode("latin-1", "ignore"), "Gr\ufffd\ufffde ", 2),
            ("a.txt", "one \ufffd".encode(), "one \ufffd", 0),
            ("a.jsonl", b'{"text": "a\\ud83db?"}', "a?b?", 1),
            ("a.jsonl", b'{"text": "\\ud83d\\ude00"}', "\U0001f600", 0),
        ],
    )
    def test_characters_that_are_none_are_counted(self, tmp_path, name, content, text, replaced):
        (tmp_path / name).write_bytes(content)
        (document,) = read_documents(tmp_path, name, "text")
        assert (document.text, document.replaced) == (text, replaced)

    def test_utf16_without_a_mark_is_refused(self, read):
        with pytest.raises(UserError, match=r"a\.md: 9 of 18 bytes are NUL, as in UTF-16 without"):
            read("a.md", "some text".encode("utf-16-le"))


class TestHtml:
    def test_a_page_by_hand(self, shown):
        page = """<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>Not shown</title>
            <style>p { color: red }</style><script>if (a < b) { run() }</script></head>
            <body><!-- nor this --><h1>Caf&eacute; &lt;1&gt;</h1>
            <p>Some <b>bold</b><i>er</i>
              words,<br>broken<p>unclosed <span> and </span> spaced
            <ul><li>one<li>two</ul>
            <table><tr><td>a<td>b</tr><tr><td>c</table>
            <noscript>no</noscript><svg><text>nor</text></svg>
            <pre>\n  x = 1\n\n  y &amp; z\n</pre><div>in <div>out</div></div> end</body></html>"""
        assert shown(page) == (
            "Caf\u00e9 <1>\n\nSome bolder words,\nbroken\n\nunclosed and spaced\n\none\ntwo\n\n"
            "a b\nc\n\n  x = 1\n\n  y & z\n\nin\nout\nend"
        )

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            ('<meta charset="utf-8"><p>\u00fc', "\u00fc"),
            ('<meta charset="koi8-r"><p>\u0434\u0430'.encode("koi8-r"), "\u0434\u0430"),
            (
                '<meta http-equiv=Content-Type content="text/html; charset=shift_jis"><p>'
                "\u65e5\u672c".encode("shift_jis"),
                "\u65e5\u672c",
            ),
            ('<?xml version="1.0" encoding="iso-8859-2"?><p>\u0142'.encode("latin2"), "\u0142"),
            # latin-1 stands for windows-1252, and UTF-16 for UTF-8, where bytes are read as such.
            (
                "<meta charset=iso-8859-1><p>\u201cquoted\u201d".encode("cp1252"),
                "\u201cquoted\u201d",
            ),
            ("<meta charset=utf-16><p>\u00fcber", "\u00fcber"),
            ("<meta charset=nonsense><p>\u00fcber", "\u00fcber"),
            ("<meta charset=rot13><p>\u00fcber", "\u00fcber"),
            ("<p>\u00fcber", "\u00fcber"),
            ("<p>\u00fcber \u2013".encode("cp1252"), "\u00fcber \u2013"),
            (codecs.BOM_UTF8 + "<meta charset=latin-1><p>\u00fc".encode(), "\u00fc"),
            (codecs.BOM_UTF16_BE + "<p>\u00fc".encode("utf-16-be"), "\u00fc"),
        ],
    )
    def test_encodings(self, shown, content, text):
        assert shown(content) == text

    def test_what_shows_nothing_is_empty(self, tmp_path, shown):
        assert shown("<title>x</title><script>y</script><p> &nbsp; ") == ""
        (document,) = read_documents(tmp_path, "a.html", "text")
        assert document.reason == "empty"

    def test_tags_of_any_depth(self, shown):
        assert shown("<div>" * 20_000 + "deep" + "<b>" * 20_000 + "er", "a.HTM") == "deeper"

    def test_without_its_package(self, read, monkeypatch):
        monkeypatch.setitem(sys.modules, "bs4", None)
        with pytest.raises(UserError) as error:
            read("a.htm", "<p>text")
        assert str(error.value).endswith(
            "a.htm: reading it takes the package beautifulsoup4, of lenext's extra documents: "
            'python -m pip install "beautifulsoup4>=4.14,<5"'
        )


class TestPdf:
    def test_pages_in_their_order(self, pdf):
        found = pdf(make_pdf(["First page,", "second line"], [], ["third page"]))
        assert found.text.split() == ["First", "page,", "second", "line", "third", "page"]
        assert found.text.splitlines()[-1] == "third page"
        assert not found.reason

    def test_pages_without_text(self, pdf):
        assert pdf(make_pdf([], []))[1:] == ("", 0, SCANNED)

    @pytest.mark.parametrize(("password", "reason"), [("secret", ENCRYPTED), ("", "")])
    def test_encrypted(self, pdf, tmp_path, password, reason):
        import pypdf

        writer = pypdf.PdfWriter()
        (tmp_path / "plain.pdf").write_bytes(make_pdf(["some text"]))
        writer.append(tmp_path / "plain.pdf")
        writer.encrypt(password, "owner", algorithm="RC4-128")
        writer.write(tmp_path / "locked.pdf")
        found = pdf((tmp_path / "locked.pdf").read_bytes())
        assert (found.text, found.reason) == ("" if reason else "some text", reason)

    def test_encrypted_by_a_cipher_that_takes_another_package(self, pdf):
        assert pdf(make_pdf(["some text"], trailer=AES)).reason == ENCRYPTED

    @pytest.mark.parametrize("content", [b"", b"no PDF", b"%PDF-1.4\n%%EOF\n", None])
    def test_broken(self, pdf, content):
        with pytest.raises(UserError, match=r"/a\.pdf: is a broken PDF \(") as error:
            pdf(make_pdf(["some text"])[:200] if content is None else content)
        assert "\n" not in str(error.value)

    def test_without_its_package(self, read, monkeypatch):
        monkeypatch.setitem(sys.modules, "pypdf", None)
        with pytest.raises(UserError, match=r'takes the package pypdf, .*"pypdf>=6,<8"$'):
            read("a.pdf", make_pdf(["text"]))


def test_packages_are_those_of_the_extra():
    import tomllib

    from lenext.data.documents import PACKAGES
    from tests.training.common import REPOSITORY

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["documents"] == [*PACKAGES.values()]


def test_files_of_other_kinds_are_told(tmp_path):
    from lenext.data.documents import SUFFIXES

    for name in ("a.TXT", "b.md", "c.html", "d.htm", "e.pdf", "f.jsonl", "g.jsonl.gz", "h.docx"):
        (tmp_path / name).touch()
    found = find_files(str(tmp_path), SUFFIXES, "--files")
    assert found.paths == ["a.TXT", "b.md", "c.html", "d.htm", "e.pdf", "f.jsonl", "g.jsonl.gz"]
    assert found.skipped == ["h.docx"]
    with pytest.raises(
        UserError, match=r"^--files: no \.txt, \.md, \.jsonl, .*pdf file in /.*docx"
    ):
        find_files(f"{tmp_path}/h.docx", SUFFIXES, "--files")
