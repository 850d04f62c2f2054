"""Exports: from a bundle to other systems."""

from twotower.exports.columnar import export_npy, export_parquet
from twotower.exports.faiss import export_faiss
from twotower.exports.folder import Exported
from twotower.exports.onnx import export_onnx
from twotower.exports.onnx_inputs import item_inputs, query_inputs
from twotower.exports.pgvector import export_pgvector, load_pgvector
from twotower.exports.qdrant import connect_qdrant, export_qdrant, load_qdrant

__all__ = [
    "Exported",
    "connect_qdrant",
    "export_faiss",
    "export_npy",
    "export_onnx",
    "export_parquet",
    "export_pgvector",
    "export_qdrant",
    "item_inputs",
    "load_pgvector",
    "load_qdrant",
    "query_inputs",
]
