"""From a picture as it comes to the pixels that a network sees: rotation, colour, square, size."""

from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from incrlt.errors import UserError

Pixels = npt.NDArray[np.uint8]
_opening = threading.Lock()

REDUCED_ABOVE: Final = 4
"""A JPEG this many times as large as wanted is reduced while it is decoded, to twice the size at least: a picture of 12
megapixels is then read in a sixth of the time."""


def read_picture(
    file: str | Path | bytes | IO[bytes], height: int, width: int, channels: int = 3, name: object = None
) -> Pixels:
    """Return a picture file's pixels, uint8 ``[height, width, channels]``.

    It is turned as its EXIF tag says, transparent parts lie on white, 16-bit grey is scaled, and the largest central
    rectangle of the wanted shape is brought to size by averaging (Pillow's bilinear filter).

    Args:
        file: Path, bytes, or an open file.
        height: Pixels wanted.
        width: Pixels wanted.
        channels: 3 for colour, 1 for grey.
        name: What to call it in an error; its path by default.

    Raises:
        UserError: It cannot be read; the sentence names it and says why.
    """
    name = file if name is None else name
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        with _opened(source) as picture:
            _reduce(picture, height, width)
            ImageOps.exif_transpose(picture, in_place=True)
            return prepared(picture, height, width, channels, name)
    except UserError:
        raise
    except Exception as error:  # PIL raises whatever a damaged file provokes
        raise UserError(
            f"the picture {name} cannot be read ({_why(error, file)}); mend or remove it."
        ) from error


def _why(error: Exception, file: str | Path | IO[bytes] | bytes) -> str:
    """Return the reason, the same for the same content: Pillow's own words name places in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "the file is empty" if file == b"" else "its content is that of no picture"
    return f"{type(error).__name__}: {error}"


def _opened(source: str | Path | IO[bytes]) -> Image.Image:
    """Return a picture of which only the head was read; more pixels than a camera has, of which PIL warns, raise."""
    with _opening, warnings.catch_warnings():  # which is no matter of one thread
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(source)


def _reduce(picture: Image.Image, height: int, width: int) -> None:
    """Let a JPEG that is much too large be decoded at a fraction of its size."""
    longest = max(height, width)
    if picture.format == "JPEG" and min(picture.size) >= REDUCED_ABOVE * longest:
        picture.draft(None, (2 * longest, 2 * longest))


def prepared(
    picture: Image.Image, height: int, width: int, channels: int = 3, name: object = "given"
) -> Pixels:
    """Return the pixels of an open picture, as :func:`read_picture` does."""
    whole = in_colour(picture, name)
    if channels == 1:
        whole = whole.convert("L")
    pixels = np.asarray(ImageOps.fit(whole, (width, height), Image.Resampling.BILINEAR))
    return pixels[:, :, None] if channels == 1 else pixels


def in_colour(picture: Image.Image, name: object) -> Image.Image:
    """Return a picture in 8-bit colour: 16-bit grey is scaled, transparent parts lie on white.

    Raises:
        UserError: The values are 32-bit, of which nobody knows what is white.
    """
    if picture.mode in ("I", "F"):
        raise UserError(
            f"the picture {name} has 32-bit values (mode {picture.mode}), whose white is not known; allowed are 8 and "
            "16 bits a channel. Convert or remove it."
        )
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(np.round(values / 257).astype(np.uint8))  # 65535 = 255 * 257
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy
    coloured = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
