"""A sentence encoder of two layers and random weights, in a folder of ``sentence-transformers``."""

import json
from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_encoder(
    folder: Path,
    *,
    pooling: str = "mean_tokens",
    dropout: float = 0.0,
    prompt: str = "",
    parts: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"),
) -> str:
    """Write an encoder of width 32 that reads 16 tokens, each a letter, and return its folder."""
    import tokenizers
    import transformers

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *("##" + letter for letter in LETTERS)]
    settings = transformers.BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.3,  # so that texts are not all alike
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        transformers.BertModel(settings).save_pretrained(folder)
    tokenizer = tokenizers.BertWordPieceTokenizer({p: i for i, p in enumerate(pieces)})
    tokenizer.save(str(folder / "tokenizer.json"))
    files: dict[str, Any] = {
        "modules.json": [
            {
                "idx": place,
                "name": str(place),
                "path": "" if place == 0 else f"{place}_{part}",
                "type": f"sentence_transformers.models.{part}",
            }
            for place, part in enumerate(parts)
        ],
        "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "model_max_length": 16},
        "config_sentence_transformers.json": {
            "prompts": {"ask": prompt} if prompt else {},
            "default_prompt_name": "ask" if prompt else None,
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": 32,
            "pooling_mode_mean_tokens": False,
            f"pooling_mode_{pooling}": True,
        },
        "2_Dense/config.json": {
            "in_features": 32,
            "out_features": 8,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    torch.save({"linear.weight": torch.ones(8, 32)}, folder / "2_Dense" / "pytorch_model.bin")
    return str(folder)
