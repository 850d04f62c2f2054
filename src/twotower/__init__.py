"""Two-tower retrieval: from a table of interactions to a trained, evaluated, served model.

import twotower

twotower.train("ratings.csv", items="movies.csv", out="model")
retriever = twotower.Retriever.open("model")
retriever.recommend(42, k=10)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from twotower.version import __version__

if TYPE_CHECKING:
    from twotower.config import Config as Config
    from twotower.doctor.data_checks import diagnose_data as diagnose_data
    from twotower.doctor.diagnosis import diagnose_bundle as diagnose_bundle
    from twotower.errors import ArgumentError as ArgumentError
    from twotower.errors import BundleError as BundleError
    from twotower.errors import ConfigError as ConfigError
    from twotower.errors import DataError as DataError
    from twotower.errors import ExportError as ExportError
    from twotower.errors import FilterError as FilterError
    from twotower.errors import MissingExtraError as MissingExtraError
    from twotower.errors import ServerError as ServerError
    from twotower.errors import TwoTowerError as TwoTowerError
    from twotower.evaluation.compare import compare_runs as compare_runs
    from twotower.evaluation.evaluate_bundle import evaluate_bundle as evaluate_bundle
    from twotower.recipes import recipe as recipe
    from twotower.report.html_report import write_report as write_report
    from twotower.rules.kinds import Boost as Boost
    from twotower.rules.kinds import Cap as Cap
    from twotower.rules.kinds import Diversify as Diversify
    from twotower.rules.kinds import Explore as Explore
    from twotower.serving.answers import Recommendation as Recommendation
    from twotower.serving.answers import Recommendations as Recommendations
    from twotower.serving.client import Client as Client
    from twotower.serving.retriever import Retriever as Retriever
    from twotower.serving.views_folder import open_views as open_views
    from twotower.training.callbacks import Callback as Callback
    from twotower.training.pipeline import train as train
    from twotower.training.task import View as View
    from twotower.training.train_views import TrainedViews as TrainedViews
    from twotower.training.train_views import train_views as train_views
    from twotower.training.trained import Trained as Trained
    from twotower.training.tune import Tuned as Tuned
    from twotower.training.tune import tune as tune
    from twotower.training.zero_shot import index_items as index_items

_HOME = {
    "ArgumentError": "errors",
    "Boost": "rules.kinds",
    "BundleError": "errors",
    "Callback": "training.callbacks",
    "Cap": "rules.kinds",
    "Client": "serving.client",
    "Config": "config",
    "ConfigError": "errors",
    "DataError": "errors",
    "Diversify": "rules.kinds",
    "Explore": "rules.kinds",
    "ExportError": "errors",
    "FilterError": "errors",
    "MissingExtraError": "errors",
    "Recommendation": "serving.answers",
    "Recommendations": "serving.answers",
    "Retriever": "serving.retriever",
    "ServerError": "errors",
    "Trained": "training.trained",
    "Tuned": "training.tune",
    "TwoTowerError": "errors",
    "TrainedViews": "training.train_views",
    "View": "training.task",
    "compare_runs": "evaluation.compare",
    "diagnose_bundle": "doctor.diagnosis",
    "diagnose_data": "doctor.data_checks",
    "evaluate_bundle": "evaluation.evaluate_bundle",
    "index_items": "training.zero_shot",
    "open_views": "serving.views_folder",
    "recipe": "recipes",
    "train": "training.pipeline",
    "train_views": "training.train_views",
    "tune": "training.tune",
    "write_report": "report.html_report",
}

__all__ = [
    "ArgumentError",
    "Boost",
    "BundleError",
    "Callback",
    "Cap",
    "Client",
    "Config",
    "ConfigError",
    "DataError",
    "Diversify",
    "Explore",
    "ExportError",
    "FilterError",
    "MissingExtraError",
    "Recommendation",
    "Recommendations",
    "Retriever",
    "ServerError",
    "Trained",
    "TrainedViews",
    "Tuned",
    "TwoTowerError",
    "View",
    "__version__",
    "compare_runs",
    "diagnose_bundle",
    "diagnose_data",
    "evaluate_bundle",
    "index_items",
    "open_views",
    "recipe",
    "train",
    "train_views",
    "tune",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``import twotower`` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'twotower' has no attribute {name!r}")
    return getattr(import_module(f"twotower.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
