"""Lines of code of each room of the package: those with a token, without docstrings and comments.

    python benchmarks/code_lines.py [FOLDER]

``FOLDER`` is ``src/twotower`` unless another is named.
"""

import ast
import tokenize
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "twotower"
NO_CODE = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(path: Path) -> int:
    """Return the number of lines of a Python file that hold code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    code: set[int] = set()
    with path.open("rb") as opened:
        for token in tokenize.tokenize(opened.readline):
            if token.type not in NO_CODE:
                code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def main() -> None:
    """Print files and lines of each room."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=SOURCE)
    folder = parser.parse_args().folder
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for path in folder.rglob("*.py"):
        room = path.relative_to(folder).parent.as_posix()
        files[room] += 1
        lines[room] += code_lines(path)
    for room in sorted(files):
        print(f"{room:20} {files[room]:4} files {lines[room]:7,} lines")
    print(f"{'all':20} {files.total():4} files {lines.total():7,} lines")


if __name__ == "__main__":
    main()
