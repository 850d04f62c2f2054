"""Build the site in one language: ``make docs``. The pages and their order are in navigation.toml.

The Chinese site shows a page in Chinese where one exists, else the English page. Links in the sources point
from file to file, as GitHub needs them; here they are changed to the page of the site's language.
"""

import inspect
import os
import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.search import SearchLanguage, languages
from sphinx.search.en import SearchEnglish

LANGUAGE = os.environ.get("TWOTOWER_DOCS_LANGUAGE", "en")
DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
GROUPS = tomllib.loads((DOCS / "navigation.toml").read_text("utf-8"))["groups"]
OTHER_NAME = {"en": "中文", "zh": "English"}[LANGUAGE]
LINK = re.compile(r"(?<=\]\()([^)\s#:]+\.md)((?:#[^)\s]*)?)(?=\))")
SWITCH = re.compile(r"^\[(?:中文|English|简体中文)\]\([^)\s]+\)\n", re.M)

project = "twotower"
project_copyright = "The twotower authors"
language = {"en": "en", "zh": "zh_CN"}[LANGUAGE]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "twotower"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/languages.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
highlight_language = "text"  # a formula of a docstring is no shell
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
nitpicky = False  # types of torch and polars are named, and not linked: their sites are not read


def chinese_of(page: Path) -> Path:
    """Return where the Chinese form of an English page lies, whether there is one or not."""
    return page.with_name(f"{page.stem}.zh-CN.md")


def shown(page: Path) -> Path:
    """Return the file that this language's site shows for an English page."""
    return chinese_of(page) if LANGUAGE == "zh" and chinese_of(page).exists() else page


def pages_of(group: dict[str, Any]) -> list[str]:
    """Return the names that Sphinx has for the pages of a group, in order."""
    found: list[Path] = []
    for pattern in group["pages"]:
        pages = sorted(page.resolve() for page in DOCS.glob(pattern))
        if not pages:
            raise ValueError(
                f"navigation.toml must name pages, got {pattern!r}, which matches none"
            )
        found += pages
    return [shown(page).relative_to(ROOT).with_suffix("").as_posix() for page in found]


root_doc = "README" if LANGUAGE == "en" else "README.zh-CN"
include_patterns = [f"{page}.md" for group in GROUPS for page in pages_of(group)]
include_patterns += [f"{root_doc}.md", "docs/decisions/*.md"]


def same_language(text: str, page: Path) -> str:
    """Return a page's text with links to the pages that this site has."""

    def turned(link: re.Match[str]) -> str:
        path, anchor = link.groups()
        target = (page.parent / path).resolve()
        mine = shown(target.with_name(target.name.replace(".zh-CN.md", ".md")))
        if mine == target or not mine.exists():
            return path + anchor
        # the other language's headings have other anchors
        return os.path.relpath(mine, page.parent)

    return LINK.sub(turned, text)


def contents() -> str:
    """Return the tables of contents, one a group, that the site's first page ends with."""
    trees = (
        f"```{{toctree}}\n:hidden:\n:caption: {group[LANGUAGE]}\n\n"
        + "".join(f"/{page}\n" for page in pages_of(group))
        + "```\n"
        for group in GROUPS
    )
    return "\n".join(trees)


def list_of_decisions() -> str:
    """Return the table of contents of the decisions' page."""
    return "```{toctree}\n:hidden:\n:glob:\n\n0*\n```\n"


def reference_of(module_name: str) -> str:
    """Return the part of a page that documents the public names of a module, by what they are."""
    module = import_module(module_name)
    names = [name for name in module.__all__ if not name.startswith("__")]
    if module_name != "twotower":  # the package's own page has those that it names, too
        names = [name for name in names if name not in import_module("twotower").__all__]
    kinds: dict[str, list[str]] = {"function": [], "class": [], "exception": [], "data": []}
    for name in sorted(names, key=str.lower):
        value = getattr(module, name)
        error = isinstance(value, type) and issubclass(value, Exception)
        kind = "exception" if error else "class" if isinstance(value, type) else "data"
        kinds["function" if inspect.isroutine(value) else kind].append(name)
    titles = {"function": "Functions", "class": "Classes", "exception": "Errors", "data": "Values"}
    parts = [f".. py:module:: {module_name}\n"]
    for kind, found in kinds.items():
        members = "" if kind in ("function", "data") else "   :members:\n"
        entries = "\n".join(
            f".. auto{kind}:: {module_name}.{name}\n{members}"
            # `recommend` is a method of their base class, which is not public.
            + ("   :inherited-members:\n" if name in ("Retriever", "Client") else "")
            for name in found
        )
        if found:
            parts.append(f"```\n\n## {titles[kind]}\n\n```{{eval-rst}}\n{entries}")
    return "\n```{eval-rst}\n" + "".join(parts) + "```\n"


def address_of_twin(page: str) -> str:
    """Return where a page's other language is, from the page; else where that site begins."""
    other = "zh" if LANGUAGE == "en" else "en"
    english = page.removesuffix(".zh-CN")
    suffix = ".zh-CN" if other == "zh" else ""
    twins = (f"{english}{suffix}", english, f"README{suffix}")
    twin = next(name for name in twins if (ROOT / f"{name}.md").exists())
    return "../" * (page.count("/") + 1) + f"{other}/{twin}.html"


def read(_app: Sphinx, name: str, source: list[str]) -> None:
    """Turn a page's text before Sphinx reads it."""
    link = f'<a class="other-language-here" href="{address_of_twin(name)}">{OTHER_NAME}</a>\n'
    text = same_language(SWITCH.sub(link, source[0], count=1), ROOT / f"{name}.md")
    if name == root_doc:
        text += "\n" + contents()
    if name == "docs/decisions/README":
        text += "\n" + list_of_decisions()
    if name.startswith("docs/api/"):
        text += reference_of(
            "twotower" + name.removeprefix("docs/api/twotower").removesuffix(".md")
        )
    source[0] = text


def other_language(
    _app: Sphinx, name: str, _template: str, context: dict[str, Any], _doctree: object
) -> None:
    """Tell the templates where the page is in the other language."""
    context["other_language"] = OTHER_NAME
    context["other_language_url"] = address_of_twin(name)


def accessible(
    _app: Sphinx, _name: str, _template: str, context: dict[str, Any], _doctree: object
) -> None:
    """Mend what axe finds: captions without a level, code and tables that only a mouse can scroll."""
    tree = context.get("furo_navigation_tree", "")
    level = 'role="heading" aria-level="2"'
    context["furo_navigation_tree"] = tree.replace('role="heading"', level)
    scrolled = re.compile(r'<pre(?=>)|<div(?= class="table-wrapper)')
    context["body"] = scrolled.sub(r'\g<0> tabindex="0"', context.get("body", ""))


# Chinese has no spaces between words. The index holds the pairs of neighbouring characters; the browser
# cuts a query into words, and these into pairs. jieba, which Sphinx would use, has had no release since
# 2020, and cuts the pages alone: a query of two words would then find nothing.
CHINESE = "\u3400-\u9fff"
SPLITTER = r"""
var splitQuery = (query) => {
  const words = Array.from(
    new Intl.Segmenter("zh", { granularity: "word" }).segment(query), (part) => part.segment,
  );
  const runs = /[\u3400-\u9fff]+|(?:(?![\u3400-\u9fff])[\p{L}\p{N}_])+/gu;
  return words.flatMap((word) => word.match(runs) || []).flatMap((run) =>
    /[\u3400-\u9fff]/.test(run)
      ? Array.from({ length: run.length - 1 }, (_, place) => run.slice(place, place + 2))
      : [run],
  );
};
"""


class PairsOfCharacters(SearchEnglish):
    """Splits Chinese into pairs of characters, and stems English words as the English site does."""

    lang = "zh"
    language_name = "English"  # names the stemmer of the query, which is English
    js_splitter_code = SPLITTER

    def split(self, text: str) -> list[str]:
        """Return the terms of a text, with repeats."""
        terms: list[str] = []
        for run in re.findall(rf"[{CHINESE}]+|[^\W{CHINESE}]+", text):
            pairs = [run[place : place + 2] for place in range(len(run) - 1)]
            terms += pairs if re.match(f"[{CHINESE}]", run) else [run]
        return terms

    def word_filter(self, word: str) -> bool:
        """Return whether a term is kept."""
        return bool(re.match(f"[{CHINESE}]", word)) or super().word_filter(word)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect what this file adds to Sphinx."""
    chinese: type[SearchLanguage] = PairsOfCharacters
    languages["zh"] = chinese
    app.connect("source-read", read)
    app.connect("html-page-context", other_language)
    app.connect("html-page-context", accessible, priority=900)  # after the theme's
    return {"parallel_read_safe": True, "parallel_write_safe": True}
