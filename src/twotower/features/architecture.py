"""What a pretrained sentence encoder is without its weights: JSON, of which nothing is executable."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Annotated, Any, Literal, get_args

import torch
from torch import nn

from twotower.dataclass_trees import Rule, Section, problem
from twotower.errors import ConfigError
from twotower.extras import library
from twotower.features.sentences import load_encoder

Pooling = Literal["mean", "cls", "max", "lasttoken"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
"""Ways to make one vector of a text's that can be trained here, as sentence-transformers calls them."""
MODEL_TYPES = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert",
    "gte", "llama", "mistral", "modernbert", "mpnet", "nomic_bert", "qwen2", "qwen3", "rembert", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip
"""Transformers that a bundle may ask for, as transformers calls them: they read text, and are whole in
themselves. Others may fetch a further model that their settings name."""
FILES = ("transformer.json", "tokenizer.json", "reading.json")
"""Names of the files that hold an architecture."""
_WANTED_BY = "the sentence encoder of features.tune_sentences"
_LEFT_OUT = ("auto_map", "backbone", "dtype", "implementation", "quantization")
"""What stands in the names of settings of code, of other models, and of how weights were kept; those that
begin with an underscore are left out, too."""
_building = Lock()


@dataclass(frozen=True)
class Architecture(Section):
    """How to build a sentence encoder and its tokenizer; a bundle holds it as files of JSON.

    Args:
        transformer: Settings of the transformer, JSON as ``transformers`` writes them.
        tokenizer: The tokenizer, JSON as ``tokenizers`` writes it.
        pooling: One of ``POOLINGS``.
        max_length: Most tokens of a text that are read, the special ones included; at least 1.
        is_lowered: Whether texts are read in lower case before the tokenizer sees them.
        prefix: What is put before each text.

    Raises:
        ConfigError: A field is something else.
    """

    transformer: str
    tokenizer: str
    pooling: Pooling
    max_length: Annotated[int, Rule("be at least 1", lambda length: length >= 1)]
    is_lowered: bool = False
    prefix: str = ""

    def _contradictions(self) -> Iterator[str]:
        settings = json.loads(self.transformer)
        kind = settings.get("model_type") if isinstance(settings, dict) else None
        if kind not in MODEL_TYPES:
            yield problem("model_type", f"be one of {', '.join(MODEL_TYPES)}", kind)

    @staticmethod
    def of(encoder: str) -> "Architecture":
        """Return that of a pretrained encoder of ``sentence-transformers``, by its name or folder.

        Raises:
            ConfigError: It cannot be loaded, or holds more than a transformer, a pooling and a
                normalisation.
            MissingExtraError: ``sentence-transformers`` is not installed.
        """
        model = load_encoder(encoder)
        names = [type(module).__name__ for module in model]
        if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise not_tunable(encoder, f"the parts {', '.join(names)}")
        first, pooling = model[0], model[1]
        mode = getattr(pooling, "pooling_mode", None) or pooling.get_pooling_mode_str()
        prefix = model.prompts.get(model.default_prompt_name or "", "") or ""
        if mode not in POOLINGS or (prefix and not pooling.include_prompt):
            raise not_tunable(encoder, f"the pooling {mode!r}")
        tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
        if tokenizer is None:
            raise not_tunable(encoder, f"a {type(model.tokenizer).__name__} without tokenizer.json")
        settings = first.auto_model.config
        if settings.model_type not in MODEL_TYPES:
            raise not_tunable(
                encoder,
                f"a transformer of type {settings.model_type!r}, none of {', '.join(MODEL_TYPES)}",
            )
        max_length = model.max_seq_length or getattr(settings, "max_position_embeddings", None)
        return Architecture(
            json.dumps(_plain(settings.to_dict()), indent=2),
            tokenizer.to_str(),
            mode,
            int(max_length or 512),
            bool(getattr(first, "do_lower_case", False)),
            prefix,
        )

    @staticmethod
    def from_files(files: Mapping[str, str]) -> "Architecture":
        """Return what ``files`` wrote.

        Raises:
            KeyError: A file is missing.
            TypeError: ``reading.json`` has other fields.
            ValueError: A file is no JSON, or a field is something else: that is a ConfigError.
        """
        reading = json.loads(files["reading.json"])
        if not isinstance(reading, dict):
            raise TypeError(f"reading.json must hold an object, got {type(reading).__name__}")
        return Architecture(files["transformer.json"], files["tokenizer.json"], **reading)

    def files(self) -> dict[str, str]:
        """Return the content of each file of JSON by its name."""
        reading = asdict(self)
        return {
            "transformer.json": reading.pop("transformer"),
            "tokenizer.json": reading.pop("tokenizer"),
            "reading.json": json.dumps(reading, indent=2),
        }

    def build_tokenizer(self, width: int) -> Any:
        """Return the tokenizer of ``tokenizers``, which cuts texts to ``width`` tokens.

        Raises:
            MissingExtraError: ``tokenizers`` is not installed.
            ValueError: The JSON is no tokenizer.
        """
        tokenizers = library("tokenizers", wanted_by=_WANTED_BY, extra="text")
        try:
            tokenizer = tokenizers.Tokenizer.from_str(self.tokenizer)
            tokenizer.no_padding()
            tokenizer.enable_truncation(width)
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(
                f"tokenizer.json must be a tokenizer for tokenizers {tokenizers.__version__}, got {error}"
            ) from error
        return tokenizer

    def build_transformer(self) -> nn.Module:
        """Return the transformer in float32 with weights that are to be replaced.

        Only classes of ``transformers`` itself are made, whatever the settings name, and nothing is
        fetched. Random numbers of the caller's generator are left as they were.

        Raises:
            MissingExtraError: ``transformers`` is not installed.
            ValueError: The installed ``transformers`` makes none of the settings.
        """
        transformers = library("transformers", wanted_by=_WANTED_BY, extra="text")
        settings = _plain(json.loads(self.transformer))
        kind = settings.pop("model_type")
        try:
            with _offline(), torch.random.fork_rng(devices=[]):
                config = transformers.AutoConfig.for_model(kind, **settings)
                model = transformers.AutoModel.from_config(config, trust_remote_code=False)
        except Exception as error:  # each class checks its settings in its own way, or not at all
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"transformer.json must hold settings of {kind!r} for transformers "
                f"{transformers.__version__}, got {reason[:300]}"
            ) from error
        assert isinstance(model, nn.Module)
        return model.float()


@contextmanager
def _offline() -> Iterator[None]:
    """Let the client of the model hub refuse every request meanwhile."""
    constants: Any = library("huggingface_hub.constants", wanted_by=_WANTED_BY, extra="text")
    with _building:  # another thread must not put back what this one has set
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


def _plain(settings: Any) -> Any:
    """Return settings, and those within them, without what ``_LEFT_OUT`` names."""
    if isinstance(settings, list):
        return [_plain(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        name: _plain(value)
        for name, value in ((str(name), value) for name, value in settings.items())
        if not (name.startswith("_") or any(part in name for part in _LEFT_OUT))
    }


def not_tunable(encoder: str, found: str) -> ConfigError:
    """Return the error of a pretrained encoder that cannot be trained here."""
    return ConfigError(
        f"features.tune_sentences must be false for the sentence encoder {encoder!r}, which has {found}; "
        "what can be trained is a transformer with a fast tokenizer, one pooling of "
        f"{', '.join(POOLINGS)}, and a normalisation."
    )
