"""Where items stand on a map: their vectors brought to two dimensions.

A server runs this file as a process of its own, so that drawing a map holds nobody up: vectors come in on
the standard input, and places go out on the standard output.
"""

import io
import os
import sys

import numpy as np
import numpy.typing as npt

LANDMARKS = 2000
"""Items among which t-SNE is run; the others are placed between those that they are most like."""

_BETWEEN = 3
_AT_ONCE = 4096
Floats = npt.NDArray[np.floating]


def places_of(vectors: Floats, landmarks: npt.NDArray[np.integer]) -> Floats | None:
    """Return two coordinates of each vector: ``(n, 2)``; None where fewer than three vectors differ.

    The landmarks are placed by t-SNE on the first 50 principal components of their directions. Each other
    vector is placed between the three landmarks of nearest direction, the nearer ones counting more: by the
    inverse of the squared distance. The same vectors always get the same places.

    Args:
        vectors: ``(n, dim)``.
        landmarks: ``(m,)`` rising positions of some of them. The cost of t-SNE is that of their number.

    Source: van der Maaten and Hinton, JMLR 2008 (t-SNE).
    """
    chosen = vectors[landmarks].astype(np.float64)
    if not np.isfinite(vectors).all() or len(np.unique(chosen.round(6), axis=0)) < 3:
        return None
    flat = _flat(_directions(chosen))
    places = np.empty((len(vectors), 2))
    known = _directions(chosen).astype(np.float32)
    for start in range(0, len(vectors), _AT_ONCE):
        part = _directions(vectors[start : start + _AT_ONCE].astype(np.float32))
        likeness = part @ known.T
        nearest = np.argpartition(-likeness, _BETWEEN - 1, axis=1)[:, :_BETWEEN]
        distance = 2 - 2 * np.take_along_axis(likeness, nearest, axis=1)
        weights = 1 / (np.maximum(distance, 0) + 1e-3)
        weights /= weights.sum(axis=1, keepdims=True)
        places[start : start + _AT_ONCE] = (flat[nearest] * weights[..., None]).sum(axis=1)
    places[landmarks] = flat
    return places


def _directions(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _flat(directions: Floats) -> Floats:
    from sklearn.decomposition import PCA  # it takes a second to load
    from sklearn.manifold import TSNE

    width = min(50, *directions.shape)
    components = PCA(width, random_state=0).fit_transform(directions)
    if len(directions) < 10 or width < 2 or not components.std(axis=0)[0] > 0:
        return np.hstack([components, np.zeros((len(directions), 1))])[:, :2]
    # Coarser and shorter than by default: half the time, and the same groups.
    flat: Floats = TSNE(
        perplexity=min(30, (len(directions) - 1) / 3),
        init="pca",
        angle=0.8,
        max_iter=500,
        random_state=0,
    ).fit_transform(components)
    return flat


def main() -> None:
    """Read vectors and landmarks, and write their places; nothing where there is no map."""
    if hasattr(os, "nice"):
        os.nice(5)  # whoever asks for an answer goes first
    given = io.BytesIO(sys.stdin.buffer.read())
    vectors = np.load(given, allow_pickle=False)
    landmarks = np.load(given, allow_pickle=False)
    places = places_of(vectors, landmarks)
    if places is not None:
        drawn = io.BytesIO()  # numpy asks a file where it stands, which a pipe cannot say
        np.save(drawn, places.astype(np.float32))
        sys.stdout.buffer.write(drawn.getvalue())


if __name__ == "__main__":
    main()
