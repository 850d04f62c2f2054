"""Routes that are more than a body go through the framework."""

import asyncio
from typing import Annotated, Any

import httpx
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Request,
    Response,
)
from fastapi.routing import APIRoute
from pydantic import BaseModel

from twotower.serving.server.app import Direct, bare_routes
from twotower.serving.server.routes import Serving, provide_service
from twotower.serving.server.routes import router as own_router
from twotower.serving.server.strict import StrictRoute


class Asked(BaseModel):
    k: int = 1


class OtherRoute(APIRoute):
    """It might do anything."""


def deny() -> None:
    raise HTTPException(403, "denied")


DENY = [Depends(deny)]


async def bare(body: Asked, service: Serving) -> Response:
    return Response("done")


async def declares_a_dependency(
    body: Asked, service: Serving, _: Annotated[None, Depends(deny)]
) -> Response:
    return Response("done")


async def takes_a_parameter(body: Asked, service: Serving, text: str = "") -> Response:
    return Response("done")


async def takes_a_header(
    body: Asked, service: Serving, accept: Annotated[str, Header()] = ""
) -> Response:
    return Response("done")


async def takes_the_request(body: Asked, service: Serving, request: Request) -> Response:
    return Response("done")


async def works_in_the_background(
    body: Asked, service: Serving, tasks: BackgroundTasks
) -> Response:
    return Response("done")


async def embeds(body: Annotated[Asked, Body(embed=True)], service: Serving) -> Response:
    return Response("done")


async def takes_two(body: Asked, other: Asked, service: Serving) -> Response:
    return Response("done")


async def takes_no_object(body: Annotated[list[int], Body()], service: Serving) -> Response:
    return Response("done")


async def names_it_otherwise(asked: Asked, service: Serving) -> Response:
    return Response("done")


async def needs_no_service(body: Asked) -> Response:
    return Response("done")


async def leaves_writing_to_the_framework(body: Asked, service: Serving) -> dict[str, int]:
    return {"k": body.k}


def is_not_asynchronous(body: Asked, service: Serving) -> Response:
    return Response("done")


def app_of(endpoint: Any, path: str = "/a", **options: Any) -> FastAPI:
    """Return an application with one route."""
    app, router = FastAPI(), APIRouter(route_class=StrictRoute)
    router.add_api_route(path, endpoint, methods=["POST"], **options)
    app.include_router(router)
    app.state.service = None
    return app


def asked(app: FastAPI, prepare: Any = None, path: str = "/a") -> int:
    """Return the status of the answer to one request, given by ``Direct`` around the application."""

    async def ask() -> int:
        direct = Direct(app, None)  # type: ignore[arg-type]
        if prepare is not None:
            prepare()
        transport = httpx.ASGITransport(app=direct)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.post(path, json={"k": 2})).status_code

    return asyncio.run(ask())


def test_what_the_server_answers_itself() -> None:
    app = FastAPI()
    app.include_router(own_router)
    posts = (
        "/recommend",
        "/recommend/many",
        "/explain",
        "/score",
        "/encode/queries",
        "/encode/items",
    )
    expected = {*(("POST", path) for path in posts), ("PUT", "/items"), ("PUT", "/model")}
    assert set(bare_routes(app)) == expected


def test_a_bare_route_is_answered() -> None:
    app = app_of(bare)
    assert set(bare_routes(app)) == {("POST", "/a")}
    assert asked(app) == 200


@pytest.mark.parametrize(
    "endpoint",
    [
        declares_a_dependency,
        takes_a_parameter,
        takes_a_header,
        takes_the_request,
        works_in_the_background,
        embeds,
        takes_two,
        takes_no_object,
        names_it_otherwise,
        needs_no_service,
        leaves_writing_to_the_framework,
        is_not_asynchronous,
    ],
)
def test_a_route_that_is_more_is_left_to_the_framework(endpoint: Any) -> None:
    assert not bare_routes(app_of(endpoint))


def test_a_denied_route_denies_wherever_that_is_declared() -> None:
    assert asked(app_of(declares_a_dependency)) == 403
    assert asked(app_of(bare, dependencies=DENY)) == 403

    with_own = APIRouter(route_class=StrictRoute, dependencies=DENY)
    with_own.add_api_route("/a", bare, methods=["POST"])
    plain = APIRouter(route_class=StrictRoute)
    plain.add_api_route("/a", bare, methods=["POST"])
    for app, router, options in (
        (FastAPI(), with_own, {}),
        (FastAPI(), plain, {"dependencies": DENY}),
        (FastAPI(dependencies=DENY), plain, {}),
    ):
        app.include_router(router, **options)  # type: ignore[arg-type]
        app.state.service = None
        assert asked(app) == 403


def test_what_the_application_adds_later_counts() -> None:
    app = app_of(bare)

    class Deny:
        def __init__(self, app: Any) -> None:
            pass

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await Response(status_code=403)(scope, receive, send)

    assert asked(app, lambda: app.add_middleware(Deny)) == 403


def test_paths_with_parameters_and_other_kinds_are_left_to_the_framework() -> None:
    assert not bare_routes(app_of(bare, path="/a/{k}"))
    app, router = FastAPI(), APIRouter(route_class=OtherRoute)
    router.add_api_route("/a", bare, methods=["POST"])
    app.include_router(router)
    assert not bare_routes(app)


def test_a_route_behind_another_one_is_not_answered() -> None:
    app = FastAPI()

    @app.post("/{any}", dependencies=DENY)
    async def first() -> None: ...

    router = APIRouter(route_class=StrictRoute)
    router.add_api_route("/a", bare, methods=["POST"])
    app.include_router(router)
    assert not bare_routes(app)
    assert asked(app) == 403


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b'{"k": NaN}', "application/json", 422),
        (b'{"k": 1, "more": ' + b"[" * 900 + b"]" * 900 + b"}", "application/json", 422),
        (b'{"k": 1}', "text/plain", 415),
        (b'{"k": 1}', "application/json", 200),
    ],
)
def test_a_route_of_the_framework_takes_plain_json_alone(
    body: bytes, media_type: str, status: int
) -> None:
    app = app_of(takes_a_header)

    async def ask() -> int:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"content-type": media_type}
            return (await client.post("/a", content=body, headers=headers)).status_code

    app.dependency_overrides[provide_service] = lambda: None
    assert asyncio.run(ask()) == status
