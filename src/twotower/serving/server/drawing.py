"""The map of the catalogue: drawn once for a model, by a process of its own, when it is first asked for."""

import io
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from twotower.serving import places as drawn_by
from twotower.serving.bundle import Contents
from twotower.serving.map import colourings, landmarks_of
from twotower.serving.retriever import Retriever
from twotower.serving.server.telemetry import LOG
from twotower.serving.titles import Titles
from twotower.vocab import FIRST_ROW

MOST_ITEMS = 60_000
"""Items on the map; of a larger catalogue the most popular."""
MOST_COLOURINGS = 12
SIDE = 9_999
"""Places are whole numbers from 0 to this one, which no screen can tell from finer ones."""
BEING_DRAWN = orjson.dumps({"status": "drawing"})

_SECONDS = 600.0
_CODES = "012345."


@dataclass(frozen=True, eq=False)
class Sketch:
    """What a map is drawn from, taken out of a model between two of its answers.

    Args:
        digest: Of the model's bundle.
        contents: Of the model.
        shown: See ``map.items_on_map``.
        vectors: ``(n, dim)`` of these items.
    """

    digest: str
    contents: Contents
    shown: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


def sketch_of(retriever: Retriever, digest: str, shown: npt.NDArray[np.int64]) -> Sketch:
    """Return what the map of a catalogue, as it is now, is drawn from.

    Args:
        retriever: What answers.
        digest: Of its bundle.
        shown: See ``map.items_on_map``.
    """
    vectors = retriever.index.item_vectors[shown + FIRST_ROW].cpu().numpy()
    return Sketch(digest, retriever.contents, shown, vectors)


class Drawing:
    """Draws one map at a time, and keeps the last one.

    However many ask, there is one drawing at a time, in a process that yields to whatever else runs.
    """

    def __init__(self) -> None:
        self._kept = ("", b"")
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def answer_of(self, digest: str) -> bytes | None:
        """Return the map of a model as JSON; None where it was not drawn."""
        known, answer = self._kept
        return answer if known == digest else None

    @property
    def is_busy(self) -> bool:
        """Whether a map is being drawn."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, sketch: Sketch) -> None:
        """Begin to draw, unless a map is being drawn."""
        if self.is_busy or self._is_closed:
            return
        self._thread = threading.Thread(
            target=self._draw, args=(sketch,), name="twotower-map", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Give up what is being drawn."""
        self._is_closed = True
        if self._process is not None:
            self._process.kill()

    def _draw(self, sketch: Sketch) -> None:
        try:
            places = self._places(sketch)
            told = {"status": "none"} if places is None else _told(sketch, places)
        except Exception as error:
            if self._is_closed:
                return
            LOG.exception("the map could not be drawn", error=getattr(error, "stderr", str(error)))
            told = {"status": "failed"}
        self._kept = (sketch.digest, orjson.dumps(told))

    def _places(self, sketch: Sketch) -> npt.NDArray[np.float32] | None:
        given = io.BytesIO()
        np.save(given, sketch.vectors)
        np.save(given, landmarks_of(sketch.contents, sketch.shown))
        # It needs none of the server's settings, tokens least of all, and no more than one core.
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


def _told(sketch: Sketch, places: npt.NDArray[np.float32]) -> dict[str, Any]:
    items, shown = sketch.contents.items, sketch.shown
    titles = Titles(items)
    low, high = places.min(axis=0), places.max(axis=0)
    scale = SIDE / max(float((high - low).max()), 1e-9)
    x, y = ((places - (low + high) / 2) * scale + SIDE / 2).round().astype(int).T.tolist()
    found = list(islice(colourings(items, shown), MOST_COLOURINGS))
    found.sort(key=lambda each: -each.explains(places))
    # Python reads the last character where there is no group.
    columns = [
        {
            "name": each.column,
            "groups": each.groups,
            "codes": "".join(_CODES[code] for code in each.codes.tolist()),
        }
        for each in found
    ]
    return {
        "status": "ready",
        "model": sketch.digest,
        "items": sketch.contents.num_items,
        "item_ids": items.ids.ids.gather(shown).to_list(),
        "titles": None if titles.column is None else titles.of(shown + FIRST_ROW),
        "x": x,
        "y": y,
        "columns": columns,
    }
