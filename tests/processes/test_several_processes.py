"""Several processes train as one does: steps, whole trainings, checkpoints, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from several import TESTS, side_by_side
from steps_of_ranks import going_on, saving
from twotower.errors import ConfigError
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.processes.job import Job
from twotower.processes.sharded_table import slots_of
from twotower.processes.started import is_started_by_torchrun
from twotower.towers.history_encoders import HISTORY_ENCODERS

CLOSE = 1e-5
"""Of gradients, as a share of the greatest; and of weights after two epochs of steps of 0.01."""

Found = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where ``steps_of_ranks.py`` left what it found, and a checkpoint of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    for code, said in side_by_side(TESTS / "steps_of_ranks.py", folder, processes=3):
        assert code == 0, said
    return folder


@pytest.fixture(params=["2", "3"])
def found(folder: Path, request: pytest.FixtureRequest) -> Found:
    """Return what two processes found, and what three did."""
    of_all: dict[str, Found] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return of_all[request.param]


class TestRanks:
    def test_the_gradients_of_every_case_are_those_of_one_process(self, found: Found) -> None:
        steps = found["steps"]
        assert {name: off for name, off in steps.items() if off > CLOSE} == {}

    def test_every_loss_sampler_and_history_encoder_is_among_the_cases(self, found: Found) -> None:
        kinds: dict[str, Any] = {"loss": LOSSES, "sampler": SAMPLERS, "history": HISTORY_ENCODERS}
        wanted = {f"{kind} {name}" for kind in kinds for name in list(kinds[kind])}
        assert wanted <= set(found["steps"])

    def test_a_gather_without_gradient_shows(self, found: Found) -> None:
        assert found["detached"] > 100 * CLOSE

    def test_a_log_q_of_the_local_batch_shows(self, found: Found) -> None:
        assert found["local log_q"] > 100 * CLOSE

    def test_whole_trainings_end_alike_with_tables_whole_and_in_rows(self, found: Found) -> None:
        trainings = found["trainings"]
        assert len(trainings) == 6
        assert {name: off for name, off in trainings.items() if off > 10 * CLOSE} == {}

    def test_processes_with_other_settings_are_refused(self, found: Found) -> None:
        said = found["refusals"]["settings"]
        assert said.startswith(
            "ConfigError: all processes must have the same settings, got digest "
        )
        assert found["refusals of the second"]["settings"].startswith("OtherProcessError: ")
        assert found["refusals"]["as they should be"] == "nothing"

    def test_processes_with_other_items_are_refused(self, found: Found) -> None:
        said = found["refusals"]["another table"]
        assert said.startswith(
            "ConfigError: all processes must have the same items and queries, got digest "
        )
        assert found["refusals"]["same tables"] == "nothing"

    def test_fewer_events_than_processes_are_refused(self, found: Found) -> None:
        said = found["refusals"]["few events"]
        assert said.startswith(
            "ConfigError: training must have an event for each process, got 1 event"
        )

    def test_what_one_process_refuses_ends_all(self, found: Found) -> None:
        assert found["refusals"]["one refuses"] == "OtherProcessError: process 1 refused."
        assert found["refusals of the second"]["one refuses"] == "DataError: no such file."

    def test_what_one_process_has_no_memory_for_all_leave_out(self, found: Found) -> None:
        of_first, of_second, *_ = found["little memory"]
        race = "towers.query_id = 'off': a training with 'on' was not possible: "
        assert f"{race}process 1 refused." in of_first
        assert f"{race}training must fit into memory." in of_second
        closed = "towers.spectral_dim = 0: training must fit into memory, got an allocation that"
        assert any(each.startswith(closed) for each in of_first)


class TestCheckpoints:
    def test_three_processes_go_on_from_two(self, folder: Path) -> None:
        assert (
            json.loads((folder / "found.json").read_text(encoding="utf-8"))["3"]["goes on"]
            < 10 * CLOSE
        )

    def test_one_process_goes_on_from_two(self, folder: Path) -> None:
        off = going_on(folder / "model", saves=False)
        assert off is not None
        assert off < 10 * CLOSE

    @pytest.mark.parametrize("damage", ["a bit", "all but 40 bytes", "missing"])
    def test_a_damaged_part_is_refused(self, folder: Path, tmp_path: Path, damage: str) -> None:
        copy = tmp_path / "model.training"
        shutil.copytree(folder / "model.training", copy)
        (part,) = copy.glob("*-rows-*/1.pt")
        content = bytearray(part.read_bytes())
        if damage == "a bit":
            content[len(content) // 2] ^= 1
        part.write_bytes(content[: 40 if damage == "all but 40 bytes" else None])
        if damage == "missing":
            part.unlink()
        with pytest.raises(ConfigError, match=r"cannot read .*-rows-1'; remove"):
            going_on(tmp_path / "model", saves=False)

    def test_a_process_that_is_lost_while_it_saves_leaves_the_checkpoint(
        self, folder: Path
    ) -> None:
        found = json.loads((folder / "found.json").read_text(encoding="utf-8"))["3"]
        assert found["lost"].startswith("another process of this training ended or could not")
        assert saving(folder / "lost")[0].load().epoch == 1

    def test_a_disk_without_room_for_two_checkpoints_takes_one(self, folder: Path) -> None:
        of_all = json.loads((folder / "found.json").read_text(encoding="utf-8"))["2"]
        saved = "saved ['checkpoint-rows-1', 'checkpoint.pt', 'log.jsonl']"
        assert of_all["full disk 1"] == [saved, saved]

    def test_a_full_disk_takes_no_checkpoint(self, folder: Path) -> None:
        of_all = json.loads((folder / "found.json").read_text(encoding="utf-8"))["2"]
        first, second = of_all["full disk 2"]
        assert first == "OtherProcessError: process 1 refused. []"
        assert second.startswith("BundleError: the checkpoint '")
        assert second.endswith(
            "' could not be written: the disk is full; free some space or choose "
            "another out; nothing was left behind. []"
        )


class TestJob:
    @pytest.mark.parametrize(("num", "size"), [(10, 3), (2, 3), (0, 2), (7, 1)])
    def test_parts_hold_each_line_once_and_are_about_equal(self, num: int, size: int) -> None:
        parts = Job(0, size).parts(num)
        assert [line for part in parts for line in range(part.start, part.stop)] == list(range(num))
        lengths = [part.stop - part.start for part in parts]
        assert max(lengths) - min(lengths) <= 1


class TestStarted:
    def test_an_empty_number_of_processes_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "")
        monkeypatch.setenv("RANK", "0")
        assert not is_started_by_torchrun()


class TestSlots:
    @pytest.mark.parametrize("num", [1, 2, 3, 10, 64, 1000, 99_991])
    def test_each_row_has_a_slot_of_its_own(self, num: int) -> None:
        slots = slots_of(torch.arange(num), num)
        assert torch.equal(slots.sort().values, torch.arange(num))

    def test_the_newest_rows_are_spread_evenly(self) -> None:
        slots = slots_of(torch.arange(990_000, 1_000_000), 1_000_000)
        counts = torch.bincount(slots // 250_000, minlength=4)
        assert int(counts.min()) > 2_400
