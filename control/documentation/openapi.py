"""The OpenAPI 3.1 document, generated from the routes alone.

Requests are checked against the declarations of a :class:`Route`, and the document is
generated from the same ones, so the two cannot differ. Three things follow
from a route without being declared in it, and are added here: the refusals that
its need implies (401, 403), those that its parameters and body imply (400, 404,
408, 413), and ``HEAD`` beside a ``GET`` that answers with bytes. A WebSocket is an
answer 101, which OpenAPI cannot describe further: ``x-websocket`` and the text do.

Schemas come from msgspec. Types that routes share become components; one name
for one type, in the order of the routes, so the document is the same at each start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import msgspec

from control.api import JSON, Content, Need, Route, Upgrade, upgrade_only
from control.api.internals import PARAMETER

OPENAPI = "3.1.0"

Json = dict[str, Any]

_DESCRIPTION = """\
Every failure is answered with `{"error": "<one line>"}` and the fitting status, on routes \
that do not exist (404) and methods that are not offered (405) as well.

Authenticate with `Authorization: Bearer <token>`: a session's token from `POST /api/login`, \
or an API token, which may do what its scopes say. `GET` also takes `?token=<token>`; the \
header wins. For the address of one file better make a ticket: `?ticket=<ticket>`.

A token that was revoked, whose session has ended, or that was not issued here is answered 401 by \
every route that takes tokens, except for `POST /api/logout`. One that is malformed or has expired \
is answered 401 where a login is needed; where none is needed the request is served as an \
anonymous one. In each case the answer says what is wrong with it: \
`WWW-Authenticate: Bearer error="invalid_token", error_description="…"`."""

#: Bytes that are sent as they are.
_FILE: Json = {"type": "string", "format": "binary"}

_SCHEMES: Json = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A session's token, or an API token (`ecloud_…`).",
    },
    "tokenQuery": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "The same token in the URL: for links and EventSource.",
    },
    "ticketQuery": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "A ticket for this one file, which a session or a token has made.",
    },
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "token",
        "description": "A session's token.",
    },
    "serviceKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Service-Key",
        "description": "The key that services of this installation share.",
    },
}

#: OpenAPI forbids to describe these as parameters.
_NOT_PARAMETERS = frozenset({"accept", "authorization", "content-type"})
#: A route describes the purpose of a header; these also have a type other than text.
_HEADERS: dict[str, Json] = {"x-file-size": {"type": "integer", "minimum": 0}}
_ERROR_SCHEMA: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "What went wrong, in one line."}},
}
_PARAMETERS: dict[str, Json] = {
    "": {"type": "string", "pattern": "^[^/]+$"},
    "path": {"type": "string", "minLength": 1},
    "int": {"type": "integer", "minimum": 0},
}
_NO_CONTENT = frozenset({204, 304})


def describe(
    table: Sequence[tuple[str, Route]],
    summaries: Mapping[str, str],
    version: str,
    kinds: Mapping[str, str] = MappingProxyType({}),
) -> Json:
    """The document for the routes of ``table``, each with its module's name.

    Args:
        table: the routes, as the application serves them.
        summaries: a line about each module, for its tag.
        version: of this software.
        kinds: the regular expression of each kind of path parameter.
    """
    schemas = _Schemas((route for _, route in table), kinds)
    paths: dict[str, Json] = {}
    for module, route in table:
        operations = paths.setdefault(PARAMETER.sub(r"{\1}", route.path), {})
        operations[route.method.lower()] = _operation(module, route, schemas)
        if route.method == "GET" and isinstance(route.answer, Content):
            operations["head"] = _head(operations["get"])
    tags = dict.fromkeys(route.tag or module for module, route in table)
    return {
        "openapi": OPENAPI,
        "info": {"title": "GFS control plane", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag, "description": summaries.get(tag, "")} for tag in tags],
        "paths": paths,
        "components": {
            "schemas": {**schemas.components, "Error": _ERROR_SCHEMA},
            "securitySchemes": _SCHEMES,
        },
    }


class _Schemas:
    """The JSON schemas of the types of all routes, by reference where they are shared."""

    def __init__(self, routes: Iterable[Route], kinds: Mapping[str, str]) -> None:
        self._kinds = kinds
        bodies: list[Any] = []
        answers: list[Any] = []
        queries: list[type[msgspec.Struct]] = []
        for route in routes:
            if isinstance(route.body, type):
                bodies.append(route.body)
            if route.answer is not None and not isinstance(route.answer, Content):
                answers.append(route.answer)
            if route.query is not None:
                queries.append(route.query)
        wanted = [*bodies, *answers]
        refs, self.components = msgspec.json.schema_components(
            wanted, ref_template="#/components/schemas/{name}"
        )
        self._refs = list(zip(wanted, refs, strict=True))
        _require_what_is_sent(self.components, _structs(answers) - _structs(bodies))
        _require_what_may_not_be_empty(self.components)
        self._queries = {query: msgspec.json.schema(query) for query in queries}

    def of(self, kind: Any) -> Json:
        return next(ref for known, ref in self._refs if known is kind or known == kind)

    def parameter(self, kind: str) -> Json:
        """The schema of a path's parameter; ``kind`` follows its name, or is empty."""
        if kind in _PARAMETERS:
            return _PARAMETERS[kind]
        return {"type": "string", "pattern": f"^{self._kinds[kind]}$"}

    def query(self, kind: type[msgspec.Struct]) -> tuple[Json, list[str]]:
        """The properties, without references, and the names of the required ones."""
        whole = self._queries[kind]
        inner = whole["$defs"]
        own = _inline(whole, inner)
        return own["properties"], own.get("required", [])


def _structs(kinds: Iterable[Any]) -> set[type[msgspec.Struct]]:
    """Every Struct in ``kinds``, however deep."""
    found: set[type[msgspec.Struct]] = set()

    def walk(value: Any) -> None:
        if isinstance(value, msgspec.inspect.StructType):
            if value.cls in found:
                return
            found.add(value.cls)
        if isinstance(value, msgspec.Struct):
            walk([getattr(value, name) for name in value.__struct_fields__])
        elif isinstance(value, list | tuple):
            for each in value:
                walk(each)

    walk(list(msgspec.inspect.multi_type_info(kinds)))
    return found


def _require_what_is_sent(components: Json, structs: Iterable[type[msgspec.Struct]]) -> None:
    """Make the fields of answers required. For msgspec a field with a default may be missing,
    which is true of requests; an answer has all fields but those that are unset."""
    for struct in structs:
        component = components.get(struct.__name__)
        if component is None or struct.__struct_config__.omit_defaults:
            continue
        component["required"] = [
            field.encode_name
            for field in msgspec.structs.fields(struct)
            if field.default is not msgspec.UNSET
        ]


def _require_what_may_not_be_empty(components: Json) -> None:
    """Make lists required whose schema has ``minItems``, since a list that is left out counts
    as an empty one."""
    for component in components.values():
        for name, schema in component.get("properties", {}).items():
            if schema.get("minItems") and schema.get("default") == []:
                del schema["default"]
                component.setdefault("required", []).append(name)


def _inline(schema: Any, definitions: Json) -> Any:
    """``schema`` without references: those of a query are small and never recursive."""
    if isinstance(schema, list):
        return [_inline(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inline(each, definitions) for key, each in schema.items() if key != "$defs"}


def _operation(module: str, route: Route, schemas: _Schemas) -> Json:
    operation: Json = {
        "operationId": operation_id(route.method, route.path),
        "tags": [route.tag or module],
        "summary": route.summary,
        "description": _prose(route),
        "parameters": _parameters(route, schemas),
        "responses": _responses(route, schemas),
        "security": _security(route.need, route.method),
        "x-scope": route.need.scope,
    }
    if route.upgrade is not None:
        operation["x-websocket"] = _websocket(route.upgrade)
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _body(route.body, schemas)}
        if isinstance(route.body, Content) and route.body.description:
            operation["requestBody"]["description"] = route.body.description
    return operation


def operation_id(method: str, path: str) -> str:
    """``GET /a/{b}/c`` is ``get_a_by_b_c``: unique while paths are, stable while they stay."""
    words = re.findall(r"\w+", PARAMETER.sub(r"by_\1", path))
    return "_".join([method.lower(), *words])


def _prose(route: Route) -> str:
    needs = {
        "public": "",
        "anybody": "Needs no credential.",
        "logged_in": "Needs any valid credential.",
        "session": "Needs a session: API tokens are refused.",
        "admin": "Needs an administrator's session.",
        "service": "Needs the service key.",
        "scoped": "",
    }[route.need.kind]
    if route.need.root:
        needs = f"{needs} API tokens need the scope `{route.need.scope}`.".strip()
    if route.need.is_open:
        needs = (
            "What is public needs no login; an expired or malformed token counts as none, and "
            f"`WWW-Authenticate` says so. {needs}"
        )
    parts = [route.description, needs]
    if route.upgrade is not None:
        about = _websocket(route.upgrade)
        only = "" if route.handler is upgrade_only else ", if that is asked for"
        parts.append(f"A WebSocket{only}. The server sends {about['sends']}.")
        if route.need.kind != "public":
            parts.append(
                "It is closed with 4401 within 5 s after the credential has ended, and with "
                "4403 when that may no longer do this."
            )
        parts.append(f"It takes {about['takes']}." if "takes" in about else "")
    return "\n\n".join(part for part in parts if part)


def _websocket(upgrade: Upgrade) -> Json:
    about: Json = {"sends": upgrade.sends, "pingSeconds": upgrade.ping_seconds}
    if upgrade.takes:
        about["takes"] = upgrade.takes
    return about


def _parameters(route: Route, schemas: _Schemas) -> list[Json]:
    found: list[Json] = []
    for name, kind in PARAMETER.findall(route.path):
        schema = schemas.parameter(kind)
        found.append({"name": name, "in": "path", "required": True, "schema": schema})
    if route.query is not None:
        properties, required = schemas.query(route.query)
        for name, schema in properties.items():
            parameter: Json = {"name": name, "in": "query", "required": name in required}
            description = schema.pop("description", None)
            if description:
                parameter["description"] = description
            found.append({**parameter, "schema": schema})
    for name, purpose in route.headers.items():
        if name.lower() not in _NOT_PARAMETERS:
            found.append(
                {
                    "name": name,
                    "in": "header",
                    "required": False,
                    "description": purpose,
                    "schema": _HEADERS.get(name.lower(), {"type": "string"}),
                }
            )
    return found


def _body(body: type[msgspec.Struct] | Content, schemas: _Schemas) -> Json:
    if not isinstance(body, Content):
        return {JSON: {"schema": schemas.of(body)}}
    if not body.fields:
        return {body.type: {"schema": _FILE}}
    parts = dict.fromkeys(body.fields, _FILE)
    return {
        body.type: {
            "schema": {"type": "object", "required": list(body.fields), "properties": parts}
        }
    }


def _responses(route: Route, schemas: _Schemas) -> Json:
    """The answers by status, in their order."""
    content = _answer(route.answer, schemas)
    successes = {200: "Done", **route.others}
    if route.handler is upgrade_only:
        del successes[200]
    responses: dict[int, Json] = {}
    for status, meaning in successes.items():
        responses[status] = {"description": meaning}
        if content and status not in _NO_CONTENT:
            responses[status]["content"] = content
    if route.upgrade is not None:
        responses[101] = {"description": "A WebSocket"}
    for status in _refusals(route):
        responses[status] = {
            "description": HTTPStatus(status).phrase,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    return {str(status): responses[status] for status in sorted(responses)}


def _answer(answer: Any, schemas: _Schemas) -> Json:
    if answer is None:
        return {}
    if isinstance(answer, Content):
        # The bytes are not JSON, so they have no schema.
        return {answer.type: {"schema": {}}}
    return {JSON: {"schema": schemas.of(answer)}}


def _refusals(route: Route) -> set[int]:
    """Every status of an error that this route can answer with."""
    statuses = {*route.errors, 500, 503}
    has_path_parameters = bool(PARAMETER.search(route.path))
    if route.query is not None or route.body is not None or has_path_parameters or route.headers:
        statuses.add(400)
    if has_path_parameters:
        statuses.add(404)
    if route.body is not None:
        statuses.add(408)
    if isinstance(route.body, type):
        statuses.add(413)
    if route.need.kind not in ("public", "anybody"):
        statuses.add(401)
    if route.need.kind not in ("public", "anybody", "service"):
        statuses.add(403)
    if route.upgrade is not None:
        statuses.add(400)
    if route.handler is upgrade_only:
        statuses.add(426)
    return statuses


def _security(need: Need, method: str) -> list[Json]:
    """The alternatives of credentials; an empty one is none."""
    if need.kind == "public":
        return []
    if need.kind == "service":
        return [{"serviceKey": []}]
    schemes = ["bearer"]
    if method == "GET":
        schemes.append("tokenQuery")
        if need.takes_cookie:
            schemes.append("cookie")
    if need.file:
        schemes.append("ticketQuery")
    found: list[Json] = [{scheme: []} for scheme in schemes]
    return [{}, *found] if need.is_open or need.kind == "anybody" else found


def _head(get: Json) -> Json:
    """The same without bodies: RFC 9110, 9.3.2."""
    responses = {
        status: {"description": response["description"]}
        for status, response in get["responses"].items()
    }
    return {
        **get,
        "operationId": get["operationId"].replace("get", "head", 1),
        "summary": f"{get['summary']}: the headers alone",
        "responses": responses,
    }
