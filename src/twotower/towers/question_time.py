"""The time of a question: how long after the last event it is asked, at which hour, on which weekday."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twotower.arrays import Bools, Floats
from twotower.towers.layers import NUM_GAPS, gap_rows

DAY_HOURS, WEEK_DAYS = 24, 7
FIRST_WEEKDAY = 3
"""1970 began on a Thursday; Monday is day 0."""


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


def hours_of_week(seconds: Floats) -> Floats:
    """Return the hour of the week in UTC of each moment: float64 in 0..167, -1 where it is not finite.

    Args:
        seconds: Since 1970, of any shape.
    """
    is_known = np.isfinite(seconds)
    hours = np.floor(np.where(is_known, seconds, 0.0) / 3600) + FIRST_WEEKDAY * DAY_HOURS
    return np.where(is_known, hours % (WEEK_DAYS * DAY_HOURS), -1.0)


def asked_at(
    moments: Floats, last_times: Floats | None, has_event: Bools, device: torch.device
) -> Asked:
    """Return what the query tower reads of the times of questions.

    Args:
        moments: ``(...)`` seconds since 1970 when each question is asked; not finite where unknown.
        last_times: ``(...)`` those of the last event before each; None where events have no times.
        has_event: ``(...)`` whether there is such an event.
        device: Of the result.
    """
    gaps = np.full(moments.shape, np.nan)
    if last_times is not None:
        np.subtract(moments, last_times, where=has_event & np.isfinite(moments), out=gaps)
    hours = torch.from_numpy(hours_of_week(moments).astype(np.int64))
    wide = torch.float32 if device.type == "mps" else None
    return Asked(torch.from_numpy(gaps).to(device, wide), hours.to(device))


class QuestionTime(nn.Module):
    """A vector for the time of the question: the sum of those of its gap, its hour and its weekday.

    All start at zero. A gap below 0 counts as 0: the question is then as old as the last event.

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
        for table in (self.gaps, self.hours, self.weekdays):
            nn.init.zeros_(table.weight)

    def forward(self, asked: Asked) -> Tensor:
        """Map ``n`` questions to ``(n, dim)``; zero where nothing is known of the time."""
        has_gap, has_hour = ~asked.gaps.isnan(), asked.hours >= 0
        if self.training and self.dropout > 0:
            is_read = torch.rand(has_hour.shape, device=has_hour.device) >= self.dropout
            has_gap, has_hour = has_gap & is_read, has_hour & is_read
        gaps = self.gaps(gap_rows(asked.gaps.nan_to_num(0.0)))
        hours = asked.hours.clamp(min=0)
        of_hours = self.hours(hours % DAY_HOURS) + self.weekdays(hours // DAY_HOURS)
        vectors = torch.where(has_gap[..., None], gaps, 0.0)
        return vectors + torch.where(has_hour[..., None], of_hours, 0.0)
