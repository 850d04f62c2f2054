"""The page on which a person tries a model. It asks this server alone, and runs only its own scripts."""

from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from twotower.chinese import in_chinese

HERE = Path(__file__).parent
_LONGEST = 1_000
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src {images}",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def policy(*, shows_images: bool) -> str:
    """Return what a browser may load for the page.

    Args:
        shows_images: Whether a column of the items holds addresses of images, which may be anywhere.
    """
    return _POLICY.format(images="'self' https: http:" if shows_images else "'self'")


class OwnFiles(StaticFiles):
    """The page's files; its sources in Python are none of them."""

    def lookup_path(self, path: str) -> tuple[str, object]:  # type: ignore[override]
        """Return where a file lies."""
        if not path.endswith((".js", ".css", ".svg")):
            return "", None
        return super().lookup_path(path)


def mount(app: FastAPI) -> None:
    """Give an application the page at ``/``, the list of its routes at ``/docs``, and their files."""

    def page(name: str, *, shows_images: bool) -> FileResponse:
        told = {
            "content-security-policy": policy(shows_images=shows_images),
            "cache-control": "no-cache",
        }
        return FileResponse(HERE / name, headers=told)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> FileResponse:
        forms = request.app.state.service.engine.model.description["item_forms"]
        return page("index.html", shows_images="image" in forms.values())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return page("docs.html", shows_images=False)

    @app.get("/page/chinese", include_in_schema=False)
    def chinese(text: Annotated[str, Query(max_length=_LONGEST)]) -> JSONResponse:
        """Return a sentence of this server in Chinese, or null where it has none; beside other requests."""
        return JSONResponse({"text": in_chinese(text)})

    app.mount("/page", OwnFiles(directory=HERE), name="page")
