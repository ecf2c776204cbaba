"""The HTTP application: routes, answers in JSON, and what is refused."""

import asyncio
import base64
import importlib.resources
import io
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from jaxad import predict
from jaxad.data.room import Room
from jaxad.detector import Detector
from jaxad.predict import Seen
from jaxad.reporting.charts import heat_layer, overlay
from jaxad.serving import openapi, upload
from jaxad.serving.metrics import CONTENT_TYPE, Metrics
from jaxad.serving.options import Asked, Limits, Refusal, asked
from jaxad.serving.scorer import Scorer
from jaxad.serving.upload import Upload

_POLICY = (  # of the page: nothing comes from elsewhere, and nobody frames it
    "default-src 'none'; img-src blob: data:; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; media-src blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_RETRY = "1"  # seconds after which a client that was turned away may come again


class Service:
    """Answers requests with what detectors say.

    Args:
      detectors: By name; the first one is asked where a request names none.
      scorer: Scores the images of all requests.
      readers: Decodes images, and finds the regions of their maps.
      room: How many pixels are decoded at a time.
      limits: What is taken.
    """

    def __init__(
        self, detectors: dict[str, Detector], scorer: Scorer, readers: ThreadPoolExecutor, room: Room, limits: Limits
    ):
        self._detectors, self._scorer, self._readers, self._room = detectors, scorer, readers, room
        self._limits, self._active = limits, 0
        self._decoded = asyncio.Semaphore(max(limits.queue, limits.files))  # images that are held decoded
        self.metrics = Metrics(scorer.waiting, lambda: self._active)
        self._page = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        self.routes = [
            Route("/", self.page, methods=["GET"]),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/detectors", self.detectors, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.told_metrics, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
        ]

    async def page(self, _: Request) -> Response:
        """The page on which a detector is tried."""
        return HTMLResponse(self._page, headers={"content-security-policy": _POLICY})

    async def health(self, _: Request) -> Response:
        """That the server works."""
        return JSONResponse({"status": "ok", "detectors": list(self._detectors)})

    async def told_metrics(self, _: Request) -> Response:
        """The metrics, as text."""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, _: Request) -> Response:
        """The description of this interface."""
        return JSONResponse(openapi.document(list(self._detectors)))

    async def detectors(self, _: Request) -> Response:
        """The detectors, with what is the same for all of their images."""
        return JSONResponse({"detectors": [_described(name, found) for name, found in self._detectors.items()]})

    async def predict(self, request: Request) -> Response:
        """What a detector says of each image of a request.

        An image that cannot be read says so in its place; where there is no other, the request is refused.
        """
        wanted = asked(request.query_params, list(self._detectors))
        if self._active >= self._limits.queue:
            sentence = f"the server works on {self._limits.queue} requests already; send this one again later"
            raise Refusal(503, sentence, retry_after=_RETRY)
        self._active += 1
        try:
            images = await upload.read(request, self._limits)
            said = await asyncio.gather(*(self._in_turn(wanted, image) for image in images))
        finally:
            self._active -= 1
        for one in said:
            self.metrics.images.labels(wanted.detector, one["decision"]).inc()
        answer = {"detector": wanted.detector, "predictions": said}
        if all(one["reason"] for one in said):
            return JSONResponse({"error": said[0]["reason"]} | answer, status_code=422)
        return JSONResponse(answer)

    async def _in_turn(self, wanted: Asked, image: Upload) -> dict[str, Any]:
        async with self._decoded:
            return await self._one(wanted, image)

    async def _one(self, wanted: Asked, image: Upload) -> dict[str, Any]:
        """What the detector says of one image: as a line of predictions.jsonl, with the heatmap that is asked."""
        loop, found = asyncio.get_running_loop(), self._detectors[wanted.detector]
        side = None if wanted.heatmap == "none" else predict.SIDE
        given = found, image.data, Path(image.name), side, self._room
        seen = await loop.run_in_executor(self._readers, predict.look, *given)
        if seen.reason is not None:
            return predict.described(found, seen, None, None) | {"path": image.name}
        score, scored = await asyncio.wrap_future(self._scorer.submit(found, seen))
        said = await loop.run_in_executor(self._readers, self._answer, found, seen, score, scored, wanted)
        return said | {"path": image.name}  # `seen` has it as a path

    def _answer(self, found: Detector, seen: Seen, *scored_and_wanted) -> dict[str, Any]:
        """`_said` of an image, whose map takes as much room as its pixels."""
        with self._room.taken(math.prod(seen.shape)):
            return _said(found, seen, *scored_and_wanted)


def _described(name: str, found: Detector) -> dict[str, Any]:
    """A detector, for clients that choose one."""
    config, (height, width), (low, high) = found.config, found.region.size, found.heat_range
    return {
        "name": name,
        "method": config.method,
        "experiment": config.experiment,
        "category": config.category,
        "size": {"height": height, "width": width},
        "channels": found.channels,
        "threshold": found.threshold,
        "pixel_threshold": found.pixel_threshold,
        "map_of_good_images": {"median": low, "highest": high},
    }


def _said(found: Detector, seen: Seen, score: float, scored: np.ndarray, wanted: Asked) -> dict[str, Any]:
    """What is said of an image that was scored."""
    level = found.pixel_threshold if wanted.level is None else wanted.level
    _, regions = predict.regions_in(found, seen, scored, level)
    said = predict.described(found, seen, score, regions) | {"pixel_threshold": level}
    if wanted.heatmap == "none":
        return said
    height, width = seen.shape
    (low, high), placed = found.heat_range, predict.smooth_map_of(found, seen, scored)
    if wanted.heatmap == "overlay":
        drawn = {"overlay": _encoded(overlay(seen.picture, placed, low=low, high=high), "JPEG")}
    else:
        drawn = {"picture": _encoded(seen.picture[..., 0], "JPEG")}
        drawn |= {"layer": _encoded(heat_layer(placed, low=low, high=high), "PNG")}
    highest = float(found.region.inside(scored).max())
    return said | {"height": height, "width": width, "highest": highest, "heatmap": drawn}


def _encoded(picture: np.ndarray, kind: str) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **({"quality": 90} if kind == "JPEG" else {"compress_level": 1}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getbuffer()).decode()}"


class _Counted:
    """Counts the requests of an application and the seconds that they take."""

    def __init__(self, app: Any, metrics: Metrics, routes: list[Route]):
        self._app, self._metrics, self._paths = app, metrics, {route.path for route in routes}

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, route = time.perf_counter(), scope["path"] if scope["path"] in self._paths else "other"
        method, status = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other", "none"

        async def watching(message) -> None:
            nonlocal status
            status = str(message.get("status", status))
            await send(message)

        try:
            await self._app(scope, receive, watching)
        finally:
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status_code=status, headers=headers)


async def _on_refusal(_: Request, error: Refusal) -> Response:
    return _error(error.status, str(error), error.headers)


async def _on_http(request: Request, error: HTTPException) -> Response:
    """What Starlette refuses itself: a path that there is not, and a method that a path does not have."""
    path, headers = request.url.path, dict(error.headers or {})
    if error.status_code == 405:
        allowed = headers.get("Allow", "")
        return _error(405, f"{path} does not take {request.method}; it takes {allowed}", headers)
    known = "/, /predict, /detectors, /health, /metrics and /openapi.json"
    return _error(error.status_code, f"there is no {path} here; there are {known}", headers)


async def _on_left(_: Request, __: ClientDisconnect) -> Response:
    return _error(400, "the client has left before its request was whole")


async def _on_fault(_: Request, __: Exception) -> Response:
    """What is no fault of the request; Starlette raises it again, so that Uvicorn logs it."""
    return _error(500, "the server has failed with this request; its log says why")


def create(service: Service) -> _Counted:
    """The ASGI application."""
    handlers = {Refusal: _on_refusal, HTTPException: _on_http, ClientDisconnect: _on_left, Exception: _on_fault}
    app = Starlette(routes=service.routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # such a path is told like any other that there is not
    return _Counted(app, service.metrics, service.routes)
