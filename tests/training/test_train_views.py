"""Several kinds of item that share the queries."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import twotower
from twotower import View
from twotower.config import Config, ViewConfig
from twotower.data.batches import PairBatch
from twotower.data.dataset import Part
from twotower.doctor.diagnosis import diagnose_dataset, diagnose_model
from twotower.errors import BundleError, ConfigError, DataError
from twotower.evaluation.evaluate_bundle import evaluate_bundle
from twotower.losses.candidates import Pairs
from twotower.report.sections.model import item_map
from twotower.serving.titles import Titles
from twotower.training.choices import resolve
from twotower.training.objective import turns_of
from twotower.training.pipeline import views_of
from twotower.training.task import Task
from twotower.training.trained import TrainedViews
from twotower.training.trainer import Trainer

FILMS, BOOKS, TASTES = 40, 24, 4
QUICK = {"training": {"epochs": 6, "threads": 1, "batch_size": 128}, "towers": {"dim": 16}}
ONE_EPOCH = {**QUICK, "training": {**QUICK["training"], "epochs": 1}}


def events(items: int, num: int, seed: int, queries: int = 80) -> pl.DataFrame:
    """Events of queries of four tastes, each of which takes a quarter of the items."""
    rng = np.random.default_rng(seed)
    query = rng.integers(0, queries, num)
    item = (query % TASTES) * (items // TASTES) + rng.integers(0, items // TASTES, num)
    time = rng.integers(10**9, 10**9 + 10**6, num)
    return pl.DataFrame({"user": query, "item": item, "time": time})


def two_views() -> dict[str, View]:
    books = events(BOOKS, 900, 1).filter(pl.col("user") >= 8)  # eight have films alone
    return {"films": View(events(FILMS, 1200, 0)), "books": View(books)}


def task_of(views: dict[str, View], **settings: object) -> Task:
    told = tuple(ViewConfig(name=name, share=view.share) for name, view in views.items())
    config = replace(Config.from_dict({**QUICK, **settings}), views=told)
    return Task.of_views(views, config=config)


def trainer_of(views: dict[str, View], **settings: object) -> Trainer:
    task = task_of(views, **settings)
    config, _ = resolve(task.config, task.dataset)
    return Trainer(task.dataset, task.sides, config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedViews:
    out = tmp_path_factory.mktemp("views") / "model"
    return twotower.train_views(two_views(), out=out, config=QUICK)


def test_a_history_holds_the_events_of_every_view_in_one_order() -> None:
    films = pl.DataFrame({"user": ["a", "a", "b"], "item": [1, 2, 1], "time": [10, 30, 5]})
    books = pl.DataFrame({"user": ["a", "b", "c"], "item": [1, 7, 7], "time": [20, 6, 7]})
    more = pl.DataFrame(
        {"user": ["a"] * 8 + ["b"] * 8, "item": [1, 2] * 8, "time": range(100, 116)}
    )
    views = {"films": View(pl.concat([films, more])), "books": View(pl.concat([books, more]))}
    dataset = task_of(views).dataset
    row = int(dataset.queries.ids.rows_of(["a"])[0])
    of_a = slice(*dataset.interactions.offsets[row : row + 2])
    named = dataset.items.ids.ids_of(dataset.interactions.item_rows[of_a]).to_list()
    assert named[:3] == ["films:1", "books:1", "films:2"]
    seen = dataset.view("books")
    asked = dataset.items.ids.ids_of(seen.interactions.item_rows[seen.interactions.is_positive])
    assert set(asked.str.split(":").list.first()) == {"books"}
    assert seen.interactions.is_read.all()


def test_no_view_knows_what_comes_after_the_moment_another_is_asked_about() -> None:
    dataset = task_of(two_views()).dataset
    times = dataset.interactions.times
    assert times is not None
    assert times[dataset.parts == Part.TRAIN].max() < times[dataset.parts == Part.VALID].min()
    assert times[dataset.parts == Part.VALID].max() < times[dataset.parts == Part.TEST].min()


def disliking() -> dict[str, View]:
    """The two views with labels: a third of the events are disliked."""
    return {
        name: View(
            view.interactions.with_columns(  # type: ignore[union-attr]
                label=(pl.int_range(pl.len()) % 3 > 0).cast(pl.Int64)
            )
        )
        for name, view in two_views().items()
    }


@pytest.mark.parametrize(
    ("kind", "negatives"),
    [
        ("softmax", "all"),
        ("softmax", "uniform"),
        ("softmax", "in-batch"),
        ("softmax", "mixed"),
        ("softmax", "per-query"),
        ("bce", "uniform"),
        ("bce", "labels"),
    ],
)
def test_candidates_are_of_the_view_that_is_learnt(kind: str, negatives: str) -> None:
    views = disliking() if kind == "bce" else two_views()
    trainer = trainer_of(views, loss={"kind": kind, "negatives": negatives})
    for objective in trainer.objectives:
        assert objective.dataset.offered is not None
        for every in objective.batches.epoch(0):
            assert isinstance(every, PairBatch)
            assert objective.dataset.offered[every.item_rows].all()
            if kind == "bce":
                assert every.labels is not None
                assert 0 < every.labels.mean() < 1
        batch = next(objective.batches.epoch(0))
        assert isinstance(batch, PairBatch)
        pairs = Pairs(
            torch.from_numpy(batch.item_rows).long(), torch.from_numpy(batch.query_rows).long()
        )
        found = objective.reader.sampler(pairs, torch.Generator().manual_seed(0))
        assert objective.dataset.offered is not None
        assert objective.dataset.offered[found.item_rows.numpy()].all()


def test_mined_negatives_are_of_the_view() -> None:
    trainer = trainer_of(two_views(), loss={"negatives": "hard", "num_negatives": 8})
    for objective in trainer.objectives:
        assert objective.miner is not None
        objective.miner.refresh()
        mined = objective.reader.sampler._mined.unique()  # type: ignore[attr-defined]
        assert objective.dataset.offered is not None
        assert objective.dataset.offered[mined[mined > 1].numpy()].all()
        assert (mined > 1).any()


def test_views_share_the_query_tower_and_have_layers_of_their_own() -> None:
    trainer = trainer_of(two_views(), towers={"dim": 16, "item_hidden": [8]})
    films, books = (objective.model for objective in trainer.objectives)
    assert films.query_tower is books.query_tower
    assert films.item_tower.encoder is books.item_tower.encoder
    assert films.item_tower.block is not books.item_tower.block
    every = list(trainer.trained.parameters())
    wanted = {id(p) for model in (films, books) for p in model.parameters()}
    assert {id(p) for p in every} == wanted
    assert len(every) == len(wanted)
    before = [p.detach().clone() for p in books.item_tower.block.parameters()]  # type: ignore[union-attr]
    trainer.fit()
    after = list(books.item_tower.block.parameters())  # type: ignore[union-attr]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("is_ordered", "settings", "similarity", "decay"),
    [
        (False, {}, "dot", 1.0),
        (True, {}, "cosine", 0.1),
        (False, {"training": {"weight_decay": 0.3}}, "dot", 0.3),
        (False, {"towers": {"similarity": "cosine"}}, "cosine", 1.0),
    ],
)
def test_several_views_without_an_order_keep_lengths_that_fade(
    monkeypatch: pytest.MonkeyPatch,
    is_ordered: bool,
    settings: dict[str, dict[str, object]],
    similarity: str,
    decay: float,
) -> None:
    monkeypatch.setattr("twotower.training.choices.COSINE_FROM", 40)
    views = two_views()
    if not is_ordered:
        views = {
            name: View(view.interactions.drop("time"))  # type: ignore[union-attr]
            for name, view in views.items()
        }
    task = task_of(views, **settings)
    assert task.dataset.ordered == is_ordered
    config, said = resolve(task.config, task.dataset)
    assert config.towers.similarity == similarity
    assert config.training.weight_decay == decay
    is_told = any(sentence.startswith("training.weight_decay = 1:") for sentence in said)
    assert is_told == (decay == 1.0)
    assert resolve(config, task.dataset) == (config, ())


def test_answers_are_items_of_the_view_under_their_own_ids(trained: TrainedViews) -> None:
    for name, count in (("films", FILMS), ("books", BOOKS)):
        retriever = trained[name].retriever
        own = {str(i) for i in range(count)}
        assert set(retriever.recommend(9, k=1000, exclude_seen=False).item_ids) == own
        assert set(retriever.recommend("nobody", k=1000).item_ids) == own  # by popularity
        assert set(retriever.similar_items("3", k=1000).item_ids) == own - {"3"}
        assert trained[name].figures["protocol"]["catalogue"] == count
    among = trained["books"].retriever.recommend(9, among=["films:1", "3"], exclude_seen=False)
    assert among.item_ids == ["3"]
    filtered = trained["books"].retriever.recommend(
        9, filter='view in ("films", "books")', k=1000, exclude_seen=False
    )
    assert set(filtered.item_ids) == {str(i) for i in range(BOOKS)}
    none = trained["books"].retriever.recommend(9, filter='view = "films"', exclude_seen=False)
    assert none.item_ids == []


def test_who_is_new_in_a_view_is_answered_by_what_is_known_in_another(
    trained: TrainedViews,
) -> None:
    retriever = trained["books"].retriever
    quarter = BOOKS // TASTES
    right = 0
    for query in range(8):  # without a book
        answer = retriever.recommend(query, k=quarter)
        assert answer.basis == "model"
        right += sum(int(item) // quarter == query % TASTES for item in answer.item_ids)
    assert right >= 0.8 * 8 * quarter
    told = retriever.recommend(history=["films:0", "films:1", "films:2"], k=quarter)
    assert sum(int(item) // quarter == 0 for item in told.item_ids) >= quarter - 1


def test_the_folder_opens_as_it_was_trained(trained: TrainedViews) -> None:
    assert trained.path is not None
    opened = twotower.open_views(trained.path)
    assert list(opened) == ["films", "books"]
    for name, retriever in opened.items():
        here = trained[name].retriever.recommend(list(range(20)), k=5)
        there = retriever.recommend(list(range(20)), k=5)
        assert [a.item_ids for a in there] == [a.item_ids for a in here]
        figures = evaluate_bundle(retriever)
        assert figures["model"] == pytest.approx(trained[name].figures["model"])
        assert figures["protocol"]["catalogue"] == retriever.contents.num_items


def test_bundles_of_two_trainings_are_not_taken_for_one(
    trained: TrainedViews, tmp_path: Path
) -> None:
    assert trained.path is not None
    out = tmp_path / "other"
    other = twotower.train_views(two_views(), out=out, config=ONE_EPOCH, baselines=[])
    assert other.path is not None
    (other.path / "books").rename(tmp_path / "kept")
    with pytest.raises(BundleError, match=r"the view 'books' .* must be of one training"):
        twotower.open_views(other.path)
    with pytest.raises(BundleError, match=r"must be a folder of views, got no readable views.json"):
        twotower.open_views(tmp_path)


def test_one_that_is_there_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    out = tmp_path / "model"
    twotower.train_views(two_views(), out=out, config=ONE_EPOCH, baselines=[])
    first = json.loads((out / "views.json").read_text())
    seeded = {**ONE_EPOCH, "training": {**ONE_EPOCH["training"], "seed": 1}}
    twotower.train_views(two_views(), out=out, config=seeded, baselines=[])
    assert json.loads((out / "views.json").read_text()) != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(BundleError, match="must be new, empty or a folder of views to replace"):
        twotower.train_views(two_views(), out=tmp_path / "mine", config=ONE_EPOCH)


def test_shares_say_how_many_steps_are_about_each() -> None:
    assert turns_of([30, 10], [ViewConfig(name="a"), ViewConfig(name="b")]) == [30, 10]
    shared = [ViewConfig(name="a", share=1.0), ViewConfig(name="b", share=3.0)]
    assert turns_of([30, 10], shared) == [10, 30]
    views = two_views()
    views = {name: replace(view, share=share) for (name, view), share in zip(
        views.items(), (0.2, 0.8), strict=True)}  # fmt: skip
    trainer = trainer_of(views)
    given = [objective for objective, _ in trainer._batches(0)]
    counts = [given.count(objective) for objective in trainer.objectives]
    assert counts == trainer.turns
    assert counts[1] == pytest.approx(4 * counts[0], rel=0.3)
    # A view whose share is more than it has is gone through again, in another order.
    one, again = (list(trainer.objectives[1].some_batches(epoch, counts[1])) for epoch in (0, 1))
    assert len(one) == counts[1] > len(trainer.objectives[1].batches)
    assert not np.array_equal(one[0].query_rows, again[0].query_rows)


def test_a_training_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    whole = trainer_of(two_views())
    done = whole.fit()
    half = trainer_of(two_views(), training={**QUICK["training"], "epochs": 6})
    saved = []

    def save(progress: object) -> None:
        saved.append(progress)
        if len(saved) == 2:
            raise KeyboardInterrupt

    progress = half.fit(save=save)
    progress.log.pop()
    rest = trainer_of(two_views())
    assert rest.fit(progress=progress).best_metric == done.best_metric
    for ours, theirs in zip(rest.trained.parameters(), whole.trained.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {"films": v["films"]}, "views must be two or more, got 1"),
        (
            lambda v: {**v, "books": View(pl.DataFrame({"user": [], "item": []}))},
            "view 'books': ",
        ),
        (
            lambda v: {
                **v,
                "books": View(
                    v["books"].interactions, pl.DataFrame({"item": range(BOOKS), "view": "x"})
                ),
            },
            "view 'books': the items must have no column 'view'",
        ),
    ],
)
def test_bad_views_are_named(change: object, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        twotower.train_views(change(two_views()), config=QUICK)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["leave-last-out", "given"])
def test_what_another_view_knows_ends_at_the_moment_that_is_asked_about(kind: str) -> None:
    views = two_views()
    split: dict[str, object] = {}
    if kind == "given":  # books are cut early, films late
        for (name, view), at in zip(views.items(), (0.9, 0.5), strict=True):
            frame = view.interactions
            assert isinstance(frame, pl.DataFrame)
            cut = frame["time"].quantile(at)
            views[name] = View(
                {
                    "train": frame.filter(pl.col("time") < cut),
                    "test": frame.filter(pl.col("time") >= cut),
                }
            )
        split = {"valid_fraction": 0.1}
    else:
        split = {"kind": kind}
    dataset = task_of(views, split=split, data={"order": "time"}).dataset
    for name in views:
        seen = dataset.view(name)
        cases = seen.cases(Part.TEST)
        assert seen.offered is not None
        assert cases.times is not None
        times = cases.histories.times
        assert times is not None
        moments = np.repeat(cases.times, cases.histories.lengths)
        is_other = ~seen.offered[cases.histories.item_rows]
        assert is_other.any()
        assert (times <= moments)[is_other].all()


def test_files_and_splits_are_not_mixed() -> None:
    views = two_views()
    views["books"] = View({"train": events(BOOKS, 500, 2), "test": events(BOOKS, 100, 3)})
    with pytest.raises(ConfigError, match="must all be given as train and test, or none"):
        twotower.train_views(views, config=QUICK)


def test_queries_that_are_in_one_view_alone_are_told() -> None:
    apart = two_views()
    apart["books"] = View(events(BOOKS, 900, 1).with_columns(pl.col("user") + 1000))
    (said,) = [note for note in task_of(apart).dataset.notes if "more than one view" in note]
    assert said.startswith("0 of 160 queries have training events in more than one view. Warning:")


def test_text_in_the_ids_of_a_view_is_read_without_its_name() -> None:
    named = [f"the long title number {i}" for i in range(BOOKS)]
    books = events(BOOKS, 900, 1).with_columns(
        pl.col("item").map_elements(lambda i: named[i], return_dtype=pl.String)
    )
    views = {"films": View(events(FILMS, 1200, 0)), "books": View(books)}
    trained = twotower.train_views(views, config=ONE_EPOCH, baselines=[])
    retriever = trained["books"].retriever
    assert set(retriever.recommend(9, k=99, exclude_seen=False).item_ids) == set(named)
    line = retriever.items([named[3]])
    assert line["item as text"].to_list() == [named[3]]
    told = retriever.encode_items(features={"item": named[3], "item as text": named[3]})
    np.testing.assert_allclose(told[0], retriever.encode_items([named[3]])[0], atol=1e-5)


def test_views_of_a_file_name_their_tables(tmp_path: Path) -> None:
    text = '[[views]]\nname = "a"\ninteractions = "a.csv"\nshare = 1.0\n'
    text += '[[views]]\nname = "b"\ntrain = "b.csv"\ntest = "t.csv"\nitems = "i.csv"\nshare = 2.0\n'
    (tmp_path / "v.toml").write_text(text)
    config = Config.from_toml(tmp_path / "v.toml")
    assert Config.from_dict(config.to_dict()) == config
    (tmp_path / "again.toml").write_text(config.to_toml())
    assert Config.from_toml(tmp_path / "again.toml") == config
    views = views_of(config)
    assert vars(views["a"]) == {"interactions": Path("a.csv"), "items": None, "share": 1.0}
    parts = {"train": Path("b.csv"), "test": Path("t.csv")}
    assert vars(views["b"]) == {"interactions": parts, "items": Path("i.csv"), "share": 2.0}
    for wrong, message in (
        ([{"name": "a"}], "views must be two or more"),
        ([{"name": "a"}, {"name": "a"}], "views must have distinct names"),
        ([{"name": "a", "share": 1.0}, {"name": "b"}], "views must all have a share, or none"),
        ([{"name": "a/b"}, {"name": "b"}], r"views\[0\].name must be of letters"),
        ([{"nam": "a"}, {"name": "b"}], r"views\[0\].nam: unknown key"),
        ([{"name": "a", "share": 0.0}, {"name": "b", "share": 1.0}], r"views\[0\].share must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            Config.from_dict({"views": wrong})
    with pytest.raises(ConfigError, match="view 'a' must have either interactions, or train"):
        views_of(Config.from_dict({"views": [{"name": "a"}, {"name": "b"}]}))
    with pytest.raises(ConfigError, match="must hold no views for train"):
        twotower.train(events(FILMS, 100, 0), config=config)


@pytest.mark.parametrize("order", ["time", "none"])
def test_a_share_of_histories_hides_the_view_that_is_asked_for(order: str) -> None:
    data = {"order": order}
    split = {"kind": "random"}
    half, none = (
        trainer_of(two_views(), data=data, split=split, towers={"dim": 16, "view_dropout": share})
        for share in (0.5, 0.0)
    )
    for hiding, whole in zip(half.objectives, none.objectives, strict=True):
        own = hiding.dataset.offered
        assert own is not None
        is_hiding = []
        pairs = zip(hiding.batches.epoch(0), whole.batches.epoch(0), strict=True)
        for batch, full in pairs:
            assert isinstance(batch, PairBatch)
            assert isinstance(full, PairBatch)
            rows, all_rows = batch.history_rows, full.history_rows
            assert rows is not None
            assert all_rows is not None
            assert (np.diff((rows != 0).astype(int), axis=1) >= 0).all()  # right-aligned
            for line, full_line in zip(rows, all_rows, strict=True):
                kept, every = line[line != 0], full_line[full_line != 0]
                if own[every].any() and not own[every].all():
                    is_hiding.append(not own[kept].any())
                    wanted = every[~own[every]] if is_hiding[-1] else every
                    assert kept.tolist() == wanted.tolist()
            if batch.history_times is not None:
                assert ((batch.history_times != 0) == (rows != 0)).all()
        assert 0.4 < np.mean(is_hiding) < 0.6


def test_hiding_a_view_changes_what_is_learnt_and_an_ordinary_training_hides_nothing() -> None:
    losses = [
        trainer_of(two_views(), towers={"dim": 16, "view_dropout": share}).fit().log[0]["loss"]
        for share in (0.0, 0.6)
    ]
    assert losses[0] != losses[1]
    one = Task.of(events(FILMS, 1200, 0), config=Config.from_dict(QUICK))
    config, _ = resolve(one.config, one.dataset)
    (objective,) = Trainer(one.dataset, one.sides, config).objectives
    assert objective.batches.hidden is None  # type: ignore[attr-defined]


def test_whole_histories_are_no_examples_where_events_are_hidden() -> None:
    with pytest.raises(ConfigError, match=r"where towers\.view_dropout hides events example by"):
        trainer_of(two_views(), training={"examples": "prefixes"})
    read = {"dim": 16, "history": "transformer"}
    hiding = trainer_of(two_views(), towers=read)
    assert hiding.config.training.examples == "pairs"
    whole = trainer_of(two_views(), towers={**read, "view_dropout": 0.0})
    assert whole.config.training.examples == "prefixes"
    assert np.isfinite(whole.fit().log[0]["loss"])


def test_a_table_of_ids_alone_goes_with_one_of_more_columns() -> None:
    views = two_views()
    plain = views["books"].interactions
    assert isinstance(plain, pl.DataFrame)
    views["books"] = View(plain.drop("time"))
    task = task_of(views)
    assert len(task.dataset.event_columns) == len(task.dataset.interactions)
    assert any(
        note.startswith("No view has times, since books has none") for note in task.dataset.notes
    )
    assert not task.dataset.ordered


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"order": "file"}}, "data.order must be 'time' or 'none' for views"),
        ({"features": {"item": {"item": "id+text"}}}, "features.item.item must be 'id' for views"),
        ({"split": {"valid_fraction": 0.95}}, "must stay below 1, got 0.1 \\+ 0.95"),
    ],
)
def test_settings_that_views_cannot_have_are_named(settings: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(two_views(), **settings)  # type: ignore[arg-type]


def test_ids_that_would_mean_two_items_are_refused_before_training() -> None:
    films = events(FILMS, 1200, 0).with_columns(
        pl.when(pl.col("item") == 3).then(pl.lit("books:5")).otherwise(
            pl.col("item").cast(pl.String)).alias("item")
    )  # fmt: skip
    views = {"films": View(films), "books": View(events(BOOKS, 900, 1))}
    with pytest.raises(DataError, match=r"view 'films': an item id must not be .* got 'books:5'"):
        task_of(views)


def test_what_is_no_view_is_named() -> None:
    frame = events(FILMS, 100, 0)
    with pytest.raises(ConfigError, match=r"views\['films'\] must be a View, got DataFrame"):
        twotower.train_views({"films": frame, "books": View(frame)})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"views\['my films'\]: name must be of letters"):
        twotower.train_views({"my films": View(frame), "books": View(frame)})
    with pytest.raises(ConfigError, match="views must be a list of tables, got 'x'"):
        Config.from_dict({"views": "x"})
    for ask in (twotower.tune,):
        with pytest.raises(ConfigError, match="config must hold no views for tune"):
            ask(frame, out="x", minutes=1, config={"views": [{"name": "a"}, {"name": "b"}]})


def test_the_doctor_and_the_report_look_at_the_view_alone(
    trained: TrainedViews, tmp_path: Path
) -> None:
    for name, count in (("films", FILMS), ("books", BOOKS)):
        retriever = trained[name].retriever
        assert retriever.encode_items().shape[0] == len(retriever.item_ids) == count
        assert retriever.contents.provenance["items"] == count
        assert retriever.contents.popularity[2:].nonzero()[0].size == count
        found = diagnose_model(retriever) + diagnose_dataset(trained[name].dataset)
        assert all(str(FILMS + BOOKS) not in str(finding.facts) for finding in found)
        titles = Titles(retriever.contents.items)
        drawn = item_map(retriever, titles)
        assert drawn is not None
        assert len(drawn.points) == count
        trained[name].report(tmp_path / f"{name}.html")
    with pytest.raises(ValueError, match="item_id must be of the view 'books'"):
        trained["books"].retriever.explain(9, "films:3")
    with pytest.raises(BundleError, match="got a folder of views; name one of those in it"):
        twotower.Retriever.open(trained.path or "")


def test_one_table_of_items_for_two_views_is_told() -> None:
    items = pl.DataFrame(
        {"item": range(FILMS + BOOKS), "shelf": [str(i % 3) for i in range(FILMS + BOOKS)]}
    )
    films = View(events(FILMS, 1200, 0), items)
    books = View(events(BOOKS, 900, 1).with_columns(pl.col("item") + FILMS), items)
    notes = task_of({"films": films, "books": books}).dataset.notes
    told = [note for note in notes if "give each view a table of its own items" in note]
    assert [note.split(":")[0] for note in told] == ["films", "books"]
    assert f"{BOOKS} of its items have events in books alone" in told[0]
    assert not any("table of its own" in note for note in task_of(two_views()).dataset.notes)


def test_a_view_without_columns_is_reported_beside_one_with_some(tmp_path: Path) -> None:
    views = two_views()
    items = pl.DataFrame({"item": range(FILMS), "genre": [f"g{i % 5}" for i in range(FILMS)]})
    views["films"] = View(views["films"].interactions, items)
    both = twotower.train_views(views, config=ONE_EPOCH)
    for name, view in both.views.items():
        view.report(tmp_path / f"{name}.html")
        assert (tmp_path / f"{name}.html").stat().st_size > 10_000


def test_views_have_indexes_of_their_own() -> None:
    config: dict[str, object] = {**QUICK, "index": {"kind": "approximate", "recall": 0.8}}
    found = twotower.train_views(two_views(), config=config, baselines=[])
    for view in found.views.values():
        assert view.contents.lists is not None
        assert view.figures["index"]["recall"]["100"][0] > 0.7
        query = view.contents.queries.ids.ids[0]
        answer = view.retriever.recommend(query, k=5)
        assert len(answer) == 5
        assert set(answer.item_ids) <= set(view.retriever.item_ids)


def test_the_sampled_protocol_knows_no_validation_of_views_without_times() -> None:
    """As published: what is known of a user are training events; each row of the test has its own draw."""
    few = {
        name: {
            part: frame.filter(pl.int_range(pl.len()) % 4 == place).drop("time").unique()
            for part, place in (("valid", 1), ("test", 2))
        }
        | {"train": frame.filter(~(pl.int_range(pl.len()) % 4).is_in([1, 2])).drop("time")}
        for name, view in two_views().items()
        if isinstance(frame := view.interactions, pl.DataFrame)
    }
    views = {name: View(parts) for name, parts in few.items()}
    both = twotower.train_views(views, config={**ONE_EPOCH, "towers": {"dim": 4}}, baselines=[])
    retriever = both["films"].retriever
    parts = few["films"]

    def had(user: int, *names: str) -> int:
        return len({i for n in names for i in parts[n].filter(user=user)["item"].to_list()})

    users = sorted(parts["test"]["user"].unique())
    lacks = {user: FILMS - had(user, "train", "test") for user in users}
    known = {user: FILMS - had(user, "train", "valid", "test") for user in users}
    assert lacks != known
    n = min(lacks.values())
    found = evaluate_bundle(retriever, (10,), negatives=n, baselines=["random"])
    protocol = found["protocol"]
    assert (protocol["rows"], protocol["queries"]) == (len(parts["test"]), len(users))
    assert protocol["targets"] == protocol["rows"]
    assert protocol["candidates_a_query"] == n + 1  # one target each
    assert "training events alone" in protocol["notes"][-1]
    assert found["model"]["recall@10"] == found["model"]["hit_rate@10"]
    first = next(user for user in users if lacks[user] == n)
    with pytest.raises(ValueError, match=f"got {n + 1} where query {first} has {n}"):
        evaluate_bundle(retriever, (10,), negatives=n + 1, baselines=[])
    every = pl.DataFrame({"user": users, "item": [list(range(FILMS))] * len(users)})
    # All items are ranked in either case: what differs is what is known of a user.
    asked = evaluate_bundle(retriever, (FILMS,), candidates=every, baselines=[])
    assert asked["protocol"]["queries"] == len(users)
    assert "rows" not in asked["protocol"]
    assert "training events alone" in asked["protocol"]["notes"][-1]
    whole = evaluate_bundle(retriever, (FILMS,), baselines=[])
    assert "notes" not in whole["protocol"]
    assert asked["model"]["ndcg@40"] != whole["model"]["ndcg@40"]
