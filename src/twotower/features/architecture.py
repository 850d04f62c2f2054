"""What a pretrained sentence encoder is without its weights: JSON, of which nothing is executable."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from twotower.errors import ConfigError
from twotower.features.sentences import load_encoder
from twotower.runtime import library

POOLINGS = ("mean", "cls", "max", "lasttoken")
"""Ways to make one vector of a text's that can be trained here, as sentence-transformers calls them."""
_WANTED_BY = "the sentence encoder of features.tune_sentences"
_LEFT_OUT = ("auto_map", "attn_implementation", "quantization_config", "dtype", "torch_dtype")
"""Settings that name code to load or how weights were kept; so do those that begin with an underscore."""


@dataclass(frozen=True)
class Architecture:
    """How to build a sentence encoder and its tokenizer; a bundle holds it as files of JSON.

    Args:
        transformer: Settings of the transformer, JSON as ``transformers`` writes them.
        tokenizer: The tokenizer, JSON as ``tokenizers`` writes it.
        pooling: One of ``POOLINGS``.
        max_length: Most tokens of a text that are read, the special ones included.
        is_lowered: Whether texts are read in lower case before the tokenizer sees them.
        prefix: What is put before each text.
    """

    transformer: str
    tokenizer: str
    pooling: str
    max_length: int
    is_lowered: bool = False
    prefix: str = ""

    @staticmethod
    def of(encoder: str) -> "Architecture":
        """Return that of a pretrained encoder of ``sentence-transformers``, by its name or folder.

        Raises:
            ConfigError: It cannot be loaded, or holds more than a transformer, a pooling and a
                normalisation.
            MissingExtraError: ``sentence-transformers`` is not installed.
        """
        model: Any = load_encoder(encoder)
        names = [type(module).__name__ for module in model]
        if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise _not_tunable(encoder, f"the parts {', '.join(names)}")
        first, pooling = model[0], model[1]
        mode = getattr(pooling, "pooling_mode", None) or pooling.get_pooling_mode_str()
        prefix = model.prompts.get(model.default_prompt_name or "", "") or ""
        if mode not in POOLINGS or (prefix and not pooling.include_prompt):
            raise _not_tunable(encoder, f"the pooling {mode!r}")
        tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
        if tokenizer is None:
            raise _not_tunable(
                encoder, f"a {type(model.tokenizer).__name__} without tokenizer.json"
            )
        settings = first.auto_model.config
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
            TypeError: ``reading.json`` holds something else.
            ValueError: It is no JSON.
        """
        reading = json.loads(files["reading.json"])
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
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"tokenizer.json must be a tokenizer, got {error}") from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(width)
        return tokenizer

    def build_transformer(self) -> nn.Module:
        """Return the transformer in float32 with weights that are to be replaced.

        Only classes of ``transformers`` itself are made, whatever the settings name. Random numbers of the
        caller's generator are left as they were.

        Raises:
            MissingExtraError: ``transformers`` is not installed.
            ValueError: The settings are of no transformer that it knows.
        """
        transformers = library("transformers", wanted_by=_WANTED_BY, extra="text")
        settings = _plain(json.loads(self.transformer))
        kind = str(settings.pop("model_type", None))
        config = transformers.AutoConfig.for_model(kind, **settings)
        with torch.random.fork_rng(devices=[]):
            model = transformers.AutoModel.from_config(config, trust_remote_code=False)
        assert isinstance(model, nn.Module)
        return model.float()


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k not in _LEFT_OUT and not k.startswith("_")}


def _not_tunable(encoder: str, found: str) -> ConfigError:
    return ConfigError(
        f"features.tune_sentences must be false for the sentence encoder {encoder!r}, which has {found}; "
        "what can be trained is a transformer with a fast tokenizer, one pooling of "
        f"{', '.join(POOLINGS)}, and a normalisation."
    )
