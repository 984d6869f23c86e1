"""Image files of every kind become upright RGB; what cannot be read is named."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ames_jax.extraction import images
from ames_jax.extraction.images import crop, load_image, resize, shrink
from ames_jax.runtime.errors import UserError

GRADIENT = np.tile(np.linspace(0, 255, 30).astype(np.uint8), (20, 1))  # dark left, bright right
COLOUR = np.stack([GRADIENT, GRADIENT[:, ::-1], np.full_like(GRADIENT, 40)], -1)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_colour_is_kept(tmp_path: Path) -> None:
    np.testing.assert_array_equal(load_image(saved(tmp_path / "a.png", Image.fromarray(COLOUR))), COLOUR)


@pytest.mark.parametrize(("tag", "turns", "mirrored"), [(3, 2, False), (6, 3, False), (8, 1, False), (2, 0, True)])
def test_exif_turns_it_upright(tmp_path: Path, tag: int, turns: int, mirrored: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    found = load_image(saved(tmp_path / "a.png", Image.fromarray(COLOUR), exif=exif))
    expected = COLOUR[:, ::-1] if mirrored else np.rot90(COLOUR, turns)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("1", "png"), ("P", "png"), ("LA", "png"), ("CMYK", "jpg"), ("CMYK", "tif")]
)
def test_other_modes_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    found = load_image(saved(tmp_path / f"a.{suffix}", Image.fromarray(COLOUR).convert(mode)))
    assert found.shape == (20, 30, 3)
    assert found.dtype == np.uint8
    expected = np.asarray(Image.fromarray(COLOUR).convert(mode).convert("RGB"))
    assert np.abs(found.astype(int) - expected).mean() < 4  # JPEG loses a little


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, 15:] = 255
    found = load_image(saved(tmp_path / "a.png", Image.fromarray(np.dstack([COLOUR, alpha]))))
    assert (found[:, :15] == 255).all()
    np.testing.assert_array_equal(found[:, 15:], COLOUR[:, 15:])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_rounded_to_8(tmp_path: Path, suffix: str) -> None:
    found = load_image(saved(tmp_path / f"a.{suffix}", Image.fromarray(GRADIENT.astype(np.uint16) * 257)))
    np.testing.assert_array_equal(found, np.repeat(GRADIENT[..., None], 3, 2))


def test_floats_are_read_as_0_to_1(tmp_path: Path) -> None:
    found = load_image(saved(tmp_path / "a.tif", Image.fromarray(GRADIENT.astype(np.float32) / 255)))
    np.testing.assert_array_equal(found[..., 1], GRADIENT)


def test_tiny_and_extreme_shapes(tmp_path: Path) -> None:
    for shape in ((1, 1), (1, 3000), (3000, 2)):
        found = load_image(saved(tmp_path / "a.png", Image.new("RGB", shape[::-1])))
        assert found.shape == (*shape, 3)
        small = shrink(found, 640)
        assert max(small.shape) <= 640
        assert min(small.shape) >= 1


def test_huge_images_are_no_bomb(tmp_path: Path) -> None:
    # Above 89 million pixels Pillow would warn of a decompression bomb, and a warning is an error here.
    path = saved(tmp_path / "a.png", Image.new("1", (9_600, 9_400)))
    assert load_image(path).shape == (9_400, 9_600, 3)


def tiff(path: Path, values: np.ndarray, kind: int, black: int = 1) -> Path:
    """An uncompressed grey TIFF; kind: 1 unsigned, 2 signed, 3 floats; black 0: small values are white."""
    height, width = values.shape
    bits, data = values.itemsize * 8, values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, black), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(data)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0))
    return path


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (GRADIENT.astype(np.int32), 2, "signed integers of 32 bits"),
        (GRADIENT.astype(np.uint32) << 23, 1, "unsigned integers of 32 bits"),
        (GRADIENT.astype(np.int16) * 128, 2, "signed integers of 16 bits"),
        (GRADIENT.astype(np.int8), 2, "signed integers of 8 bits"),
        (GRADIENT.astype(np.float32), 3, r"values from 0 to 255; expected floats of 0 to 1"),
        (np.full((2, 2), np.nan, np.float32), 3, r"values from nan to nan"),
        (GRADIENT.astype(np.float64), 3, r"cannot be read as an image"),
    ],
)
def test_a_tiff_whose_white_is_not_known_is_no_black_picture(
    tmp_path: Path, values: np.ndarray, kind: int, message: str
) -> None:
    with pytest.raises(UserError, match=rf"a\.tif: {message}"):
        load_image(tiff(tmp_path / "a.tif", values, kind))


def test_a_tiff_of_unsigned_integers_or_shares_is_read(tmp_path: Path) -> None:
    for values, kind in ((GRADIENT, 1), (GRADIENT.astype(np.uint16) * 257, 1), (np.float32(GRADIENT) / 255, 3)):
        np.testing.assert_array_equal(load_image(tiff(tmp_path / "a.tif", values, kind))[..., 0], GRADIENT)
        turned = load_image(tiff(tmp_path / "a.tif", values, kind, black=0))
        np.testing.assert_array_equal(turned[..., 0], 255 - GRADIENT)


def test_a_header_that_claims_too_much_is_refused_before_decoding(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(COLOUR))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 40_000, 25_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png: 40000 × 25000 pixels are more than 300,000,000; shrink it"):
        load_image(path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0garbage, no block at all"])
def test_a_broken_exif_block_is_no_broken_picture(tmp_path: Path, block: bytes) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(COLOUR), exif=block)
    assert load_image(path).shape == COLOUR.shape


def test_a_broken_exif_block_is_no_line_on_stderr(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(COLOUR), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    code = f"from ames_jax.extraction.images import load_image; load_image({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_orientation_0_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 0
    found = load_image(saved(tmp_path / "a.png", Image.fromarray(COLOUR), exif=exif))
    np.testing.assert_array_equal(found, COLOUR)


def test_folders_and_pipes_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("x.jpg", "pipe.jpg"):
        with pytest.raises(UserError, match=f"{name}: a folder or a device"):
            load_image(tmp_path / name)


def test_the_package_that_reads_a_picture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(images.UNREAD, ".heic", "pillow-heif")
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=r"a\.HEIC: cannot be read .*pip install pillow-heif"):
        load_image(tmp_path / "a.HEIC")


def test_too_little_memory_is_not_a_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(COLOUR))
    monkeypatch.setattr(Image.Image, "getexif", lambda _: {})
    monkeypatch.setattr(images, "_as_rgb", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(UserError, match=r"a\.png: too large for the memory"):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_broken_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(COLOUR))
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(UserError, match=r"a\.jpg: cannot be read as an image"):
        load_image(path)
    with pytest.raises(UserError, match=r"b\.jpg: no such image"):
        load_image(tmp_path / "b.jpg")


def test_shrinking_averages_and_never_enlarges() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[::2] = 200
    np.testing.assert_array_equal(shrink(image, 30), np.full((20, 30, 3), 100, np.uint8))
    assert shrink(image, 60) is image
    assert resize(image, 80, 120).shape == (80, 120, 3)


def test_crop_maps_positions_back() -> None:
    image = np.arange(100 * 200 * 3, dtype=np.uint32).reshape(100, 200, 3)
    part, share = crop(image, (50.5, 20, 150, 1000), "a.png")
    np.testing.assert_array_equal(part, image[20:100, 50:150])
    np.testing.assert_allclose(share[0] + share[1] * [0, 0], [0.25, 0.2])
    np.testing.assert_allclose(share[0] + share[1] * [1, 1], [0.75, 1.0])
    with pytest.raises(UserError, match=r"a\.png: box .* holds nothing"):
        crop(image, (300, 0, 400, 50), "a.png")


def test_a_picture_starts_no_other_program(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(UserError, match=r"a\.jpg: EPS files are drawn by another program, which is not run"):
        load_image(path)
