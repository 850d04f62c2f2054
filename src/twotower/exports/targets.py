"""Every system that a bundle can be exported to, with all that depends on which one it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twotower.registry import Registry

if TYPE_CHECKING:
    from twotower.exports.folder import Exported


@dataclass(frozen=True)
class ExportSpec:
    """One target.

    Args:
        name: As ``twotower export`` names it.
        export: Takes a bundle and a new folder; or ``module:name`` of it.
        options: Further keywords that both take.
        server: The option that names a running server; empty where only a folder can be written.
        load: Takes a bundle and what that option says; or ``module:name`` of it.
        server_options: Further keywords that ``load`` alone takes.
    """

    name: str
    export: "str | Callable[..., Exported]"
    options: tuple[str, ...] = ()
    server: str = ""
    load: "str | Callable[..., Exported]" = ""
    server_options: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[str, ...]:
        """The options of which one says where it goes."""
        return ("out", self.server) if self.server else ("out",)


EXPORTS = Registry(
    "export",
    (
        ExportSpec("onnx", "twotower.exports.onnx:export_onnx"),
        ExportSpec("faiss", "twotower.exports.vector_files:export_faiss"),
        ExportSpec(
            "pgvector",
            "twotower.exports.pgvector:export_pgvector",
            ("table",),
            "dsn",
            "twotower.exports.pgvector:load_pgvector",
        ),
        ExportSpec(
            "qdrant",
            "twotower.exports.qdrant:export_qdrant",
            ("collection",),
            "url",
            "twotower.exports.qdrant:load_qdrant_at",
            ("api_key",),
        ),
        ExportSpec("parquet", "twotower.exports.vector_files:export_parquet"),
        ExportSpec("npy", "twotower.exports.vector_files:export_npy"),
    ),
)
