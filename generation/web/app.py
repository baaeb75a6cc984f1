"""The HTTP side: who may ask, what is read of them, and answers as one JSON object or as a stream of lines."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from files.reading import parse_json, value_of
from generation.infill import BlankFiller
from generation.requests import Event, RequestDone
from generation.web.limits import Limits
from generation.web.messages import PLACE, Reply, describe_model, fault, read_request
from generation.web.service import Ended, FillService, QueueFullError, Work

PAGE = Path(__file__).with_name("page.html")
BODY_SECONDS = 20.0  # for a client to send its request
CONNECTIONS = 200  # at the same time, beside those of requests that wait
UNREAD_SECONDS = 30.0  # that a client may leave its answer unread after the request's time
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def content_security_policy(page: str) -> str:
    """Return the policy of a page: its own script and style, told by their hashes, and requests to its own server."""
    hashes = {}
    for tag in ("script", "style"):
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        assert contents, f"the page has no {tag} of its own"
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in contents]
        hashes[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"{NOTHING}; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; img-src data:"


def error(status: int, code: str, message: str, **headers: str) -> Response:
    """Return the answer to a request that is not filled."""
    return JSONResponse(dict(fault(code, message)), status, headers)


@dataclass
class Guard:
    """Let only those requests through that name this server and come from its own page or from no page.

    A page of another site that is open in the user's browser reaches loopback, too: by its own name, which it lets
    point there (Host), or by ours (Origin). An address is no name that somebody could let point elsewhere.
    """

    app: ASGIApp
    hosts: Sequence[str]
    service: FillService

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer; every answer gets our headers."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        assert scope["type"] == "http", "no other protocol is spoken"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                ours = {"Content-Security-Policy": NOTHING, **HEADERS}
                added = [(name.lower().encode(), value.encode()) for name, value in ours.items()]
                message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in present)]
            await send(message)

        refused = self.refusal(scope["headers"])
        await (refused or self.app)(scope, receive, send_with_headers)

    def refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> Response | None:
        """Return the answer to a request that may not come in; None for one that may."""
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or not self.is_ours(hosts[0]):
            return error(421, "host", "this server is not called that; start it with --allowed-host NAME to allow it")
        own = [f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")]  # https: of a proxy in front
        if any(origin.lower() not in own for origin in origins):
            return error(403, "origin", "requests of pages of another site are refused")
        return None

    def is_ours(self, host: str) -> bool:
        """Tell whether a Host header, name and perhaps port, may mean this server."""
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?", host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name == "localhost" or name in self.hosts


@dataclass
class Filling:
    """The answer to a request that is filled meanwhile; when the client goes away nothing more is computed."""

    service: FillService
    work: Work
    reply: Reply
    events: asyncio.Queue[Event | Ended]
    streams: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        answer = self._stream(send) if self.streams else self._whole(scope, receive, send)
        talk, gone = asyncio.ensure_future(answer), asyncio.ensure_future(until_gone(receive))
        try:
            longest = self.service.limits.seconds + UNREAD_SECONDS
            await asyncio.wait({talk, gone}, timeout=longest, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.service.abandon(self.work)
            for task in (talk, gone):
                task.cancel()
            results = await asyncio.gather(talk, gone, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, OSError):
                raise result

    async def _happenings(self) -> AsyncIterator[Event | Ended]:
        """Yield what happens, up to the end."""
        while True:
            event = await self.events.get()
            yield event
            if isinstance(event, Ended | RequestDone):
                return

    async def _stream(self, send: Send) -> None:
        headers = [(b"content-type", b"application/x-ndjson; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def tell(message: Mapping[str, Any]) -> None:
            line = json.dumps(message, ensure_ascii=False, allow_nan=False) + "\n"
            await send({"type": "http.response.body", "body": line.encode(), "more_body": True})

        await tell(self.reply.start())
        async for event in self._happenings():
            if isinstance(event, Ended):
                if event.fault is not None:
                    await tell(fault("failed", event.fault))
                    break
                self.reply.stopped = "time"
            else:
                for message in self.reply.messages(event):
                    await tell(message)
            if isinstance(event, Ended | RequestDone):
                await tell(self.reply.end())
        await send({"type": "http.response.body", "body": b""})

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response | None = None
        async for event in self._happenings():
            if isinstance(event, Ended):
                self.reply.stopped = "time"
                response = error(500, "failed", event.fault) if event.fault is not None else None
            else:
                for _ in self.reply.messages(event):
                    pass  # the answer comes as a whole
        await (response or JSONResponse(self.reply.whole()))(scope, receive, send)


async def until_gone(receive: Receive) -> None:
    """Wait until the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, limit: int) -> bytes | Response:
    """Return the body of a request of at most ``limit`` bytes, or what to answer to another one."""
    too_large = error(413, "too_large", f"a request has at most {limit} bytes; shorten the text", Connection="close")
    length = request.headers.get("content-length", "0")
    if not re.fullmatch("[0-9]{1,18}", length) or int(length) > limit:
        return too_large

    async def read() -> bytes | None:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                return None
        return bytes(body)

    try:
        body = await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        return error(408, "slow", f"the request did not come within {BODY_SECONDS:.0f} s", Connection="close")
    return too_large if body is None else body


def build_app(
    filler: BlankFiller,
    *,
    limits: Limits,
    name: str,
    program: Sequence[str],
    fill: str = "append",
    allowed_hosts: Sequence[str] = (),
) -> Guard:
    """Return the application.

    Args:
        filler: fills all requests.
        limits: what clients may ask for.
        name: of the model, as clients see it.
        program: the words of the command line that fills with the same model.
        fill: see ``DecodingSettings``.
        allowed_hosts: names of this server beside localhost and its addresses.
    """
    page = PAGE.read_text(encoding="utf-8")
    page_headers = {"Content-Security-Policy": content_security_policy(page)}
    description = describe_model(name, filler, limits=limits, fill=fill)
    service = FillService(filler, limits)

    async def show_page(_: Request) -> Response:
        return Response(page, media_type="text/html", headers=page_headers)

    async def show_model(_: Request) -> Response:
        return JSONResponse(description)

    async def fill_text(request: Request) -> ASGIApp:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return error(415, "type", "send JSON, with the header Content-Type: application/json", Connection="close")
        try:
            body = await read_body(request, limits.body)
            if isinstance(body, Response):
                return body
            fields = parse_json(body, place=PLACE)
            asked = await asyncio.to_thread(read_request, fields, filler, limits=limits, fill=fill)
            streams = value_of(fields, "stream", bool, place=PLACE, default=False)
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody
        except ValueError as problem:
            return error(400, "request", str(problem))
        events: asyncio.Queue[Event | Ended] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def listen(event: Event | Ended) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            work = service.submit(asked, listen)
        except QueueFullError:
            message = f"{limits.queue} requests wait already; try again in a moment"
            return error(503, "busy", message, **{"Retry-After": "5"})
        reply = Reply(asked, filler.tokenizer, program)
        return Filling(service, work, reply, events, streams=streams)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    routes = [
        Route("/", show_page, methods=["GET"]),
        Route("/api/model", show_model, methods=["GET"]),
        Route("/api/fill", fill_text, methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes, lifespan=lifespan), [host.lower() for host in allowed_hosts], service)


def build_server(app: Guard) -> uvicorn.Server:
    """Return the server of the application, which a signal ends."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none", http="h11",
        limit_concurrency=app.service.limits.queue + CONNECTIONS, timeout_keep_alive=10, timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=16384,
    )  # fmt: skip
    return uvicorn.Server(config)
