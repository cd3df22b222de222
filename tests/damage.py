"""Make damaged images and texts, with all kinds of damage to files, from a seed."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}
# Pillow's modes that each kind of file can store.
MODES = {
    "PNG": ("RGB", "L", "1", "P", "LA", "RGBA", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "BMP": ("RGB", "L", "1", "P"),
    "TIFF": ("RGB", "L", "1", "P", "RGBA", "CMYK", "I;16", "I", "F", "LAB"),
    "WEBP": ("RGB", "RGBA", "L"),
}
NAMES = (
    b"caf\xe9 latin.png",
    b"\xff\xfe.png",
    b"two\nlines.png",
    b"a\ttab\r.png",
    b"-rf.png",
    b"--help.png",
    b" .png",
    b"UPPER.PNG",
    b"many.dots..png",
    b"a#2.png",
    b'quote".png',
    b"percent%s{0}.png",
    b"back\\slash.png",
    b"long" * 60 + b".png",
    "é.png".encode(),
    "e\u0301.png".encode(),
    "\u202egnp.png".encode(),
    "\u2028.png".encode(),
    "日本/画像.png".encode(),
    b"\x01\x7f.png",
)


def picture(rng: np.random.Generator, mode: str) -> Image.Image:
    """Return an image of random size and content."""
    height, width = rng.integers(1, 40, 2)
    if mode in ("I;16", "I"):
        bits = int(rng.integers(1, 17))
        kind = np.uint16 if mode == "I;16" else np.int32
        values = rng.integers(0, 2**bits, (height, width)).astype(kind)
        # Some values need more than 16 bits, or are below zero.
        if mode == "I" and rng.random() < 0.3:
            values = values * 70_000 - 5
        return Image.fromarray(values)
    if mode == "F":
        values = rng.normal(size=(height, width)).astype(np.float32)
        values[rng.random((height, width)) < 0.1] = rng.choice([np.nan, np.inf])
        return Image.fromarray(values)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    if mode == "LAB":
        return Image.new("LAB", image.size, (50, 3, 3))
    return image.convert(mode)


def encoded(rng: np.random.Generator, kind: str) -> bytes:
    """Return an image file of any mode, sometimes of several pages."""
    image = picture(rng, str(rng.choice(MODES[kind])))
    buffer = io.BytesIO()
    pages = kind in ("PNG", "TIFF", "WEBP") and rng.random() < 0.15
    more = [image.copy() for _ in range(3)]
    options = {"save_all": True, "append_images": more} if pages else {}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cut(rng: np.random.Generator, content: bytes) -> bytes:
    return content[: int(rng.integers(0, len(content)))]


def flip(rng: np.random.Generator, content: bytes) -> bytes:
    changed = np.frombuffer(content, np.uint8).copy()
    where = rng.integers(0, len(changed), rng.integers(1, 9))
    changed[where] ^= rng.integers(1, 256, len(where)).astype(np.uint8)
    return changed.tobytes()


def flip_in_the_header(rng: np.random.Generator, content: bytes) -> bytes:
    return flip(rng, content[:48]) + content[48:]


def blank(rng: np.random.Generator, content: bytes) -> bytes:
    start = int(rng.integers(0, len(content)))
    return (
        content[:start] + bytes(min(64, len(content) - start)) + content[start + 64 :]
    )


def double(rng: np.random.Generator, content: bytes) -> bytes:
    start = int(rng.integers(0, len(content)))
    return content[:start] + content + content[start:]


def noise(rng: np.random.Generator, content: bytes) -> bytes:
    return content[:12] + rng.bytes(len(content))


def nothing(rng: np.random.Generator, content: bytes) -> bytes:
    return b""


def text(rng: np.random.Generator, content: bytes) -> bytes:
    return b"<html><body>404 Not Found</body></html>"


def keep(rng: np.random.Generator, content: bytes) -> bytes:
    return content


def declare(width: int, height: int) -> Callable[[np.random.Generator, bytes], bytes]:
    """Return a damage: the header of a PNG gives another size."""

    def declared(rng: np.random.Generator, content: bytes) -> bytes:
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return _png(header, b"IDAT" + zlib.compress(rng.bytes(99)), b"IEND")

    return declared


def _png(*chunks: bytes) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for chunk in chunks:
        parts += [struct.pack(">I", len(chunk) - 4), chunk]
        parts += [struct.pack(">I", zlib.crc32(chunk))]
    return b"".join(parts)


DAMAGES = (
    keep,
    cut,
    cut,
    flip,
    flip,
    flip_in_the_header,
    flip_in_the_header,
    blank,
    double,
    noise,
    nothing,
    text,
    declare(2**31 - 1, 2**31 - 1),
    declare(30_000, 30_000),
    declare(0, 5),
    declare(200, 200),
)


def write_damaged(folder: Path, count: int, seed: int) -> Iterator[Path]:
    """Write image files, damaged or not; yield their paths."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        kind = str(rng.choice(list(KINDS)))
        damage = DAMAGES[number % len(DAMAGES)]
        suffix = KINDS[str(rng.choice(list(KINDS)))] if number % 9 == 0 else KINDS[kind]
        name = os.fsencode(f"{number % 7}/{number:03}{suffix}")
        if number < len(NAMES):
            name = NAMES[number]
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damage(rng, encoded(rng, kind)))
        yield path


def write_no_files(folder: Path) -> Iterator[Path]:
    """Make things with the name of an image that are not files; yield the paths."""
    links = {"loop.png": "loop.png", "there.png": "back.png", "back.png": "there.png"}
    links |= {"dangling.jpg": "nowhere.jpg", "absent.jpg": "/no/such/place.jpg"}
    links |= {"circle": "."}
    for name, target in links.items():
        (folder / name).symlink_to(target)
        yield folder / name
    for name in ("folder.png", "0/folder.jpg"):
        (folder / name).mkdir()
        yield folder / name
    os.mkfifo(folder / "pipe.bmp")
    yield folder / "pipe.bmp"
