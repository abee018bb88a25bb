"""The explorer's routes: which address shows what, and the headers that every answer carries.

Read-only: every route is GET, and nothing here can publish. A page is made in a thread of its own, from one consistent
view of the read model; the event loop only passes it on. Refused: ids that are none, before anything is looked up, and
files that are not in the list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any, Final
from urllib.parse import urlencode

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from pocache.protocol.errors import (
    LimitError,
    NotAuthorizedError,
    NotYetError,
    PocacheError,
    ReceiptError,
    UnknownJobError,
)
from pocache.readmodel.dossiers import build_receipt_json, to_job_id
from pocache.readmodel.model import ReadModel
from pocache.readmodel.queries import get_job
from pocache.receipt.trust import make_trust
from pocache_gateway.explorer import formats
from pocache_gateway.explorer.jobview import JobViews
from pocache_gateway.explorer.live import Broadcast, answer_live
from pocache_gateway.explorer.pages import PAGES, NotFoundError, PageContext

PREFIX: Final = "/explorer"
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
_STATIC: Final[Mapping[str, tuple[str, str]]] = {
    "explorer.css": ("pocache_gateway.explorer", "text/css; charset=utf-8"),
    "explorer.js": ("pocache_gateway.explorer", "text/javascript; charset=utf-8"),
    "verify-page.js": ("pocache_gateway.explorer", "text/javascript; charset=utf-8"),
    "icon.svg": ("pocache_gateway.explorer", "image/svg+xml"),
    "verify.js": ("pocache.receipt", "text/javascript; charset=utf-8"),
}
"""Every file that is served, and the package that has it: no path of a request ever reaches a file system."""
_FOLDERS: Final[Mapping[str, str]] = {"pocache_gateway.explorer": "static", "pocache.receipt": "web"}

MayRead = Callable[[Request, str], bool]
"""Whether whoever asks may see the texts and the receipt of a job of this user."""


@dataclass(frozen=True, slots=True)
class ExplorerSettings:
    """What one explorer was told."""

    shows_texts: bool = False
    """Whether everybody may see prompts, outputs and receipts. Off: only whom ``may_read`` lets."""
    live_max: int = 256
    """Live connections at once; beyond it the answer is 503."""
    page_s_max: float = 10.0
    """How long making a page may take before the answer is 503."""


class Explorer:
    """The pages over one read model. ``changed`` is to be called after each batch of news."""

    def __init__(
        self,
        model: ReadModel,
        *,
        settings: ExplorerSettings | None = None,
        names: Mapping[str, str] | None = None,
        decode: Callable[[bytes, tuple[int, ...]], str | None] = lambda _model_id, _tokens: None,
        may_read: MayRead = lambda _request, _user: False,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.model = model
        self.settings = settings or ExplorerSettings()
        self.broadcast = Broadcast(self.settings.live_max)
        self._may_read = may_read
        self._clock_ms = clock_ms
        self._names = dict(names or {})
        self._views = JobViews(model, self._names, decode)
        self._environment = _make_environment(self._names)
        self._trust = make_trust(model.genesis).to_json().encode()
        self._files = {name: _read_static(name) for name in _STATIC}

    def changed(self) -> None:
        """Wake whoever follows live; to be called in the event loop."""
        self.broadcast.wake()

    def routes(self) -> list[BaseRoute]:
        """Return the routes, all below ``/explorer``."""
        pages = [
            Route(f"{PREFIX}{path}", self._page(name), methods=["GET"]) for path, name in _PAGE_PATHS.items()
        ]
        return [
            *pages,
            Route(f"{PREFIX}/", self._to_start, methods=["GET"]),
            Route(
                f"{PREFIX}/live",
                partial(answer_live, self.model, self.broadcast, self._names),
                methods=["GET"],
            ),
            Route(f"{PREFIX}/trust.json", self._answer_trust, methods=["GET"]),
            Route(f"{PREFIX}/jobs/{{job}}/receipt.json", self._answer_receipt, methods=["GET"]),
            Route(f"{PREFIX}/static/{{name}}", self._answer_static, methods=["GET"]),
            Route(f"{PREFIX}/{{rest:path}}", self._answer_nothing, methods=["GET"]),
        ]

    # pages

    def _page(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                async with asyncio.timeout(self.settings.page_s_max):
                    return await asyncio.to_thread(self.render, name, request)
            except NotFoundError as error:
                return self._error(404, str(error))
            except TimeoutError:
                return self._error(503, "The page took too long to make. Try again in a moment.")
            except PocacheError as error:
                structlog.get_logger().error("page failed", page=name, code=error.code, error=str(error))
                return self._error(500, f"{error.code}: {error}")

        return answer

    def render(self, name: str, request: Request) -> Response:
        """Return a page, made in the caller's thread. Raises NotFoundError."""
        page = PAGES[name]
        with self.model.reading() as connection:
            context = PageContext(
                model=self.model,
                connection=connection,
                views=self._views,
                path=dict(request.path_params),
                query=dict(request.query_params),
                now_ms=self._clock_ms(),
                may_read=lambda user: self.settings.shows_texts or self._may_read(request, user),
            )
            values = page.make(context)
        return self._answer(page.template, values)

    def _answer(self, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
        text = self._environment.get_template(template).render(
            network=self.model.genesis.name, network_id=self.model.network.hex(), **values
        )
        return HTMLResponse(text, status, headers=HEADERS)

    def _error(self, status: int, reason: str) -> Response:
        return self._answer("error.html", {"status": status, "reason": reason, "here": ""}, status)

    # the rest

    async def _to_start(self, _request: Request) -> Response:
        return RedirectResponse(PREFIX, 308, headers=HEADERS)

    async def _answer_nothing(self, _request: Request) -> Response:
        return self._error(404, "There is no such page.")

    async def _answer_trust(self, _request: Request) -> Response:
        return Response(self._trust, headers=HEADERS, media_type="application/json")

    async def _answer_static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            return self._error(404, "There is no such file.")
        headers = {**HEADERS, "cache-control": "max-age=300"}
        return Response(self._files[name], headers=headers, media_type=_STATIC[name][1])

    async def _answer_receipt(self, request: Request) -> Response:
        job_id = to_job_id(request.path_params["job"])
        if job_id is None:
            return _refuse(404, UnknownJobError.code, "a job id is 64 hexadecimal digits in lower case")
        try:
            return await asyncio.to_thread(self._build_receipt, request, job_id)
        except (UnknownJobError, NotYetError) as error:
            return _refuse(404, error.code, str(error))
        except (ReceiptError, LimitError) as error:
            return _refuse(410, error.code, str(error))

    def _build_receipt(self, request: Request, job_id: bytes) -> Response:
        with self.model.reading() as connection:
            row = get_job(connection, job_id)
            user = "" if row is None else row["user"]
            if not (self.settings.shows_texts or self._may_read(request, user)):
                reason = "a receipt holds the prompt and the output: it is shown to the job's user"
                return _refuse(403, NotAuthorizedError.code, reason)
            data = build_receipt_json(self.model, connection, job_id)
        disposition = f'attachment; filename="receipt-{job_id.hex()[:16]}.json"'
        return Response(
            data, headers={**HEADERS, "content-disposition": disposition}, media_type="application/json"
        )


_PAGE_PATHS: Final[Mapping[str, str]] = {
    "": "overview",
    "/jobs": "jobs",
    "/jobs/{job}": "job",
    "/workers": "workers",
    "/accounts": "accounts",
    "/participants/{participant}": "participant",
    "/rounds": "rounds",
    "/rounds/{number}": "round",
    "/log": "log",
    "/verify": "verify",
}


def _refuse(status: int, code: str, reason: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": reason}}, status, headers=dict(HEADERS))


def _read_static(name: str) -> bytes:
    package, _ = _STATIC[name]
    return (resources.files(package) / _FOLDERS[package] / name).read_bytes()


def _make_environment(names: Mapping[str, str]) -> Environment:
    environment = Environment(
        loader=PackageLoader("pocache_gateway.explorer"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(formats.FILTERS)
    environment.filters["who"] = lambda account: formats.show_account(account, names)
    environment.globals["prefix"] = PREFIX
    environment.globals["query"] = lambda **values: "?" + urlencode({k: v for k, v in values.items() if v})
    return environment
