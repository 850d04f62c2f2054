"""The map of the catalogue. A process of its own draws it once for each model, at the first request."""

import io
import os
import subprocess
import sys
import threading
from itertools import islice
from typing import Any

import numpy as np
import orjson

from twotower.arrays import Float32s, Ints
from twotower.serving import places as drawn_by
from twotower.serving.bundle import Contents
from twotower.serving.map import colourings, landmarks_of
from twotower.serving.server.telemetry import LOG
from twotower.serving.titles import Titles
from twotower.vocab import FIRST_ROW

MOST_ITEMS = 60_000
"""Most items on the map. A larger catalogue shows its most popular items."""
MOST_COLOURINGS = 12
SIDE = 9_999
"""Largest coordinate. Coordinates are whole numbers from 0, finer than the pixels of a screen."""
BEING_DRAWN = orjson.dumps({"status": "drawing"})

_SECONDS = 600.0
_CODES = "012345."


class Drawing:
    """Draws one map at a time, in a process that yields to others, and keeps the last map."""

    def __init__(self) -> None:
        self._kept = ("", b"")
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def answer_of(self, digest: str) -> bytes | None:
        """Return the map of a model as JSON; None if it was not drawn."""
        known, answer = self._kept
        return answer if known == digest else None

    @property
    def is_busy(self) -> bool:
        """Whether a map is being drawn."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, digest: str, contents: Contents, shown: Ints, vectors: Float32s) -> None:
        """Begin to draw. No other map may be under way.

        Args:
            digest: The digest of the model's bundle.
            contents: The contents of the model.
            shown: The rows of the items, see ``map.items_on_map``.
            vectors: ``(n, dim)``, the vectors of these items.
        """
        if self._is_closed:
            return
        drawn = (digest, contents, shown, vectors)
        self._thread = threading.Thread(
            target=self._draw, args=drawn, name="twotower-map", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop drawing."""
        self._is_closed = True
        if self._process is not None:
            self._process.kill()

    def _draw(self, digest: str, contents: Contents, shown: Ints, vectors: Float32s) -> None:
        try:
            places = self._places(vectors, landmarks_of(contents, shown))
            told: dict[str, Any] = {"status": "none"}
            if places is not None:
                told = {"status": "ready", "model": digest, **_told(contents, shown, places)}
        except Exception as error:
            if self._is_closed:
                return
            LOG.exception("the map could not be drawn", error=getattr(error, "stderr", str(error)))
            told = {"status": "failed"}
        self._kept = (digest, orjson.dumps(told))

    def _places(self, vectors: Float32s, landmarks: Ints) -> Float32s | None:
        given = io.BytesIO()
        np.save(given, vectors)
        np.save(given, landmarks)
        # The process gets none of the server's settings, above all no token, and one core.
        own = {n: value for n, value in os.environ.items() if not n.startswith("TWOTOWER_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", drawn_by.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**own, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        with self._process as process:
            if self._is_closed:
                process.kill()
            try:
                drawn, problems = process.communicate(given.getvalue(), _SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        if process.returncode:
            told = problems.decode(errors="replace")[-2000:]
            raise subprocess.CalledProcessError(process.returncode, drawn_by.__name__, stderr=told)
        return np.load(io.BytesIO(drawn), allow_pickle=False) if drawn else None


def _told(contents: Contents, shown: Ints, places: Float32s) -> dict[str, Any]:
    items = contents.items
    titles = Titles(items)
    low, high = places.min(axis=0), places.max(axis=0)
    scale = SIDE / max(float((high - low).max()), 1e-9)
    x, y = ((places - (low + high) / 2) * scale + SIDE / 2).round().astype(int).T.tolist()
    found = list(islice(colourings(items, shown), MOST_COLOURINGS))
    found.sort(key=lambda each: -each.explains(places))
    # An item without a group has the code -1, the last character.
    columns = [
        {
            "name": each.column,
            "groups": each.groups,
            "codes": "".join(_CODES[code] for code in each.codes.tolist()),
        }
        for each in found
    ]
    return {
        "items": contents.num_items,
        "item_ids": items.ids.ids.gather(shown).to_list(),
        "titles": None if titles.column is None else titles.of(shown + FIRST_ROW),
        "x": x,
        "y": y,
        "columns": columns,
    }
