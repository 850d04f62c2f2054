"""Baselines that one thread fits while others train the model."""

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

import torch

from twotower.baselines.specs import BASELINES, Baselines, fit_baselines, peak_bytes
from twotower.baselines.validation import before_each
from twotower.data.dataset import Dataset
from twotower.runtime import available_bytes, choose_threads
from twotower.training.callbacks import Callback

if TYPE_CHECKING:
    from twotower.config import Config

_SHARE_OF_MEMORY = 0.25
"""Of the memory that is available, what baselines may take beside a training."""

Keys = Literal["auto"] | Sequence[str]


class BaselinesAhead(Callback):
    """Fits baselines in a thread of their own from the first step of training on.

    They learn nothing of the model. A training of small batches leaves a core idle, and a person waits for
    both. BM25 is left for later, since the model may be served with the one that was chosen for it.

    They start after the closed form was chosen, which is a baseline, too, and a start of the towers: so it
    is found by the same threads in every run. Nothing starts where one thread trains, or where the
    baselines need much of the memory.

    Args:
        keys: See ``fit_baselines``.
        refit: See there.
    """

    def __init__(self, keys: Keys, *, refit: bool) -> None:
        self._keys, self._refit = keys, refit
        self._dataset: Dataset | None = None
        self._threads = 1
        self._thread: threading.Thread | None = None
        self._told: SimpleQueue[str | list[Baselines] | BaseException] = SimpleQueue()
        self._is_stopped = False
        self._fitted: list[Baselines] | None = None

    def on_data(self, dataset: Dataset, *_: Any) -> None:
        """Remember what they are fitted to."""
        self._dataset = dataset

    def on_choices(self, _: tuple[str, ...], config: "Config") -> None:
        """Remember how many threads there are."""
        self._threads = choose_threads(config.training.threads)

    def on_start(self, *_: Any) -> None:
        """Start, if nothing has started yet."""
        if self._dataset is None or self._thread is not None or self._threads < 2:
            return
        views = self._dataset.all_views()
        needed = max(peak_bytes(view, self._keys) for view in views)
        if needed > _SHARE_OF_MEMORY * available_bytes():
            return
        self._thread = threading.Thread(target=self._fit, args=(views,), name="baselines")
        self._thread.start()

    def close(self) -> None:
        """Let the thread end before the next setting that it would try."""
        self._is_stopped = True

    def fitted(
        self, place: int, *, refit: bool, tell: Callable[[str], None] = lambda _: None
    ) -> Baselines | None:
        """Return the baselines of a view as soon as they are fitted; None where nothing was started for it.

        Args:
            place: Of the view, 0 where there is one data set.
            refit: Whether they must have learnt the validation events.
            tell: Gets the phases; see ``fit_baselines``.

        Raises:
            ConfigError: A baseline that was named does not suit the data.
            MissingExtraError: Its library is not installed.
        """
        if self._thread is None or refit != self._refit:
            self.close()
            return None
        while self._fitted is None:
            told = self._told.get()
            if isinstance(told, BaseException):
                raise told
            if isinstance(told, str):
                tell(told)
            else:
                self._fitted = told
        return self._fitted[place]

    def _fit(self, views: Sequence[Dataset]) -> None:
        torch.set_num_threads(1)  # the others are the training's
        before_each.set(self._check_open)
        among = [key for key, spec in BASELINES.items() if not spec.waits_for_model]
        try:
            found = [
                fit_baselines(view, self._keys, among=among, refit=self._refit, tell=self._told.put)
                for view in views
            ]
        except BaseException as error:
            self._told.put(error)
        else:
            self._told.put(found)

    def _check_open(self) -> None:
        if self._is_stopped:
            raise _ClosedError


class _ClosedError(Exception):
    """Ends the thread."""
