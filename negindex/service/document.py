"""What the OpenAPI document says of a route beside its parameters: roles, arrays to and fro, problems."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, NamedTuple

from fastapi import Depends, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from negindex.service import problems, wire
from negindex.service.asked import S
from negindex.service.state import Needs, state_of
from negindex.service.wire import Array, Arrays

_KEYED = (401, 403, 429)  # whatever needs a key
_SET = (404, 409, 410)  # whatever is of a set
_BODY = (400, 408, 411, 413, 415)  # whatever takes a body
_ANY = (422, 431, 500, 503)
_WORDS = {
    400: "The body has another length than was said.",
    401: "No live key.",
    403: "The key is for other roles or other sets.",
    404: "There is no such set, version or row.",
    408: "The body did not come in time.",
    409: "No row is in force, or, with the code say-all, the question has to be sent whole.",
    410: "Rows of the version were erased.",
    411: "No Content-Length.",
    413: "The body is too large.",
    415: "The body is packed, or of another kind.",
    422: "The question makes no sense; the detail says which part.",
    429: "Too many requests; Retry-After says when to come again.",
    431: "The headers are too large.",
    500: "The fault is the service's own, or the set's files are damaged.",
    503: "Too much waits, a set cannot be read, or the service stops; try again.",
}
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457. code: the error's class.",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
    },
}


class Takes(NamedTuple, Generic[S]):
    """A body that a route takes."""

    arrays: Arrays
    said: type[S]


class ArraysAnswer(Response):
    """A body of arrays."""

    media_type = wire.MEDIA_TYPE


class Direct(APIRoute):
    """A route of a set's name and a body of arrays, called without the framework's own reading of parameters.

    For what is asked at every step of every image: that reading takes longer than all the rest of the worker's part.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The door, then the route's function."""
        doors, endpoint = [one.dependency for one in self.dependencies], self.endpoint

        async def handler(request: Request) -> Response:
            for door in doors:
                if door is not None:
                    await door(request)
            answer: Response = await endpoint(request, state_of(request), request.path_params["name"])
            return answer

        return handler


def needs(*roles: str, takes: Takes[Any] | None = None, gives: Arrays | None = None) -> dict[str, Any]:
    """A route's roles and bodies, for its decorator: for the door and for the document.

    gives: the arrays of the answer, where it is of arrays.
    """
    extra: dict[str, Any] = {"x-roles": list(roles), "security": [{"key": []}]}
    if takes is not None:
        content = _content(takes.arrays)
        content[wire.MEDIA_TYPE] |= {"x-said": takes.said.model_json_schema()}
        extra["requestBody"] = {"required": True, "content": content}
    told: dict[str, Any] = {"dependencies": [Depends(Needs(*roles))], "openapi_extra": extra}
    told["responses"] = refusals(*_KEYED, *_SET, *(_BODY if takes is not None else ()))
    if gives is not None:
        told["responses"][200] = {"description": "Arrays.", "content": _content(gives)}
        told["response_class"] = ArraysAnswer
    return told


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that a route may answer with, for its decorator."""
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _WORDS[status], "content": content} for status in sorted({*statuses, *_ANY})}


def document(app: FastAPI) -> dict[str, Any]:
    """The application's OpenAPI document, made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        parts = made.setdefault("components", {})
        parts["schemas"] = {**parts.get("schemas", {}), "Problem": _PROBLEM}
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = made
    return app.openapi_schema


def _content(arrays: Arrays) -> dict[str, Any]:
    said = {name: _array(array) for name, array in arrays.items()}
    return {wire.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}, "x-arrays": said}}


def _array(array: Array) -> dict[str, Any]:
    told: dict[str, Any] = {"types": list(array.kinds), "optional": array.optional}
    return told if array.dimensions is None else {**told, "dimensions": array.dimensions}  # none said: any number
