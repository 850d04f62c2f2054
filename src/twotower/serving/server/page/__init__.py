"""The page for trying a model. It sends requests to this server only, and runs only its own scripts."""

from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from twotower.chinese import in_chinese

HERE = Path(__file__).parent
_LONGEST = 1_000
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src {images}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a browser may load for the page."""


class OwnFiles(StaticFiles):
    """The files of the page, without its Python sources."""

    def lookup_path(self, path: str) -> tuple[str, object]:  # type: ignore[override]
        """Return the path of a file."""
        if not path.endswith((".js", ".css", ".svg")):
            return "", None
        return super().lookup_path(path)


def mount(app: FastAPI) -> None:
    """Give an application the page at ``/``, the list of its routes at ``/docs``, and their files."""

    def page(name: str, *, images: str = "'self'") -> FileResponse:
        policy = _POLICY.format(images=images)
        headers = {"content-security-policy": policy, "cache-control": "no-cache"}
        return FileResponse(HERE / name, headers=headers)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> FileResponse:
        forms = request.app.state.service.engine.model.description["item_forms"]
        if "image" not in forms.values():
            return page("index.html")
        return page("index.html", images="'self' https: http:")  # images may be anywhere

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return page("docs.html")

    @app.get("/page/chinese", include_in_schema=False)
    def chinese(text: Annotated[str, Query(max_length=_LONGEST)]) -> JSONResponse:
        """Return a sentence of this server in Chinese, or null if there is no translation."""
        return JSONResponse({"text": in_chinese(text)})

    app.mount("/page", OwnFiles(directory=HERE), name="page")
