"""Whom the server answers, and what a request says."""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

LOCAL = ("127.0.0.1", "localhost")
GUARDS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Secrets(NamedTuple):
    """What a user holds: a token that is good once, and the cookie that it is exchanged for."""

    token: str
    cookie: str
    name: str  # of the cookie: browsers give those of one machine to all its servers


def is_same(given: str, held: str) -> bool:
    """Whether a secret is the one that is held, in a time that tells nothing of it."""
    return hmac.compare_digest(given.encode(errors="replace"), held.encode())


def refusal(request: Request, held: Secrets, hosts: tuple[str, ...], free: bool) -> Response | None:
    """Why a request is not answered, or None.

    Args:
        free: the one address that a token may be shown to.
    """
    if request.headers.get("host") not in hosts:
        return PlainTextResponse("this server goes by another name", 421)
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc not in hosts:
        return PlainTextResponse("a page from elsewhere may not ask", 403)
    known = is_same(request.cookies.get(held.name, ""), held.cookie)
    if known or (free and "token" in request.query_params):
        return None
    return PlainTextResponse(
        "Open the address that `ddm explore` printed when it was started last.", 401
    )


def names_of(host: str) -> list[str]:
    """What a server that listens at a host may be called by those that reach it."""
    if host in LOCAL:
        return list(LOCAL)
    names = [host, *LOCAL, socket.gethostname()]
    if host in ("0.0.0.0", "::"):  # every address of this machine
        with contextlib.suppress(OSError):
            names += [str(each[4][0]) for each in socket.getaddrinfo(socket.gethostname(), None)]
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as outward:
            outward.connect(("192.0.2.1", 9))  # sends nothing: it is asked where it would leave
            names.append(outward.getsockname()[0])
    return [f"[{name}]" if ":" in name else name for name in dict.fromkeys(names)]


def weights_of(body: bytes, count: int) -> tuple[np.ndarray, dict[str, Any]]:
    """The weights [K] that a request names, and all that it says.

    Raises:
        ValueError: for anything else.
    """
    try:
        told, weights = json.loads(body), np.ones(count)
        for name, weight in told["weights"].items():
            weights[_place(name, count)] = float(weight)
    except (AttributeError, KeyError, RecursionError, TypeError, UnicodeDecodeError) as error:
        raise ValueError('write {"weights": {group: weight}, ...}') from error
    return weights, told


def changes_of(body: bytes) -> tuple[list[int], dict[int, str]]:
    """The training points that a request drops, and the classes that it gives others.

    Raises:
        ValueError: for anything else.
    """
    try:
        told = json.loads(body)
        labels = {int(place): str(name) for place, name in told["labels"].items()}
        return [int(place) for place in told["drop"]], labels
    except (AttributeError, KeyError, RecursionError, TypeError, UnicodeDecodeError) as error:
        raise ValueError('write {"drop": [place, ...], "labels": {place: class}}') from error


def _place(name: str, count: int) -> int:
    place = int(name)
    if not 0 <= place < count:
        raise ValueError(f"there is no group {place}; they are 0..{count - 1}")
    return place
