"""A small file of word vectors for tests."""

from pathlib import Path

VECTORS = {
    "red": (3.0, 4.0, 0.0),
    "crimson": (4.0, 3.0, 0.0),
    "car": (0.0, 0.0, 2.0),
    "boat": (0.0, -1.0, 1.0),
    "snow": (-1.0, 0.0, 0.0),
}


def write_vectors(path: Path, header: str = "") -> str:
    """Write the vectors as GloVe writes them, after a header if wanted, and return the path."""
    lines = [" ".join([word, *map(str, numbers)]) for word, numbers in VECTORS.items()]
    path.write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
