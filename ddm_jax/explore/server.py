"""The page's server: one user, on this machine, who holds the token that was printed.

    GET  /?token=...        the token, once, for a cookie
    GET  /, /page/<file>    the page
    GET  /api/...           what `view.View` says
    POST /api/what-if       {"weights": {group: weight}, "query": place or null}
    POST /api/go-on         {"weights": ..., "prompt": text}
    POST /api/retrain       {"weights": ...}; GET says how far each is
    POST /api/cleaned       {"drop": [place, ...], "labels": {place: class}}

Counterfactuals are computed one after the other, and those of a page that was closed not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from ddm_jax import files
from ddm_jax.explore.requests import (
    GUARDS,
    Secrets,
    changes_of,
    is_same,
    names_of,
    refusal,
    weights_of,
)
from ddm_jax.explore.view import View

PAGE = Path(__file__).with_name("page")
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
LARGEST = 1 << 20  # bytes of a request
SLOWEST = 10.0  # seconds that its body may take


class Retraining(NamedTuple):
    """An exact job, and how far it is."""

    weights: dict[str, float]
    done: int
    of: int
    answer: Any = None
    error: str | None = None


def make_app(view: View, held: Secrets, hosts: tuple[str, ...]) -> Any:
    """Make the ASGI application.

    Args:
        hosts: what a request may call this server, with its port.
    """
    count = len(view.overview["groups"]["name"])
    pages = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in KINDS}
    turn = asyncio.Lock()  # of counterfactuals, first come first served
    slow = threading.Lock()  # of retrainings
    retrainings: dict[str, Retraining] = {}
    unused = [held.token]

    def page(name: str) -> Response:
        if name not in pages:
            return PlainTextResponse("there is no such page", 404)
        return Response(pages[name], media_type=KINDS[Path(name).suffix])

    async def index(request: Request) -> Response:
        given = request.query_params.get("token")
        if given is not None:
            if not unused or not is_same(given, unused[0]):
                return PlainTextResponse(
                    "This address was used before, or is of another start: `ddm explore` prints a "
                    "new one.",
                    403,
                )
            unused.clear()
            answer = RedirectResponse("/", 303)
            answer.set_cookie(held.name, held.cookie, httponly=True, samesite="strict")
            return answer
        return page("index.html")

    async def file(request: Request) -> Response:
        return page(request.path_params["name"])

    async def overview(request: Request) -> Response:
        return as_json(view.overview)

    async def effects(request: Request) -> Response:
        return as_json(view.effects(request.path_params["query"]))

    async def members(request: Request) -> Response:
        query = request.query_params.get("query")
        found = await asyncio.to_thread(
            view.members, request.path_params["group"], None if query is None else int(query)
        )
        return as_json(found)

    async def picture(request: Request) -> Response:
        part, place = request.path_params["part"], request.path_params["place"]
        return Response(view.picture(part, place), media_type="image/png")

    async def words(request: Request) -> Response:
        part, place = request.path_params["part"], request.path_params["place"]
        return as_json(view.words(part, place))

    async def passages(request: Request) -> Response:
        query = int(request.query_params.get("query", -1))
        return await in_turn(request, view.passages, request.path_params["group"], query)

    async def what_if(request: Request) -> Response:
        weights, told = await asked(request)
        query = told.get("query")
        if query is not None and (not isinstance(query, int) or isinstance(query, bool)):
            raise ValueError(f"query {query!r} is no place of one")
        return await in_turn(request, view.what_if, weights, query)

    async def go_on(request: Request) -> Response:
        weights, told = await asked(request)
        if not isinstance(told.get("prompt"), str):
            raise ValueError('write {"weights": {group: weight}, "prompt": text}')
        return await in_turn(request, view.go_on, weights, told["prompt"])

    async def suspects(request: Request) -> Response:
        return await in_turn(request, view.suspects)

    async def cleaned(request: Request) -> Response:
        return await in_turn(request, view.cleaned, *changes_of(await body_of(request)))

    async def in_turn(request: Request, answer: Callable[..., Any], *given: Any) -> Response:
        async with turn:
            if await request.is_disconnected():
                return PlainTextResponse("nobody waits for it", 499)
            return as_json(await asyncio.to_thread(answer, *given))

    async def retrain(request: Request) -> Response:
        if request.method == "POST":
            weights, _ = await asked(request)
            told = {str(k): float(weights[k]) for k in np.flatnonzero(weights != 1)}
            name = json.dumps(told)
            known = retrainings.get(name)
            if known is None or known.error is not None:
                retrainings[name] = Retraining(told, 0, view.overview["seeds"])
                threading.Thread(target=work, args=(name, weights), daemon=True).start()
        return as_json([each._asdict() for each in retrainings.values()])

    def work(name: str, weights: np.ndarray) -> None:
        def tell(done: int, note: str) -> None:
            # Those of everything are there already.
            left = max(done - view.overview["seeds"], 0)
            retrainings[name] = retrainings[name]._replace(done=left)

        with slow:
            try:
                found = view.retrain(weights, tell)
                retrainings[name] = retrainings[name]._replace(answer=found)
            except Exception as error:  # whatever it is, the page says it and goes on
                retrainings[name] = retrainings[name]._replace(error=_one_line(error))

    async def asked(request: Request) -> tuple[np.ndarray, dict[str, Any]]:
        return weights_of(await body_of(request), count)

    async def body_of(request: Request) -> bytes:
        body = b""
        async with asyncio.timeout(SLOWEST):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST:
                    raise ValueError(f"a request of more than {LARGEST:,} bytes")
        return body

    @contextlib.asynccontextmanager
    async def compiled_first(app: Any) -> AsyncIterator[None]:
        """Compile what answers take while the user looks at the page."""

        async def compile_it() -> None:
            weights = np.ones(count)
            weights[0] = 0
            async with turn:
                with contextlib.suppress(Exception):  # whoever asks is told
                    await asyncio.to_thread(view.what_if, weights, None)

        begun = asyncio.create_task(compile_it())
        yield
        begun.cancel()

    def guarded(handler: Callable[[Request], Awaitable[Response]], free: bool = False) -> Any:
        async def answer(request: Request) -> Response:
            try:
                found = refusal(request, held, hosts, free) or await handler(request)
            except (ValueError, TimeoutError) as error:
                found = PlainTextResponse(_one_line(error), 400)
            except Exception as error:
                found = PlainTextResponse(f"unexpected {_one_line(error)}", 500)
            found.headers.update(GUARDS)
            return found

        return answer

    api = {
        "overview": overview,
        "effects/{query:int}": effects,
        "members/{group:int}": members,
        "picture/{part}/{place:int}": picture,
        "words/{part}/{place:int}": words,
        "passages/{group:int}": passages,
        "suspects": suspects,
    }
    return Starlette(
        routes=[
            Route("/", guarded(index, free=True)),
            Route("/page/{name}", guarded(file)),
            *(Route(f"/api/{name}", guarded(each)) for name, each in api.items()),
            Route("/api/what-if", guarded(what_if), methods=["POST"]),
            Route("/api/go-on", guarded(go_on), methods=["POST"]),
            Route("/api/cleaned", guarded(cleaned), methods=["POST"]),
            Route("/api/retrain", guarded(retrain), methods=["GET", "POST"]),
        ],
        lifespan=compiled_first,
    )


def as_json(value: Any) -> Response:
    """An answer in JSON, what is not finite as null."""
    return Response(json.dumps(files.plain(value)), media_type="application/json")


def serve(
    view: View,
    host: str,
    port: int | None,
    ready: Callable[[str], None],
) -> None:
    """Answer until interrupted.

    Args:
        port: None: any that is free.
        ready: is told the address, with its token, once connections are taken.

    Raises:
        ValueError: where the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.closing(taken):
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((host, port or 0))
        except OSError as error:
            raise ValueError(
                f"--host {host} --port {port}: {error.strerror}; take another"
            ) from error
        taken.listen(128)
        number = taken.getsockname()[1]
        held = Secrets(secrets.token_urlsafe(24), secrets.token_urlsafe(32), f"ddm-{number}")
        names = names_of(host)
        app = make_app(view, held, tuple(f"{name}:{number}" for name in names))
        shown = names[-1] if host in ("0.0.0.0", "::") else names[0]
        ready(f"http://{shown}:{number}/?token={held.token}")
        chosen = uvicorn.Config(app, log_level="error", timeout_keep_alive=30, server_header=False)
        uvicorn.Server(chosen).run(sockets=[taken])


def _one_line(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
