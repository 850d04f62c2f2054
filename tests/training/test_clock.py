import json
import time
from typing import Any

import pytest

from twotower.training.clock import PARTS, Clock
from twotower.training.trained import Trained


def epoch(steps: float, validation: float) -> dict[str, Any]:
    return {"epoch": 1, "loss": 1.0, "seconds": steps, "validation_seconds": validation}


def test_epochs_count_for_their_steps_and_not_for_the_phase_around_them() -> None:
    start = time.monotonic()
    clock = Clock()
    clock.on_phase("race: towers.query_id = 'off'")
    time.sleep(0.1)
    spent = time.monotonic() - start
    clock.on_epoch(epoch(0.75 * spent, 0.25 * spent))
    clock.on_phase("the closed form")
    found, whole = clock.seconds(), time.monotonic() - start
    assert found["steps"] == pytest.approx(0.75 * spent, abs=0.006)
    assert found["validation"] == pytest.approx(0.25 * spent, abs=0.006)
    assert found.get("other", 0) <= whole - spent + 0.006


@pytest.mark.parametrize(
    ("phase", "part"),
    [
        ("the closed form beside it", "closed_form"),
        ("baseline EASE with decay", "baselines"),
        ("books: baseline popularity", "baselines"),
        ("evaluation", "test"),
        ("second stage", "second_stage"),
        ("index", "other"),
        ("training", "other"),
    ],
)
def test_a_phase_belongs_to_a_part(phase: str, part: str) -> None:
    clock = Clock()
    clock.on_phase(phase)
    time.sleep(0.02)
    assert set(clock.seconds()) - {"reading"} == {part}


def test_a_bundle_says_what_its_seconds_went_into(tiny_trained: Trained) -> None:
    seconds = tiny_trained.contents.provenance["seconds"]
    assert set(seconds) <= set(PARTS)
    records = map(json.loads, tiny_trained.contents.log.splitlines())
    epochs = [record for record in records if "loss" in record]
    assert seconds["steps"] >= round(sum(each["seconds"] for each in epochs), 2) - 0.01
    assert seconds["baselines"] > 0
