"""The figures of queries of whom little is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from trainers import trainer_of
from twotower.data.dataset import Cases, Dataset, Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.evaluation.known_events import CutShort, by_known_events
from twotower.evaluation.ranking import evaluate
from twotower.histories import Histories


class Told:
    """A scorer that says which items it was told of."""

    def score(self, cases: Cases) -> torch.Tensor:
        scores = torch.zeros(len(cases), 12)
        owners = np.repeat(np.arange(len(cases)), cases.histories.lengths)
        scores[owners, cases.histories.item_rows] = 1
        return scores


def test_what_is_told_is_the_end_of_each_history() -> None:
    histories = Histories.of([np.array(h, np.int32) for h in ([2, 3, 4], [], [5], [6, 7])])
    targets = Histories.of([np.array([8], np.int32)] * 4)
    cases = Cases(np.arange(2, 6, dtype=np.int32), histories, targets)
    wanted = {0: [[], [], [], []], 1: [[4], [], [5], [7]], 2: [[3, 4], [], [5], [6, 7]]}
    for num, told in wanted.items():
        scores = CutShort(Told(), num).score(cases)
        assert [line.nonzero()[:, 0].tolist() for line in scores] == told


@pytest.fixture(scope="module")
def world(small_world: SyntheticTables) -> SyntheticTables:
    return small_world


def test_a_large_catalogue_is_ranked_for_fewer_queries(
    world: SyntheticTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(world, {"towers": {"history": "pooled"}})
    monkeypatch.setattr("twotower.data.dataset.CHOICE_CASES", (7, 7))
    found = by_known_events({"model": trainer.scorer()}, trainer.dataset, Part.TEST, "ndcg@10")
    assert found is not None
    assert found["queries"] == 7


def test_all_numbers_are_of_the_same_queries_and_the_same_answers_are_left_out(
    world: SyntheticTables,
) -> None:
    trainer = trainer_of(world, {"training": {"epochs": 2}, "towers": {"history": "pooled"}})
    trainer.fit()
    dataset = trainer.dataset
    scorers = {"model": trainer.scorer()}
    found = by_known_events(scorers, dataset, Part.TEST, "ndcg@10")
    assert found is not None
    cases = dataset.cases(Part.TEST)
    most = found["events"][-1]
    assert found["events"] == [n for n in (0, 1, 2, 5, 10, 20) if n <= most]
    asked = cases.take(np.flatnonzero(cases.histories.lengths >= most))
    assert found["queries"] == len(asked) >= 50
    # With one event known, by hand: the last one, without an id, all that was seen left out.
    last = asked.histories.offsets[1:] - 1
    one = Histories(
        np.arange(len(asked) + 1),
        asked.histories.item_rows[last],
        None if asked.histories.times is None else asked.histories.times[last],
    )
    scores = trainer.scorer().of_new_queries().score(replace(asked, histories=one))
    for line in range(len(asked)):
        scores[line, asked.histories.take(slice(line, line + 1)).item_rows] = -np.inf
    scores[:, :2] = -np.inf
    best = scores.topk(10).indices.numpy()
    gains = []
    for line in range(len(asked)):
        (target,) = asked.targets.take(slice(line, line + 1)).item_rows
        place = np.flatnonzero(best[line] == target)
        gains.append(1 / np.log2(place[0] + 2) if len(place) else 0.0)
    value = found["methods"]["model"][found["events"].index(1)][0]
    assert value == pytest.approx(np.mean(gains), abs=1e-9)


def test_a_new_query_is_not_known_by_its_id(world: SyntheticTables) -> None:
    both: dict[str, dict[str, Any]] = {
        "towers": {"history": "pooled", "query_id": "on"},
        "training": {"epochs": 2},
    }
    trainer = trainer_of(world, both)
    trainer.fit()
    cases = trainer.dataset.cases(Part.TEST)
    plain = trainer.scorer().score(cases)
    anonymous = trainer.scorer().of_new_queries()
    assert not torch.equal(plain, anonymous.score(cases))
    moved = replace(cases, query_rows=np.roll(cases.query_rows, 1))
    features = {t.feature.name for t in trainer.encoding.query_transforms.transforms}
    if features == {trainer.dataset.queries.id_column}:
        assert torch.equal(anonymous.score(cases), anonymous.score(moved))
    else:
        assert not torch.equal(anonymous.score(cases), anonymous.score(moved))


def test_nothing_is_said_where_nothing_is_read_or_few_are_asked(world: SyntheticTables) -> None:
    of_ids = trainer_of(world, {"towers": {"history": "none", "query_id": "on"}})
    asked: Dataset = of_ids.dataset
    assert by_known_events({"model": of_ids.scorer()}, asked, Part.TEST, "ndcg@10") is None
    reads = trainer_of(world, {"towers": {"history": "pooled"}})
    parts = reads.dataset.parts.copy()
    tests = np.flatnonzero(parts == Part.TEST)
    parts[tests[40:]] = Part.UNUSED
    few = replace(reads.dataset, parts=parts)
    assert by_known_events({"model": reads.scorer()}, few, Part.TEST, "ndcg@10") is None
    assert (
        evaluate(
            reads.scorer(), few.cases(Part.TEST), (10,), num_item_rows=few.items.ids.num_rows
        ).num_queries
        <= 40
    )
