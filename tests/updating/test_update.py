"""``update``: what a night changes and what it leaves, what it refuses, and what a kill leaves behind."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from nights import BEGINS, DAY, LATEST, first, lines, shop, trained, vectors_of, written
from twotower import BundleError, DataError, Retriever, evaluate_bundle, update, write_report
from twotower.data.dataset import Part
from twotower.errors import ArgumentError
from twotower.serving.bundle import open_bundle
from twotower.serving.server.journal import Journal
from twotower.training.private import without_queries
from twotower.training.settings import with_values
from twotower.updating.refusals import check_bundle
from twotower.updating.steps import SETTLED_FROM
from twotower.vocab import FIRST_ROW


def night(bundle: Any, day: int = 1, **given: Any) -> Any:
    return update(bundle, given.pop("interactions", shop(day)), progress=None, **given)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The bundles after the first and the second night."""
    folder = tmp_path_factory.mktemp("nights")
    one = night(written(folder), out=folder / "one")
    return one, night(folder / "one", 2, items=lines(LATEST), out=folder / "two")


class TestWhatANightChanges:
    def test_old_rows_keep_their_numbers_and_new_ids_follow(self, two: tuple[Any, Any]) -> None:
        before = first().contents
        for side in ("queries", "items"):
            ids = getattr(before, side).ids.ids
            for after in two:
                grown = getattr(after.contents, side).ids.ids
                assert grown.head(len(ids)).equals(ids)
        assert two[1].contents.items.ids.ids.tail(len(LATEST)).to_list() == list(LATEST)
        assert two[0].figures["new_queries"] > 0

    def test_items_with_many_events_keep_their_vectors_bit_for_bit(
        self, two: tuple[Any, Any]
    ) -> None:
        before, after = first(), two[0]
        histories = before.contents.histories
        assert histories is not None
        num = np.bincount(histories.item_rows, minlength=before.contents.items.ids.num_rows)[
            FIRST_ROW:
        ]
        is_settled = num >= SETTLED_FROM
        assert is_settled.sum() > 10
        old, new = before.contents.item_vectors, after.contents.item_vectors[: len(num)]
        assert torch.equal(old[is_settled], new[is_settled])
        assert after.figures["moved_rows"] > 0

    def test_a_new_item_gets_a_row_that_is_trained(self, two: tuple[Any, Any]) -> None:
        transform = next(
            t for t in two[1].contents.items.transforms.transforms if t.feature.meaning == "id"
        )
        known = set(transform.vocabulary.ids.to_list())
        assert known & set(LATEST)
        unknown = [i for i in LATEST if i not in known] or [-1]
        vectors = vectors_of(two[1].retriever)
        new = next(i for i in LATEST if i in known)
        alone = two[0].retriever.encode_items(features=lines([new]))[0]
        assert not np.allclose(vectors[new], alone, atol=1e-3)
        assert unknown[0] not in known

    def test_the_histories_hold_all_events_of_the_day_and_the_test(
        self, two: tuple[Any, Any]
    ) -> None:
        every = pl.concat([shop(0), shop(1), shop(2)]).sort("user_id", "timestamp")
        contents = two[1].contents
        histories = contents.histories
        items = contents.items.ids.ids_of(histories.item_rows)
        queries = contents.queries.ids.ids_of(histories.owners.astype(np.int32))
        found = pl.DataFrame({"user_id": queries, "item_id": items, "timestamp": histories.times})
        assert found.equals(every.cast({"timestamp": pl.Float64}))
        counts = every["item_id"].value_counts().sort("item_id")
        assert contents.popularity[FIRST_ROW:].sum() == counts["count"].sum()
        assert len(contents.targets.item_rows) == 0

    def test_the_last_event_of_each_query_is_held_out_and_learnt_the_night_after(
        self, two: tuple[Any, Any]
    ) -> None:
        one, other = (each.figures for each in two)
        day = shop(1)
        assert one["queries"] == day["user_id"].n_unique()
        assert one["learnt"] == len(day) - one["queries"]
        assert other["learnt"] == len(shop(2)) - other["queries"] + one["queries"]
        held_out = two[0].contents.history_parts == Part.VALID
        assert held_out.sum() == one["queries"]

    def test_figures_of_the_training_stay_and_are_marked(
        self, two: tuple[Any, Any], tmp_path: Path
    ) -> None:
        metrics = open_bundle(two[1].path).metrics
        assert metrics["model"] == first().figures["model"]
        assert metrics["verdict"].startswith("Before it learnt the test events")
        assert metrics["verdict"].count("Before") == 1
        assert metrics["update"]["night"] == 2
        assert set(metrics["update"]["differences"]) == {"yesterday", "popularity"}
        with pytest.raises(DataError, match="was updated since its test; evaluate it on later"):
            evaluate_bundle(two[1].path)
        later = evaluate_bundle(two[1].path, test=shop(3), baselines=("popularity",))
        assert later["protocol"]["queries"] > 10
        for language in ("en", "zh"):
            write_report(two[1].path, tmp_path / "r.html", language=language)
            page = (tmp_path / "r.html").read_text(encoding="utf-8")
            assert ("The last update" if language == "en" else "最近一次更新") in page

    def test_an_updated_bundle_answers_for_new_ids(self, two: tuple[Any, Any]) -> None:
        retriever = Retriever.open(two[1].path)
        new = shop(2).filter(pl.col("user_id") >= 85)["user_id"][0]
        answer = retriever.recommend(new, k=20)
        assert answer.basis == "model"
        assert retriever.history(new)

    def test_the_same_call_gives_the_same_bundle(
        self, two: tuple[Any, Any], tmp_path: Path
    ) -> None:
        night(written(tmp_path), out=tmp_path / "again")
        for name in ("weights", "items"):
            files = [folder / f"{name}.safetensors" for folder in (two[0].path, tmp_path / "again")]
            assert files[0].read_bytes() == files[1].read_bytes()


CONFIGS: dict[str, dict[str, Any]] = {
    "windows of whole histories": {"towers": {"history": "transformer"}},
    "a prior by popularity": {
        "split": {"kind": "temporal"},
        "towers": {"similarity": "dot", "popularity": "on", "popularity_days": 30.0},
    },
    "a closed form beside the towers": {"towers": {"spectral_dim": 4, "similarity": "dot"}},
    "ids of queries": {"towers": {"query_id": "on"}},
    "sets": {"data": {"order": "none"}, "towers": {"history": "bag", "similarity": "dot"}},
    "sampled negatives": {"loss": {"negatives": "mixed", "num_negatives": 8}},
    "approximate search": {"index": {"kind": "approximate"}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_model_is_updated(name: str, tmp_path: Path) -> None:
    before = trained(**CONFIGS[name])
    first_night = night(before, out=tmp_path / "one", force=True)
    after = night(tmp_path / "one", 2, items=lines(LATEST), out=tmp_path / "two", force=True)
    assert after.figures["steps"] > 0
    retriever = Retriever.open(tmp_path / "two")
    assert np.isfinite(retriever.contents.item_vectors.numpy()).all()
    known = retriever.recommend(3, k=10)
    assert len(known.item_ids) == 10
    shares = before.contents.weights.get("popularity.shares")
    if shares is not None:
        assert torch.equal(shares, after.contents.weights["popularity.shares"])
        column = [each.contents.weights["popularity.column"] for each in (first_night, after)]
        assert not torch.equal(column[0], column[1][: len(column[0])])
    if "spectral.items" in before.contents.weights:
        old = before.contents.weights["spectral.items"]
        assert torch.equal(old, after.contents.weights["spectral.items"][: len(old)])
        assert after.contents.weights["spectral.items"][len(old) :].any(dim=1).all()


class TestAQuietDay:
    """On a first night, the only event of a query is held out, and nothing is learnt."""

    @pytest.mark.parametrize("name", [None, "approximate search", "a prior by popularity"])
    def test_its_events_are_in_the_histories(self, name: str | None, tmp_path: Path) -> None:
        before = trained(**CONFIGS[name]) if name else first()
        day = pl.DataFrame({"user_id": [3], "item_id": [999], "timestamp": [BEGINS + 30 * DAY]})
        after = night(before, interactions=day, out=tmp_path / "new")
        assert (after.figures["events"], after.figures["steps"]) == (1, 0)
        assert after.told()[-1] == "The check asked 1 query, and refuses nothing below 30."
        retriever = Retriever.open(tmp_path / "new")
        assert retriever.history(3)[-1] == 999
        assert len(retriever.recommend(3, k=5).item_ids) == 5
        lists, kept = before.contents.lists, retriever.contents.lists
        assert (kept is None) == (lists is None)
        if lists is not None and kept is not None:
            assert (kept.list_of[: len(lists.list_of)] == lists.list_of).all()


def test_a_day_that_names_no_known_query_says_so() -> None:
    said = night(first(), interactions=shop(1).with_columns(pl.col("user_id") + 1_000)).told()
    assert said[-1].startswith("The bundle knows no query of the day: if they are not all new,")
    assert "no query" not in " ".join(night(first(), interactions=shop(1)).told())


class TestTheCheck:
    def test_a_day_whose_items_are_shuffled_is_refused(
        self, two: tuple[Any, Any], tmp_path: Path
    ) -> None:
        day = shop(2)
        bad = day.with_columns(day["item_id"].shuffle(seed=1))
        refused = night(two[0].path, interactions=bad, out=tmp_path / "new")
        assert not (tmp_path / "new").exists()
        assert refused.path is None
        assert "do not fit their queries" in refused.refused[0]
        forced = night(two[0].path, interactions=bad, out=tmp_path / "new", force=True)
        assert forced.refused == ()
        assert open_bundle(tmp_path / "new").metrics["update"]["reasons"] == list(refused.refused)


class TestBadInput:
    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (
                shop(1).drop("timestamp"),
                "must have a column of times, as the table of the training",
            ),
            (shop(0), "must hold a new event, got 1,120 that the bundle holds already"),
            (
                shop(1).with_columns(pl.col("user_id") + 10**6, pl.col("item_id") + 10**6),
                "must hold a query or an item that the bundle knows, got none",
            ),
            (
                shop(1).with_columns(user_id="u" + pl.col("user_id").cast(pl.String)),
                "must have query ids like those of the bundle .Int64., got 'u",
            ),
            (shop(1).head(0), "must hold"),
        ],
        ids=["no times", "nothing new", "unknown ids", "other ids", "empty"],
    )
    def test_a_table_that_cannot_be_used(
        self, table: pl.DataFrame, message: str, tmp_path: Path
    ) -> None:
        path = written(tmp_path)
        before = sorted(each.name for each in tmp_path.iterdir())
        with pytest.raises(DataError, match=message):
            night(path, interactions=table, out=tmp_path / "new")
        assert sorted(each.name for each in tmp_path.iterdir()) == before

    def test_a_bundle_that_cannot_be_updated(self) -> None:
        contents = first().contents

        solved = with_values(contents.config, {"training.solver": "spectral"})
        wrong = {
            "closed form": replace(contents, config=solved),
            "holds no past events to replay": replace(contents, histories=None),
            "holds no queries": without_queries(contents),
            "the view 'films'": replace(contents, view="films"),
            "module of your own": replace(contents, custom=("item",)),
        }
        for message, each in wrong.items():
            with pytest.raises(BundleError, match=message):
                check_bundle(each, "model")
        with pytest.raises(BundleError, match=r"^the bundle cannot be updated: it is the view"):
            night(Retriever(replace(contents, view="films"), path=""))

    def test_out_must_be_another_folder(self, tmp_path: Path) -> None:
        path = written(tmp_path)
        with pytest.raises(BundleError, match="out must be another folder than the bundle"):
            night(path, out=path)

    def test_events_that_the_bundle_holds_are_passed_over(self, two: tuple[Any, Any]) -> None:
        again = night(two[0].path, interactions=pl.concat([shop(1), shop(2)]))
        assert again.figures["held_already"] == len(shop(1))
        assert again.figures["events"] == len(shop(2))

    def test_journal_must_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="journal must be what a server has written"):
            night(written(tmp_path), journal=tmp_path / "none")
        with pytest.raises(BundleError, match="journal must go with the path of a bundle"):
            night(first(), journal=tmp_path / "none")


class TestExpiry:
    def test_ids_without_an_event_for_some_days(self, two: tuple[Any, Any]) -> None:
        day = shop(2).filter((pl.col("user_id") < 10) & (pl.col("item_id") < 20))
        found = night(two[0].path, interactions=day, expire_days=40)
        contents = found.contents
        recent = pl.concat([shop(1), day])
        now = int(day["timestamp"].to_numpy().max())
        recent = recent.filter(pl.col("timestamp") >= now - 40 * DAY)
        assert set(contents.queries.ids.ids.to_list()) == set(recent["user_id"].to_list())
        offered = contents.items.ids.ids_of(contents.offered_rows.astype(np.int32)).to_list()
        assert set(offered) == set(recent["item_id"].to_list())
        assert found.figures["expired_items"] == len(first().contents.items.ids) - len(offered)
        assert found.figures["expired_queries"] > 0
        some = contents.queries.ids.ids[0]
        every = pl.concat([shop(0), shop(1), day]).sort("user_id", "timestamp")
        assert (
            found.retriever.history(some)
            == every.filter(pl.col("user_id") == some)["item_id"].to_list()
        )

    def test_an_item_that_expired_and_is_seen_is_offered_again(self, two: tuple[Any, Any]) -> None:
        some = night(
            two[0].path, interactions=shop(2).filter(pl.col("item_id") < 20), expire_days=20
        )
        gone = set(some.contents.items.ids.ids_of(np.flatnonzero(some.contents.gone)).to_list())
        item = max(gone)
        back = shop(3).head(8).with_columns(item_id=pl.lit(item, pl.Int64))
        after = night(some, interactions=back, expire_days=20)
        assert not after.contents.gone[after.contents.items.ids.rows_of([item])[0]]

    def test_one_time_in_the_future_does_not_drop_everything(self, two: tuple[Any, Any]) -> None:
        late = shop(2).head(1).with_columns(pl.col("timestamp") + 2_000 * DAY)
        day = pl.concat([shop(2), late])
        with pytest.raises(DataError, match=r"got 1\d\d of 1\d\d new events before that.* 2029-"):
            night(two[0].path, interactions=day, expire_days=180)

    def test_what_must_not_be(self, two: tuple[Any, Any]) -> None:
        with pytest.raises(ArgumentError, match="expire_days must be above 0, got 0"):
            night(two[0].path, 2, expire_days=0)


KILLED = """
import os, signal, sys
import polars as pl
from twotower import Callback, update

class Killer(Callback):
    def on_phase(self, phase):
        if phase == sys.argv[4]:
            os.kill(os.getpid(), signal.SIGKILL)

update(sys.argv[1], pl.read_parquet(sys.argv[2]), out=sys.argv[3], progress=Killer())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_call_leaves_nothing_and_the_next_gives_the_same(
    two: tuple[Any, Any], tmp_path: Path
) -> None:
    path = written(tmp_path)
    shop(1).write_parquet(tmp_path / "day.parquet")
    before = sorted(each.name for each in tmp_path.iterdir())
    given = [str(path), str(tmp_path / "day.parquet"), str(tmp_path / "new"), "writing"]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, *given], env={**os.environ}, check=False, timeout=300
    )
    assert ended.returncode == -9
    night(path, out=tmp_path / "new")
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([*before, "new"])
    for name in ("weights", "items"):
        files = [each / f"{name}.safetensors" for each in (two[0].path, tmp_path / "new")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_items_of_a_live_catalogue_are_in_the_new_bundle(tmp_path: Path) -> None:
    path = written(tmp_path)
    journal = Journal(path.with_name("model.journal"))
    put = {"column": "item_id", "put": [{"item_id": 900, "kind": "kind 1"}]}
    journal.append([put, {"delete": [3]}])
    journal.close()
    found = night(path, out=tmp_path / "new")
    contents = found.contents
    assert contents.items.ids.ids.to_list()[-1] == 900
    assert contents.items.frame["kind"].to_list()[-1] == "kind 1"
    assert contents.gone[contents.items.ids.rows_of([3])[0]]
    assert not contents.gone[contents.items.ids.rows_of([900])[0]]
