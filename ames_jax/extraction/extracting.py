"""A list of images → their descriptors in chunks: resumable, shared by hosts, broken images named or listed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ames_jax.extraction.backbone import Backbone, ExtractedImage
from ames_jax.extraction.chunks import ChunkFolder, chunk_of
from ames_jax.extraction.images import crop, load_image
from ames_jax.extraction.listing import ImageFile, ImageFiles
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file as write_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractionJob:
    """What to extract.

    Attributes:
      images: the list. backbone: the extractor.
      root: folder of the data set. split: name of the split.
      skip_broken: leave images that cannot be read out of the data set instead of stopping.
      process, processes: this host does every `processes`-th chunk, from `process` on; all hosts see `root`.
      chunk: images of a chunk, which is what a killed run loses at most; by default what suits the backbone.
    """

    images: ImageFiles
    backbone: Backbone
    root: Path
    split: str = "images"
    skip_broken: bool = False
    process: int = 0
    processes: int = 1
    chunk: int | None = None

    @property
    def chunks(self) -> ChunkFolder:
        """Where the chunks are."""
        return ChunkFolder(self.root, self.split, len(self.images), self.chunk or self.backbone.together)

    def facts(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one before."""
        listed = [(file.id, file.label, file.box) for file in self.images.files]
        digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        return {"extraction": self.backbone.settings, "images": len(self.images), "list": digest}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A picture in the backbone's size, the share of the file that it is (offset, size), and the file's width, height."""

    pixels: np.ndarray
    share: np.ndarray
    size: tuple[int, int]


def extract_chunks(job: ExtractionJob) -> bool:
    """Extracts all chunks of this host that are not there yet; True when no chunk of any host is missing.

    Raises:
      UserError: an image is broken (unless they are skipped), or the folder holds a run with other settings.
    """
    chunks = job.chunks
    _claim(job, chunks)
    missing = chunks.missing()
    mine = [number for number in missing if number % job.processes == job.process]
    done = sum(len(chunks.rows(number)) for number in range(job.process, len(chunks), job.processes))
    left = sum(len(chunks.rows(number)) for number in mine)
    with tqdm(total=done, initial=done - left, desc=job.backbone.name, unit="image", disable=None) as bar:
        for number, loaded in _load(job, chunks, mine):
            found = _extract(job.backbone, loaded)
            sizes = np.array([(0, 0) if isinstance(image, str) else image.size for image in loaded], np.int64)
            chunks.write(number, chunk_of(found, sizes, job.backbone))
            bar.update(len(loaded))
    return not chunks.missing()


def _claim(job: ExtractionJob, chunks: ChunkFolder) -> None:
    path, facts = chunks.folder / "settings.json", {**job.facts(), "chunk": chunks.size}
    if path.exists():
        refuse_other(path.parent, json.loads(path.read_text(encoding="utf-8")), facts)
    try:
        chunks.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(facts))
    except OSError as error:
        raise UserError(f"--out={job.root} cannot be written: {error.strerror}") from error


def refuse_other(place: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError where a run with other settings was at work at `place`."""
    for key in (key for key in now if before.get(key) != now[key]):
        raise UserError(
            f"{place}: extracted with {key} = {before.get(key)}, now {key} = {now[key]}; use the same images and "
            "settings, another --split or --out, or delete it"
        )


def _load(job: ExtractionJob, chunks: ChunkFolder, numbers: Sequence[int]) -> Iterator[tuple[int, list[Loaded | str]]]:
    """The images of each chunk, read by threads while the chunk before is extracted; a broken one as its reason."""
    with ThreadPoolExecutor(usable_cores(), "load") as threads:

        def start(number: int) -> list[Future]:
            return [threads.submit(load, job.images.files[row], job.backbone) for row in chunks.rows(number)]

        ahead = start(numbers[0]) if numbers else []
        for number, following in zip(numbers, [*numbers[1:], None]):
            current, ahead = ahead, [] if following is None else start(following)
            yield number, [_result(future, job.skip_broken) for future in current]


def load(file: ImageFile, backbone: Backbone) -> Loaded:
    """Reads one image, cut to its box; raises UserError where it is broken."""
    image = load_image(file.path)
    size = image.shape[1], image.shape[0]
    share = np.float32([[0, 0], [1, 1]])
    if file.box is not None:
        try:
            image, share = crop(image, file.box)
        except UserError as error:
            raise UserError(f"{file.path}: {error}") from error
    return Loaded(backbone.fit(image), share, size)


def _result(future: Future, skip: bool) -> Loaded | str:
    try:
        return future.result()
    except UserError as error:
        if skip:
            return str(error)
        raise UserError(f"{error}; or leave such images out with --skip-broken") from error


def _extract(backbone: Backbone, loaded: Sequence[Loaded | str]) -> list[ExtractedImage | str]:
    """Descriptors of the whole images, positions mapped back to the whole picture; the reason of the broken ones."""
    whole = [image for image in loaded if not isinstance(image, str)]
    found = iter(backbone.extract([image.pixels for image in whole]))
    return [image if isinstance(image, str) else _placed(next(found), image.share) for image in loaded]


def _placed(extracted: ExtractedImage, share: np.ndarray) -> ExtractedImage:
    local = dataclasses.replace(extracted.local, xy=share[0] + share[1] * extracted.local.xy)
    return dataclasses.replace(extracted, local=local)
