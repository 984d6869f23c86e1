"""Strong random warps of a photograph: what another photographer, another day and another camera might have made of it.

A view is composed in four steps: geometry (a part of the photo through a homography and a smooth displacement, which stands
for depth), the place (before another photo, behind pieces of others), light and colour, and the camera (blur, resolution,
noise, JPEG). Other photos lend their mirror images: a mirrored thing has no matching descriptors in the photo itself, so
that what two views share is what the photo shows.

The photos themselves, their views and a sheet of them are written by working processes: no JAX here, so these start fast.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from ames_jax.extraction.images import load_image, resize, shrink
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file

Others = Callable[[np.random.Generator], np.ndarray]

# Chances of what happens to some views alone.
PASTED, OCCLUDED, SHADOWED, NIGHT, GREY, GLARE = 0.15, 0.3, 0.3, 0.08, 0.05, 0.05
MOVED, DEFOCUSED, COARSE = 0.2, 0.35, 0.4
LEAST_SIDE = 32  # pixels
METERED = 0.2, 0.65  # a camera's exposure keeps the mean brightness between
QUALITY = 95  # of the JPEG files that hold photos at the size of views
# Of a sheet: height and width of a picture, what is left free, JPEG quality.
CELL, GAP, SHEET_QUALITY = (128, 144), 6, 85
CACHED = 32  # decoded photos that a working process keeps


def warp(photo: np.ndarray, others: Others, random: np.random.Generator, side: int, strength: float = 1.0) -> bytes:
    """A view of a photograph as a JPEG file; a function of its arguments alone.

    Args:
      photo: RGB uint8 [H, W, 3].
      others: gives another photo of the same kind for random numbers.
      random: decides everything that is random.
      side: longer side of the view in pixels.
      strength: 0 changes next to nothing, 1 is what was measured to teach most.
    """
    photo = _enlarged(photo)
    height, width = _canvas(photo, random, side)
    background = _filled(_mirrored(others(random)), height, width, random)
    view = _placed(photo, background, random, strength)
    if random.random() < OCCLUDED * min(1, strength):
        for _ in range(int(random.integers(1, 4))):
            view = _occluded(view, _mirrored(others(random)), random, strength)
    view, noise = _lit(view.astype(np.float32) / 255, random, strength)
    return _taken(view, random, strength, noise)


def _canvas(photo: np.ndarray, random: np.random.Generator, side: int) -> tuple[int, int]:
    """Height and width: mostly the photo's own shape, sometimes turned or a square."""
    height, width = photo.shape[:2]
    shape = height / width
    kind = random.random()
    if kind < 0.2:
        shape = 1 / shape
    elif kind < 0.35:
        shape = 1.0
    shape *= math.exp(random.uniform(-0.15, 0.15))
    height, width = (side, side / shape) if shape > 1 else (side * shape, side)
    return max(LEAST_SIDE, round(height)), max(LEAST_SIDE, round(width))


def _enlarged(photo: np.ndarray) -> np.ndarray:
    """A photo of at least `LEAST_SIDE` pixels each way; most are as they were."""
    height, width = (max(LEAST_SIDE, side) for side in photo.shape[:2])
    return resize(photo, height, width)


def _mirrored(photo: np.ndarray) -> np.ndarray:
    return _enlarged(photo)[:, ::-1]


def _filled(photo: np.ndarray, height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """A random part of a photo, stretched to a size by at most a third."""
    shape = height / width * math.exp(random.uniform(-0.3, 0.3))
    most_height, most_width = photo.shape[:2]
    rows = min(most_height, most_width * shape) * random.uniform(0.5, 1)
    rows, columns = max(2, int(rows)), max(2, int(min(most_width, rows / shape)))
    top, left = int(random.integers(0, most_height - rows + 1)), int(random.integers(0, most_width - columns + 1))
    part = np.ascontiguousarray(photo[top : top + rows, left : left + columns])
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if rows > height else cv2.INTER_LINEAR)


def _placed(photo: np.ndarray, background: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """A part of the photo, seen from elsewhere, before the background."""
    height, width = background.shape[:2]
    pasted = random.random() < PASTED * min(1, strength)
    window = _window(photo, random, strength)
    target = _target(height, width, random, strength, random.uniform(0.5, 0.9) if pasted else 1.0)
    scale = math.sqrt(cv2.contourArea(target) / cv2.contourArea(window))
    if scale < 0.7:  # remapping alone would skip pixels
        rows, columns = (max(2, round(s * scale)) for s in photo.shape[:2])
        ratio = np.float32([columns / photo.shape[1], rows / photo.shape[0]])
        photo, window = cv2.resize(photo, (columns, rows), interpolation=cv2.INTER_AREA), window * ratio
    back = cv2.getPerspectiveTransform(target, window)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    unit = strength * max(height, width)
    columns, rows = (
        axis + unit * (0.015 * _field(height, width, random) + 0.004 * _field(height, width, random, 12))
        for axis in (columns, rows)
    )
    x, y, z = (back[i, 0] * columns + back[i, 1] * rows + back[i, 2] for i in range(3))
    beyond = z <= 1e-6  # behind the camera
    x, y = (np.where(beyond, -1e4, v / np.where(beyond, 1, z)).astype(np.float32) for v in (x, y))
    if pasted:
        (left, top), (right, bottom) = window.min(0), window.max(0)
    else:  # around the window lies what else the photo shows
        left, top, right, bottom = 0, 0, photo.shape[1] - 1, photo.shape[0] - 1
    inside = ((x >= left) & (x <= right) & (y >= top) & (y <= bottom)).astype(np.float32)
    inside = cv2.GaussianBlur(inside, (0, 0), 0.8)[..., None]
    warped = cv2.remap(photo, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return (inside * warped + (1 - inside) * background).astype(np.uint8)


def _window(photo: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """float32 [4, 2], corners of the part that is looked at: half of the photo's sides up to all of them."""
    height, width = photo.shape[:2]
    share = 1 - min(0.65, 0.45 * strength) * random.uniform(0, 1)
    shares = np.clip(share * np.exp(random.uniform(-0.15, 0.15, 2)), 0.2, 1)
    size = np.float32([width - 1, height - 1]) * shares
    corner = (np.float32([width - 1, height - 1]) - size) * random.uniform(0, 1, 2)
    return np.float32(corner + np.float32([[0, 0], [1, 0], [1, 1], [0, 1]]) * size)


def _target(height: int, width: int, random: np.random.Generator, strength: float, share: float) -> np.ndarray:
    """float32 [4, 2], where the corners of the part come to lie; share: of the view's sides that it takes."""
    size = np.float32([width, height])
    corners = np.float32([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    corners *= 1 + 0.22 * strength * random.uniform(-1, 1, (4, 2))
    # Mostly upright, as people photograph; now and then well turned.
    angle = math.radians(strength * (random.normal(0, 8) if random.random() < 0.85 else random.uniform(-40, 40)))
    turned = (
        corners * size * share @ np.float32([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    )
    free = 0.5 * (1 - share) + 0.05 * strength
    return np.float32(turned + size * (0.5 + free * random.uniform(-1, 1, 2)))


def _field(height: int, width: int, random: np.random.Generator, nodes: int = 4) -> np.ndarray:
    """float32 [height, width], smooth between `nodes` × `nodes` normal random numbers."""
    values = random.standard_normal((nodes, nodes), np.float32)
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)


def _occluded(view: np.ndarray, other: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """The view behind a piece of another photo."""
    height, width = view.shape[:2]
    radius = random.uniform(0.06, 0.06 + 0.14 * strength) * max(height, width)
    angles = np.sort(random.uniform(0, 2 * np.pi, int(random.integers(4, 9))))
    reach = radius * random.uniform(0.6, 1.3, len(angles))
    centre = random.uniform(0, 1, 2) * (width, height)
    outline = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.int32(outline)], 255, cv2.LINE_AA)
    piece, share = _filled(other, height, width, random), mask[..., None].astype(np.float32) / 255
    return (share * piece + (1 - share) * view).astype(np.uint8)


def _lit(view: np.ndarray, random: np.random.Generator, strength: float) -> tuple[np.ndarray, float]:
    """The view float32 [h, w, 3] of 0..1 in other light, and how much noise a camera adds in it."""
    height, width = view.shape[:2]
    light = np.exp(0.25 * strength * _field(height, width, random))
    if random.random() < SHADOWED:
        light *= _shadow(height, width, random, strength)
    darkest, noise, gain = METERED[0], 1.0, math.exp(0.25 * strength * random.normal())
    tint = np.exp(0.06 * strength * random.normal(size=3)).astype(np.float32)
    if random.random() < NIGHT * strength:
        gain, noise, darkest = gain * random.uniform(0.12, 0.35), 2.5, 0.5 * darkest
        tint *= np.float32([1.15, 1.0, 0.75])
    gamma = math.exp(0.35 * strength * random.normal())
    view = np.power(view, gamma) * (gain * light)[..., None].astype(np.float32) * tint
    if random.random() < GLARE * strength:
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        centre, radius = random.uniform(0, 1, 2) * (height, width), random.uniform(0.08, 0.25) * max(height, width)
        distance = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
        view = view + np.exp(-distance / (2 * radius**2), dtype=np.float32)[..., None]
    grey = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)[..., None]
    saturation = 0.0 if random.random() < GREY * strength else math.exp(0.2 * strength * random.normal())
    brightness = max(1e-3, float(grey.mean()))
    exposure = min(max(brightness, darkest), METERED[1]) / brightness
    contrast = math.exp(0.2 * strength * random.normal())
    view = exposure * (grey + saturation * (view - grey))
    return np.clip((view - 0.5) * contrast + 0.5, 0, 1).astype(np.float32), noise


def _shadow(height: int, width: int, random: np.random.Generator, strength: float) -> np.ndarray:
    """float32 [height, width]: 1, and less beyond a straight edge."""
    angle, soft = random.uniform(0, 2 * np.pi), random.uniform(1, 20)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    centre = random.uniform(0.2, 0.8, 2) * (height, width)
    distance = (rows - centre[0]) * math.sin(angle) + (columns - centre[1]) * math.cos(angle)
    dark = 1 - strength * random.uniform(0.3, 0.65)
    return np.float32(1 - (1 - max(0.1, dark)) * np.clip(distance / soft + 0.5, 0, 1))


def _taken(view: np.ndarray, random: np.random.Generator, strength: float, noise: float) -> bytes:
    """The JPEG file that a camera makes of a view float32 [h, w, 3]."""
    height, width = view.shape[:2]
    unit = max(height, width) / 640
    if random.random() < DEFOCUSED:
        view = cv2.GaussianBlur(view, (0, 0), 0.3 + unit * strength * random.uniform(0, 1.7))
    if random.random() < MOVED:
        view = cv2.filter2D(view, -1, _motion(random, unit * strength))
    if random.random() < COARSE:
        share = math.exp(-strength * random.uniform(0, 1.1))
        small = cv2.resize(view, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        view = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    deviation = noise * strength * random.uniform(0, 0.03)
    view = np.clip(view + deviation * random.standard_normal(view.shape, np.float32), 0, 1)
    quality = int(random.integers(round(95 - 60 * min(1, strength)), 96))
    pixels = np.rint(view[..., ::-1] * 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _motion(random: np.random.Generator, scale: float) -> np.ndarray:
    """A kernel float32 [n, n]: the line along which the camera moved."""
    length = max(1.0, scale * random.uniform(2, 11))
    size = 2 * math.ceil(length / 2) + 1
    kernel = np.zeros((size, size), np.uint8)
    angle, middle = random.uniform(0, np.pi), size // 2
    step = np.array([math.cos(angle), math.sin(angle)]) * length / 2
    start, end = (tuple(map(int, np.rint(middle + sign * step))) for sign in (-1, 1))
    cv2.line(kernel, start, end, 255, 1, cv2.LINE_AA)
    return (kernel / kernel.sum()).astype(np.float32)


def write_photo(source: Path, side: int, target: Path) -> None:
    """Writes a photo with its longer side at most `side`; of one that cannot be read, why, with the suffix .broken."""
    try:
        picture = shrink(load_image(source), side)
    except UserError as error:
        write_file(target.with_suffix(".broken"), str(error))
        return
    encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    write_file(target, encoded.tobytes())


def write_views(
    photo: Path, views: Sequence[tuple[int, Path]], others: Sequence[Path], key: Sequence[int], strength: float
) -> None:
    """Writes warped views of a photo, each whole or not at all.

    Args:
      photo: its file.
      views: number and file of each view.
      others: files of the photos that lend backgrounds.
      key: with a view's number, decides all that is random in it.
      strength: see `warp`.
    """

    def other(random: np.random.Generator) -> np.ndarray:
        return _decoded(others[int(random.integers(len(others)))])

    pixels = _decoded(photo)
    for number, file in views:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, number])))
        write_file(file, warp(pixels, other, random, max(pixels.shape[:2]), strength))


def write_sheet(target: Path, rows: Sequence[Sequence[Path]]) -> None:
    """Draws a row of small pictures for each row of files, as JPEG."""
    sheet = np.full((len(rows) * CELL[0], max(map(len, rows)) * CELL[1], 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, file in enumerate(row):
            picture = load_image(file)
            share = min((side - GAP) / own for side, own in zip(CELL, picture.shape))
            height, width = (max(1, round(share * own)) for own in picture.shape[:2])
            top, left = i * CELL[0] + (CELL[0] - height) // 2, j * CELL[1] + (CELL[1] - width) // 2
            sheet[top : top + height, left : left + width] = resize(picture, height, width)
    encoded = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, SHEET_QUALITY])[1]
    write_file(target, encoded.tobytes())


@functools.lru_cache(maxsize=CACHED)
def _decoded(file: Path) -> np.ndarray:
    return load_image(file)
