"""What the documents say is so: links resolve, commands and options exist, code fits what it calls."""

import ast
import inspect
import pkgutil
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

import twotower
from twotower.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SOURCES = re.compile(r"(?:src/twotower|tests|benchmarks|examples|docs)/[\w/.-]+\.(?:py|md)")
NAVIGATION = tomllib.loads((ROOT / "docs" / "navigation.toml").read_text("utf-8"))["groups"]
PAIRS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.zh-CN.md", "docs/**/*.zh-CN.md")
    for path in ROOT.glob(pattern)
)
COMMAND = re.compile(r"(?:\$ )?((?:\.venv/bin/)?(?:twotower|make) .+)")

OWNERS: dict[str, object] = {
    "twotower": twotower,
    "Retriever": twotower.Retriever,
    "twotower.Retriever": twotower.Retriever,
    "retriever": twotower.Retriever,
}


def text_of(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def fences(document: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text_of(document)) if language in languages]


def prose(document: str) -> str:
    return FENCE.sub("", text_of(document))


def anchors(markdown: str) -> set[str]:
    """Return the anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.+?)\s*$", FENCE.sub("", markdown), re.M)
    plain = (re.sub(r"[^\w\- ]", "", LINK.sub("", heading).lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def broken_links(document: str) -> list[str]:
    broken = []
    for link in LINK.findall(CODE.sub("", prose(document))):
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        if re.match(r"\w+:", link):
            continue
        found = target.exists() and target.resolve().is_relative_to(ROOT)
        if not found or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            broken.append(link)
    return broken


def commands(document: str) -> list[str]:
    """Return every line that somebody is told to type, from blocks and from inline code."""
    blocks = "\n".join(fences(document, "", "console", "sh", "bash", "shell"))
    lines = blocks.replace("\\\n", " ").splitlines()
    lines += [span.replace("\n", " ") for span in CODE.findall(prose(document))]
    found = (COMMAND.fullmatch(line.strip()) for line in lines)
    return [match.group(1) for match in found if match]


def wrong_command(command: str) -> str | None:
    """Return what is wrong with a command, None if nothing is."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M))
        asked = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
        return f"no such target: {asked - targets}" if asked - targets else None
    tree: Any = typer.main.get_command(app)
    name, flags = words[1], {w.split("=")[0] for w in words[1:] if re.match(r"--?[a-z]", w)}
    if name.startswith("-"):
        known = {"--version", "--help"}
    elif name in tree.commands:
        known = {opt for option in tree.commands[name].params for opt in option.opts} | {"--help"}
    else:
        return f"no such command: {name}"
    return f"no such option: {flags - known}" if flags - known else None


def wrong_code(code: str) -> list[str]:
    """Return each name and each argument of ours in Python code that does not exist."""
    wrong = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("twotower"):
            home = import_module(node.module or "")
            wrong += [f"{node.module}.{n.name}" for n in node.names if not hasattr(home, n.name)]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "twotower":
            wrong += [] if node.attr in dir(twotower) else [f"twotower.{node.attr}"]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = getattr(OWNERS.get(ast.unparse(node.func.value)), node.func.attr, None)
            if called is None:
                continue
            parameters = inspect.signature(called).parameters
            names = (keyword.arg for keyword in node.keywords)
            wrong += [f"{node.func.attr}({n}=)" for n in names if n and n not in parameters]
    return wrong


def form_of(markdown: str) -> list[str]:
    """Return what each block of a page is: a heading of some level, text, an item, a row, code."""
    forms, in_code, after_text = [], False, False
    for line in markdown.splitlines():
        if line.startswith("```"):
            in_code = not in_code
            forms += ["code"] if in_code else []
            after_text = False
        elif in_code or not line.strip():
            after_text = False
        elif heading := re.match(r"#+ ", line):
            forms.append(heading.group().strip())
        elif line.startswith("|"):
            forms.append("row")
        elif re.match(r"\s*(?:-|\d+\.) ", line):
            forms.append("item")
            after_text = True
        elif not after_text:
            forms.append("text")
            after_text = True
    return forms


def code_of(markdown: str) -> list[str]:
    """Return the blocks of code, without comments, which are in the language of their page."""
    return [re.sub(r"\s+#.*", "", body) for _, body in FENCE.findall(markdown)]


def figures_of(markdown: str) -> list[str]:
    """Return the numbers with a decimal point, in order of size: words of a sentence change places."""
    return sorted(re.findall(r"\d+\.\d+", CODE.sub("", FENCE.sub("", markdown))))


@pytest.mark.parametrize("document", DOCUMENTS)
class TestDocument:
    def test_links_resolve(self, document: str) -> None:
        assert broken_links(document) == []

    def test_files_that_it_names_exist(self, document: str) -> None:
        named = SOURCES.findall(text_of(document))
        assert [name for name in named if not (ROOT / name).exists()] == []

    def test_commands_are_current(self, document: str) -> None:
        wrong = {command: wrong_command(command) for command in commands(document)}
        assert {command: what for command, what in wrong.items() if what} == {}

    def test_code_fits_the_library(self, document: str) -> None:
        assert [wrong_code(code) for code in fences(document, "python") if wrong_code(code)] == []


@pytest.mark.parametrize("chinese", PAIRS)
class TestPair:
    """A page says the same in both languages, block by block."""

    def both(self, chinese: str) -> tuple[str, str]:
        return text_of(chinese.replace(".zh-CN.md", ".md")), text_of(chinese)

    def test_blocks_are_alike(self, chinese: str) -> None:
        english, translated = self.both(chinese)
        assert form_of(translated) == form_of(english)

    def test_code_is_the_same(self, chinese: str) -> None:
        english, translated = self.both(chinese)
        assert code_of(translated) == code_of(english)

    def test_figures_are_the_same(self, chinese: str) -> None:
        english, translated = self.both(chinese)
        assert figures_of(translated) == figures_of(english)


def pages_of_the_site() -> list[Path]:
    patterns = [pattern for group in NAVIGATION for pattern in group["pages"]]
    return [page.resolve() for pattern in patterns for page in (ROOT / "docs").glob(pattern)]


def test_every_page_has_its_place_in_the_navigation() -> None:
    named = pages_of_the_site()
    written = {
        page
        for pattern in ("*.md", "api/*.md")
        for page in (ROOT / "docs").glob(pattern)
        if not page.name.endswith(".zh-CN.md")
    }
    assert written - set(named) == set()
    assert len(named) == len(set(named))


def test_start_pages_and_guides_are_in_both_languages() -> None:
    for group in NAVIGATION[:2]:
        for name in group["pages"]:
            assert (ROOT / "docs" / name.replace(".md", ".zh-CN.md")).exists(), name


def test_every_package_with_public_names_has_a_page_of_reference() -> None:
    packages = [twotower.__name__]
    packages += [
        found.name
        for found in pkgutil.iter_modules(twotower.__path__, "twotower.")
        if found.ispkg and getattr(import_module(found.name), "__all__", None)
    ]
    pages = {page.stem for page in (ROOT / "docs" / "api").glob("*.md")}
    assert pages == set(packages)


def test_every_source_file_has_its_line_in_the_architecture() -> None:
    text = text_of("docs/architecture.md")
    files = (path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*.py"))
    missing = [str(file) for file in files if file.name != "__init__.py" and file.name not in text]
    assert [file for file in missing if "/cli/" not in file and "/sources/" not in file] == []


def test_a_wrong_document_would_be_found(tmp_path: Path) -> None:
    assert wrong_command("make nothing")
    assert wrong_command("make test BIN=x") is None
    assert wrong_command("twotower bake m")
    assert wrong_command("twotower train --interactions f.csv --output m")
    assert wrong_command("twotower train --interactions f.csv --out=m  # a comment") is None
    assert wrong_code("import twotower\ntwotower.fit()") == ["twotower.fit"]
    assert wrong_code("from twotower import Retriver") == ["twotower.Retriver"]
    assert wrong_code("twotower.train(x, item=y)") == ["train(item=)"]
    assert wrong_code("retriever.recommend(1, top=3)") == ["recommend(top=)"]
    assert form_of("# A\n\nb\nc\n\n- d\n  e\n\n|f|\n```\n# g\n```\n") == [
        "#",
        "text",
        "item",
        "row",
        "code",
    ]
    assert code_of("```\na  # b\n```\n") == ["a\n"]
    assert figures_of("0.2 and 0.1, not `0.3`, or 1,000") == ["0.1", "0.2"]
    assert anchors("# The `way` of data\n") == {"the-way-of-data"}
