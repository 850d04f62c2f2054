"""The page on which a person tries a model. It asks this server alone, and runs only its own script."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

HERE = Path(__file__).parent
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {"content-security-policy": POLICY, "cache-control": "no-cache"}


class OwnFiles(StaticFiles):
    """The page's files; its sources in Python are none of them."""

    def lookup_path(self, path: str) -> tuple[str, object]:  # type: ignore[override]
        """Return where a file lies."""
        if not path.endswith((".js", ".css", ".svg")):
            return "", None
        return super().lookup_path(path)


def mount(app: FastAPI) -> None:
    """Give an application the page at ``/``, the list of its routes at ``/docs``, and their files."""

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(HERE / "index.html", headers=HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(HERE / "docs.html", headers=HEADERS)

    app.mount("/page", OwnFiles(directory=HERE), name="page")
