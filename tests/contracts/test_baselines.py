"""What every baseline must obey."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from twotower.baselines.specs import BASELINES, Baselines, fit_baselines
from twotower.data.dataset import Cases, Dataset, Part
from twotower.data.preparation import prepare
from twotower.data.splits import split
from twotower.evaluation.ranking import rank
from twotower.histories import Histories
from twotower.vocab import FIRST_ROW

every_baseline = pytest.mark.parametrize("key", list(BASELINES))


def tables(*, labels: bool = False) -> Dataset:
    """Fifty searches of three kinds over 40 items of the same kinds, with texts, times and weights."""
    draw = np.random.default_rng(0)
    kinds = ("red apple", "green pear", "blue plum")
    rows = []
    for query in range(50):
        own = np.flatnonzero(np.arange(40) % 3 == query % 3)
        for step, item in enumerate(draw.choice(own, 8, replace=False)):
            rows.append((query, int(item), float(query * 1_000 + step * 500), 1 + step % 3, 1))
        if labels:
            rows.append((query, int(draw.integers(40)), query * 1_000 + 250.0, 1, 0))
    names = ["user_id", "item_id", "timestamp", "weight", "label"]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    return split(
        prepare(
            frame if labels else frame.drop("label"),
            items=pl.DataFrame(
                {"item_id": range(45), "title": [f"{kinds[n % 3]} no{n}" for n in range(45)]}
            ),
            queries=pl.DataFrame(
                {"user_id": range(50), "search": [f"{kinds[n % 3]} for{n}" for n in range(50)]}
            ),
        ).dataset
    )


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return tables()


@pytest.fixture(scope="module")
def fitted(dataset: Dataset) -> Baselines:
    pytest.importorskip("implicit")
    return fit_baselines(dataset)


def scores_of(fitted: Baselines, key: str, cases: Cases) -> torch.Tensor:
    return fitted.scorers[key].score(cases)


def test_all_of_them_fit(fitted: Baselines) -> None:
    assert list(fitted.scorers) == list(BASELINES)
    assert fitted.left_out == {}


@every_baseline
def test_one_finite_score_for_each_pair(dataset: Dataset, fitted: Baselines, key: str) -> None:
    for part in (Part.VALID, Part.TEST):
        cases = dataset.cases(part)
        scores = scores_of(fitted, key, cases)
        assert scores.shape == (len(cases), dataset.items.ids.num_rows)
        assert scores.dtype == torch.float32
        assert scores.isfinite().all()


@every_baseline
def test_a_case_is_scored_by_itself(dataset: Dataset, fitted: Baselines, key: str) -> None:
    cases = dataset.cases(Part.TEST)
    whole = scores_of(fitted, key, cases)
    shuffled = np.random.default_rng(0).permutation(len(cases))
    for chunk in (shuffled[:7], shuffled[7:8], shuffled):
        got = scores_of(fitted, key, cases.take(chunk))
        torch.testing.assert_close(got, whole[torch.from_numpy(chunk)], rtol=1e-5, atol=1e-6)


@every_baseline
def test_no_case_at_all(dataset: Dataset, fitted: Baselines, key: str) -> None:
    none = dataset.cases(Part.TEST).take(slice(0, 0))
    assert scores_of(fitted, key, none).shape == (0, dataset.items.ids.num_rows)


@every_baseline
def test_equal_data_give_equal_scores(dataset: Dataset, fitted: Baselines, key: str) -> None:
    again = fit_baselines(tables(), [key])
    cases = dataset.cases(Part.TEST)
    assert again.settings[key] == fitted.settings[key]
    assert torch.equal(scores_of(again, key, cases), scores_of(fitted, key, cases))


@every_baseline
def test_the_test_teaches_nothing(dataset: Dataset, fitted: Baselines, key: str) -> None:
    events = dataset.interactions
    is_test = dataset.parts == Part.TEST
    rows = np.where(is_test, FIRST_ROW + 3, events.item_rows).astype(np.int32)
    assert events.times is not None
    assert events.weights is not None
    other = replace(
        events,
        item_rows=rows,
        times=np.where(is_test, events.times + 9, events.times),
        weights=np.where(is_test, 50, events.weights).astype(np.float32),
    )
    again = fit_baselines(replace(dataset, interactions=other), [key])
    cases = dataset.cases(Part.TEST)
    assert again.settings[key] == fitted.settings[key]
    assert torch.equal(scores_of(again, key, cases), scores_of(fitted, key, cases))


@every_baseline
def test_targets_are_not_read(dataset: Dataset, fitted: Baselines, key: str) -> None:
    cases = dataset.cases(Part.TEST)
    targets = Histories.of([np.array([FIRST_ROW], np.int32)] * len(cases))
    got = scores_of(fitted, key, replace(cases, targets=targets))
    assert torch.equal(got, scores_of(fitted, key, cases))


@every_baseline
def test_a_cold_query_gets_an_answer(dataset: Dataset, fitted: Baselines, key: str) -> None:
    cases = replace(
        dataset.cases(Part.TEST).take(slice(0, 2)), histories=Histories.empty(2), times=None
    )
    num_item_rows = dataset.items.ids.num_rows
    found = rank(fitted.scorers[key], cases, 10, num_item_rows=num_item_rows)
    assert (found.item_rows >= FIRST_ROW).all()
    scores = scores_of(fitted, key, cases)
    assert (scores[:, FIRST_ROW:].amax(dim=1) > scores[:, FIRST_ROW:].amin(dim=1)).all()


@every_baseline
def test_negatives_are_not_liked(key: str) -> None:
    pytest.importorskip("implicit")
    labelled = tables(labels=True)
    cases = labelled.cases(Part.TEST)
    events = labelled.interactions
    without = replace(
        labelled,
        interactions=replace(events.where(events.is_positive), labels=None),
        parts=labelled.parts[events.is_positive],
    )
    got, expected = (
        fit_baselines(data, [key]).scorers[key].score(cases) for data in (labelled, without)
    )
    assert torch.equal(got, expected)
