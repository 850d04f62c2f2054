"""A tiny world, trained once a session, that several rooms' tests look at; a browser, and a PostgreSQL."""

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import settings

from changed_items import change_items
from postgres import binaries, cluster
from servers import PATIENCE
from stand_in_device import DEVICE, stand_in
from twotower.data.sources.synthetic import SyntheticTables, World, WorldConfig
from twotower.serving.client import Client
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train
from twotower.training.trained import Trained

# What the collection of the tests makes stays: looking for garbage in it finds none. See frozen_heap.
gc.disable()

# A property test draws the same few examples in every run; ``make contract`` draws many others. There is no
# deadline: a shared machine may pause for longer than any.
settings.register_profile(
    "quick", deadline=None, max_examples=12, derandomize=True, stateful_step_count=25
)
settings.register_profile(
    "long",
    deadline=None,
    max_examples=int(os.environ.get("TWOTOWER_EXAMPLES", "500")),
    stateful_step_count=25,
)
settings.load_profile("long" if "TWOTOWER_EXAMPLES" in os.environ else "quick")

SLOW_FIRST = (
    "test_server_page.py",
    "test_onnx_towers.py",
    "test_workers.py",
    "test_trainer.py",
    "test_commands.py",
    "test_server.py",
    "test_report.py",
    "test_contract.py",
    "test_processes.py",
    "test_pipeline.py",
    "test_examples.py",
    "test_tune.py",
    "test_demo.py",
    "test_train_views.py",
)
"""Files that take long: workers begin with them, so that none is left with one alone at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs unless they are asked for: a test that states no device is of the CPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first, and skip what needs a GPU where there is none."""
    place = {name: number for number, name in enumerate(SLOW_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    if not torch.cuda.is_available():
        absent = "needs a CUDA device; none is here (only pytest -m gpu looks for one)"
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason=absent))


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


@pytest.fixture(scope="session", autouse=True)
def frozen_heap() -> Iterator[None]:
    """Keep the collector of garbage away from what pytest, the libraries and the tests hold.

    A server that starts or exchanges its model collects everything there is. That is little in a process of
    its own, and takes more than a second here, in which no thread answers anybody.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Nothing waits for the disk: no test takes the power away, and what a process wrote outlives it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def patient_clients() -> Iterator[None]:
    """Whoever asks a server waits for minutes: how long a busy machine takes must not decide a test."""
    asking = (httpx.get, httpx.post, httpx.put, httpx.delete, httpx.request, httpx.Client.__init__)
    with pytest.MonkeyPatch.context() as patch:
        for function in (*asking, Client.__init__):
            defaults = function.__kwdefaults__
            assert defaults is not None
            assert "timeout" in defaults
            patch.setitem(defaults, "timeout", PATIENCE)
        yield


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
    """The tiny world's model, trained for two epochs and written as a bundle.

    It answers the same at any time, so that two ways of asking may be compared without stating one.
    """
    return train(
        tiny_world.interactions,
        items=tiny_world.items,
        queries=tiny_world.queries,
        out=tmp_path_factory.mktemp("tiny") / "model",
        config={
            "training": {"epochs": 2, "batch_size": 256, "solver": "gradient"},
            "towers": {
                "dim": 16,
                "history": "pooled",
                "query_id": "off",
                "question_time": "off",
                "similarity": "dot",
            },
        },
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


@pytest.fixture(scope="session")
def changed_retriever(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Retriever:
    """A thousand queries, and items that changed, came and went since the bundle was opened."""
    return change_items(tmp_path_factory.mktemp("thousand"))


@pytest.fixture(scope="session")
def operators_parsed_once() -> Iterator[None]:
    """Without it, torch parses all of onnxscript's operators anew for each graph that it writes.

    What is patched is torch's own affair: where a torch has it no more, these tests only take longer.
    """
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError, AttributeError):
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            parsed = staticmethod(cache(ONNXRegistry.from_torchlib))
            patch.setattr(ONNXRegistry, "from_torchlib", parsed)
        yield


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device as settings name it: a GPU with ``pytest -m gpu``, in every run what a CPU stands in for."""
    if request.param == "stand-in":
        with stand_in():
            yield str(DEVICE)
        return
    with pytest.MonkeyPatch.context() as patch:
        # A GRU of cuDNN rounds its factors to 10 bits otherwise, and could not be compared with a CPU's.
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield str(DEVICE)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Vectors of sentences are kept in the test's own folder, and no encoder is fetched."""
    monkeypatch.setenv("TWOTOWER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium; where there is none the tests are skipped, unless TWOTOWER_BROWSER=1 asks for one.

    As long as it is there, the thread of the tests has an event loop, and no test can run one of its own.
    """
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if executable is None and os.environ.get("TWOTOWER_BROWSER") != "1":
        pytest.skip("no chromium; install it, or set TWOTOWER_BROWSER=1 to fail without")
    assert executable is not None, "TWOTOWER_BROWSER=1, and no chromium is installed"
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL with pgvector; without one tests are skipped, unless TWOTOWER_POSTGRES=1 asks for it."""
    folder = binaries()
    if folder is None and os.environ.get("TWOTOWER_POSTGRES") != "1":
        pytest.skip(
            "no PostgreSQL with pgvector; install it, or set TWOTOWER_POSTGRES=1 to fail without"
        )
    assert folder is not None, "TWOTOWER_POSTGRES=1, and no PostgreSQL with pgvector is installed"
    with cluster(folder) as dsn:
        yield dsn
