"""Past the framework for what is asked at every step: what it does around each request takes longer than the question.

What a caller sees stays the same: the same door, the same limits, the same documents of errors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from fastapi import Request, Response
from starlette.routing import Match

from negindex.service.document import Direct

Message = MutableMapping[str, Any]
Handler = Callable[[Request, Exception], Awaitable[Response]]


class Straight:
    """Answers the questions of direct routes; all else goes to the application, around which it is."""

    def __init__(self, app: Any, routes: Iterable[Any], handlers: Mapping[type[Exception], Handler]) -> None:
        """handlers: what turns errors into answers."""
        self._app, self._handlers = app, handlers
        self._routes = [(one, one.get_route_handler()) for one in routes if isinstance(one, Direct)]

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            for route, handler in self._routes:
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    answer = await self._answer(handler, Request(scope, receive))
                    await answer(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _answer(self, handler: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:
            for kind, told in self._handlers.items():
                if isinstance(error, kind):
                    return await told(request, error)
            raise
