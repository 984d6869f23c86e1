"""The body of a request: how large and slow it may be, and the query in it: a picture, an id or descriptors."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from typing import Any, BinaryIO, TypeVar

import numpy as np
from fastapi import HTTPException, Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.types import Message, Receive

from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import ExtractedImage
from ames_jax.extraction.images import crop, load_image
from ames_jax.extraction.stamps import content_stamp
from ames_jax.index.own_pictures import SentPicture
from ames_jax.index.searcher import Query
from ames_jax.runtime.errors import UserError
from ames_jax.serving.answers import QueryByDescriptors, QueryById
from ames_jax.serving.service import Service

FORM, JSON = "multipart/form-data", "application/json"
WHOLE = [[0.0, 0.0], [1.0, 1.0]]
UNIT_TOLERANCE = 1e-2
# Nothing more is read from who sends too much.
CLOSING = {"Connection": "close"}

Box = tuple[float, float, float, float]
Model = TypeVar("Model", bound=BaseModel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a request.

    Attributes:
      upload: bytes of a body; pixels: of a picture; seconds: from the first byte of a body to the last.
      top: images listed at most.
    """

    upload: int = 20 * 2**20
    pixels: int = 64_000_000
    seconds: float = 30.0
    top: int = 1000


class LimitedBody:
    """The body of a request, cut off where it is too large or too slow."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._read, self._over = 0, False
        self._deadline = asyncio.get_running_loop().time() + limits.seconds

    async def receive(self) -> Message:
        """The next message; raises HTTPException 413 or 408."""
        message = await self._next()
        if self._read > self._limits.upload:
            await self.drain()
            raise HTTPException(413, f"a request may have {self._limits.upload:,} bytes", CLOSING)
        return message

    async def drain(self) -> None:
        """Reads the rest of the body and drops it; raises HTTPException 408 where that takes too long."""
        while not self._over:
            await self._next()

    async def _next(self) -> Message:
        if self._over:  # what follows says only that the asker has gone
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self._over = True
            text = f"the request took more than {self._limits.seconds:g} s to arrive"
            raise HTTPException(408, text, CLOSING) from None
        self._read += len(message.get("body", b""))
        self._over = not message.get("more_body", False)
        return message


@dataclasses.dataclass(frozen=True)
class RequestedQuery:
    """A query, the part of its picture that it is (offset and size as shares), and the seconds it took to read."""

    query: Query
    share: list[list[float]]
    seconds: float


def parse_box(text: str | None) -> Box | None:
    """left, top, right, bottom in pixels; raises HTTPException 422."""
    if text is None:
        return None
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        left = right = top = bottom = 0.0
    if not (left < right < float("inf") and top < bottom < float("inf")):
        raise HTTPException(422, f"box={text[:60]}: expected left,top,right,bottom in pixels")
    return left, top, right, bottom


async def read_query(request: Request, service: Service, limits: Limits, box: Box | None) -> RequestedQuery:
    """The query in the body of a request; raises HTTPException, UserError or `Unknown`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    start = time.perf_counter()
    if kind == FORM:
        async with request.form(max_files=1, max_fields=8) as form:
            upload = _file_of(form)
            query, share = await run_in_threadpool(_picture, service, upload.file, limits, box)
            if box is None:  # a part of a picture is not that picture
                query = SentPicture(query, await run_in_threadpool(content_stamp, upload.file))
        return RequestedQuery(query, share, time.perf_counter() - start)
    if kind != JSON:
        raise HTTPException(415, f"expected {FORM} with a file in the field 'image', or {JSON}, found {kind[:60]!r}")
    body = _json(await request.body())
    if "id" in body:
        image_id = _checked(QueryById, body).id
        query, share = await run_in_threadpool(_indexed, service, image_id, box)
    else:
        given = _checked(QueryByDescriptors, body)
        query, share = await run_in_threadpool(_descriptors, service, given), WHOLE
        if box is not None:
            raise HTTPException(422, "a box needs a picture, not descriptors")
    return RequestedQuery(query, share, time.perf_counter() - start)


async def read_upload(request: Request, service: Service, limits: Limits) -> tuple[np.ndarray, bytes, str | None]:
    """A new picture RGB uint8 [H, W, 3], its file, and the field `id` where the form has one."""
    async with request.form(max_files=1, max_fields=8) as form:
        upload, image_id = _file_of(form), form.get("id")
        content = await upload.read()
        await upload.seek(0)
        picture, _ = await run_in_threadpool(_picture, service, upload.file, limits, None)
    if image_id is not None and not isinstance(image_id, str):
        raise HTTPException(422, "the field 'id' is a text")
    return picture, content, image_id


def indexed_query(service: Service, image_id: str, box: Box | None) -> RequestedQuery:
    """An image of the collection as a query; raises `Unknown`."""
    start = time.perf_counter()
    query, share = _indexed(service, image_id, box)
    return RequestedQuery(query, share, time.perf_counter() - start)


def _file_of(form: Any) -> UploadFile:
    upload = form.get("image")
    if not isinstance(upload, UploadFile):
        raise HTTPException(422, f"expected a file in the field 'image', found the fields {sorted(set(form))[:8]}")
    if upload.size == 0:
        raise HTTPException(422, "the picture has 0 bytes")
    return upload


def _picture(service: Service, file: BinaryIO, limits: Limits, box: Box | None) -> tuple[np.ndarray, list[list[float]]]:
    return service.decode(lambda: _fit(service, load_image(file, "the picture", limits.pixels), box))


def _indexed(service: Service, image_id: str, box: Box | None) -> tuple[Query, list[list[float]]]:
    """A file where the whole picture is meant: the searcher leaves it out of its own hits."""
    if box is None:
        return service.picture_path(image_id), WHOLE
    return _fit(service, service.indexed_picture(image_id), box)


def _fit(service: Service, picture: np.ndarray, box: Box | None) -> tuple[np.ndarray, list[list[float]]]:
    share = WHOLE
    if box is not None:
        picture, part = crop(picture, box, "the picture")
        share = part.tolist()
    return service.fit(picture), share


def _descriptors(service: Service, given: QueryByDescriptors) -> Query:
    local, vector = given.descriptors.local, given.descriptors.global_
    width = service.searcher.backbone.width
    if any(len(row) != width for row in local):
        raise UserError(f"descriptors: local descriptors of this collection have {width} values each")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        features = np.array(local, np.float32)
    if not np.isfinite(features).all():
        raise UserError("descriptors: local descriptors hold NaN or infinity")
    if vector is None:
        if service.index.facts["statistics"] is None:
            raise UserError("descriptors: global is missing; only for SIFT it follows from the local ones")
        return DescriptorSet(features)
    unit = np.array(vector)
    if len(unit) != service.index.global_index.width or not abs(np.linalg.norm(unit) - 1) < UNIT_TOLERANCE:
        raise UserError(f"descriptors: expected {service.index.global_index.width} values of length 1 as global")
    return ExtractedImage(DescriptorSet(features), unit.astype(np.float32))


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise HTTPException(422, 'expected a JSON object, {"id": …} or {"descriptors": …}')
    return value


def _checked(model: type[Model], body: dict[str, Any]) -> Model:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise HTTPException(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
