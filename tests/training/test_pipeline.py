"""From tables to a bundle: seeds, Ctrl-C and ``resume``, towers and arrays of the user's own."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from twotower.config import Config
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import BundleError, ConfigError, DataError, NothingLearntError
from twotower.evaluation.evaluate_bundle import evaluate_bundle
from twotower.evaluation.figures import Figures, measure
from twotower.features.schema import Feature
from twotower.serving.bundle import open_bundle
from twotower.serving.retriever import Retriever
from twotower.training.best import train_best
from twotower.training.bundle_contents import data_digest
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.choices import resolve
from twotower.training.pipeline import train
from twotower.training.task import Task
from twotower.training.trained import Trained
from twotower.training.trainer import Trainer, TrainingDivergedError

FOUR: dict[str, dict[str, object]] = {
    "towers": {"dim": 8, "question_time": "off"},
    "training": {"epochs": 4, "patience": 9, "batch_size": 64, "solver": "gradient"},
}
ONE: dict[str, dict[str, object]] = {
    "towers": {"dim": 8, "question_time": "off"},
    "training": {"epochs": 1, "batch_size": 64, "solver": "gradient"},
}
TIMING = {"examples_per_second", "seconds", "validation_seconds"}


class Listener(Callback):
    """Hears everything, and presses Ctrl-C at one step of one epoch (both counted from 0)."""

    def __init__(self, epoch: int = -1, step: int = 0) -> None:
        self.epoch, self.step, self.now, self.told = epoch, step, 0, list[str]()
        self.stopped_early = False

    def on_data(
        self, dataset: Dataset, decisions: tuple[Decision, ...], features: tuple[Feature, ...]
    ) -> None:
        assert len(dataset.interactions)
        assert decisions
        assert features
        self.told.append("data")

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:
        assert all(choices)
        self.config = config
        self.told.append("choices")

    def on_start(self, steps_per_epoch: int, progress: Progress) -> None:
        assert steps_per_epoch > self.step
        self.now = progress.epoch
        self.told.append(f"start {progress.epoch}")

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
        assert np.isfinite(loss())
        assert examples > 0
        if (self.now, step) == (self.epoch, self.step):
            raise KeyboardInterrupt

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.now = record["epoch"]
        self.told.append(f"epoch {record['epoch']}")
        if (self.now, self.step) == (self.epoch, -1):
            raise KeyboardInterrupt

    def on_end(self) -> None:
        self.told.append("end")

    def on_figures(self, figures: Figures, stopped_early: bool) -> None:
        assert figures["model"]
        self.stopped_early = stopped_early
        self.told.append("figures")


@pytest.fixture(scope="module")
def run(small_world: SyntheticTables) -> Callable[..., Trained]:
    """Train on the small world; the baselines, which take the longest, are fitted if wanted."""

    def run(out: Path | None = None, **kwargs: Any) -> Trained:
        return train(
            kwargs.pop("interactions", small_world.interactions),
            items=kwargs.pop("items", small_world.items),
            queries=kwargs.pop("queries", small_world.queries),
            out=out,
            config=kwargs.pop("config", FOUR),
            baselines=kwargs.pop("baselines", []),
            **kwargs,
        )

    return run


@dataclass(frozen=True)
class Fitted:
    """What ``train`` does with the tables, before it measures and writes, which takes it longer."""

    trainer: Trainer
    progress: Progress

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.trainer.model.state_dict()

    @property
    def log(self) -> list[dict[str, Any]]:
        return timeless(self.progress.log)


@pytest.fixture(scope="module")
def fit(small_world: SyntheticTables) -> Callable[..., Fitted]:
    def fit(
        out: Path | None = None,
        config: Mapping[str, object] = FOUR,
        *,
        resume: bool = False,
        teller: Listener | None = None,
    ) -> Fitted:
        task = Task.of(
            small_world.interactions,
            items=small_world.items,
            queries=small_world.queries,
            config=Config.of(config),
        )
        settings, _ = resolve(task.config, task.dataset)
        trainer = Trainer(task.dataset, task.sides, settings)
        best = train_best(
            task.config, trainer, (), out=out, resume=resume, bar=teller or Listener()
        )
        return Fitted(trainer, best.done)

    return fit


@pytest.fixture(scope="module")
def heard() -> Listener:
    """Who listened to the training that nobody interrupted."""
    return Listener()


@pytest.fixture(scope="module")
def whole(
    run: Callable[..., Trained], heard: Listener, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """A training that nobody interrupted, with all baselines."""
    out = tmp_path_factory.mktemp("whole") / "m"
    return run(out, name="small", progress=heard, baselines="auto")


def same_weights(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def log_of(trained: Trained) -> list[dict[str, Any]]:
    return timeless([json.loads(line) for line in trained.contents.log.splitlines()])


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope="module")
def stopped_once(run: Callable[..., Trained], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    run(folder / "m", progress=Listener(1, 1), name="small")
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A bundle with a checkpoint beside it, of a training like ``whole``; the test may damage it."""
    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "m"


class TestSeeds:
    def test_two_runs_write_equal_files(
        self, run: Callable[..., Trained], whole: Trained, tmp_path: Path
    ) -> None:
        """Save the date, and how long things took."""
        run(tmp_path / "m", name="small", baselines="auto")
        assert whole.path is not None
        files = sorted(p.relative_to(whole.path) for p in whole.path.rglob("*") if p.is_file())
        assert files == sorted(
            p.relative_to(tmp_path / "m") for p in (tmp_path / "m").rglob("*") if p.is_file()
        )
        for file in files:
            if file.name not in ("manifest.json", "training.jsonl"):
                a, b = (whole.path / file).read_bytes(), (tmp_path / "m" / file).read_bytes()
                assert a == b, file
        manifests = []
        for folder in (whole.path, tmp_path / "m"):
            manifest = json.loads((folder / "manifest.json").read_text())
            del manifest["created"], manifest["sha256"], manifest["files"]["training.jsonl"]
            assert manifest["provenance"].pop("seconds")["steps"] > 0
            manifests.append(manifest)
        assert manifests[0] == manifests[1]
        assert log_of(whole) == log_of(replace(whole, contents=open_bundle(tmp_path / "m")))

    def test_another_seed_gives_another_model(
        self, run: Callable[..., Trained], whole: Trained
    ) -> None:
        other = run(config={**FOUR, "training": {**FOUR["training"], "seed": 1}})
        assert not same_weights(whole.contents.weights, other.contents.weights)
        assert log_of(whole) != log_of(other)
        digest = "sha256_of_events"
        assert whole.contents.provenance[digest] == other.contents.provenance[digest]

    def test_the_order_of_the_tables_does_not_matter(
        self, run: Callable[..., Trained], whole: Trained, small_world: SyntheticTables
    ) -> None:
        shuffled = {
            "interactions": small_world.interactions.sample(fraction=1, shuffle=True, seed=1),
            "items": small_world.items.sample(fraction=1, shuffle=True, seed=2),
            "queries": small_world.queries.reverse(),
        }
        other = run(**shuffled, baselines="auto")
        assert same_weights(whole.contents.weights, other.contents.weights)
        assert whole.figures == other.figures

    @pytest.mark.usefixtures("whole")
    def test_forms_of_a_config(
        self, run: Callable[..., Trained], heard: Listener, tmp_path: Path
    ) -> None:
        """All end in the same settings; who hears of them stops the training before it begins."""

        class Chosen(Exception):  # noqa: N818 - it is no error
            pass

        class Asker(Listener):
            def on_choices(self, choices: tuple[str, ...], config: Config) -> None:  # noqa: ARG002
                raise Chosen(config)

        (tmp_path / "c.toml").write_text(Config.from_dict(FOUR).to_toml())
        forms = (Config.from_dict(FOUR), tmp_path / "c.toml", str(tmp_path / "c.toml"), FOUR)
        for form in forms:
            with pytest.raises(Chosen) as chosen:
                run(config=form, progress=Asker())
            assert chosen.value.args == (heard.config,)

    def test_files_in_place_of_frames(
        self,
        run: Callable[..., Trained],
        whole: Trained,
        small_world: SyntheticTables,
        tmp_path: Path,
    ) -> None:
        small_world.interactions.write_csv(tmp_path / "events.csv")
        small_world.items.write_parquet(tmp_path / "items.parquet")
        small_world.queries.write_csv(tmp_path / "queries.tsv", separator="\t")
        other = run(
            interactions=tmp_path / "events.csv",
            items=str(tmp_path / "items.parquet"),
            queries=tmp_path / "queries.tsv",
        )
        assert same_weights(whole.contents.weights, other.contents.weights)
        assert other.contents.provenance["data"] == "events.csv"
        assert whole.contents.provenance["data"] == "small"


class TestListening:
    def test_hears_of_everything_in_order(self, heard: Listener, whole: Trained) -> None:
        epochs = [f"epoch {n}" for n in range(1, 5)]
        assert heard.told == ["data", "choices", "start 0", *epochs, "end", "figures"]
        assert not heard.stopped_early
        assert whole.path is not None
        assert whole.path.name == "m"
        assert names_in(whole.path.parent) == ["m"]
        assert whole.figures == whole.contents.metrics


class TestInterruption:
    @pytest.mark.parametrize("step", [0, 3])
    def test_before_the_first_validation_nothing_is_left(
        self, run: Callable[..., Trained], tmp_path: Path, step: int
    ) -> None:
        listener = Listener(0, step)
        with pytest.raises(
            NothingLearntError, match="before the first validation: nothing was kept"
        ):
            run(tmp_path / "m", progress=listener)
        assert listener.told[-2:] == ["start 0", "end"]
        assert not names_in(tmp_path)

    def test_an_old_bundle_and_an_old_checkpoint_stay(
        self, run: Callable[..., Trained], fit: Callable[..., Fitted], whole: Trained, stopped: Path
    ) -> None:
        """One forgets --resume, sees epoch 1, presses Ctrl-C: the hours before must not be lost."""
        before = (stopped / "manifest.json").read_bytes()
        with pytest.raises(NothingLearntError):
            run(stopped, progress=Listener(0, 1))
        assert names_in(stopped.parent) == ["m", "m.training"]
        assert (stopped / "manifest.json").read_bytes() == before
        listener = Listener()
        resumed = fit(stopped, resume=True, teller=listener)
        assert "start 1" in listener.told
        assert same_weights(resumed.weights, whole.contents.weights)

    @pytest.mark.parametrize(("epoch", "step"), [(1, -1), (1, 0), (3, 2)])
    def test_later_on_it_leaves_a_usable_bundle(
        self,
        run: Callable[..., Trained],
        fit: Callable[..., Fitted],
        tmp_path: Path,
        epoch: int,
        step: int,
    ) -> None:
        listener = Listener(epoch, step)
        trained = run(tmp_path / "m", progress=listener)
        assert listener.stopped_early
        assert listener.told[-2:] == ["end", "figures"]
        retriever = Retriever.open(tmp_path / "m")
        assert retriever.recommend(3, k=5).basis == "model"
        again = evaluate_bundle(retriever, baselines=[])
        assert again["model"] == trained.figures["model"]
        if step == -1:
            assert again == trained.figures
        assert log_of(trained)[-1] == {"event": "interrupted", "after_epoch": epoch}
        settings = {**FOUR["training"], "epochs": epoch}
        shorter = fit(config={**FOUR, "training": settings})
        assert same_weights(trained.contents.weights, shorter.weights)

    def test_resumed_is_as_if_never_interrupted(
        self, run: Callable[..., Trained], whole: Trained, stopped: Path
    ) -> None:
        assert names_in(stopped.parent) == ["m", "m.training"]
        left = ["checkpoint.pt", "log.jsonl", "stopped"]
        assert names_in(stopped.with_name("m.training")) == left
        listener = Listener()
        resumed = run(stopped, resume=True, progress=listener, name="small", baselines="auto")
        assert "start 1" in listener.told
        assert same_weights(resumed.contents.weights, whole.contents.weights)
        assert log_of(resumed) == log_of(whole)
        assert resumed.figures == whole.figures
        assert names_in(stopped.parent) == ["m"]
        opened = Retriever.open(stopped).contents.weights
        assert same_weights(opened, whole.contents.weights)

    @pytest.mark.parametrize(
        ("epoch", "step", "negatives"), [(1, 0, "all"), (2, 4, "mixed"), (3, 5, "all")]
    )
    def test_resumed_anywhere_it_takes_the_same_steps(
        self, fit: Callable[..., Fitted], tmp_path: Path, epoch: int, step: int, negatives: str
    ) -> None:
        config = {
            **FOUR,
            "loss": {"negatives": negatives},
            "towers": {"dim": 8, "similarity": "cosine"},
        }
        fit(tmp_path / "m", config, teller=Listener(epoch, step))
        listener = Listener()
        resumed = fit(tmp_path / "m", config, resume=True, teller=listener)
        assert f"start {epoch}" in listener.told
        never = fit(config=config)
        assert same_weights(resumed.weights, never.weights)
        assert resumed.log == never.log

    def test_twice_interrupted(
        self, fit: Callable[..., Fitted], whole: Trained, tmp_path: Path
    ) -> None:
        fit(tmp_path / "m", teller=Listener(1, 2))
        fit(tmp_path / "m", teller=Listener(1, 0), resume=True)  # at once again
        fit(tmp_path / "m", teller=Listener(3, 0), resume=True)
        resumed = fit(tmp_path / "m", resume=True)
        assert same_weights(resumed.weights, whole.contents.weights)

    def test_sparse_tables_too(
        self, fit: Callable[..., Fitted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("twotower.features.encoders.SPARSE_FROM_ROWS", 10)
        config = {**FOUR, "loss": {"negatives": "in-batch"}}
        fit(tmp_path / "m", config, teller=Listener(2, 3))
        resumed = fit(tmp_path / "m", config, resume=True)
        assert same_weights(resumed.weights, fit(config=config).weights)

    @pytest.mark.parametrize("times", [1, 100])
    def test_a_disk_that_fills_up_at_the_end(
        self,
        run: Callable[..., Trained],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        times: int,
    ) -> None:
        """The checkpoint makes way for the bundle; where that is not enough nothing is left."""
        left = [times]

        def full(_: int) -> None:
            if left[0]:
                left[0] -= 1
                raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        if times == 1:
            run(tmp_path / "m", config=ONE)
            assert names_in(tmp_path) == ["m"]
            open_bundle(tmp_path / "m")
        else:
            with pytest.raises(BundleError, match="the disk is full"):
                run(tmp_path / "m", config=ONE)
            assert not names_in(tmp_path)

    def test_divergence_leaves_nothing(self, run: Callable[..., Trained], tmp_path: Path) -> None:
        config = {**ONE, "training": {"learning_rate": 1e30, "epochs": 2}}
        with pytest.raises(TrainingDivergedError):
            run(tmp_path / "m", config=config)
        assert not names_in(tmp_path)


class TestResumeRefusals:
    def test_without_a_place(self, run: Callable[..., Trained]) -> None:
        with pytest.raises(ValueError, match="resume must go with out, got no out"):
            run(resume=True)

    def test_without_a_checkpoint(self, run: Callable[..., Trained], tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"needs a checkpoint, got none at '.*/m\.training'"):
            run(tmp_path / "m", resume=True)
        assert not names_in(tmp_path)

    @pytest.mark.parametrize(
        "change",
        ["seed", "epochs", "events", "an event's time", "a feature's values", "a query's feature"],
    )
    def test_of_something_else(
        self,
        run: Callable[..., Trained],
        small_world: SyntheticTables,
        stopped: Path,
        change: str,
    ) -> None:
        events = small_world.interactions
        changes: dict[str, dict[str, Any]] = {
            "seed": {"config": {**FOUR, "training": {**FOUR["training"], "seed": 3}}},
            "epochs": {"config": {**FOUR, "training": {**FOUR["training"], "epochs": 9}}},
            "events": {"interactions": events.head(len(events) - 1)},
            "an event's time": {"interactions": events.with_columns(pl.col("timestamp") + 1)},
            "a feature's values": {"items": small_world.items.with_columns(-pl.col("signal"))},
            "a query's feature": {
                "queries": small_world.queries.with_columns(pl.col("segment").reverse())
            },
        }
        with pytest.raises(
            ConfigError, match="the data and the settings of the first run, got oth"
        ):
            run(stopped, resume=True, **changes[change])

    def test_with_another_tower_of_ones_own(
        self, small_world: SyntheticTables, tmp_path: Path
    ) -> None:
        rng = np.random.default_rng(0)
        queries = rng.normal(size=(81, 3))

        def go(tower: nn.Module, **kwargs: Any) -> Trained:
            return train(
                small_world.interactions,
                queries=queries,
                query_tower=tower,
                out=tmp_path / "m",
                config=FOUR,
                baselines=[],
                **kwargs,
            )

        go(nn.Linear(3, 8), progress=Listener(1, 1))
        with pytest.raises(ConfigError, match="of the first run, got others"):
            go(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 8)), resume=True)
        go(nn.Linear(3, 8), resume=True)

    @pytest.mark.parametrize(
        "content",
        [b"", b"nonsense", b"PK\x03\x04 not a zip", b"half"],
        ids=str,
    )
    def test_a_damaged_checkpoint(
        self, run: Callable[..., Trained], stopped: Path, content: bytes
    ) -> None:
        file = stopped.with_name("m.training") / "checkpoint.pt"
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
        with pytest.raises(ConfigError, match=r"resume cannot read '.*checkpoint\.pt'; remove it"):
            run(stopped, resume=True)

    def test_a_checkpoint_of_another_program(
        self, run: Callable[..., Trained], stopped: Path
    ) -> None:
        others: list[Any] = [{"model": {}}, [1, 2], torch.zeros(3)]
        for held in others:
            torch.save(held, stopped.with_name("m.training") / "checkpoint.pt")
            with pytest.raises(ConfigError, match="resume"):
                run(stopped, resume=True)


class Tower(nn.Module):
    """Reads two features by name."""

    def __init__(self, numbers: str, category: str) -> None:
        super().__init__()
        self.numbers, self.category = numbers, category
        self.linear, self.table = nn.Linear(2, 8), nn.Embedding(50, 8)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        category: Tensor = self.table(features[self.category].long())
        return torch.relu(self.linear(features[self.numbers])) + category


class TestOwnTowers:
    @pytest.mark.parametrize("kind", ["numpy", "torch", "float32", "integers"])
    def test_on_arrays(self, small_world: SyntheticTables, tmp_path: Path, kind: str) -> None:
        rng = np.random.default_rng(2)
        arrays: list[Any] = [rng.normal(3, 2, size=(81, 5)), rng.normal(size=(61, 7))]
        if kind == "torch":
            arrays = [torch.tensor(a, dtype=torch.bfloat16).requires_grad_() for a in arrays]
        elif kind == "float32":
            arrays = [a.astype(np.float32) for a in arrays]
        elif kind == "integers":
            arrays = [(a * 10).astype(int) for a in arrays]
        towers = nn.Linear(5, 6), nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 6))
        trained = train(
            small_world.interactions,
            queries=arrays[0],
            items=arrays[1],
            query_tower=towers[0],
            item_tower=towers[1],
            out=tmp_path / "m",
            config=ONE,
            baselines=[],
        )
        assert trained.contents.custom == ("query", "item")
        assert trained.contents.item_vectors.shape == (61, 6)  # ids 0 to 60; an event names 1 to 60
        fresh = nn.Linear(5, 6), nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 6))
        opened = Retriever.open(tmp_path / "m", query_tower=fresh[0], item_tower=fresh[1])
        assert torch.equal(fresh[0].weight, towers[0].weight)
        expected = trained.retriever.recommend(list(range(81)), k=9).to_polars()
        assert opened.recommend(list(range(81)), k=9).to_polars().equals(expected)
        assert evaluate_bundle(opened, baselines=[])["model"] == trained.figures["model"]
        array = np.asarray(arrays[0].detach().float() if kind == "torch" else arrays[0], np.float64)
        by_line = opened.recommend(
            features={"features": array[4].tolist()}, k=9, exclude_seen=False
        )
        by_id = opened.recommend(4, k=9, exclude_seen=False)
        assert by_line.item_ids == by_id.item_ids
        assert by_line.basis == by_id.basis == "model"

    def test_on_tables(
        self, run: Callable[..., Trained], small_world: SyntheticTables, tmp_path: Path
    ) -> None:
        def towers() -> dict[str, Any]:
            return {
                "query_tower": Tower("signal", "segment"),
                "item_tower": Tower("signal", "category"),
            }

        trained = run(tmp_path / "m", config=ONE, **towers())
        opened = Retriever.open(tmp_path / "m", **towers())
        frame = opened.recommend([1, 2, 99_999], k=5).to_polars()
        assert frame.equals(trained.retriever.recommend([1, 2, 99_999], k=5).to_polars())
        assert frame["basis"].to_list() == ["model"] * 10 + ["popularity"] * 5
        assert evaluate_bundle(opened, baselines=[]) == trained.figures
        line = small_world.items.drop("item_id").row(3, named=True)
        assert np.allclose(opened.encode_items(features=line), opened.encode_items([4]), atol=1e-6)
        config = opened.contents.config.towers
        assert (config.history, config.query_id) == ("none", "off")

    @pytest.mark.parametrize("side", ["query", "item"])
    def test_one_beside_a_built_in_one(
        self, run: Callable[..., Trained], tmp_path: Path, side: str
    ) -> None:
        category = "segment" if side == "query" else "category"
        trained = run(tmp_path / "m", config=ONE, **{f"{side}_tower": Tower("signal", category)})
        assert trained.contents.custom == (side,)
        opened = Retriever.open(tmp_path / "m", **{f"{side}_tower": Tower("signal", category)})  # type: ignore[arg-type]
        assert evaluate_bundle(opened, baselines=[])["model"] == trained.figures["model"]
        assert opened.encoding.model.reads_history == (side == "item")
        other = "item" if side == "query" else "query"
        with pytest.raises(
            BundleError, match=f"{side} tower of your own.*{side}_tower=..."
        ) as error:
            Retriever.open(tmp_path / "m")
        assert "bundles hold no code" in str(error.value)
        both: dict[str, Any] = {f"{s}_tower": Tower("signal", category) for s in (side, other)}
        with pytest.raises(BundleError, match=f"{other}_tower must not be given"):
            Retriever.open(tmp_path / "m", **both)

    def test_towers_of_another_shape_are_refused(
        self, small_world: SyntheticTables, tmp_path: Path
    ) -> None:
        queries = np.random.default_rng(2).normal(size=(81, 5))
        config = {**ONE, "towers": {"dim": 6}}
        train(
            small_world.interactions,
            queries=queries,
            query_tower=nn.Linear(5, 6),
            out=tmp_path / "m",
            config=config,
            baselines=[],
        )
        for wrong in (
            nn.Linear(5, 7),
            nn.Linear(4, 6),
            nn.Linear(5, 6, bias=False),
            nn.Sequential(nn.Linear(5, 6)),
        ):
            with pytest.raises(
                BundleError, match=r"towers must be those that .* was trained with: \w+"
            ):
                Retriever.open(tmp_path / "m", query_tower=wrong)

    def test_unequal_widths_name_both(self, small_world: SyntheticTables, tmp_path: Path) -> None:
        queries = np.random.default_rng(2).normal(size=(81, 5))
        with pytest.raises(ValueError, match="equal dim, got query_tower 7 and item_tower 8"):
            train(
                small_world.interactions,
                queries=queries,
                query_tower=nn.Linear(5, 7),
                out=tmp_path / "m",
                config=ONE,
            )
        assert not names_in(tmp_path)

    @pytest.mark.parametrize("side", ["query", "item"])
    def test_a_side_without_features(self, small_world: SyntheticTables, side: str) -> None:
        table = {"query": "queries", "item": "items"}[side]
        with pytest.raises(
            ConfigError, match=f"{side}_tower must have features .*give them as {table}="
        ):
            train(
                small_world.interactions,
                config=ONE,
                **{f"{side}_tower": nn.Linear(1, 8)},  # type: ignore[arg-type]
            )

    def test_an_output_of_another_form(self, small_world: SyntheticTables) -> None:
        queries = np.random.default_rng(2).normal(size=(81, 5))
        with pytest.raises(ValueError, match=r"the query tower must return \(\d+, dim\), got"):
            train(
                small_world.interactions,
                queries=queries,
                query_tower=nn.Sequential(nn.Linear(5, 8), nn.Flatten(0)),
                config=ONE,
            )

    @pytest.mark.parametrize(
        ("array", "said"),
        [
            (np.arange(61), r"shape \(n, d\) and hold numbers, got \(61,\) of int64"),
            (np.zeros((61, 2, 2)), r"got \(61, 2, 2\) of float64"),
            (np.array([["a"]] * 61), r"got \(61, 1\) of <U1"),
        ],
    )
    def test_arrays_of_another_form(
        self, small_world: SyntheticTables, array: Any, said: str
    ) -> None:
        with pytest.raises(ValueError, match=said):
            train(small_world.interactions, items=array, config=ONE)


class TestGivenParts:
    def test_are_taken_as_they_are(self, small_world: SyntheticTables, tmp_path: Path) -> None:
        events = small_world.interactions
        rank = pl.col("timestamp").rank("ordinal").over("query_id")
        parts = {
            "test": events.filter(rank > 6),
            "train": events.filter(rank <= 5),
            "valid": events.filter(rank == 6),
        }
        trained = train(parts, config=ONE, out=tmp_path / "m")
        assert trained.figures["protocol"]["targets"] == 160
        opened = Retriever.open(tmp_path / "m")
        assert len(opened.history(3)) == 6
        assert evaluate_bundle(opened) == trained.figures
        train({k: parts[k] for k in ("train", "test")}, config=ONE)

    def test_unknown_names(self, small_world: SyntheticTables) -> None:
        with pytest.raises(
            ConfigError, match="optionally one of valid and valid_sessions, got train, tset"
        ):
            train({"train": small_world.interactions, "tset": small_world.interactions})


class TestBadPlaces:
    def test_are_refused_before_any_work(
        self, small_world: SyntheticTables, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("mine")
        for out in (tmp_path / "file", tmp_path / "no" / "m", tmp_path):
            listener = Listener()
            with pytest.raises(BundleError, match="out must be"):
                train(small_world.interactions, out=out, progress=listener, config=ONE)
            assert not listener.told
        assert (tmp_path / "file").read_text() == "mine"

    def test_bad_tables_leave_nothing(self, small_world: SyntheticTables, tmp_path: Path) -> None:
        first = pl.col("item_id") == 1
        items = small_world.items.with_columns(
            signal=pl.when(first).then(float("inf")).otherwise("signal")
        )
        with pytest.raises(DataError, match="'signal' must be finite"):
            train(small_world.interactions, items=items, out=tmp_path / "m", config=ONE)
        one = small_world.interactions.with_columns(item_id=pl.lit(1))
        with pytest.raises(DataError, match="at least 2 items, got 1"):
            train(one, out=tmp_path / "m", config=ONE)
        with pytest.raises(ConfigError, match="did you mean 'epochs'"):
            train(small_world.interactions, out=tmp_path / "m", config={"training": {"epoch": 1}})
        assert not names_in(tmp_path)

    def test_a_bundle_is_replaced(
        self, run: Callable[..., Trained], whole: Trained, tmp_path: Path
    ) -> None:
        assert whole.path is not None
        shutil.copytree(whole.path, tmp_path / "m")
        run(tmp_path / "m", config=ONE)
        assert names_in(tmp_path) == ["m"]
        assert open_bundle(tmp_path / "m").config.training.epochs == 1


class TestProvenance:
    def test_says_what_the_data_was(self, whole: Trained, small_world: SyntheticTables) -> None:
        given = whole.contents.provenance
        assert given["events"] == len(small_world.interactions) == 640
        assert (given["queries"], given["items"]) == (80, 60)
        assert given["device"] == "cpu"
        assert 1 <= given["best_epoch"] <= 4
        assert any("leave-last-out" in note for note in given["notes"])
        assert whole.contents.ordered
        assert not whole.contents.repeats

    def test_digest_is_of_every_column(self, small_world: SyntheticTables) -> None:
        def digest(**config: Any) -> str:
            events = small_world.interactions.with_columns(**config)
            settings = Config.from_dict({"data": {"repeats": "no"}})
            dataset = Task.of(events, config=settings).dataset
            return data_digest(dataset.interactions, dataset.parts)

        rating = pl.Series([1, 2] * 320)
        digests = [
            digest(),
            digest(timestamp=pl.col("timestamp") + 1),
            digest(count=rating),
            digest(count=rating.reverse()),
            digest(label=rating - 1),
            digest(item_id=pl.col("item_id").reverse()),
        ]
        assert len(set(digests)) == len(digests)

    def test_a_column_that_is_absent_is_not_a_column_of_zeros(self) -> None:
        from twotower.data.dataset import Interactions

        rows = np.zeros(3, np.int32)
        offsets = np.array([0, 0, 0, 3])
        parts = np.ones(3, np.uint8)
        plain = Interactions(rows, rows, offsets)
        weighted = Interactions(rows, rows, offsets, weights=np.zeros(3, np.float32))
        labelled = Interactions(rows, rows, offsets, labels=np.zeros(3, np.float32))
        assert len({data_digest(e, parts) for e in (plain, weighted, labelled)}) == 3


class TestSeveralSeeds:
    def test_the_bundle_is_of_the_first_and_the_spread_of_all(
        self, small_world: SyntheticTables, tmp_path: Path
    ) -> None:
        config = {
            "towers": {"dim": 4},
            "training": {"epochs": 1, "batch_size": 64, "seed": 5, "solver": "gradient"},
        }
        tables = (small_world.interactions, small_world.items)
        out = tmp_path / "m"
        both = train(tables[0], items=tables[1], config=config, seeds=2, out=out, baselines=[])
        task = Task.of(tables[0], items=tables[1], config=Config.from_dict(config))
        singles = []
        for seed in (5, 6):
            settings, _ = resolve(task.config, task.dataset)
            settings = replace(settings, training=replace(settings.training, seed=seed))
            trainer = Trainer(task.dataset, task.sides, settings)
            trainer.fit()
            singles.append(measure(trainer.scorer(), task.dataset, baselines=[])["model"])
        assert both.figures["model"] == singles[0]
        assert both.contents.config.training.seed == 5
        spread = both.figures["seeds"]["ndcg@10"]
        values = [single["ndcg@10"] for single in singles]
        assert spread["values"] == values
        assert values[0] != values[1]
        assert spread["mean"] == pytest.approx(sum(values) / 2)
        assert spread["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        written = json.loads((tmp_path / "m" / "metrics.json").read_text("utf-8"))
        assert written["seeds"]["ndcg@10"] == spread

    def test_towers_of_ones_own_start_each_seed_afresh(self, small_world: SyntheticTables) -> None:
        torch.manual_seed(0)
        tower = torch.nn.Sequential(torch.nn.LazyLinear(4))
        vectors = np.random.default_rng(0).normal(size=(60, 5))
        events = small_world.interactions.with_columns(pl.col("item_id").rank("dense") - 1)
        config = {"towers": {"dim": 4}, "training": {"epochs": 1, "batch_size": 64}}
        found = train(events, items=vectors, item_tower=tower, config=config, seeds=2, baselines=[])
        assert len(found.figures["seeds"]["ndcg@10"]["values"]) == 2

    def test_none_is_refused(self, small_world: SyntheticTables) -> None:
        with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
            train(small_world.interactions, seeds=0)
