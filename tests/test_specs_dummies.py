"""One entry more in each of the twelve tables, and nowhere else: trained, measured, saved, opened."""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from damaged_bundles import seal
from twotower import Retriever, diagnose_data, recipe, registry, train
from twotower.baselines.random_order import RandomOrder
from twotower.baselines.specs import BASELINES, BaselineSpec
from twotower.config import Config
from twotower.data.sources.synthetic import SyntheticTables
from twotower.doctor.checks import CHECKS, DoctorCheck
from twotower.doctor.findings import Finding, Kind, Text
from twotower.errors import ArgumentError, BundleError, ConfigError, FilterError
from twotower.evaluation.metrics import METRICS, MetricSpec, recall_at_k
from twotower.exports.folder import Exported
from twotower.exports.targets import EXPORTS, ExportSpec
from twotower.features.feature_kinds import FEATURE_KINDS, FeatureKindSpec
from twotower.features.transforms import NumberTransform
from twotower.index.filter_columns import OPERATORS, OperatorSpec, ReadColumn
from twotower.losses.candidates import Candidates, Pairs
from twotower.losses.loss_kinds import LOSSES, LossSpec
from twotower.losses.negatives import Uniform
from twotower.losses.samplers import SAMPLERS, SamplerSpec
from twotower.losses.softmax import SoftmaxLoss
from twotower.recipes import RECIPES, Recipe
from twotower.registry import Registry, resolved
from twotower.report.html_report import write_report
from twotower.rules.kinds import RULES, Rule, RuleSpec, rule_set
from twotower.serving.manifest import MANIFEST
from twotower.towers.history import DecayedMean
from twotower.towers.history_encoders import HISTORY_ENCODERS, HistoryEncoderSpec
from twotower.training.optimizers import OPTIMIZERS, OptimizerSpec

TABLES: tuple[Registry[Any], ...] = (
    HISTORY_ENCODERS,
    FEATURE_KINDS,
    LOSSES,
    SAMPLERS,
    METRICS,
    BASELINES,
    OPTIMIZERS,
    EXPORTS,
    RULES,
    OPERATORS,
    RECIPES,
    CHECKS,
)
NAME = "dummy"
ROOT = Path(__file__).parents[1]
used: set[str] = set()
"""What was made or called of them."""


class LastTwo(DecayedMean):
    def __init__(self, dim: int) -> None:
        super().__init__(0.5)
        used.add("history encoder")
        self.scale = torch.nn.Parameter(torch.ones(dim))

    def last(self, *given: Any, **named: Any) -> torch.Tensor:
        return super().last(*given, **named) * self.scale


class Halved(NumberTransform):
    def apply(self, values: pl.Series) -> Any:
        used.add("kind of feature")
        return super().apply(values) / np.float32(2)


class HalfSoftmax(SoftmaxLoss):
    def __call__(self, *given: Any, **named: Any) -> torch.Tensor:
        used.add("loss")
        return super().__call__(*given, **named) / 2


class UniformTwice(Uniform):
    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        used.add("sampler of negatives")
        return super().__call__(pairs, generator)


class Sgd(torch.optim.SGD):
    def step(self, *given: Any) -> Any:
        used.add("optimizer")
        return super().step(*given)


@dataclass(frozen=True)
class Newest(Rule):
    """Moves items of one column's largest value up."""

    filter: str


KIND = Kind(NAME, Text("{value} seen.", "Why.", "Do."), Text("看到 {value}。", "原因。", "做法。"))


def exported(bundle: Any, out: Path) -> Exported:
    Path(out).mkdir()
    (Path(out) / "ids.json").write_text(json.dumps(bundle.items.ids.ids.to_list()[:1]))
    return Exported(str(out), 1, 0)


def begins(column: ReadColumn, held: Sequence[Any]) -> pl.Series:
    return column.values.str.starts_with(held[0])


ENTRIES: dict[str, Any] = {
    "history encoder": HistoryEncoderSpec(NAME, LastTwo, ("dim",)),
    "kind of feature": FeatureKindSpec(NAME, "half", "半数", "number", Halved),
    "loss": LossSpec(NAME, HalfSoftmax, ranks_all=True),
    "sampler of negatives": SamplerSpec(NAME, UniformTwice, ("item_rows", "num"), num=7),
    "metric": MetricSpec(NAME, recall_at_k, "dummy measure", "示例指标"),
    "baseline": BaselineSpec(
        NAME,
        "a dummy",
        "示例方法",
        lambda told: (RandomOrder(told.num_rows, 9), {"seed": 9}),
        is_chosen=False,
    ),
    "optimizer": OptimizerSpec(NAME, Sgd),
    "export": ExportSpec(NAME, exported),
    "rule": RuleSpec(
        NAME,
        Newest,
        lambda rules: [rule.filter for rule in rules],
        lambda told: map(Newest, told),
        moves=lambda rule: (rule.filter, 100.0),
    ),
    "filter operator": OperatorSpec(NAME, "value", begins, ("text",)),
    "recipe": Recipe(NAME, {"towers": {"dim": 12}}),
    "doctor's check": DoctorCheck(
        NAME, "data", lambda seen: [Finding(KIND, "error", len(seen.items.ids))]
    ),
}


@contextmanager
def registered(*tables: Registry[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for table in tables:
            table.register(ENTRIES[table.concept])
            stack.callback(table.unregister, NAME)
        yield


@pytest.fixture(scope="module")
def folder(
    small_world: SyntheticTables, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A bundle that was trained with a dummy of each, all of which stay until the last test."""
    out = tmp_path_factory.mktemp("dummies") / "model"
    events = small_world.interactions
    items = pl.DataFrame(
        {
            "item_id": small_world.items["item_id"],
            "price": np.arange(len(small_world.items)) * 1.5,
            "name": [f"n{n % 3} of {n}" for n in range(len(small_world.items))],
        }
    )
    with registered(*TABLES):
        config = {
            "features": {"item": {"price": NAME}},
            "towers": {"dim": 8, "history": NAME},
            "loss": {"kind": NAME, "negatives": NAME},
            "training": {
                "optimizer": NAME,
                "metric": f"{NAME}@5",
                "epochs": 1,
                "weight_decay": 0.0,
                "precision": "float32",
            },
        }
        train(events, items=items, out=out, config=config, baselines=[NAME], progress=None)
        yield out


@pytest.fixture(scope="module")
def retriever(folder: Path) -> Retriever:
    return Retriever.open(folder)


def test_there_are_twelve() -> None:
    assert [table.concept for table in TABLES] == list(ENTRIES)
    assert len(TABLES) == 12


@pytest.mark.parametrize("concept", ["history encoder", "kind of feature", "loss"])
def test_what_is_trained_and_saved_with_is_opened_with(
    concept: str, folder: Path, retriever: Retriever
) -> None:
    assert concept in used
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["needs"][concept] == [NAME]
    assert len(retriever.recommend(history=[3, 4], k=3)) == 3


def test_history_encoder(retriever: Retriever) -> None:
    tower: Any = retriever.encoding.model.query_tower
    assert isinstance(tower.history, LastTwo)
    assert not torch.equal(tower.history.scale, torch.ones(8))


def test_kind_of_feature(retriever: Retriever) -> None:
    (feature,) = (f for f in retriever.contents.items.transforms.features if f.name == "price")
    assert (feature.kind, feature.meaning) == (NAME, "number")
    (transform,) = (
        t for t in retriever.contents.items.transforms.transforms if t.feature == feature
    )
    values = pl.Series([1.0, 80.0])
    assert isinstance(transform, Halved)
    np.testing.assert_array_equal(
        2 * transform.apply(values), NumberTransform.apply(transform, values)
    )


def test_sampler(retriever: Retriever) -> None:
    assert "sampler of negatives" in used
    assert retriever.contents.config.loss.num_negatives == 7


def test_optimizer(retriever: Retriever) -> None:
    assert "optimizer" in used
    assert retriever.contents.config.training.optimizer == NAME


def test_metric_and_baseline(folder: Path, retriever: Retriever, tmp_path: Path) -> None:
    figures = retriever.contents.metrics
    assert figures["model"]["dummy@10"] == figures["model"]["recall@10"]
    assert figures["protocol"]["settings"][NAME] == {"seed": 9}
    assert "dummy@10" in figures[NAME]
    write_report(folder, tmp_path / "report.html", language="zh")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "示例方法" in page
    assert "半数" in page
    assert "示例指标" in page


def test_filter_operator(retriever: Retriever) -> None:
    found = retriever.recommend(history=[3], k=60, filter='name dummy "n1"')
    names = retriever.items(found.item_ids)["name"]
    assert len(names) >= 10
    assert names.str.starts_with("n1").all()
    with pytest.raises(FilterError, match="in, contains, is null, dummy"):
        retriever.recommend(history=[3], filter='name has "n1"')


def test_rule(retriever: Retriever) -> None:
    first = retriever.recommend(history=[3], k=1, rules=[Newest("price = 7.5")])
    assert retriever.items(first.item_ids)["price"].to_list() == [7.5]
    assert rule_set([Newest("price = 7.5")]).to_dict()[NAME] == ["price = 7.5"]


def test_export(folder: Path, tmp_path: Path) -> None:
    spec = EXPORTS[NAME]
    assert spec.places == ("out",)
    assert resolved(spec.export)(Retriever.open(folder).contents, tmp_path / "out").num_items == 1


def test_recipe(folder: Path) -> None:
    assert recipe(NAME).towers.dim == 12


def test_doctors_check(folder: Path, small_world: SyntheticTables) -> None:
    first = diagnose_data(small_world.interactions)[0]
    assert first.as_json("zh")["what"] == "看到 55。"


# --- what is not registered ---


def test_a_bundle_whose_entry_is_not_registered_is_refused(folder: Path) -> None:
    HISTORY_ENCODERS.unregister(NAME)
    try:
        with pytest.raises(BundleError) as caught:
            Retriever.open(folder)
    finally:
        HISTORY_ENCODERS.register(ENTRIES["history encoder"])
    assert str(caught.value) == (
        f"the bundle {str(folder)!r} needs the history encoder 'dummy', which is not registered here; "
        "import the package that registers it, and open the bundle again."
    )


def test_names_that_are_taken_or_reserved_are_refused() -> None:
    for name in ("gru", "auto", ""):
        with pytest.raises(ArgumentError, match=f"got '{name}'"):
            HISTORY_ENCODERS.register(HistoryEncoderSpec(name, LastTwo))
    HISTORY_ENCODERS.register(HISTORY_ENCODERS["gru"])  # the same again is no other


@pytest.mark.parametrize("table", TABLES, ids=[table.concept for table in TABLES])
def test_every_reference_leads_somewhere(table: Registry[Any]) -> None:
    for entry in table.values():
        for value in vars(entry).values():
            if isinstance(value, str) and value.startswith("twotower."):
                assert callable(resolved(value))


# --- packages ---


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with an entry point; nothing of it is imported yet."""
    (tmp_path / "two_more.py").write_text(
        "from twotower.towers.history_encoders import HISTORY_ENCODERS, HistoryEncoderSpec\n"
        "def register():\n"
        "    HISTORY_ENCODERS.register(\n"
        "        HistoryEncoderSpec('installed', 'twotower.towers.history:DecayedMean', ())\n"
        "    )\n"
        "def fail():\n"
        "    raise OSError('no disk')\n"
    )
    info = tmp_path / "two_more-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: two-more\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[twotower.history_encoders]\nany = two_more:register\n\n[twotower.losses]\nany = two_more:fail\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._installed.cache_clear()
    assert any(point.name == "any" for point in metadata.entry_points(group=LOSSES.group))
    for table in (HISTORY_ENCODERS, LOSSES):
        monkeypatch.setattr(table, "_is_loaded", False)
    yield
    registry._installed.cache_clear()
    sys.modules.pop("two_more", None)


def test_an_installed_package_registers_when_a_name_is_not_known(package: None) -> None:
    assert "installed" not in list(HISTORY_ENCODERS)
    try:
        config = Config.from_dict({"towers": {"history": "installed"}})
        assert config.towers.history == "installed"
    finally:
        HISTORY_ENCODERS.unregister("installed")


def test_opening_lets_installed_packages_register_whatever_the_bundle_says(
    folder: Path, package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOSSES, "_is_loaded", True)
    try:
        Retriever.open(folder)
        assert "installed" in list(HISTORY_ENCODERS)
    finally:
        HISTORY_ENCODERS.unregister("installed")


def test_a_package_that_fails_is_named(package: None) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({"loss": {"kind": "other"}})
    assert str(caught.value) == (
        "the entry point 'two_more:fail' must register a loss, got OSError: no disk; repair or "
        "uninstall its package."
    )


@pytest.mark.parametrize("named", ["dummy", "only_named", "only_named:Anything"])
def test_opening_imports_nothing_that_a_bundle_names(
    named: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the manifest was made to keep quiet of it, and a module of that name could be imported."""
    (tmp_path / "only_named.py").write_text("Anything = print\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = tmp_path / "model"
    shutil.copytree(folder, mine)
    settings = (mine / "config.toml").read_text(encoding="utf-8")
    assert 'history = "dummy"' in settings
    (mine / "config.toml").write_text(
        settings.replace('history = "dummy"', f'history = "{named}"'), encoding="utf-8"
    )
    seal(mine, lambda manifest: manifest["needs"].pop("history encoder"))
    if named == NAME:
        Retriever.open(mine)
    else:
        with pytest.raises(BundleError, match=r"towers\.history must be one of .* got 'only_named"):
            Retriever.open(mine)
    assert "only_named" not in sys.modules


# --- what else names them ---


def test_contributing_names_each_table() -> None:
    rows = re.findall(
        r"(?m)^\| (.+?) \| `(.+?)` \| `(.+?)` \| .*\|$",
        (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
    )
    assert {concept for concept, _, _ in rows} == set(ENTRIES)
    for concept, file, test in rows:
        source = (ROOT / "src" / "twotower" / file).read_text("utf-8")
        assert re.search(rf'= Registry\(\s*"{concept}"', source), file
        assert (ROOT / test).exists()


@pytest.mark.parametrize(
    ("guide", "table"),
    [
        ("objective", LOSSES),
        ("objective", SAMPLERS),
        ("histories", HISTORY_ENCODERS),
        ("evaluation", METRICS),
        ("evaluation", BASELINES),
        ("filters", OPERATORS),
        ("exports", EXPORTS),
        ("rules", RULES),
        ("search", RECIPES),
    ],
)
def test_a_guide_names_every_entry_in_both_languages(guide: str, table: Registry[Any]) -> None:
    for language in ("", ".zh-CN"):
        text = (ROOT / "docs" / f"{guide}{language}.md").read_text("utf-8")
        assert [name for name in table.own if name not in text] == []
