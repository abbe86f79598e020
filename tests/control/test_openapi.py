"""The OpenAPI document says what the routes declare, and is one by the standard's own schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import jsonschema_rs
import msgspec
import pytest
import schemathesis

from control.api import Call, Content, Module, Route, Upgrade, upgrade_only
from control.documentation.openapi import describe, operation_id
from control.identity.access import (
    ADMIN,
    ANYBODY,
    LOGGED_IN,
    LOGGED_IN_OR_COOKIE,
    PUBLIC,
    SERVICE,
    SESSION,
    scoped,
)
from control.installed import discover
from control.testing import make_app, served


class Where(msgspec.Struct):
    shelf: Annotated[str, msgspec.Meta(min_length=1, description="Which shelf.")]
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10


class Author(msgspec.Struct):
    name: str


class Book(msgspec.Struct):
    title: Annotated[str, msgspec.Meta(max_length=200)]
    author: Author
    pages: int | None = None


async def nothing(call: Call, body: Any = None) -> None:
    """These routes are described, not served."""


def of(route: Route) -> dict[str, Any]:
    """The operation that a route becomes."""
    document = describe([("books", route)], {}, "1")
    (operations,) = document["paths"].values()
    operation: dict[str, Any] = operations[route.method.lower()]
    return operation


def route(method: str = "GET", path: str = "/books", **more: Any) -> Route:
    return Route(method, path, nothing, more.pop("need", PUBLIC), "About books", **more)


def statuses(operation: dict[str, Any]) -> set[int]:
    return {int(status) for status in operation["responses"]}


def test_a_document_that_breaks_the_standard_is_noticed() -> None:
    document = describe([("books", route(answer=Book))], {}, "1")
    del document["paths"]["/books"]["get"]["responses"]["200"]["description"]
    with pytest.raises(jsonschema_rs.ValidationError):
        schemathesis.openapi.from_dict(document).validate()


def references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [found for each in value for found in references(each)]
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for each in value.values() for found in references(each)]
    return []


def test_query_parameters_come_from_the_struct() -> None:
    shelf, limit = of(route(query=Where))["parameters"]
    assert (shelf["name"], shelf["in"], shelf["required"]) == ("shelf", "query", True)
    assert shelf["description"] == "Which shelf."
    assert shelf["schema"] == {"type": "string", "minLength": 1}
    assert (limit["name"], limit["required"]) == ("limit", False)
    assert limit["schema"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 10}


def test_two_routes_may_share_a_query() -> None:
    table = [("books", route(query=Where)), ("books", route(path="/b", query=Where))]
    first, second = describe(table, {}, "1")["paths"].values()
    assert first["get"]["parameters"] == second["get"]["parameters"]
    assert first["get"]["parameters"][0]["description"] == "Which shelf."


def test_path_parameters_are_required_and_may_span_slashes() -> None:
    document = describe([("books", route(path="/b/{id}/{rest:path}"))], {}, "1")
    (path,) = document["paths"]
    assert path == "/b/{id}/{rest}"
    one, rest = document["paths"][path]["get"]["parameters"]
    assert one["required"]
    assert rest["required"]
    assert not jsonschema_rs.is_valid(one["schema"], "a/b")
    assert jsonschema_rs.is_valid(rest["schema"], "a/b")
    assert not jsonschema_rs.is_valid(rest["schema"], "")


def test_kinds_of_parameters_that_a_module_made_are_described() -> None:
    table = [("books", route(path="/b/{where:shelf}"))]
    document = describe(table, {}, "1", {"shelf": "(?!none)[a-z]+"})
    (parameter,) = document["paths"]["/b/{where}"]["get"]["parameters"]
    assert jsonschema_rs.is_valid(parameter["schema"], "poems")
    assert not jsonschema_rs.is_valid(parameter["schema"], "none")
    assert not jsonschema_rs.is_valid(parameter["schema"], "poems/x")


def test_headers_are_parameters_unless_the_standard_forbids() -> None:
    (header,) = of(route(headers={"Range": "Which bytes.", "authorization": "x"}))["parameters"]
    assert (header["name"], header["in"], header["required"]) == ("Range", "header", False)


def test_a_json_body_is_required_and_has_its_schema() -> None:
    document = describe([("books", route("POST", body=Book))], {}, "1")
    body = document["paths"]["/books"]["post"]["requestBody"]
    assert body["required"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Book"}
    book = document["components"]["schemas"]["Book"]
    assert book["required"] == ["title", "author"]
    assert book["properties"]["title"] == {"type": "string", "maxLength": 200}


def test_a_list_that_may_not_be_empty_is_required() -> None:
    class Shelf(msgspec.Struct):
        books: Annotated[list[str], msgspec.Meta(extra_json_schema={"minItems": 1})] = []
        notes: list[str] = []

    shelf = describe([("books", route("POST", body=Shelf))], {}, "1")["components"]["schemas"][
        "Shelf"
    ]
    assert shelf["required"] == ["books"]
    assert shelf["properties"]["books"] == {
        "type": "array", "items": {"type": "string"}, "minItems": 1
    }  # fmt: skip
    assert shelf["properties"]["notes"]["default"] == []


def test_a_form_has_its_fields_and_raw_bytes_have_none() -> None:
    form = of(route("POST", body=Content("multipart/form-data", fields=["file"])))
    schema = form["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["required"] == ["file"]
    raw = of(route("PUT", body=Content("application/octet-stream")))
    assert raw["requestBody"]["content"] == {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
    }


def test_the_answer_has_its_schema_or_its_type() -> None:
    books = of(route(answer=list[Book]))["responses"]["200"]["content"]
    assert books["application/json"]["schema"]["items"] == {"$ref": "#/components/schemas/Book"}
    page = of(route(answer=Content("text/html")))["responses"]["200"]["content"]
    assert list(page) == ["text/html"]


class Receipt(msgspec.Struct):
    """Has a book, as a body has; by itself it is only ever an answer."""

    book: Book
    status: str = "ok"
    note: str | msgspec.UnsetType = msgspec.UNSET


class Brief(msgspec.Struct, omit_defaults=True):
    status: str = "ok"


def test_an_answer_has_the_fields_that_a_body_may_leave_out() -> None:
    table = [
        ("books", route("POST", body=Book, answer=Receipt)),
        ("books", route(answer=list[Brief])),
    ]
    schemas = describe(table, {}, "1")["components"]["schemas"]
    assert schemas["Receipt"]["required"] == ["book", "status"]
    assert schemas["Book"]["required"] == ["title", "author"]
    assert not schemas["Brief"].get("required")


def test_what_has_no_body_declares_none() -> None:
    answered = of(route(answer=Content("text/html"), others={206: "A part", 304: "Unchanged"}))
    assert "content" in answered["responses"]["206"]
    assert answered["responses"]["206"]["description"] == "A part"
    assert "content" not in answered["responses"]["304"]


def test_bytes_can_be_asked_for_without_them() -> None:
    document = describe([("books", route(answer=Content("text/html")))], {}, "1")
    head = document["paths"]["/books"]["head"]
    assert all("content" not in response for response in head["responses"].values())
    assert head["operationId"] == "head_books"
    assert "head" not in describe([("books", route(answer=Book))], {}, "1")["paths"]["/books"]


ALWAYS = {200, 500, 503}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (route(), ALWAYS),
        (route(errors=[409, 429]), ALWAYS | {409, 429}),
        (route(query=Where), ALWAYS | {400}),
        (route(path="/b/{id}"), ALWAYS | {400, 404}),
        (route("POST", body=Book), ALWAYS | {400, 408, 413}),
        (route("POST", body=Content("text/plain")), ALWAYS | {400, 408}),
        (route(need=LOGGED_IN), ALWAYS | {401, 403}),
        (route(need=SESSION), ALWAYS | {401, 403}),
        (route(need=ADMIN), ALWAYS | {401, 403}),
        (route(need=SERVICE), ALWAYS | {401}),
        (route(need=scoped("a", "b", "read")), ALWAYS | {401, 403}),
        (route(need=scoped("a", "b", "read", is_open=True)), ALWAYS | {401, 403}),
    ],
)
def test_refusals_follow_from_the_route(given: Route, expected: set[int]) -> None:
    operation = of(given)
    assert statuses(operation) == expected
    for status in expected - {200}:
        content = operation["responses"][str(status)]["content"]
        assert content["application/json"]["schema"]["$ref"] == "#/components/schemas/Error"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (route(), []),
        (route(need=SESSION), [{"bearer": []}, {"tokenQuery": []}]),
        (route(need=LOGGED_IN), [{"bearer": []}, {"tokenQuery": []}]),
        (route("POST", need=SESSION), [{"bearer": []}]),
        (route(need=ANYBODY), [{}, {"bearer": []}, {"tokenQuery": []}]),
        (route(need=LOGGED_IN_OR_COOKIE), [{"bearer": []}, {"tokenQuery": []}, {"cookie": []}]),
        (route("POST", need=LOGGED_IN_OR_COOKIE), [{"bearer": []}]),
        (route(need=SERVICE), [{"serviceKey": []}]),
        (route("PUT", need=scoped("a", "b", "read", is_open=True)), [{}, {"bearer": []}]),
    ],
)
def test_security_follows_from_the_need(given: Route, expected: list[Any]) -> None:
    assert of(given)["security"] == expected


def test_a_websocket_is_described_beside_what_is_answered_without() -> None:
    upgrade = Upgrade(nothing, sends="lines", takes="what is typed", ping_seconds=5)
    both = of(route(answer=Content("text/plain"), upgrade=upgrade))
    assert statuses(both) == ALWAYS | {101, 400}
    assert both["x-websocket"] == {"sends": "lines", "takes": "what is typed", "pingSeconds": 5}
    assert "sends lines" in both["description"]
    assert "takes what is typed" in both["description"]
    alone = of(Route("GET", "/ws", upgrade_only, PUBLIC, "Follow", upgrade=upgrade))
    assert statuses(alone) == {101, 400, 426, 500, 503}


def test_the_scope_is_shown() -> None:
    operation = of(route(need=scoped("storage", "files", "read")))
    assert operation["x-scope"] == "storage.files: read"
    assert "storage.files: read" in operation["description"]


def test_operation_ids_are_stable_and_distinguish_paths() -> None:
    assert operation_id("GET", "/storage/{namespace}/{path:path}") == (
        "get_storage_by_namespace_by_path"
    )
    assert operation_id("GET", "/a/{b}") != operation_id("GET", "/a/b")


def test_routes_are_grouped_by_module() -> None:
    table = [("books", route()), ("pages", route(path="/pages"))]
    assert describe(table, {"books": "What we have."}, "1")["tags"] == [
        {"name": "books", "description": "What we have."},
        {"name": "pages", "description": ""},
    ]
    assert of(route(tag="shelves"))["tags"] == ["shelves"]


class Library(Module):
    name = "books"
    summary = "What we have."

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/books", self.books, PUBLIC, "All books", answer=list[Book]),
            Route("GET", "/b/{id}", self.books, PUBLIC, "One", answer=Book, errors=[404]),
        ]

    async def books(self, call: Call) -> list[Book]:
        return []


async def test_the_document_is_served_once_made(tmp_path: Path) -> None:
    async with served(make_app(tmp_path, Library)) as client:
        answer = await client.get("/openapi.json")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        document = answer.json()
        assert {"/books", "/b/{id}", "/openapi.json", "/docs", "/healthz"} <= document[
            "paths"
        ].keys()
        assert {"name": "books", "description": "What we have."} in document["tags"]

        etag = answer.headers["etag"]
        again = await client.get("/openapi.json", headers={"If-None-Match": f'"other", {etag}'})
        assert (again.status_code, again.content) == (304, b"")
        other = await client.get("/openapi.json", headers={"If-None-Match": '"other"'})
        assert (other.status_code, other.content) == (200, answer.content)


def test_the_document_is_the_same_at_each_start(tmp_path: Path) -> None:
    first, second = (
        json.dumps(describe(make_app(tmp_path, Library).table, {}, "1")) for _ in range(2)
    )
    assert first == second


def test_the_document_of_all_that_is_installed_is_valid(tmp_path: Path) -> None:
    app = make_app(tmp_path, *discover().values())
    document = describe(app.table, {}, "1", app.routes.kinds)
    schemathesis.openapi.from_dict(document).validate()
    assert document["openapi"].startswith("3.1.")
    assert document["servers"] == [{"url": "/"}]
    for reference in references(document):
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    components = document["components"]
    assert all(map(jsonschema_rs.meta.is_valid, components["schemas"].values()))
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    ids = {operation["operationId"] for operation in operations.values()}
    assert len(ids) == len(operations)
    used = {name for each in operations.values() for way in each["security"] for name in way}
    assert used <= components["securitySchemes"].keys()
    declared = {(route.method, re.sub(r":\w+}", "}", route.path)) for _, route in app.table}
    assert declared <= operations.keys()


def test_the_examples_of_the_pages_are_routes(tmp_path: Path) -> None:
    """Each line with curl in docs/rest.md, of the sections with a base URL of their own."""
    page = Path(__file__).parents[2].joinpath("docs", "rest.md").read_text()
    app = make_app(tmp_path, *discover().values())
    routes = [(route.method, re.sub(r"\{\w+:path\}", ".+", route.path)) for _, route in app.table]
    patterns = [(m, re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path))) for m, path in routes]
    base, shown = "", 0
    for line in page.splitlines():
        if found := re.search(r"url=http://[\w.:]+(/\S+?);", line):
            base = found[1]
        called = re.search(r"curl .*?\$url([^\s\"?]*)", line)
        if called is None or not line.startswith("    $"):
            continue
        method = "DELETE" if "-X DELETE" in line else "PUT" if "-X PUT" in line else ""
        method = method or ("POST" if "--json" in line else "GET")
        target = base + called[1]
        assert any(m == method and p.fullmatch(target) for m, p in patterns), line
        shown += 1
    assert shown > 25
