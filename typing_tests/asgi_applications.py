"""`lifespan` takes applications of any framework's types, and keeps them."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, assert_type

from asgiref.typing import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGISendCallable,
    Scope,
)
from django.core.asgi import get_asgi_application

from django_tasks_local.asgi import lifespan

type StarletteScope = MutableMapping[str, Any]
type StarletteReceive = Callable[[], Awaitable[MutableMapping[str, Any]]]
type StarletteSend = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def of_django() -> None:
    application = get_asgi_application()
    lifespan(lifespan(application))


async def like_starlette(
    scope: StarletteScope, receive: StarletteReceive, send: StarletteSend
) -> None: ...


def of_starlette() -> None:
    assert_type(
        lifespan(like_starlette),
        Callable[[StarletteScope, StarletteReceive, StarletteSend], Awaitable[None]],
    )


async def like_asgiref(
    scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None: ...


def of_asgiref(application: ASGI3Application) -> None:
    _: ASGI3Application = lifespan(like_asgiref)
    assert_type(
        lifespan(application),
        Callable[[Scope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]],
    )


def of_something_else(scope: Scope) -> None: ...


lifespan(of_something_else)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
