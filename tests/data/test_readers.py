import io

import numpy as np
import pytest
from PIL import Image

from medjax.data.readers import decode_image, read_image
from medjax.errors import UserError


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def test_gray_is_repeated_over_the_channels():
    decoded = decode_image(encode(Image.fromarray(GRAY)), "x")
    np.testing.assert_array_equal(decoded, np.repeat(GRAY[:, :, None], 3, axis=2))


def test_sixteen_bits_keep_the_full_range():
    wide = GRAY.astype(np.uint16) * 257
    decoded = decode_image(encode(Image.fromarray(wide)), "x")
    np.testing.assert_array_equal(decoded[:, :, 0], GRAY)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_fewer_bits_of_sixteen_are_not_dark(bits, kind):
    wide = np.round(GRAY / 255 * (2**bits - 1)).astype(np.uint16)
    decoded = decode_image(encode(Image.fromarray(wide), kind), "x")
    np.testing.assert_array_equal(decoded[:, :, 0], GRAY)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = Image.fromarray(GRAY).convert(mode if mode != "CMYK" else "RGB")
    decoded = decode_image(encode(image.convert(mode), kind), "x")
    assert decoded.shape == (3, 4, 3)
    if mode in ("RGBA", "LA"):
        np.testing.assert_array_equal(decoded[:, :, 1], GRAY)


def test_transparent_pixels_are_black():
    image = Image.new("RGBA", (2, 2), (200, 100, 50, 0))
    assert decode_image(encode(image), "x").max() == 0


def test_photos_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned by 90 degrees.
    encoded = encode(Image.fromarray(GRAY), "JPEG", exif=exif)
    assert decode_image(encoded, "x").shape == (4, 3, 3)


@pytest.mark.parametrize("keep", [0, 10, 0.6])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_image_is_named(kind, keep):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    encoded = encode(Image.fromarray(noise), kind)
    cut = encoded[: int(keep * len(encoded)) if keep < 1 else keep]
    with pytest.raises(UserError, match=r"record 7: not a readable image"):
        decode_image(cut, "record 7")


def test_floating_point_pixels_are_refused():
    image = Image.fromarray(GRAY.astype(np.float32))
    with pytest.raises(UserError, match="floating-point"):
        decode_image(encode(image, "TIFF"), "x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.png: cannot be read"):
        read_image(tmp_path / "nothing.png")
