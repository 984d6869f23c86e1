"""The routes of the server; `make_app` joins them with what stands before them (`guard.py`)."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from ames_jax import __version__
from ames_jax.data.shards import read_about
from ames_jax.index.database_records import Unavailable
from ames_jax.index.own_pictures import SentPicture
from ames_jax.index.thumbnails import jpeg
from ames_jax.index.uploading import Upload
from ames_jax.runtime.errors import UserError
from ames_jax.serving.answers import (
    Changed,
    Collection,
    ExplanationAnswer,
    Health,
    QueryByDescriptors,
    QueryById,
    Refusal,
    SearchAnswer,
)
from ames_jax.serving.batching import Busy
from ames_jax.serving.guard import Guard
from ames_jax.serving.metrics import Metrics
from ames_jax.serving.request_body import Limits, RequestedQuery, indexed_query, parse_box, read_query, read_upload
from ames_jax.serving.service import Question, ReadOnly, Service, Taken, Unknown

PAGE = Path(__file__).with_name("page")
# What browsers show; other pictures are sent to them as JPEG.
SHOWN = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp", "AVIF": "image/avif"}
LARGEST_SIDE = 4096  # of a picture that is sent as JPEG
KEPT = {"Cache-Control": "private, max-age=300"}
STATUS_OF = {
    UserError: 422,
    Unavailable: 503,
    Unknown: 404,
    Taken: 409,
    ReadOnly: 403,
    ClientDisconnect: 400,  # the asker went away before all was sent: no error for the log
    Exception: 500,
}
ANSWER_SECONDS = 120.0  # a question that waits longer is given up

FORM_OF_PICTURE = {
    "type": "object",
    "required": ["image"],
    "properties": {"image": {"type": "string", "format": "binary"}},
}
FORM_OF_UPLOAD = {**FORM_OF_PICTURE, "properties": {**FORM_OF_PICTURE["properties"], "id": {"type": "string"}}}
QUERY_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": FORM_OF_PICTURE},
            "application/json": {
                "schema": {"anyOf": [QueryById.model_json_schema(), QueryByDescriptors.model_json_schema()]}
            },
        },
    }
}
UPLOAD_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM_OF_UPLOAD}}}}
REFUSALS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Refusal}, 503: {"model": Refusal}}

router = APIRouter(responses=REFUSALS)


def _service(request: Request) -> Service:
    return request.app.state.service


def _limits(request: Request) -> Limits:
    return request.app.state.limits


TheService = Annotated[Service, Depends(_service)]
TheLimits = Annotated[Limits, Depends(_limits)]
BoxText = Annotated[str | None, Query(max_length=200, description="search for a part: left,top,right,bottom in pixels")]


@router.get("/", include_in_schema=False)
def page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE / "index.html")


@router.get("/docs", include_in_schema=False)
def documentation() -> FileResponse:
    """The page of the API, drawn from /openapi.json."""
    return FileResponse(PAGE / "docs.html")


@router.get("/health")
def health(service: TheService) -> Health:
    """200 while the server answers; needs no token."""
    return Health(status="ok", images=len(service.index), version=__version__)


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/search", openapi_extra=QUERY_BODY)
async def search(
    request: Request,
    service: TheService,
    limits: TheLimits,
    top: Annotated[int, Query(ge=1, description="images listed")] = 20,
    shortlist: Annotated[int | None, Query(ge=1, description="images re-ranked, at most the server's own")] = None,
    box: BoxText = None,
) -> SearchAnswer:
    """Images that show what the query shows: a picture in the field `image` of a form, or JSON with an id or descriptors."""
    most = service.searcher.shortlist
    if top > limits.top:
        raise HTTPException(422, f"top={top}: this server lists up to {limits.top} images")
    if shortlist is not None and shortlist > most:
        raise HTTPException(422, f"shortlist={shortlist}: this server re-ranks up to {most} images")
    part = parse_box(box)
    with service.batcher.place():
        asked = await read_query(request, service, limits, part)
        start = time.perf_counter()
        answer = asyncio.wrap_future(service.batcher.ask(Question(asked.query, top, shortlist)))
        try:
            result = await asyncio.wait_for(answer, ANSWER_SECONDS)
        except TimeoutError as error:
            raise Busy(int(ANSWER_SECONDS)) from error
    work = sum(result.seconds.values())
    waited = max(0.0, time.perf_counter() - start - work)
    seconds = {"read": asked.seconds, "wait": waited, **result.seconds}
    request.app.state.metrics.searched(seconds)
    return SearchAnswer.of(result, seconds, service.label_of)


@router.get("/explain")
def explain_indexed(
    service: TheService,
    query: Annotated[str, Query(description="id of the image that was searched for")],
    image_id: Annotated[str, Query(alias="id", description="id of the image that was found")],
    box: BoxText = None,
) -> ExplanationAnswer:
    """Correspondences of two images of the collection."""
    part = parse_box(box)
    with service.batcher.place():
        return _explained(service, indexed_query(service, query, part), image_id)


@router.post("/explain", openapi_extra=QUERY_BODY)
async def explain_picture(
    request: Request,
    service: TheService,
    limits: TheLimits,
    image_id: Annotated[str, Query(alias="id", description="id of the image that was found")],
    box: BoxText = None,
) -> ExplanationAnswer:
    """Correspondences of a picture and an image of the collection."""
    part = parse_box(box)
    with service.batcher.place():
        asked = await read_query(request, service, limits, part)
        return await run_in_threadpool(_explained, service, asked, image_id)


def _explained(service: Service, asked: RequestedQuery, image_id: str) -> ExplanationAnswer:
    query = asked.query.pixels if isinstance(asked.query, SentPicture) else asked.query
    if not isinstance(query, np.ndarray | Path):
        raise HTTPException(422, "an explanation needs a picture, not descriptors")
    return ExplanationAnswer.of(service.explain(query, image_id), asked.share)


@router.get("/images")
def images(
    service: TheService,
    start: Annotated[int, Query(ge=0)] = 0,
    count: Annotated[int, Query(ge=1, le=1000)] = 60,
    find: Annotated[str, Query(max_length=200, description="text that ids hold, in any case")] = "",
) -> Collection:
    """Ids of the collection, in the order of adding."""
    index = service.index
    total, ids = index.listing(find, start, count)
    name = str(read_about(index.path).get("name") or index.path.name)
    labels = [service.label_of(name) for name in ids]
    return Collection(name=name, images=total, ids=ids, labels=labels, changeable=index.changeable)


@router.post("/images", status_code=201, openapi_extra=UPLOAD_BODY)
async def add(request: Request, service: TheService, limits: TheLimits) -> Changed:
    """Adds the picture in the field `image`, under the id in the field `id` or one that is made up."""
    with service.batcher.place():
        picture, content, image_id = await read_upload(request, service, limits)
        name = hashlib.sha256(content).hexdigest()[:20] if image_id is None else image_id
        await run_in_threadpool(service.add, Upload(name, picture, content))
    return Changed(id=name, images=len(service.index))


@router.delete("/images/{image_id:path}")
def remove(service: TheService, image_id: str) -> Changed:
    """Removes an image from the index; its picture stays where it is, unless it was sent to this server."""
    service.remove(image_id)
    return Changed(id=image_id, images=len(service.index))


@router.get("/images/{image_id:path}", response_class=Response)
def picture(service: TheService, image_id: str) -> Response:
    """The picture of an image, as it is where browsers show such a file, else as JPEG."""
    path = service.picture_path(image_id)
    try:
        with Image.open(path) as image:
            kind = image.format
    except OSError as error:
        raise Unknown(f"the picture of {image_id!r} cannot be read") from error
    if kind in SHOWN:
        return FileResponse(path, media_type=SHOWN[kind], headers=KEPT)
    return Response(jpeg(service.indexed_picture(image_id), LARGEST_SIDE), media_type="image/jpeg", headers=KEPT)


@router.get("/thumbnails/{image_id:path}", response_class=Response)
def thumbnail(service: TheService, image_id: str) -> Response:
    """A small JPEG of an image."""
    return Response(service.thumbnail(image_id), media_type="image/jpeg", headers=KEPT)


def make_app(service: Service, limits: Limits, token: str | None) -> FastAPI:
    """The application; it closes the service when it is shut down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    # FastAPI's own page of the API is fetched from elsewhere; ours is in the package.
    app = FastAPI(title="ames_jax search", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service, app.state.limits, app.state.metrics = service, limits, Metrics(service)
    app.include_router(router)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_middleware(Guard, token=token, limits=limits, metrics=app.state.metrics)
    for kind, status in STATUS_OF.items():
        app.add_exception_handler(kind, _refusing(status))
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _wrong_parameter)
    return app


def _refusing(status: int) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def refuse(request: Request, error: Exception) -> JSONResponse:
        text = "an error of the server, which its log tells about" if status == 500 else str(error)
        return JSONResponse({"error": text}, status)

    return refuse


async def _busy(request: Request, error: Busy) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 503, {"Retry-After": str(error.retry_after)})


async def _http_error(request: Request, error: StarletteHTTPException) -> JSONResponse:
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _wrong_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)
