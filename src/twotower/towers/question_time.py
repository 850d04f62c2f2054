"""The time of a question: how long after the last event it is asked, at which hour, on which weekday."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twotower.arrays import Floats
from twotower.draws import uniform
from twotower.towers.layers import NUM_GAPS, gap_rows

DAY_HOURS, WEEK_DAYS = 24, 7
WEEK_HOURS = DAY_HOURS * WEEK_DAYS
ENOUGH_GAPS = 100
"""Questions after a gap, or after longer ones, that are enough to learn from."""
FIRST_HOURS = 3 * DAY_HOURS
"""1970 began on a Thursday; weeks begin on Monday."""


@dataclass(frozen=True, eq=False)
class Asked:
    """When questions are asked, as the query tower reads it.

    Args:
        gaps: ``(...)`` seconds since the last event that each question knows; NaN where that is not known.
        hours: ``(...)`` int64 hour of the week in UTC, 0 on Monday from midnight; -1 where the time of the
            question is not known.
    """

    gaps: Tensor
    hours: Tensor

    def __getitem__(self, where: Any) -> "Asked":
        return Asked(self.gaps[where], self.hours[where])

    def to(self, device: torch.device) -> "Asked":
        """Return the same on a device."""
        gaps = self.gaps.to(device, torch.float32 if device.type == "mps" else None)
        return Asked(gaps, self.hours.to(device))


def asked_at(moments: Tensor, last_times: Tensor | None, has_event: Tensor) -> Asked:
    """Return what the query tower reads of the times of questions.

    Args:
        moments: ``(...)`` float64 seconds since 1970 when each question is asked; not finite where unknown.
        last_times: ``(...)`` those of the last event before each; None where events have no times.
        has_event: ``(...)`` bool, whether there is such an event.
    """
    is_known = moments.isfinite()
    gaps = torch.full_like(moments, torch.nan)
    if last_times is not None:
        gaps = torch.where(has_event & is_known, moments - last_times, gaps)
    hours = torch.floor(torch.where(is_known, moments, 0.0) / 3600) + FIRST_HOURS
    hours = hours - WEEK_HOURS * torch.floor(hours / WEEK_HOURS)
    return Asked(gaps, torch.where(is_known, hours, -1.0).long())


class QuestionTime(nn.Module):
    """A vector for the time of the question: the sum of those of its gap, its hour and its weekday.

    All start at zero. A gap below 0 counts as 0: the question is then as old as the last event. A question
    that is asked after a longer gap than training has seen counts as one at an unknown time. A share of the
    training questions is read so, while nothing was learnt of such a gap.

    Args:
        dim: Width.
        dropout: Share of the questions whose time is not read in training, so that those without one can
            be answered.

    Source: Zhai et al., ICML 2024 (HSTU), whose attention bias knows the time of the next event; weekday
        and hour as in Covington et al., RecSys 2016, section 3.3 (time as a feature). Differs: the time is
        added to what was read of the history, so that the state of a history stays what it is.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.gaps = nn.Embedding(NUM_GAPS, dim)
        self.hours = nn.Embedding(DAY_HOURS, dim)
        self.weekdays = nn.Embedding(WEEK_DAYS, dim)
        self.longest = nn.Buffer(torch.tensor(1e30))  # a bundle holds no infinite number
        """Gap in seconds up to which training has seen enough questions."""
        for table in (self.gaps, self.hours, self.weekdays):
            nn.init.zeros_(table.weight)

    def see(self, gaps: Floats) -> None:
        """Note the gaps of training, in seconds: with the longest that counts, a hundred are as long.

        Of fewer than 10,000 gaps, a hundredth are.
        """
        if len(gaps):
            place = min(ENOUGH_GAPS, 1 + len(gaps) // ENOUGH_GAPS)
            self.longest.fill_(float(np.partition(gaps, -place)[-place]))

    def forward(self, asked: Asked) -> Tensor:
        """Map ``n`` questions to ``(n, dim)``; zero where nothing is known of the time."""
        is_seen = ~(asked.gaps > self.longest)
        has_gap, has_hour = ~asked.gaps.isnan() & is_seen, (asked.hours >= 0) & is_seen
        if self.training and self.dropout > 0:
            is_read = uniform(*has_hour.shape, device=has_hour.device) >= self.dropout
            has_gap, has_hour = has_gap & is_read, has_hour & is_read
        gaps = self.gaps(gap_rows(asked.gaps.nan_to_num(0.0)))
        hours = asked.hours.clamp(min=0)
        of_hours = self.hours(hours % DAY_HOURS) + self.weekdays(hours // DAY_HOURS)
        vectors = torch.where(has_gap[..., None], gaps, 0.0)
        return vectors + torch.where(has_hour[..., None], of_hours, 0.0)
