"""Parts that threads compute: order, errors, gradients, draws, and how many threads there are."""

import threading
from collections.abc import Iterator

import pytest
import torch

from twotower.draws import drawing_from, generator, uniform
from twotower.workers import of_each, runs, slices, workers


@pytest.fixture(autouse=True)
def threads_of_operations() -> Iterator[None]:
    """Leave PyTorch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def who(_: int) -> int:
    return threading.get_ident()


class TestOfEach:
    def test_results_come_in_the_order_of_the_parts(self) -> None:
        is_last_done = threading.Event()

        def compute(part: int) -> int:
            if part == 1:
                is_last_done.set()
            else:
                is_last_done.wait()  # the first part ends last
            return 10 * part

        with workers(2):
            assert of_each(compute, (0, 1)) == [0, 10]

    def test_one_worker_is_the_caller(self) -> None:
        with workers(1):
            assert of_each(who, range(3)) == 3 * [threading.get_ident()]

    def test_a_single_part_needs_no_thread(self) -> None:
        with workers(2):
            assert of_each(who, [0]) == [threading.get_ident()]

    def test_elsewhere_as_many_compute_as_torch_has_threads(self) -> None:
        torch.set_num_threads(1)
        assert set(of_each(who, range(4))) == {threading.get_ident()}
        torch.set_num_threads(2)
        assert threading.get_ident() not in of_each(who, range(4))
        assert torch.get_num_threads() == 2

    def test_a_part_within_a_part_is_computed_where_it_is(self) -> None:
        with workers(2):
            found = of_each(lambda _: of_each(who, range(3)), range(2))
        assert all(len(set(each)) == 1 for each in found)

    def test_an_error_reaches_the_caller(self) -> None:
        def refuse(part: int) -> int:
            if part:
                raise ValueError(f"part {part}")
            return part

        with workers(2):
            with pytest.raises(ValueError, match="part 1"):
                of_each(refuse, (0, 1))
            assert of_each(abs, (-1, -2)) == [1, 2]  # and the workers go on

    @pytest.mark.parametrize("is_enabled", [True, False])
    def test_gradients_are_as_where_it_is_called(self, is_enabled: bool) -> None:
        with workers(2), torch.set_grad_enabled(is_enabled):
            found = of_each(lambda _: torch.is_grad_enabled(), range(4))
        assert found == 4 * [is_enabled]

    def test_each_operation_has_one_thread(self) -> None:
        torch.set_num_threads(2)
        with workers(2):
            assert [
                torch.get_num_threads(),
                *of_each(lambda _: torch.get_num_threads(), (0, 1)),
            ] == [
                1,
                1,
                1,
            ]
        assert torch.get_num_threads() == 2

    def test_no_thread_is_left(self) -> None:
        before = threading.active_count()
        with workers(3):
            of_each(who, range(9))
        assert threading.active_count() == before


class TestSlices:
    def test_lengths_differ_by_one_at_most(self) -> None:
        assert runs(7, 3) == [slice(0, 2), slice(2, 4), slice(4, 7)]

    @pytest.mark.parametrize(
        ("num", "most", "least", "count"),
        [
            (100, 4, 10, 4),
            (39, 4, 10, 3),
            (19, 4, 10, 1),
            (5, 4, 10, 1),
            (0, 4, 10, 1),
            (8, 4, 0, 4),
        ],
    )
    def test_no_part_is_shorter_than_the_least(
        self, num: int, most: int, least: int, count: int
    ) -> None:
        found = slices(num, most, least)
        assert len(found) == count
        assert [row for part in found for row in range(num)[part]] == list(range(num))
        assert count == 1 or min(part.stop - part.start for part in found) >= least


class TestDraws:
    def test_each_thread_draws_from_its_own(self) -> None:
        def draw(seed: int) -> float:
            with drawing_from(seed):
                return float(uniform(1, device=torch.device("cpu")))

        alone = [draw(seed) for seed in (1, 2)]
        with workers(2):
            assert of_each(draw, (1, 2)) == alone
        assert len(set(alone)) == 2
        assert generator() is None

    def test_elsewhere_draws_are_those_of_torch(self) -> None:
        torch.manual_seed(3)
        found = uniform(2, 3, device=torch.device("cpu"))
        torch.manual_seed(3)
        assert torch.equal(found, torch.rand(2, 3))
