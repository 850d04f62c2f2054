"""Exports: from a bundle to other systems."""

from importlib import import_module
from typing import Any

_HOME = {
    "Exported": "folder",
    "connect_qdrant": "qdrant",
    "export_faiss": "faiss",
    "export_npy": "columnar",
    "export_onnx": "onnx",
    "export_parquet": "columnar",
    "export_pgvector": "pgvector",
    "export_qdrant": "qdrant",
    "item_inputs": "onnx_inputs",
    "load_pgvector": "pgvector",
    "load_qdrant": "qdrant",
    "query_inputs": "onnx_inputs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(name)
    return getattr(import_module(f"twotower.exports.{_HOME[name]}"), name)
