"""The routes with a body declare nothing that an answer without the framework would leave out."""

import inspect
from typing import Any, cast

import pytest
from fastapi import FastAPI, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from twotower.serving.server.app import Direct
from twotower.serving.server.routes import provide_service, router
from twotower.serving.server.service import Service
from twotower.serving.server.strict import StrictRoute

ROUTES = Direct(FastAPI(), cast("Service", None)).routes


def test_what_the_server_answers_itself() -> None:
    posts = (
        "/recommend",
        "/recommend/many",
        "/explain",
        "/score",
        "/encode/queries",
        "/encode/items",
    )
    expected = {*(("POST", path) for path in posts), ("PUT", "/items"), ("PUT", "/model")}
    assert set(ROUTES) == expected


def test_nothing_applies_to_all_routes() -> None:
    assert not router.dependencies
    assert not router.prefix


@pytest.mark.parametrize("route", ROUTES.values(), ids=lambda route: str(route.path))
def test_a_route_with_a_body_takes_a_body_and_the_service_alone(route: APIRoute) -> None:
    assert type(route) is StrictRoute
    assert not route.dependencies
    assert not route.param_convertors
    # A limit of a route's own for bodies comes with newer versions of the framework.
    assert getattr(route, "max_body_size", None) is None
    needs = route.dependant.dependencies
    assert [(each.name, each.call) for each in needs] == [("service", provide_service)]

    endpoint: Any = route.endpoint
    assert inspect.iscoroutinefunction(endpoint)
    parameters = inspect.signature(endpoint).parameters
    assert list(parameters) == ["body", "service"]
    assert parameters["body"].default is inspect.Parameter.empty
    # An annotation beside the type, such as ``embed``, would change what the body is.
    assert issubclass(endpoint.__annotations__["body"], BaseModel)
    # The framework checks and writes what is no response yet.
    assert issubclass(endpoint.__annotations__["return"], Response)


def test_no_earlier_route_takes_their_requests() -> None:
    for (method, path), route in ROUTES.items():
        takes = [
            each
            for each in router.routes
            if isinstance(each, APIRoute)
            and method in (each.methods or ())
            and each.path_regex.match(path) is not None
        ]
        assert takes == [route]
