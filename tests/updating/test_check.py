"""The check of a night: the lead, and each reason to refuse a model."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from nights import first, shop
from twotower.data.dataset import Cases, Dataset, Part
from twotower.evaluation.ranking import Evaluation, evaluate
from twotower.histories import Histories
from twotower.updating.check import LEAST_QUERIES, Check, Lead, checked, lead_of, measured
from twotower.updating.moving_rows import MovingRows
from twotower.updating.night import night_of
from twotower.vocab import FIRST_ROW


@cache
def dataset() -> Dataset:
    given = {"items": None, "queries": None, "expire_days": None}
    return night_of(first().contents, shop(1), **given).dataset


@dataclass(frozen=True)
class Knowing:
    """Ranks the target of a share of the queries first, and of the others last; the rest by row."""

    share: float
    num_rows: int

    def score(self, cases: Cases) -> torch.Tensor:
        scores = -torch.arange(self.num_rows).float().repeat(len(cases), 1) / self.num_rows
        knows = cases.query_rows % 100 < 100 * self.share
        for line, (row, found) in enumerate(zip(cases.targets.item_rows, knows, strict=True)):
            scores[line, row] = 2.0 if found else -2.0
        return scores


def of(share: float, num: int | None = None) -> Evaluation:
    data = dataset()
    scorer = Knowing(share, data.items.ids.num_rows)
    return measured(scorer, data, data.cases(Part.VALID).take(slice(num)))


def check(
    model: float, yesterday: float, usual: Lead | None = None, num: int | None = None
) -> Check:
    return checked(of(model, num), of(yesterday, num), dataset(), usual)


def test_a_model_that_is_as_good_is_not_refused() -> None:
    found = check(0.6, 0.6)
    assert found.reasons == ()
    assert found.differences["yesterday"]["ndcg@10"][0] == 0.0
    assert set(found.means) == {"model", "yesterday", "popularity"}


def test_a_model_that_is_worse_than_yesterdays_is_refused() -> None:
    (reason,) = check(0.3, 0.6).reasons
    assert reason.startswith("The new model is worse than yesterday's by 0.")
    assert check(0.6, 0.3).reasons == ()


@pytest.mark.parametrize("num", [LEAST_QUERIES - 1, LEAST_QUERIES])
def test_a_day_of_few_queries_refuses_nothing(num: int) -> None:
    assert bool(check(0.0, 1.0, num=num).reasons) == (num >= LEAST_QUERIES)


def test_a_model_below_popularity_is_refused_unless_it_was_before() -> None:
    reasons = check(0.0, 0.6).reasons
    assert [reason.split(" by ")[0] for reason in reasons] == [
        "The new model is worse than yesterday's",
        "The new model is worse than popularity",
    ]
    assert check(0.0, 0.0).reasons == ()


def test_a_day_without_half_of_the_usual_lead_is_refused() -> None:
    lead = check(0.3, 0.3).lead
    assert lead is not None
    low, high = lead[1:]
    assert check(0.3, 0.3, Lead(2.1 * high, 100)).reasons[0].startswith("Today's events do not fit")
    assert check(0.3, 0.3, Lead(1.9 * high, 100)).reasons == ()
    assert low > 0


def test_the_lead_of_a_few_queries_by_hand() -> None:
    """Three queries rank items 2, 3, 4 in this order; the own ones are 2, 2 and 3.

    Own: 1, 1 and 1 / log2(3) = 0.6309. Dealt: 2/3 of the 1 and 1/3 of the 0.6309: 0.8770 for each. The
    query without a history does not count, though its own item is dealt out to nobody.
    """
    targets = Histories.of([np.array([row], np.int32) for row in (2, 2, 3, 4)])
    histories = Histories.of([np.array([5], np.int32)] * 3 + [np.zeros(0, np.int32)])
    cases = Cases(np.arange(4, dtype=np.int32), histories, targets)

    class ByRow:
        def score(self, cases: Cases) -> torch.Tensor:
            return -torch.arange(6).float().repeat(len(cases), 1)

    lead = lead_of(evaluate(ByRow(), cases, (10,), num_item_rows=6))
    assert lead is not None
    assert lead.value == pytest.approx((2 + 0.6309) / 3 - 0.8770, abs=1e-4)
    alone = evaluate(ByRow(), cases.take(np.array([3])), (10,), num_item_rows=6)
    assert lead_of(alone) is None


def test_the_usual_lead_counts_a_night_half_as_much_as_the_next() -> None:
    after = Lead(0.1, 100).after(0.4, 50)
    assert after.value == pytest.approx(0.25)
    assert after.queries == 100.0


def test_rows_move_and_others_stay() -> None:
    table = nn.Embedding(6, 3)
    before = table.weight.detach().clone()
    moving = MovingRows(table, torch.tensor([FIRST_ROW, 4]))
    asked = torch.tensor([[1, FIRST_ROW], [4, 4]])
    assert torch.equal(moving(asked), before[asked])
    assert [name for name, _ in moving.named_parameters()] == ["weight"]
    moving(asked).sum().backward()
    assert moving.weight.grad is not None
    assert moving.weight.grad.tolist() == [[1.0] * 3, [2.0] * 3]
    with torch.no_grad():
        moving.weight.add_(1)
    assert torch.equal(table.weight, before)
    settled = moving.settled()
    assert settled is table
    is_moved = torch.tensor([False, False, True, False, True, False])
    assert torch.equal(table.weight[is_moved], before[is_moved] + 1)
    assert torch.equal(table.weight[~is_moved], before[~is_moved])
