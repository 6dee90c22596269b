"""What mkdocs.yml calls while the site is built: files outside docs/ become part of the site.

Pages link to files of the whole repository, such as ../experiments/results/passkey.md, which works
where the repository is read. MkDocs knows only what lies in docs/. So each file that a page links
to, and each that such a file links to, is added to the site under its path in the repository, and
links are made to fit.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

REPOSITORY = Path(__file__).parent.parent
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")  # its text, a local path, an anchor
CODE = {".py": "python", ".sbatch": "bash", ".sh": "bash"}  # shown as pages

sources: dict[str, str] = {}
"""Where pages of the site come from, by their names there: paths in the repository."""


def name_of(path: str) -> str:
    """What a file of the repository is called on the site."""
    page = f"{path}.md" if PurePosixPath(path).suffix in CODE else path
    return page.removeprefix("docs/")


def target_of(link: str, path: str) -> str | None:
    """The path in the repository of what the file at a path links to; None for nothing there."""
    target = (REPOSITORY / path).parent.joinpath(link).resolve()
    known = target.exists() and target.is_relative_to(REPOSITORY)
    return target.relative_to(REPOSITORY).as_posix() if known else None


def on_files(files, config):
    """Adds the files that pages lead to."""
    sources.clear()
    sources.update({page.src_uri: f"docs/{page.src_uri}" for page in files.documentation_pages()})
    waiting = list(sources.values())
    while waiting:
        path = waiting.pop()
        source, name = REPOSITORY / path, name_of(path)
        if not path.startswith("docs/"):
            if name in sources or source.is_dir():
                continue
            sources[name] = path
            if source.suffix in CODE:
                code = f"# {path}\n\n````{CODE[source.suffix]}\n{source.read_text()}````\n"
                files.append(File.generated(config, name, content=code))
                continue
            files.append(File.generated(config, name, abs_src_path=str(source)))
        if source.suffix == ".md":
            links = (target_of(match[2], path) for match in LINK.finditer(source.read_text()))
            waiting += [target for target in links if target and not target.startswith("docs/")]
    return files


def on_page_markdown(markdown, page, config, files):
    """Makes links fit the site: from name to name, and no links to folders."""
    del config, files
    name = page.file.src_uri
    path = sources[name]
    if PurePosixPath(path).suffix in CODE:
        return markdown

    def fitting(match):
        target = target_of(match[2], path)
        if target is None:
            return match[0]  # MkDocs says so
        if (REPOSITORY / target).is_dir():
            return match[1]
        there = os.path.relpath(name_of(target), os.path.dirname(name) or ".")
        return f"[{match[1]}]({there}{match[3] or ''})"

    return LINK.sub(fitting, markdown)
