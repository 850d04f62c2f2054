import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"


def imports_between_files() -> dict[str, set[str]]:
    """Return, for each module of the package, those that it imports, wherever the import stands."""
    paths = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found: dict[str, set[str]] = {}
    for module, path in paths.items():
        names = found[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= (below & paths.keys()) or ({node.module} & paths.keys())
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names} & paths.keys()
    return found


def test_no_circles_between_files() -> None:
    imported = imports_between_files()
    del imported["twotower"]  # its public names are imported when they are first asked for
    while imported:
        ends = {module for module, names in imported.items() if not names & imported.keys()}
        assert ends, (
            f"these files import each other in a circle, or lead to one: {sorted(imported)}"
        )
        imported = {module: names for module, names in imported.items() if module not in ends}
