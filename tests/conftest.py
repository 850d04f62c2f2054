"""A tiny world, trained once a session, that several rooms' tests look at. Nobody writes into it."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from twotower.data.sources.synthetic import SyntheticTables, World, WorldConfig
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import Trained, train

# A shared machine may pause for longer than any deadline; a slow test is seen in the durations.
settings.register_profile("twotower", deadline=None)
settings.load_profile("twotower")

TINY = WorldConfig(
    num_items=200,
    num_clusters=10,
    num_personas=4,
    num_queries=300,
    events_per_query=12,
    seed=1,
)

SMALL = WorldConfig(
    num_items=60,
    num_clusters=6,
    num_personas=3,
    num_queries=80,
    events_per_query=8,
    seed=2,
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Several workers share the machine, and small tensors gain nothing from threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_world() -> SyntheticTables:
    """300 queries with 12 events each among 200 items, with features on both sides."""
    return World(TINY).generate()


@pytest.fixture(scope="session")
def small_world() -> SyntheticTables:
    """80 queries with 8 events each among 60 items: for tests that train a model of their own."""
    return World(SMALL).generate()


@pytest.fixture(scope="session")
def tiny_trained(
    tiny_world: SyntheticTables, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Trained:
    """The tiny world's model, trained for two epochs and written as a bundle."""
    return train(
        tiny_world.interactions,
        items=tiny_world.items,
        queries=tiny_world.queries,
        out=tmp_path_factory.mktemp("tiny") / "model",
        config={"training": {"epochs": 2, "batch_size": 256}, "towers": {"dim": 16}},
        name="tiny world",
    )


@pytest.fixture(scope="session")
def tiny_bundle(tiny_trained: Trained) -> Path:
    """The folder of the tiny world's bundle."""
    assert tiny_trained.path is not None
    return tiny_trained.path


@pytest.fixture(scope="session")
def tiny_retriever(tiny_bundle: Path) -> Retriever:
    """The tiny world's bundle, opened."""
    return Retriever.open(tiny_bundle)
