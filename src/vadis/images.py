"""Reading scene images safely: what is no upright 8-bit RGB picture becomes one or is refused, without torchvision."""

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vadis.errors import FileError, MissingExtra, VadisError

MAX_PIXELS = 50_000_000
"""Larger images are refused by their header, before anything is decoded."""
MAX_BYTES = 200_000_000
MAX_ASPECT = 100
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
Image = Any
"""A path, a PIL image or a uint8 array `(H, W, 3)`."""


def load_image(source: Image, max_pixels: int = MAX_PIXELS) -> Any:
    """An upright 8-bit RGB PIL image from a path, a PIL image or a uint8 array `(H, W)`, `(H, W, 3)` or `(H, W, 4)`.

    The EXIF rotation is applied, transparency laid on white, 16-bit grey scaled to 8 bits and CMYK converted.
    Raises FileError for a file that is missing, too large, damaged, animated or no image, VadisError for other values.
    """
    try:
        from PIL import Image as PILImage
    except ImportError as error:
        raise MissingExtra("reading images needs Pillow: pip install 'vadis[export]'") from error
    if isinstance(source, str | Path):
        with _readable(Path(source), max_pixels) as image:
            return _rgb(image, str(source))
    if isinstance(source, PILImage.Image):
        _check_size(source.size, "the image", max_pixels)
        return _rgb(source, "the image")
    if isinstance(source, np.ndarray):
        if (
            source.dtype != np.uint8
            or source.ndim not in (2, 3)
            or (source.ndim == 3 and source.shape[2] not in (3, 4))
        ):
            raise VadisError(
                f"an image array must be uint8 (H, W, 3); got {source.dtype} {source.shape}. Scale it to 0 … 255."
            )
        _check_size((source.shape[1], source.shape[0]), "the image", max_pixels)
        return _rgb(PILImage.fromarray(np.ascontiguousarray(source)), "the image")
    raise VadisError(f"an image is a path, a PIL image or a uint8 array; got a {type(source).__name__}.")


@contextmanager
def _readable(path: Path, max_pixels: int) -> Iterator[Any]:
    """The opened image, its header checked; what PIL raises becomes a FileError of one sentence."""
    from PIL import Image as PILImage
    from PIL import UnidentifiedImageError

    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise FileError(f"there is no image at {path}: check the path.") from error
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path} is not a file: name one image.")
    if status.st_size == 0:
        raise FileError(f"{path} is empty: its download or export was not finished.")
    if status.st_size > MAX_BYTES:
        raise FileError(f"{path} has {status.st_size / 1e6:,.0f} MB; images up to {MAX_BYTES / 1e6:,.0f} MB are read.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)  # our own limit is lower
            with PILImage.open(path, formats=FORMATS) as image:
                _check_size(image.size, str(path), max_pixels)
                count = getattr(image, "n_frames", 1)
                if image.format != "MPO" and count > 1:  # MPO: a photograph with smaller versions of itself
                    raise FileError(f"{path} holds {count} pictures: save the one that shows the scene.")
                yield image
    except PILImage.DecompressionBombError as error:
        raise FileError(f"{path} is larger than {max_pixels / 1e6:g} megapixels: scale it down.") from error
    except UnidentifiedImageError as error:
        raise FileError(f"{path} is not a readable image ({', '.join(FORMATS)}): convert it to PNG.") from error
    except VadisError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, ArithmeticError, KeyError, IndexError) as error:
        raise FileError(f"{path} is damaged ({str(error)[:100] or type(error).__name__}): save it again.") from error


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise FileError(f"{name} has no pixels ({width} × {height}).")
    if width * height > max_pixels:
        raise FileError(
            f"{name} has {width} × {height} = {width * height / 1e6:,.0f} megapixels; up to {max_pixels / 1e6:g} are "
            "read: scale it down."
        )
    if max(size) > MAX_ASPECT * min(size):
        raise FileError(f"{name} is {width} × {height}, a strip rather than a picture: crop it.")


def _rgb(image: Any, name: str) -> Any:
    """Decode, turn upright, lay on white, convert."""
    from PIL import Image as PILImage
    from PIL import ImageOps

    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise FileError(f"{name} is damaged or cut off ({str(error)[:100]}): save it again.") from error
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged EXIF block raises whatever its parser stumbled over
        raise FileError(f"{name} has damaged EXIF data ({str(error)[:80]}): save it without metadata.") from error
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        image = PILImage.fromarray(((deep + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise FileError(
            f"{name} stores numbers of 32 bits, whose range for black and white is unknown: save it as PNG."
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PILImage.new("RGBA", image.size, (255, 255, 255, 255))
        image = PILImage.alpha_composite(white, image)
    return image.convert("RGB")
