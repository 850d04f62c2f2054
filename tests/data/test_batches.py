from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.data import batches as batches_module
from twotower.data.batches import PairBatch, PairBatches, block_shuffle
from twotower.data.dataset import Interactions
from twotower.data.events_on_disk import open_events, save_events
from twotower.histories import Histories

Row = tuple[int, int, int]  # query row, item row, label
COLUMNS = (
    "query_rows",
    "item_rows",
    "history_rows",
    "history_times",
    "labels",
    "weights",
    "impression_rows",
    "asked",
)

rows_of_events = st.lists(
    st.tuples(st.integers(2, 5), st.integers(2, 7), st.integers(0, 1)), min_size=1, max_size=30
).map(sorted)
sizes = st.integers(1, 9)


def events_of(rows: list[Row], *, labelled: bool = True, timed: bool = True) -> Interactions:
    """Return events whose time is their place, so that a batch tells which events it holds."""
    owners = np.array([row[0] for row in rows], np.int32)
    num = len(rows)
    return Interactions(
        query_rows=owners,
        item_rows=np.array([row[1] for row in rows], np.int32),
        offsets=np.searchsorted(owners, np.arange(8)).astype(np.int64),
        times=np.arange(num, dtype=np.float64) if timed else None,
        labels=np.array([row[2] for row in rows], np.float32) if labelled else None,
        weights=np.arange(num, dtype=np.float32) + 1,  # event j weighs j + 1
    )


def made(events: Interactions, **arguments: Any) -> PairBatches:
    defaults: dict[str, Any] = {"batch_size": 4, "history_length": 3, "ordered": True, "seed": 0}
    return PairBatches(events, **(defaults | arguments))


def places_of(batch: PairBatch) -> list[int]:
    assert batch.weights is not None
    return [int(weight) - 1 for weight in batch.weights]


def same(one: PairBatch, other: PairBatch) -> bool:
    return all(np.array_equal(getattr(one, c), getattr(other, c)) for c in COLUMNS)


def many_events(num: int = 40_000, num_queries: int = 400, num_items: int = 50) -> Interactions:
    """Return events of queries with tastes of their own: neighbours are alike."""
    rng = np.random.default_rng(3)
    owners = np.sort(rng.integers(2, num_queries + 2, num)).astype(np.int32)
    popularity = 1 / np.arange(1, num_items + 1)
    items = rng.choice(num_items, num, p=popularity / popularity.sum())
    items = (items + owners // 100 * 5) % num_items + 2
    return Interactions(
        query_rows=owners,
        item_rows=items.astype(np.int32),
        offsets=np.searchsorted(owners, np.arange(num_queries + 3)).astype(np.int64),
        weights=np.arange(num, dtype=np.float32) + 1,
    )


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Interactions:
    folder = tmp_path_factory.mktemp("mapped") / "events"
    save_events(many_events(), folder)
    return open_events(folder)


def test_an_event_may_be_asked_for_a_few_events_early() -> None:
    events = events_of([(2, 2, 1)] * 2 + [(3, i + 2, 1) for i in range(5)], labelled=False)
    batches = made(events, batch_size=7, history_length=4, next_events=2)
    ends: dict[int, Counter[float]] = {}
    for epoch in range(400):
        (batch,) = batches.epoch(epoch)
        assert batch.history_times is not None
        assert batch.history_rows is not None
        for place, rows, times in zip(
            places_of(batch), batch.history_rows, batch.history_times, strict=True
        ):
            last = float(times[-1]) if rows[-1] else -1.0
            ends.setdefault(place, Counter())[last] += 1
    assert ends[6] == {5.0: pytest.approx(200, abs=45), 4.0: pytest.approx(200, abs=45)}
    assert set(ends[3]) == {2.0, -1.0}
    assert set(ends[2]) == {-1.0}  # a query's first event, and nothing of the query before
    (first,), (again,) = batches.epoch(0), batches.epoch(0)
    assert same(first, again)


# --- what an epoch holds ---


@given(rows=rows_of_events, size=sizes, negatives=st.booleans(), ordered=st.booleans())
def test_an_epoch_holds_each_example_once_with_all_that_belongs_to_it(
    rows: list[Row], size: int, negatives: bool, ordered: bool
) -> None:
    events = events_of(rows)
    batches = made(events, batch_size=size, negatives=negatives, ordered=ordered)
    wanted = [place for place, row in enumerate(rows) if negatives or row[2]]
    for epoch in range(2):
        found = list(batches.epoch(epoch))
        places = [place for batch in found for place in places_of(batch)]
        assert sorted(places) == wanted
        assert len(found) == len(batches)
        assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1)
        for batch in found:
            assert batch.labels is not None
            for n, place in enumerate(places_of(batch)):
                row = (batch.query_rows[n], batch.item_rows[n], batch.labels[n])
                assert row == rows[place]
                assert batch.asked is not None
                assert batch.asked[n] == place  # its time
    assert batches.num_examples == len(wanted)


def test_columns_have_their_types_and_none_where_there_is_nothing() -> None:
    rows = [(2, 3, 1), (2, 4, 1), (3, 2, 1)]
    (batch,) = made(events_of(rows, labelled=False, timed=False)).epoch(0)
    assert batch.query_rows.dtype == batch.item_rows.dtype == np.int32
    assert batch.history_rows is not None
    assert batch.history_rows.dtype == np.int32
    assert batch.history_rows.shape == (3, 3)
    assert batch.history_times is None
    assert batch.labels is None
    (batch,) = made(events_of(rows)).epoch(0)
    assert batch.history_times is not None
    assert batch.history_times.dtype == np.float64
    (batch,) = made(events_of(rows), history_length=None).epoch(0)
    assert batch.history_rows is None
    assert batch.history_times is None


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("negatives", [True, False])
def test_a_table_without_positives_or_events_gives_what_there_is(
    ordered: bool, negatives: bool
) -> None:
    rows = [(2, 3, 0), (3, 4, 0)]
    found = list(made(events_of(rows), ordered=ordered, negatives=negatives).epoch(0))
    assert len(found) == int(negatives)
    for batch in found:
        assert batch.history_rows is not None
        assert batch.history_times is not None
        assert not batch.history_rows.any()
        assert not batch.history_times.any()
    empty = made(events_of([]), ordered=ordered)
    assert len(empty) == empty.num_examples == len(list(empty.epoch(0))) == 0


@pytest.mark.parametrize("name", ["batch_size", "history_length"])
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be at least 1, got {value}\.$"):
        made(events_of([(2, 3, 1)]), **{name: value})


# --- seeds and resuming ---


@given(
    rows=rows_of_events,
    size=sizes,
    seed=st.integers(0, 2**31),
    ordered=st.booleans(),
    start=st.integers(0, 40),
)
def test_equal_seeds_give_equal_batches_and_a_start_goes_on_exactly(
    rows: list[Row], size: int, seed: int, ordered: bool, start: int
) -> None:
    one, other = (
        made(events_of(rows), batch_size=size, seed=seed, ordered=ordered, negatives=True)
        for _ in range(2)
    )
    list(one.epoch(5))  # what came before does not matter
    whole = list(one.epoch(2))
    rest = list(other.epoch(2, start=start))
    assert len(rest) == max(0, len(whole) - start)
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_other_seeds_and_epochs_give_other_orders(on_disk: Interactions) -> None:
    for events in (many_events(2000), on_disk):
        firsts = {
            tuple(places_of(next(made(events, seed=seed, batch_size=50).epoch(epoch))))
            for seed in range(3)
            for epoch in range(3)
        }
        assert len(firsts) == 9


def test_batches_from_disk_resume_exactly(
    on_disk: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "BLOCK_EVENTS", 256)
    monkeypatch.setattr(batches_module, "BUFFER_BLOCKS", 16)
    batches = made(on_disk, batch_size=1000)
    whole = list(batches.epoch(1))
    rest = list(batches.epoch(1, start=17))
    assert len(rest) == len(whole) - 17
    assert all(same(a, b) for a, b in zip(whole[17:], rest, strict=True))


# --- histories ---


@given(
    rows=rows_of_events, length=st.integers(1, 12), labelled=st.booleans(), negatives=st.booleans()
)
def test_a_history_is_the_positives_before_its_event_and_nothing_later(
    rows: list[Row], length: int, labelled: bool, negatives: bool
) -> None:
    events = events_of(rows, labelled=labelled)
    batches = made(events, batch_size=7, history_length=length, negatives=negatives)
    for batch in batches.epoch(0):
        assert batch.history_rows is not None
        assert batch.history_times is not None
        for n, place in enumerate(places_of(batch)):
            earlier = []
            for before in range(place):
                query, item, label = rows[before]
                if query == rows[place][0] and (label == 1 or not labelled):
                    earlier.append((item, float(before)))
            earlier = earlier[-length:]
            padding = [(0, 0.0)] * (length - len(earlier))
            found = zip(batch.history_rows[n].tolist(), batch.history_times[n], strict=True)
            assert list(found) == padding + earlier


@given(
    rows=rows_of_events, length=st.integers(1, 12), labelled=st.booleans(), seed=st.integers(0, 99)
)
def test_without_order_a_history_is_others_of_the_query_and_never_the_own_item(
    rows: list[Row], length: int, labelled: bool, seed: int
) -> None:
    events = events_of(rows, labelled=labelled)
    batches = made(
        events, batch_size=7, history_length=length, negatives=True, ordered=False, seed=seed
    )
    for batch in batches.epoch(0):
        assert batch.history_rows is not None
        assert batch.history_times is not None
        assert batch.history_rows.shape == (len(batch), length)
        for n, place in enumerate(places_of(batch)):
            query, item, _ = rows[place]
            known = [
                other
                for other, row in enumerate(rows)
                if row[0] == query and (row[2] == 1 or not labelled) and other != place
            ]
            allowed = [(rows[other][1], float(other)) for other in known if rows[other][1] != item]
            repeats = len(known) - len(allowed)
            history = batch.history_rows[n].tolist()
            found = list(zip(history, batch.history_times[n].tolist(), strict=True))
            real = [pair for pair in found if pair[0]]
            assert found == [(0, 0.0)] * (length - len(real)) + real  # padding on the left only
            assert len(set(real)) == len(real)
            assert set(real) <= set(allowed)
            assert max(0, min(length, len(known)) - repeats) <= len(real)
            if len(known) <= length:
                assert sorted(real) == sorted(allowed)


def test_each_other_event_is_as_likely_as_another_to_be_in_a_history() -> None:
    # 12 items of one query; a history holds 4 of the 11 others.
    events = events_of([(2, 2 + n, 1) for n in range(12)], labelled=False)
    counts = np.zeros((12, 12))
    for epoch in range(600):
        (batch,) = made(events, batch_size=12, history_length=4, ordered=False).epoch(epoch)
        assert batch.history_rows is not None
        for place, history in zip(places_of(batch), batch.history_rows, strict=True):
            counts[place, history - 2] += 1
    assert not np.diag(counts).any()
    others = counts[~np.eye(12, dtype=bool)]
    # Each with 4/11 in 600 draws: the standard deviation of a count is 11.8.
    assert np.abs(others - 600 * 4 / 11).max() < 5 * 11.8


def test_without_order_each_epoch_draws_other_histories() -> None:
    events = events_of([(2, 2 + n, 1) for n in range(30)], labelled=False)
    batches = made(events, batch_size=30, history_length=5, ordered=False)
    one, other = (
        {place: tuple(history) for place, history in zip(places_of(b), rows, strict=True)}
        for epoch in range(2)
        for b in batches.epoch(epoch)
        if (rows := b.history_rows) is not None
    )
    assert sum(one[place] != other[place] for place in one) > 20


# --- impressions ---


def showing(rows: list[Row], counts: Sequence[int]) -> Interactions:
    """Return events of which event ``j`` shows the ``counts[j]`` items from ``100 * j + 2`` on."""
    shown = [np.arange(count, dtype=np.int32) + 100 * j + 2 for j, count in enumerate(counts)]
    return replace(events_of(rows), impressions=Histories.of(shown))


def test_impressions_of_events_worked_by_hand() -> None:
    events = showing([(2, 3, 1), (2, 4, 1), (3, 2, 1)], [2, 0, 3])
    (batch,) = made(events).epoch(0)
    assert batch.impression_rows is not None
    assert batch.impression_rows.dtype == np.int32
    found = dict(zip(places_of(batch), batch.impression_rows.tolist(), strict=True))
    assert found == {0: [0, 2, 3], 1: [0, 0, 0], 2: [202, 203, 204]}
    assert all(b.impression_rows is None for b in made(events_of([(2, 3, 1)])).epoch(0))


@given(
    rows=rows_of_events,
    seed=st.integers(0, 99),
    cap=st.integers(1, 9),
    negatives=st.booleans(),
)
def test_each_event_comes_with_what_was_shown_beside_it(
    rows: list[Row], seed: int, cap: int, negatives: bool
) -> None:
    counts = np.random.default_rng(seed).integers(0, 8, len(rows)).tolist()
    events = showing(rows, counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "MAX_IMPRESSIONS", cap)
        for batch in made(events, batch_size=7, negatives=negatives, seed=seed).epoch(0):
            assert batch.impression_rows is not None
            places = places_of(batch)
            longest = max(counts[place] for place in places)
            assert batch.impression_rows.shape == (len(batch), min(max(longest, 1), cap))
            for place, found in zip(places, batch.impression_rows.tolist(), strict=True):
                shown = [100 * place + 2 + n for n in range(counts[place])]
                real = [row for row in found if row]
                assert found == [0] * (len(found) - len(real)) + real
                assert set(real) <= set(shown)
                assert len(set(real)) == len(real) == min(len(shown), cap)


@given(rows=rows_of_events)
def test_what_a_query_dislikes_stands_beside_each_of_its_items(rows: list[Row]) -> None:
    events = events_of(rows)
    for batch in made(events, disliked=True).epoch(0):
        assert batch.impression_rows is not None
        for query, found in zip(batch.query_rows, batch.impression_rows.tolist(), strict=True):
            own = [(item, label) for q, item, label in rows if q == query]
            liked = {item for item, label in own if label}
            assert [row for row in found if row] == sorted({item for item, _ in own} - liked)


def test_of_more_impressions_than_fit_each_is_as_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "MAX_IMPRESSIONS", 4)
    events = showing([(2, 2, 1)] * 20, [11] * 20)
    counts = np.zeros(11)
    firsts = set()
    for epoch in range(100):
        (batch,) = made(events, batch_size=20, history_length=None).epoch(epoch)
        assert batch.impression_rows is not None
        counts += np.bincount((batch.impression_rows.ravel() - 2) % 100, minlength=11)
        firsts.add(tuple(batch.impression_rows[0] % 100))
    # Each with 4/11 in 2,000 draws: the standard deviation of a count is 21.5.
    assert np.abs(counts - 2000 * 4 / 11).max() < 5 * 21.5
    assert len(firsts) == 11  # each epoch draws anew


def test_impressions_resume_exactly_and_change_nothing_else() -> None:
    rows = [(2 + j // 10, 2 + j % 5, 1) for j in range(40)]
    events = showing(rows, [60 + j for j in range(40)])
    whole = list(made(events, ordered=False).epoch(3))
    rest = list(made(events, ordered=False).epoch(3, start=4))
    assert all(same(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert {b.impression_rows.shape for b in whole if b.impression_rows is not None} == {(4, 64)}
    without = made(replace(events, impressions=None), ordered=False).epoch(3)
    assert all(
        same(replace(a, impression_rows=None), b) for a, b in zip(whole, without, strict=True)
    )


# --- shuffling ---


def chi_square(
    batches: list[PairBatch], counts: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return each batch's distance from the training counts, 1 on average for a perfect shuffle."""
    share = counts / counts.sum()
    found = np.array([np.bincount(b.item_rows, minlength=len(counts)) for b in batches], np.float64)
    expected = found.sum(axis=1, keepdims=True) * share
    distance = ((found - expected) ** 2)[:, share > 0] / expected[:, share > 0]
    return np.asarray(distance.sum(axis=1) / (np.count_nonzero(share) - 1))


@pytest.mark.parametrize("buffer_blocks", [64, 1000])
def test_from_disk_each_event_comes_once_and_batches_look_like_the_whole(
    on_disk: Interactions, buffer_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 40,000 events in 625 blocks; the buffer holds a tenth of them, or all.
    monkeypatch.setattr(batches_module, "BLOCK_EVENTS", 64)
    monkeypatch.setattr(batches_module, "BUFFER_BLOCKS", buffer_blocks)
    assert isinstance(on_disk.item_rows, np.memmap)
    batches = list(made(on_disk, batch_size=1000, history_length=None).epoch(0))
    places = [place for batch in batches for place in places_of(batch)]
    assert sorted(places) == list(range(40_000))
    distances = chi_square(batches, np.bincount(on_disk.item_rows).astype(np.float64))
    assert distances.mean() < 1.5
    assert distances.max() < 2.5
    for batch in batches:
        owners = np.bincount(batch.query_rows)
        assert np.count_nonzero(owners) > 30
        assert owners.max() < 0.1 * len(batch)
        assert len(np.unique(np.array(places_of(batch)) // 64)) > 30  # blocks are mixed


def test_the_distance_from_the_whole_can_tell_an_unshuffled_batch() -> None:
    events = many_events()
    neighbours = [
        PairBatch(events.query_rows[n : n + 1000], events.item_rows[n : n + 1000])
        for n in range(0, 40_000, 1000)
    ]
    distances = chi_square(neighbours, np.bincount(events.item_rows).astype(np.float64))
    assert distances.min() > 5


@given(
    num=st.integers(0, 300),
    block=st.integers(1, 20),
    buffer_blocks=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_block_shuffle_deals_out_whole_blocks_in_even_pieces(
    num: int, block: int, buffer_blocks: int, seed: int
) -> None:
    pieces = list(block_shuffle(num, block, buffer_blocks, np.random.default_rng(seed)))
    assert sorted(place for piece in pieces for place in piece.tolist()) == list(range(num))
    blocks = [{place // block for place in piece.tolist()} for piece in pieces]
    assert sum(map(len, blocks)) == -(-num // block)  # no block is torn apart
    held = [len(found) for found in blocks]
    assert max(held) <= buffer_blocks
    assert max(held) - min(held) <= 1


def test_the_last_piece_is_no_rest_of_one_block() -> None:
    # 257 blocks and a buffer of 256: the one block left over would be a few queries' events.
    pieces = list(block_shuffle(257 * 8, 8, 256, np.random.default_rng(0)))
    assert [len(piece) for piece in pieces] == [129 * 8, 128 * 8]


def test_reading_from_disk_stays_within_the_buffer() -> None:
    pieces = block_shuffle(10_000, 10, 50, np.random.default_rng(0))
    for piece in pieces:
        assert len({place // 10 for place in piece.tolist()}) == 50


def test_in_memory_batches_look_like_the_whole() -> None:
    events = many_events()
    batches = list(made(events, batch_size=1000, history_length=None).epoch(0))
    distances = chi_square(batches, np.bincount(events.item_rows).astype(np.float64))
    assert distances.mean() < 1.2


# --- on disk ---


@pytest.mark.parametrize("labelled", [True, False])
def test_events_come_back_from_disk_without_being_read(tmp_path: Path, labelled: bool) -> None:
    rows: list[Row] = [(2, 3, 1), (2, 4, 0), (4, 2, 1)]
    events = events_of(rows, labelled=labelled, timed=labelled)
    save_events(events, tmp_path / "new" / "events")
    opened = open_events(tmp_path / "new" / "events")
    for name, column in vars(events).items():
        other = getattr(opened, name)
        assert (other is None) == (column is None)
        if column is not None:
            assert isinstance(other, np.memmap)
            assert other.dtype == column.dtype
            assert other.tolist() == column.tolist()
            with pytest.raises(ValueError, match="read-only"):
                other[0] = 1


def test_mapped_events_give_the_same_histories_as_those_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = sorted(
        (int(q), int(i), int(v)) for q, i, v in rng.integers([2, 2, 0], [6, 8, 2], (200, 3))
    )
    events = events_of(rows)
    save_events(events, tmp_path / "events")
    found = []
    for each in (events, open_events(tmp_path / "events")):
        histories: dict[int, tuple[int, ...]] = {}
        for batch in made(each, negatives=True, history_length=5).epoch(0):
            assert batch.history_rows is not None
            histories |= dict(zip(places_of(batch), map(tuple, batch.history_rows), strict=True))
        found.append(histories)
    assert found[0] == found[1]
    assert len(found[0]) == 200


def test_saved_events_are_never_written_over(tmp_path: Path) -> None:
    save_events(events_of([(2, 3, 1)]), tmp_path / "events")
    with pytest.raises(FileExistsError):
        save_events(events_of([(2, 4, 1)]), tmp_path / "events")
    assert open_events(tmp_path / "events").item_rows.tolist() == [3]


def test_an_empty_table_comes_back_from_disk(tmp_path: Path) -> None:
    save_events(events_of([]), tmp_path / "events")
    opened = open_events(tmp_path / "events")
    assert len(opened) == 0
    assert list(made(opened).epoch(0)) == []
    assert Counter(opened.offsets.tolist()) == {0: 8}


def test_a_gap_asks_before_the_target_and_half_of_the_histories_end_there() -> None:
    """Event j happens at second j: a history holds no event from the question on, or ends at its target."""
    events = events_of([(2, 2 + j % 6, 1) for j in range(40)], labelled=False)
    batches = made(events, batch_size=40, history_length=40, gap=10.0)
    at_question = 0
    for epoch in range(20):
        (batch,) = batches.epoch(epoch)
        assert batch.asked is not None
        assert batch.history_times is not None
        assert batch.history_rows is not None
        targets = places_of(batch)
        for line, target in enumerate(targets):
            assert target - 10 < batch.asked[line] <= target
            known = batch.history_times[line][batch.history_rows[line] != 0]
            up_to_question = [float(j) for j in range(40) if j < batch.asked[line]]
            up_to_target = [float(j) for j in range(target)]
            assert known.tolist() in (up_to_question, up_to_target)
            at_question += known.tolist() == up_to_question != up_to_target
    # A gap below a second changes nothing: about 9 of 10 of half of the histories end earlier.
    assert 0.35 < at_question / 800 < 0.5


def test_without_a_gap_nothing_changes() -> None:
    events = events_of([(2 + j // 10, 2 + j % 6, 1) for j in range(40)])
    for plain, asked in zip(made(events).epoch(0), made(events, gap=0.0).epoch(0), strict=True):
        assert plain.asked is not None
        assert plain.asked.tolist() == places_of(plain)
        assert plain.history_rows is not None
        assert asked.history_rows is not None
        assert plain.history_rows.tolist() == asked.history_rows.tolist()


def test_a_gap_is_checked() -> None:
    with pytest.raises(ValueError, match="gap must be finite and at least 0, got -1"):
        made(events_of([(2, 2, 1)]), gap=-1.0)
