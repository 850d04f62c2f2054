"""The time of a question: the same in evaluation, Python, sessions, HTTP, the command line and ONNX."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch

from sandbox import run_command
from servers import running
from twotower import Config, Retriever, exports
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import ConfigError
from twotower.evaluation.evaluate_bundle import dataset_of, evaluate_bundle
from twotower.evaluation.scorers import ModelScorer
from twotower.exports.onnx import write_query_tower
from twotower.exports.onnx_inputs import TowerInputs
from twotower.serving.answers import Recommendation
from twotower.serving.arguments import queries_of
from twotower.serving.bundle import write_bundle
from twotower.serving.client import Client
from twotower.serving.session import Session
from twotower.towers.model import QueryTower
from twotower.towers.question_time import Asked, QuestionTime
from twotower.training.choices import resolve
from twotower.training.pipeline import train
from twotower.training.task import Task
from twotower.training.trainer import Trainer

LENGTH = 6
DAY = 86_400.0
NOON = 1_900_000_800.0
"""A Sunday at 10:00, long after the world's last event."""


@pytest.fixture(scope="module")
def bundle(small_world: SyntheticTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose query tower reads the time of the question, none of whose weights is 0."""
    out = tmp_path_factory.mktemp("asked") / "model"
    contents = train(
        small_world.interactions,
        items=small_world.items,
        queries=small_world.queries,
        config={
            "towers": {
                "dim": 8,
                "history": "transformer",
                "history_length": LENGTH,
                "question_time": "on",
            },
            "training": {"epochs": 1, "batch_size": 64, "precision": "float32"},
        },
        baselines=[],
    ).retriever.contents
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: value + 0.5 * torch.randn(value.shape, generator=generator)
        if "question_time" in name
        else value
        for name, value in contents.weights.items()
    }
    weights["query_tower.question_time.longest"] = torch.tensor(1e30)  # so that NOON counts
    write_bundle(out, replace(contents, weights=weights))
    return out


@pytest.fixture(scope="module")
def retriever(bundle: Path) -> Retriever:
    return Retriever.open(bundle)


def last_of(retriever: Retriever, query_id: int) -> float:
    """Return when the bundle's history of a query ends."""
    histories = retriever.contents.histories
    assert histories is not None
    times = histories.take(retriever.queries.rows_of([query_id])).times
    assert times is not None
    return float(times[-1])


def events_of(retriever: Retriever, query_id: int) -> list[dict[str, Any]]:
    histories = retriever.contents.histories
    assert histories is not None
    own = histories.take(retriever.queries.rows_of([query_id]))
    assert own.times is not None
    items = retriever.contents.items.ids.ids_of(own.item_rows)
    return [{"item_id": i, "time": t} for i, t in zip(items, own.times.tolist(), strict=True)]


def test_the_answer_depends_on_the_time(retriever: Retriever) -> None:
    last = last_of(retriever, 3)
    soon, later = (retriever.encode_queries(3, at=last + gap) for gap in (60, 30 * DAY))
    assert np.abs(soon - later).max() > 1e-2
    # Two moments of one hour, as long ago to a power of 2, are one.
    same = retriever.encode_queries(3, at=NOON), retriever.encode_queries(3, at=NOON + 900)
    np.testing.assert_array_equal(*same)
    assert np.abs(same[0] - retriever.encode_queries(3, at=NOON + DAY)).max() > 1e-2
    assert np.abs(same[0] - retriever.encode_queries(3, at=NOON + 3600)).max() > 1e-2


def test_a_time_may_be_written_in_several_ways(retriever: Retriever) -> None:
    expected = retriever.encode_queries(3, at=NOON)
    there = timezone(timedelta(hours=8))
    for at in (
        int(NOON),
        np.float64(NOON),
        datetime.fromtimestamp(NOON, UTC),
        datetime.fromtimestamp(NOON, there),
        datetime.fromtimestamp(NOON, UTC).replace(tzinfo=None),
    ):
        np.testing.assert_array_equal(retriever.encode_queries(3, at=at), expected)


def test_several_queries_have_one_time_or_one_each(retriever: Retriever) -> None:
    together = retriever.encode_queries([3, 4], at=NOON)
    apart = retriever.encode_queries([3, 4], at=[NOON, NOON + DAY])
    np.testing.assert_array_equal(apart[0], together[0])
    assert np.abs(apart[1] - together[1]).max() > 1e-2
    alone = retriever.encode_queries(4, at=NOON + DAY)
    np.testing.assert_allclose(apart[1:], alone, atol=1e-6)
    every = retriever.recommend_all(3, at=NOON)
    mine = retriever.recommend(3, k=3, at=NOON)
    assert every.filter(query_id=3)["item_id"].to_list() == mine.item_ids


def test_without_a_time_the_question_is_asked_now(retriever: Retriever) -> None:
    before = retriever.encode_queries(3, at=time.time())
    now = retriever.encode_queries(3)
    after = retriever.encode_queries(3, at=time.time())  # the hour may have turned meanwhile
    assert (now == before).all() or (now == after).all()
    score = retriever.score([(3, 5)])
    item = retriever.encode_items([5])[0]
    assert any(np.allclose(score, vector[0] @ item, atol=1e-5) for vector in (before, after))


@pytest.mark.parametrize(
    ("at", "query", "says"),
    [
        ("tomorrow", 3, "at must be a number of seconds since 1970"),
        (float("nan"), 3, "or a datetime, got nan"),
        (1e13, 3, r"at most 1e\+12 from it"),
        (True, 3, "got True"),
        ([NOON], 3, "at must be one time for one query, got a list of 1"),
        ([NOON], [3, 4], "at must be one time, or one for each of 2 queries, got a list of 1"),
        (1, 3, "at must not lie before the last event of the history, got 1 where that is at"),
        ([None, 1], [3, 4], "leave out the later events, or ask at a later time"),
    ],
    ids=str,
)
def test_what_is_no_time_of_the_question_is_refused(
    retriever: Retriever, at: Any, query: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        retriever.recommend(query, at=at)


def test_a_question_may_come_with_the_last_event_or_without_any(retriever: Retriever) -> None:
    assert retriever.recommend(3, at=last_of(retriever, 3)).basis == "model"
    assert retriever.recommend(history=[1, 2], at=0).basis == "model"  # events without times
    assert retriever.recommend(history=[], at=0).basis == "popularity"


def test_a_clock_that_is_behind_asks_at_the_last_event(retriever: Retriever) -> None:
    now = time.time()
    near, far = (
        retriever.encode_queries(history=[{"item_id": 5, "time": now + days * DAY}])
        for days in (1, 300)
    )
    np.testing.assert_array_equal(near, far)
    long_ago = retriever.encode_queries(history=[{"item_id": 5, "time": now - 300 * DAY}])
    assert np.abs(long_ago - near).max() > 1e-2


def test_a_session_is_asked_at_any_time(retriever: Retriever) -> None:
    events = events_of(retriever, 3)
    session = Session(retriever, retriever.queries.described(queries_of(3, history=[])))
    for place, event in enumerate(events):
        session.add(event["item_id"], event["time"])
        for gap in (60.0, 5 * DAY, 60.0):
            at = event["time"] + gap
            expected = retriever.encode_queries(3, history=events[: place + 1], at=at)
            np.testing.assert_allclose(session.encode(at=at), expected[0], atol=1e-5)
            answer = retriever.recommend(3, history=events[: place + 1], at=at)
            assert session.recommend(at=at).item_ids == answer.item_ids
    with pytest.raises(ValueError, match="must not lie before"):
        session.recommend(at=events[0]["time"])
    assert len(events) > LENGTH, "the window must have moved"


def test_evaluation_asks_at_the_time_of_the_test_event(retriever: Retriever, bundle: Path) -> None:
    dataset = dataset_of(retriever)
    cases = dataset.cases(Part.TEST)
    assert cases.times is not None
    scorer = ModelScorer(
        retriever.encoding, retriever.query_features, retriever.contents.popularity
    )
    scores = scorer.score(cases).numpy()
    ids = dataset.queries.ids.ids_of(cases.query_rows).to_list()
    vectors = retriever.encode_queries(ids, at=cases.times.tolist())
    np.testing.assert_allclose(
        vectors @ retriever.encode_items().T, scores[:, 2:], rtol=1e-4, atol=1e-4
    )
    now = retriever.encode_queries(ids) @ retriever.encode_items().T
    assert np.abs(now - scores[:, 2:]).max() > 1e-2
    assert evaluate_bundle(bundle)["model"] == evaluate_bundle(retriever)["model"]


def test_what_the_time_contributes(retriever: Retriever) -> None:
    at = last_of(retriever, 3) + 60
    found = retriever.explain(3, 5, at=at)
    (part,) = (part for part in found.parts if part.name == "time of the question")
    assert part.value == at
    item = retriever.encode_items([5])[0]
    assert found.score == pytest.approx(
        float(retriever.encode_queries(3, at=at)[0] @ item), abs=1e-4
    )
    assert part.contribution != 0


def test_over_http(bundle: Path, retriever: Retriever) -> None:
    with running(bundle) as address, Client(address) as client:
        questions: tuple[dict[str, Any], ...] = (
            {"query_id": 3, "at": NOON},
            {"query_id": [3, 4], "at": [NOON, datetime.fromtimestamp(NOON + DAY, UTC)]},
            {"history": [[1, 2], [3]], "at": NOON},
        )
        for question in questions:
            np.testing.assert_allclose(
                client.encode_queries(**question), retriever.encode_queries(**question), atol=1e-5
            )
            theirs, mine = client.recommend(**question), retriever.recommend(**question)
            if isinstance(theirs, Recommendation):
                assert theirs.item_ids == mine.item_ids
            else:
                assert [a.item_ids for a in theirs] == [a.item_ids for a in mine]
        explained = client.explain(3, 5, at=NOON)
        assert explained.score == pytest.approx(retriever.explain(3, 5, at=NOON).score, abs=1e-4)
        with pytest.raises(ValueError, match="must not lie before the last event"):
            client.recommend(3, at=1)
        good, bad = (
            client._http.post(
                "/recommend/many", json={"queries": [{"query_id": 3, "at": NOON}, {"query_id": 3}]}
            ),
            client._http.post("/recommend", json={"query_id": 3, "at": "noon"}),
        )
        assert good.status_code == 200
        assert bad.status_code == 422
        assert "at" in bad.json()["error"]


def test_on_the_command_line(bundle: Path, retriever: Retriever, tmp_path: Path) -> None:
    wanted = retriever.recommend(3, at=NOON).item_ids
    for at in (f"{NOON:.0f}", datetime.fromtimestamp(NOON, UTC).isoformat()):
        ask = ("recommend", str(bundle), "--query", "3", "--at", at, "--json")
        found = json.loads(run_command(ask, tmp_path).out)
        assert [line["item_id"] for line in found["items"]] == wanted
    why = ("explain", str(bundle), "--query", "3", "--item", "5", "--at", f"{NOON:.0f}", "--json")
    assert json.loads(run_command(why, tmp_path).out)["score"] == pytest.approx(
        retriever.explain(3, 5, at=NOON).score, abs=1e-4
    )
    wrong = run_command(("recommend", str(bundle), "--query", "3", "--at", "soon"), tmp_path)
    assert wrong.code != 0
    assert "--at must be seconds since 1970, or a time such as" in wrong.err
    early = run_command(("recommend", str(bundle), "--query", "3", "--at", "1"), tmp_path)
    assert "--at must not lie before the last event" in early.err


@pytest.mark.usefixtures("operators_parsed_once")
def test_as_onnx(retriever: Retriever, tmp_path: Path) -> None:
    file, inputs = tmp_path / "query_tower.onnx", TowerInputs(retriever)
    assert write_query_tower(file, inputs) < 1e-5
    session = onnxruntime.InferenceSession(str(file))
    events = events_of(retriever, 3)
    last = events[-1]["time"]
    questions: tuple[dict[str, Any], ...] = (
        # 7 seconds stand at the edge of a bucket, 1 + 7 being a power of 2.
        {"query_id": [3] * 6, "at": [last, last + 7, last + 6.5, NOON, NOON + DAY, NOON + 3600]},
        {"history": [[1, 2], []], "at": NOON},
        {"history": [events, events[:2]], "at": [last + 60, None]},
    )
    for asked in questions:
        arrays = exports.query_inputs(retriever, **asked)
        assert arrays["question.time"].dtype == np.float64
        found = session.run(None, dict(arrays))[0]
        expected = retriever.encode_queries(**asked)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    unknown = exports.query_inputs(retriever, 3)
    unknown["question.time"][:] = np.nan
    found = session.run(None, dict(unknown))[0]
    known = retriever.queries.described(queries_of(3))
    without = retriever.encoding.query_vectors(known.features, replace(known.histories, asked=None))
    np.testing.assert_allclose(found, without.numpy(), rtol=1e-4, atol=1e-5)


class TestTheSetting:
    @staticmethod
    def resolved(events: pl.DataFrame, *settings: str) -> tuple[Config, tuple[str, ...]]:
        task = Task.of(events, config=Config().with_settings(settings))
        return resolve(task.config, task.dataset)

    @pytest.mark.parametrize(
        ("settings", "chosen", "is_told"),
        [
            ([], "on", True),
            (["towers.question_time=on"], "on", False),
            (["towers.question_time=off"], "off", False),
            (["split.kind=random"], "off", False),
            (["towers.history=none"], "off", False),
            (["split.kind=temporal"], "off", False),
            (["split.kind=temporal", "towers.question_time=on"], "on", False),
        ],
        ids=str,
    )
    def test_auto_is_on_where_a_time_can_be_read_and_what_is_set_is_kept(
        self, settings: list[str], chosen: str, is_told: bool, small_world: SyntheticTables
    ) -> None:
        config, said = self.resolved(small_world.interactions, *settings)
        assert config.towers.question_time == chosen
        assert ("towers.question_time = 'on': the events have times" in said) == is_told

    @pytest.mark.parametrize(
        ("settings", "why"),
        [
            (["split.kind=random"], "the events have no order"),
            (["towers.history=none"], "the query tower reads no history"),
        ],
        ids=str,
    )
    def test_where_it_cannot_be_read_it_is_refused(
        self, settings: list[str], why: str, small_world: SyntheticTables
    ) -> None:
        with pytest.raises(ConfigError, match=f"must be 'off' or 'auto' where {why}, got 'on'"):
            self.resolved(small_world.interactions, "towers.question_time=on", *settings)

    def test_events_need_times(self, small_world: SyntheticTables) -> None:
        events = small_world.interactions.drop("timestamp")
        with pytest.raises(ConfigError, match="where the events have no times"):
            self.resolved(events, "data.order=file", "towers.question_time=on")

    def test_off_nothing_reads_it(self, tiny_retriever: Retriever) -> None:
        found = tiny_retriever.recommend(3, at=NOON)
        assert found.scores == tiny_retriever.recommend(3, at=NOON + 5 * DAY).scores
        assert "question.time" not in exports.query_inputs(tiny_retriever, 3, at=NOON)
        with pytest.raises(ValueError, match="must not lie before"):
            tiny_retriever.recommend(3, at=1)


def test_after_a_longer_gap_than_training_saw_the_time_is_unknown(
    bundle: Path, retriever: Retriever, tmp_path: Path
) -> None:
    longest = 3600.0
    weights = {**retriever.contents.weights}
    weights["query_tower.question_time.longest"] = torch.tensor(longest)
    out = tmp_path / "model"
    write_bundle(out, replace(retriever.contents, weights=weights))
    short = Retriever.open(out)
    last = last_of(short, 3)
    times = [last + longest, last + longest + 1, NOON, NOON + 5 * 3600]
    vectors = short.encode_queries([3] * 4, at=times)
    without_limit = Retriever.open(bundle).encode_queries(3, at=times[0])
    np.testing.assert_allclose(vectors[:1], without_limit, atol=1e-5)
    np.testing.assert_allclose(vectors[1:3], vectors[2:4], atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-2
    file, inputs = tmp_path / "query_tower.onnx", TowerInputs(short)
    assert write_query_tower(file, inputs) < 1e-5
    arrays = exports.query_inputs(short, [3] * 4, at=times)
    found = onnxruntime.InferenceSession(str(file)).run(None, dict(arrays))[0]
    np.testing.assert_allclose(found, vectors, rtol=1e-4, atol=1e-5)


def test_training_notes_the_longest_gap_that_it_saw_often(small_world: SyntheticTables) -> None:
    config = Config().with_settings(["towers.dim=8", "towers.question_time=on"])
    task = Task.of(small_world.interactions, config=config)
    trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
    tower = trainer.model.query_tower
    assert isinstance(tower, QueryTower)
    assert tower.question_time is not None
    events = task.dataset.part(Part.TRAIN)
    assert events.times is not None
    gaps = []
    for query in np.unique(events.query_rows):
        gaps += np.diff(events.times[events.query_rows == query]).tolist()
    assert 0 < len(gaps) < 10_000
    assert float(tower.question_time.longest) == pytest.approx(
        sorted(gaps)[-(len(gaps) // 100) - 1]
    )


def test_questions_after_longer_gaps_are_read_as_at_an_unknown_time() -> None:
    read = QuestionTime(4)
    for weight in read.parameters():
        torch.nn.init.ones_(weight)
    gaps = np.arange(20_000.0)
    read.see(gaps)
    assert float(read.longest) == 19_900  # a hundred are as long or longer
    asked = Asked(torch.tensor([0.0, 19_900.0, 19_901.0, torch.nan]), torch.tensor([5, 5, 5, 5]))
    assert read(asked)[:, 0].tolist() == [3, 3, 0, 2]
    read.see(np.array([]))
    assert float(read.longest) == 19_900
