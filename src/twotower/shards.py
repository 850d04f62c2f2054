"""Shards: the rows of a table or of a job in equal runs, for several processes or machines."""

import re
from dataclasses import dataclass

from twotower.caller import argument
from twotower.errors import ArgumentError

_FORM = re.compile(r"([0-9]+)/([0-9]+)")


@dataclass(frozen=True)
class Shard:
    """One of ``count`` runs of rows. All of them hold each row once, and differ by at most one row.

    Args:
        number: Which one, from 1.
        count: How many there are.
    """

    number: int
    count: int

    @classmethod
    def of(cls, text: str | None) -> "Shard":
        """Return the shard that ``3/16`` names, the third of sixteen; all rows for None.

        Raises:
            ValueError: It is none.
        """
        if text is None:
            return cls(1, 1)
        found = _FORM.fullmatch(text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise ArgumentError(
                f"{argument('shard')} must be I/N with I in 1..N, such as 3/16, got {text!r}; number the "
                "shards from 1."
            )
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def rows(self, num_rows: int) -> range:
        """Return which of ``num_rows`` rows are in this shard."""
        return range(
            num_rows * (self.number - 1) // self.count, num_rows * self.number // self.count
        )
