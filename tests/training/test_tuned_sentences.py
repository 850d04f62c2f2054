"""A pretrained sentence encoder that is trained with the towers, from the first step to the bundle."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from sandbox import run_command
from tiny_encoder import write_encoder
from twotower import recipe, train
from twotower.config import Config
from twotower.data.batches import PairBatch
from twotower.errors import BundleError, ConfigError, MissingExtraError
from twotower.features import sentences
from twotower.report.html_report import write_report
from twotower.serving.bundle import open_bundle
from twotower.serving.retriever import Retriever
from twotower.towers.model import TwoTower
from twotower.training.choices import resolve
from twotower.training.pipeline import train_views
from twotower.training.steps import Optimizers
from twotower.training.task import Task, View
from twotower.training.trained import Trained
from twotower.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("own_cache")

WORDS = ("ox", "cat", "dog", "emu", "fly", "gnu", "hen", "jay", "koi", "yak")
LINEAR = "item_tower.encoder.encoders.0.weight"
PARTNERS = dict(zip(WORDS, reversed(WORDS), strict=True))


def pairs() -> pl.DataFrame:
    """Each word is clicked to its partner, whose letters are others."""
    rows = [(f"{way} {word}", f"{PARTNERS[word]} it") for word, way in product(WORDS, "abcdef")]
    return pl.DataFrame(rows, schema=["query", "document"], orient="row")


def visits() -> pl.DataFrame:
    """Each word is clicked to all of them, one after the other."""
    rows = [
        (f"a {word}", f"{other} it", time) for word in WORDS for time, other in enumerate(WORDS)
    ]
    return pl.DataFrame(rows, schema=["query", "document", "time"], orient="row")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_encoder(tmp_path_factory.mktemp("tiny"), dropout=0.1)


def config_of(encoder: str, *more: str) -> Config:
    return recipe("search").with_settings(
        [
            "features.text=sentence",
            f"features.sentence_encoder={encoder}",
            "features.tune_sentences=true",
            "training.epochs=2",
            "training.batch_size=16",
            "training.threads=1",
            "training.precision=float32",
            "towers.dim=32",
            *more,
        ]
    )


def trainer_of(config: Config, events: pl.DataFrame | None = None) -> Trainer:
    task = Task.of(pairs() if events is None else events, config=config)
    settings, _ = resolve(task.config, task.dataset)
    return Trainer(task.dataset, task.sides, settings)


def rewrite(bundle: Path, name: str, text: str) -> None:
    """Give a file another content, and the manifest its digest."""
    (bundle / name).write_text(text, "utf-8")
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["files"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    del manifest["sha256"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest}), "utf-8")


def encoder_weights(trainer: Trainer) -> dict[str, Tensor]:
    return {
        name: value.clone()
        for name, value in trainer.model.state_dict().items()
        if name.startswith("sentences.")
    }


class TestStart:
    def test_it_ranks_as_the_frozen_encoder_does(self, tiny: str) -> None:
        tuned = trainer_of(config_of(tiny))
        frozen = trainer_of(config_of(tiny, "features.tune_sentences=false"))
        assert tuned.item_features["document as text"].dtype == torch.int32
        assert frozen.item_features["document as text"].dtype == torch.float32
        assert torch.allclose(
            tuned.encoding.item_vectors(), frozen.encoding.item_vectors(), atol=1e-5
        )
        assert tuned.validate() == pytest.approx(frozen.validate(), abs=1e-6)

    def test_both_sides_read_through_one_encoder(self, tiny: str) -> None:
        trainer = trainer_of(config_of(tiny))
        names = list(trainer.model.state_dict())
        tables = [name for name in names if name.endswith("word_embeddings.weight")]
        assert tables == ["sentences.transformer.embeddings.word_embeddings.weight"]
        optimizers = Optimizers(trainer.trained, trainer.config.training, 1)
        parameters = [
            id(p) for o in optimizers._all for group in o.param_groups for p in group["params"]
        ]
        assert len(parameters) == len(set(parameters)) == len(list(trainer.trained.parameters()))


class TestTraining:
    def test_the_loss_falls_and_the_encoder_is_trained(self, tiny: str) -> None:
        trainer = trainer_of(
            config_of(
                tiny,
                "split.kind=random",
                "training.epochs=15",
                "training.patience=15",
                "towers.temperature=0.1",
                "training.learning_rate=1e-30",
                "training.sentence_learning_rate=0.01",
            )
        )
        before = encoder_weights(trainer)
        linear = trainer.model.state_dict()[LINEAR].clone()
        progress = trainer.fit()
        losses = [record["loss"] for record in progress.log if "epoch" in record]
        assert losses[-1] < 0.8 * losses[0]  # the encoder alone learns here
        still = {n for n, weight in before.items() if torch.equal(weight, progress.model[n])}
        assert {name.split(".")[2] for name in still} == {"pooler"}  # which nothing reads
        assert torch.allclose(linear, progress.model[LINEAR], rtol=0, atol=1e-27)

    def test_a_tiny_rate_of_its_own_leaves_the_encoder(self, tiny: str) -> None:
        trainer = trainer_of(
            config_of(tiny, "training.sentence_learning_rate=1e-30", "training.learning_rate=0.01")
        )
        before = encoder_weights(trainer)
        linear = trainer.model.state_dict()[LINEAR].clone()
        progress = trainer.fit()
        for name, weight in before.items():
            assert torch.allclose(weight, progress.model[name], rtol=0, atol=1e-27), name
        assert not torch.allclose(linear, progress.model[LINEAR], atol=1e-3)

    @pytest.mark.parametrize("optimizer", ["adam", "adamw"])
    def test_adam_leaves_tokens_that_no_text_has(self, tiny: str, optimizer: str) -> None:
        """Its decay is a gradient, of which it would make a whole step; no text has [UNK]."""
        rates = ("training.learning_rate=0.006", "training.sentence_learning_rate=0.01")
        more = ("training.weight_decay=0.3", *rates)
        trainer = trainer_of(config_of(tiny, f"training.optimizer={optimizer}", *more))
        name = "sentences.transformer.embeddings.word_embeddings.weight"
        linear, before = trainer.model.state_dict()[LINEAR].clone(), encoder_weights(trainer)[name]
        optimizers = Optimizers(trainer.trained, trainer.config.training, 1)
        for parameter in trainer.trained.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizers.step()
        after = trainer.model.state_dict()
        kept = 1.0 if optimizer == "adam" else 1 - 0.01 * 0.3
        assert torch.allclose(after[name], kept * before, atol=1e-6)
        assert not torch.allclose(after[LINEAR], linear, atol=1e-4)

    @pytest.mark.parametrize(
        "more", [(), ("towers.history=mean", "towers.history_items=ids", "towers.item_id=on")]
    )
    def test_a_batch_encodes_its_own_texts_and_no_other(
        self, tiny: str, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
    ) -> None:
        """Those of items in the histories are none of them."""
        config = config_of(tiny, "training.batch_size=4", *more)
        trainer = trainer_of(config, visits() if more else None)
        module: Any = trainer.model.sentences
        lines: list[int] = []
        real: Callable[[Tensor], Tensor] = module._encoded

        def counted(rows: Tensor) -> Tensor:
            lines.append(len(rows))
            return real(rows)

        monkeypatch.setattr(module, "_encoded", counted)
        objective = trainer.objectives[0]
        batch = next(iter(objective.batches.epoch(0)))
        assert isinstance(batch, PairBatch)
        trainer.trained.train()
        objective.backward(batch, torch.Generator())
        texts = (len(np.unique(batch.item_rows)), len(np.unique(batch.query_rows)))
        assert sorted(lines) == sorted(texts)
        if more:
            assert batch.history_rows is not None
            assert len(np.unique(batch.history_rows)) > 5

    def test_encoding_in_pieces_gives_the_same_gradients(self, tmp_path: Path) -> None:
        encoder = write_encoder(tmp_path)

        def gradients(*more: str) -> dict[str, Tensor]:
            trainer = trainer_of(config_of(encoder, "towers.dropout=0.0", *more))
            objective = trainer.objectives[0]
            trainer.trained.train()
            objective.backward(next(iter(objective.batches.epoch(0))), torch.Generator())
            return {n: p.grad for n, p in trainer.trained.named_parameters() if p.grad is not None}

        whole, pieces = gradients(), gradients("training.encode_size=5")
        assert whole.keys() == pieces.keys()
        for name, gradient in whole.items():
            assert torch.allclose(gradient, pieces[name], atol=1e-6), name

    def test_bfloat16_is_for_training_and_validation(
        self, tiny: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What serves computes in float32."""
        trainer = trainer_of(config_of(tiny, "training.precision=bfloat16", "training.epochs=1"))
        module: Any = trainer.model.sentences
        steps = trainer.objectives[0]
        seen = []
        validated = []
        real = steps.backward
        validate = trainer.validate

        def backward(*given: Any) -> Tensor:
            seen.append(module.precision)
            loss: Tensor = real(*given)
            return loss

        def validating() -> float:
            validated.append(module.precision)
            return validate()

        monkeypatch.setattr(steps, "backward", backward)
        monkeypatch.setattr(trainer, "validate", validating)
        trainer.fit()
        assert set(seen) == {torch.bfloat16}
        assert validated == [torch.bfloat16] * 2  # before the first epoch, too
        assert module.precision == torch.float32

    @pytest.mark.parametrize(("kind", "num"), [("bce", 1024), ("softmax", 128)])
    def test_labels_can_be_learnt(self, tiny: str, kind: str, num: int) -> None:
        frame = pl.concat(
            [
                pairs().with_columns(label=pl.lit(1)),
                pairs().with_columns(document=pl.lit("ant it"), label=pl.lit(0)),
            ]
        )
        more = (f"loss.kind={kind}", "loss.negatives=labels", "data.label_column=label")
        task = Task.of(frame, config=config_of(tiny, *more))
        settings, _ = resolve(task.config, task.dataset)
        assert settings.loss.num_negatives == num  # drawn ones are encoded, too; bce draws none
        progress = Trainer(task.dataset, task.sides, settings).fit()
        assert progress.epoch == 2

    def test_views_share_it(self, tiny: str, tmp_path: Path) -> None:
        frame = pairs()
        views = {}
        for name in ("page", "post"):
            events = frame.with_columns(document=name + " " + pl.col("document"))
            items = events.select("document", title=pl.col("document") + " b c").unique("document")
            views[name] = View(events, items)
        config = config_of(tiny, "training.epochs=1", "features.id_text=auto")
        train_views(views, config=config, out=tmp_path / "views")
        weights = [
            open_bundle(tmp_path / "views" / name).weights[
                "sentences.transformer.embeddings.word_embeddings.weight"
            ]
            for name in views
        ]
        assert torch.equal(*weights)


class TestBundle:
    @pytest.fixture(scope="class")
    @staticmethod
    def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
        """A bundle whose encoder's folder is gone."""
        folder = tmp_path_factory.mktemp("kept")
        encoder = write_encoder(folder / "encoder")
        out = folder / "model"
        done = train(pairs(), config=config_of(encoder), out=out, baselines=[])
        shutil.rmtree(encoder)
        sentences.load_encoder.cache_clear()
        sentences.probe_of.cache_clear()
        return done, folder / "model"

    def test_it_opens_without_the_encoder(self, kept: tuple[Trained, Path]) -> None:
        done, path = kept
        retriever = Retriever.open(path)
        assert np.allclose(retriever.encode_items(), done.retriever.encode_items(), atol=1e-6)
        again = retriever.encode_items(features=[{"document": id_} for id_ in retriever.item_ids])
        assert np.allclose(again, retriever.encode_items(), atol=1e-5)
        texts = ["a gnu", "never seen, and longer than what is read of it", ""]
        vectors = retriever.encode_queries(features=[{"query": text} for text in texts])
        expected = done.retriever.encode_queries(features=[{"query": text} for text in texts])
        assert np.allclose(vectors, expected, atol=1e-6)
        assert len(retriever.recommend("a new gnu", k=3).item_ids) == 3

    def test_it_holds_json_and_the_weights_once(self, kept: tuple[Trained, Path]) -> None:
        _, path = kept
        files = sorted(file.name for file in (path / "encoder").iterdir())
        assert files == ["reading.json", "tokenizer.json", "transformer.json"]
        manifest = json.loads((path / "manifest.json").read_text("utf-8"))
        assert {f"encoder/{name}" for name in files} <= manifest["files"].keys()
        assert manifest["format_version"] == 1
        weights = open_bundle(path).weights
        of_encoder = [n for n in weights if "word_embeddings" in n]
        assert of_encoder == ["sentences.transformer.embeddings.word_embeddings.weight"]

    def test_inspect_and_the_report_say_that_it_is_trained(
        self, kept: tuple[Trained, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, path = kept
        monkeypatch.setenv("COLUMNS", "300")
        assert "sentence, trained" in run_command(("inspect", str(path)), tmp_path).out
        told = json.loads(run_command(("inspect", str(path), "--json"), tmp_path).out)
        tuned = {each["name"]: each["tuned"] for each in told["features"]}
        assert tuned == {name: name.endswith(" as text") for name in tuned}
        page, retriever = tmp_path / "page.html", Retriever.open(path)
        write_report(retriever, page, language="en")
        assert "<code>sentence</code>, trained<" in page.read_text("utf-8")
        write_report(retriever, page, language="zh")
        assert "<code>sentence</code>，一起训练<" in page.read_text("utf-8")

    def test_a_file_that_was_changed_is_refused(
        self, kept: tuple[Trained, Path], tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(kept[1], copy)
        (copy / "encoder" / "reading.json").write_text("{}")
        with pytest.raises(BundleError, match=r"encoder/reading\.json was changed"):
            open_bundle(copy)

    @pytest.mark.parametrize(
        ("name", "changed", "message"),
        [
            ("transformer.json", "[]", r"model_type must be one of albert, .* got None"),
            ("transformer.json", "{", r"promises: .*; train it again"),
            ("transformer.json", {"model_type": "detr"}, r"model_type must .*, got 'detr'"),
            (
                "transformer.json",
                {"hidden_size": "wide"},
                r"settings of 'bert' for transformers \d+\.\d.*; install the transformers of its",
            ),
            (
                "transformer.json",
                {"num_attention_heads": 7},
                r"settings of 'bert' for transformers",
            ),
            ("transformer.json", {"hidden_act": "evil"}, r"settings of 'bert' for transformers"),
            ("tokenizer.json", "{}", r"tokenizer\.json must be a tokenizer for tokenizers \d"),
            ("tokenizer.json", "{", r"tokenizer\.json must be a tokenizer for tokenizers \d"),
            ("reading.json", "[]", r"reading\.json must hold an object, got list"),
            ("reading.json", {"pooling": "evil"}, r"pooling must be one of 'mean', .* got 'evil'"),
            ("reading.json", {"prefix": 7}, r"prefix must be a string, got 7"),
            (
                "reading.json",
                {"max_length": True},
                r"max_length must be a whole number, got True; train",
            ),
            ("reading.json", {"max_length": 0}, r"max_length must be at least 1, got 0; train"),
            ("reading.json", {"is_lowered": "no"}, r"is_lowered must be true or false, got 'no'"),
            ("reading.json", {"evil": 1}, r"'evil'"),
        ],
    )
    def test_an_encoder_that_cannot_be_built_is_an_error_of_the_bundle(
        self, kept: tuple[Trained, Path], tmp_path: Path, name: str, changed: Any, message: str
    ) -> None:
        """Although all digests are right."""
        copy = tmp_path / "copy"
        shutil.copytree(kept[1], copy)
        if isinstance(changed, dict):
            content = json.loads((copy / "encoder" / name).read_text("utf-8"))
            changed = json.dumps({**content, **changed})
        rewrite(copy, f"encoder/{name}", changed)
        with pytest.raises(BundleError, match=message):
            Retriever.open(copy)

    def test_a_file_that_came_to_lie_there_does_not_matter(
        self, kept: tuple[Trained, Path], tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(kept[1], copy)
        (copy / "encoder" / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1\xff")
        assert len(open_bundle(copy).item_vectors) == len(WORDS)

    def test_a_bundle_from_before_opens(self, tmp_path: Path) -> None:
        """Its schema does not say whether a sentence is tuned."""
        config = config_of(write_encoder(tmp_path / "encoder"), "features.tune_sentences=false")
        trained = train(pairs(), config=config, out=tmp_path / "model", baselines=[])
        vectors = trained.contents.item_vectors
        assert not (tmp_path / "model" / "encoder").exists()
        text = (tmp_path / "model" / "schema.toml").read_text("utf-8")
        assert "tuned = false\n" in text
        rewrite(tmp_path / "model", "schema.toml", text.replace("tuned = false\n", ""))
        opened = Retriever.open(tmp_path / "model")
        assert np.array_equal(opened.encode_items(), vectors.numpy())

    def test_without_the_extra_it_says_what_to_install(
        self, kept: tuple[Trained, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(MissingExtraError, match=r"pip install .*\[text\]'"):
            Retriever.open(kept[1])

    def test_a_training_goes_on_from_its_checkpoint(self, tmp_path: Path) -> None:
        encoder = write_encoder(tmp_path / "encoder")
        config = config_of(encoder, "training.patience=9")
        whole = trainer_of(config).fit()
        half = trainer_of(config)
        saved: list[Any] = []

        def stop(progress: Any) -> None:
            saved.append(replace(progress, log=list(progress.log)))
            raise KeyboardInterrupt

        half.fit(save=stop)
        resumed = trainer_of(config).fit(progress=saved[0])
        for name, weight in whole.model.items():
            assert torch.equal(weight, resumed.model[name]), name


class TestChoices:
    @staticmethod
    def resolved(tiny: str, *more: str, custom: tuple[str, ...] = ()) -> tuple[Config, str]:
        task = Task.of(visits(), config=config_of(tiny, *more))
        config, said = resolve(task.config, task.dataset, custom=custom)
        return config, "\n".join(said)

    @pytest.mark.parametrize("kind", ["softmax", "symmetric", "bpr", "bce"])
    def test_negatives_are_those_of_the_batch(self, tiny: str, kind: str) -> None:
        config, said = self.resolved(tiny, f"loss.kind={kind}")
        assert config.loss.negatives == "in-batch"
        assert "loss.negatives = 'in-batch': each other negative would be one text more" in said

    def test_where_items_are_no_sentences_all_may_be_negatives(self, tiny: str) -> None:
        config, _ = self.resolved(tiny, "features.item.document=id", "towers.item_id=on")
        assert config.loss.negatives == "all"

    @pytest.mark.parametrize(
        ("negatives", "num", "of_frozen"),
        [("auto", 128, 1024), ("uniform", 128, 1024), ("per-query", 4, 128)],
    )
    def test_a_loss_that_needs_sampled_negatives_gets_few(
        self, tiny: str, negatives: str, num: int, of_frozen: int
    ) -> None:
        more = ("loss.kind=gbce", f"loss.negatives={negatives}")
        config, said = self.resolved(tiny, *more)
        assert config.loss.negatives == negatives.replace("auto", "uniform")
        assert config.loss.num_negatives == num
        assert f"loss.num_negatives = {num}: each is one text more to encode" in said
        given, said = self.resolved(tiny, *more, "loss.num_negatives=50")
        assert given.loss.num_negatives == 50
        frozen, said = self.resolved(tiny, *more, "features.tune_sentences=false")
        assert frozen.loss.num_negatives == of_frozen
        assert "num_negatives" not in said

    def test_auto_reads_no_history_of_texts(self, tiny: str) -> None:
        of_ids = ("features.query.query=id", "towers.item_id=on")
        more = ("towers.history=auto", "towers.query_id=auto", *of_ids)
        config, said = self.resolved(tiny, *more)
        assert config.towers.history == "none"
        assert config.towers.query_id == "on"
        assert "towers.history = 'none': the texts of its items would be encoded in each" in said
        for other in ("towers.history_items=ids", "features.tune_sentences=false"):
            assert self.resolved(tiny, *more, other)[0].towers.history == "pooled"

    def test_whole_histories_get_others_than_all(self, tiny: str) -> None:
        more = ("towers.history=gru", "towers.history_items=ids", "towers.item_id=on")
        config, said = self.resolved(tiny, *more)
        assert config.training.examples == "prefixes"
        assert config.loss.negatives == "popularity"
        assert config.loss.num_negatives == 128
        assert "texts are too many for all" in said

    @pytest.mark.parametrize(
        ("more", "custom", "message"),
        [
            (("loss.negatives=all",), (), r"loss\.negatives must not be 'all' .*; use 'in-batch'"),
            (("towers.history=mean",), (), r"towers\.history must be 'none' .*got 'mean'.*= 'ids'"),
            (
                ("towers.history=mean", "towers.history_items=separate"),
                (),
                r"towers\.history must be 'none'",
            ),
            (
                ("towers.history=mean", "towers.history_items=ids", "features.event.time=sentence"),
                (),
                r"features\.event\.time must not be 'sentence'",
            ),
            ((), ("query",), r"tune_sentences must be false beside query_tower"),
        ],
    )
    def test_what_cannot_be_encoded_in_each_step_is_refused(
        self, tiny: str, more: tuple[str, ...], custom: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            self.resolved(tiny, *more, custom=custom)

    def test_histories_of_ids_are_read(self, tiny: str) -> None:
        more = ("towers.history=mean", "towers.history_items=ids", "towers.item_id=on")
        trainer = trainer_of(config_of(tiny, *more, "training.epochs=1"))
        assert isinstance(trainer.model, TwoTower)
        assert trainer.model.reads_history
        assert trainer.fit().epoch == 1

    def test_its_step_size_is_refused_without_it(self, tiny: str) -> None:
        config, said = self.resolved(tiny)
        assert config.training.sentence_learning_rate == 2e-5
        assert "training.sentence_learning_rate = 2e-05" in said
        assert self.resolved(tiny, "training.sentence_learning_rate=1e-4")[0].training == replace(
            config.training, sentence_learning_rate=1e-4
        )
        frozen = "features.tune_sentences=false"
        assert self.resolved(tiny, frozen)[0].training.sentence_learning_rate is None
        with pytest.raises(
            ConfigError,
            match=r"sentence_learning_rate must .* features.tune_sentences = true, got 2e-05 alone",
        ):
            self.resolved(tiny, frozen, "training.sentence_learning_rate=2e-5")

    def test_without_a_sentence_it_is_refused(self, tiny: str) -> None:
        with pytest.raises(
            ConfigError, match=r"tune_sentences must be false where no column .*text"
        ):
            trainer_of(config_of(tiny, "features.text=words"))
