"""Malformed images of every mode and format that Pillow or tifffile writes.

Each is scored, or refused by its name: ImageError, or NaN where such images are skipped.
"""

import functools
import io
import struct
import zlib

import model_kinds
import numpy as np
from PIL import Image

import pydfm
from fuzz.children import WrongError
from pydfm.features.inputs.images import ImageError, extensions

SEED = 17
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_DEEP = ("I", "F", "I;16", "I;16B")


def case(number, folder):
    """Mutate, score, and return how it ended."""
    rng = np.random.default_rng([SEED, number])
    every = originals()
    label, ending, data = every[number % len(every)]
    path = folder / f"picture-{number % 2}{ending}"
    path.write_bytes(mutated(label, data, rng))
    dfm = model()
    family = label.split()[0]
    if number % 2:
        dfm.set_params(on_error="skip")
        score = dfm.score([path])
        if len(score) and np.isinf(score).any():
            raise WrongError(f"{label}: the score is {score}")
        return f"{family}: {'skipped' if np.isnan(score).all() else 'scored'}"
    dfm.set_params(on_error="raise")
    try:
        score = dfm.score([path])
    except ImageError as error:
        text = str(error)
        if str(path) not in text:
            raise WrongError(f"{label}: the message is {text!r}") from error
        return f"{family}: refused"
    if not np.isfinite(score).all():
        raise WrongError(f"{label}: the score is {score}")
    return f"{family}: scored"


def prepare():
    """Compute what all cases need, which does not count."""
    originals()
    model()


@functools.cache
def model():
    """A fitted model of small images, one thread of reading."""
    network = model_kinds.network()
    sizes = {"layers": "2", "image_size": 16, "device": "cpu", "n_threads": 1}
    return pydfm.DFM(2, backbone=network, intensity="16bit", **sizes).fit(model_kinds.IMAGES)


@functools.cache
def originals():
    """Return (label, ending, bytes) of whole files: each format, in each mode that it takes."""
    waves = model_kinds.waves(19, 23, 3)
    picture = Image.fromarray((127.5 + 127.5 * waves).astype(np.uint8))
    endings = {}
    for ending in sorted(extensions()):
        endings.setdefault(Image.registered_extensions()[ending], ending)
    found = []
    for kind, ending in sorted(endings.items()):
        if kind not in Image.SAVE:
            continue
        for mode in (*_MODES, *_DEEP):
            if kind == "ICNS" and mode != "RGB":
                continue  # twelve pictures each time, which takes a second
            file = io.BytesIO()
            try:
                in_mode(picture, mode).save(file, format=kind)
            except (OSError, ValueError, KeyError, TypeError, SystemError):
                continue  # a mode that the format does not have
            found.append((f"{kind} {mode}", ending, file.getvalue()))
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        file = io.BytesIO()
        other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture.save(file, format=kind, save_all=True, append_images=[other, picture])
        found.append((f"{kind} pages", endings[kind], file.getvalue()))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"):
        file = io.BytesIO()
        own = picture.convert("1") if compression == "group4" else picture
        own.save(file, format="TIFF", compression=compression)
        found.append((f"TIFF {compression}", ".tif", file.getvalue()))
    for quality in ({"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 1}):
        file = io.BytesIO()
        picture.save(file, format="JPEG", **quality)
        found.append((f"JPEG {next(iter(quality))}", ".jpg", file.getvalue()))
    return [*found, *scientific()]


def in_mode(picture, mode):
    if mode == "F" or mode.startswith("I"):
        deep = np.asarray(picture.convert("L")).astype(np.uint16) * 200
        if mode == "F":
            return Image.fromarray(deep.astype(np.float32))
        if mode == "I":
            return Image.fromarray(deep.astype(np.int32))
        # I;16B is not converted to; from bytes it is.
        own = deep.astype(">u2" if mode == "I;16B" else "<u2")
        return Image.frombytes(mode, (deep.shape[1], deep.shape[0]), own.tobytes())
    return picture.convert("RGB").convert(mode)


def scientific():
    """TIFFs that Pillow reads wrongly, or not at all."""
    import tifffile

    grey = (32767 * (1 + model_kinds.waves(19, 23))).astype(np.uint16)
    colour = np.stack([grey] * 3)
    for label, array, options in (
        ("white", grey, {"photometric": "miniswhite"}),
        ("planes", colour, {"photometric": "rgb", "planarconfig": "separate"}),
        ("deep colour", colour.transpose(1, 2, 0), {"photometric": "rgb"}),
        ("float64", grey.astype(np.float64), {"photometric": "minisblack"}),
        ("big", grey, {"photometric": "minisblack", "bigtiff": True}),
        ("tiles", np.tile(grey, (3, 3)), {"photometric": "minisblack", "tile": (16, 16)}),
        ("many", np.stack([grey] * 7), {"photometric": "minisblack"}),
    ):
        file = io.BytesIO()
        tifffile.imwrite(file, array, **options)
        yield f"TIFF {label}", ".tif", file.getvalue()


def mutated(label, data, rng):
    """Flip bits, cut, overwrite or claim; half of it in the first 100 bytes."""
    how = int(rng.integers(9))
    if how == 8 and label.startswith("PNG"):
        return png_that_claims(data, rng)
    data = bytearray(data)
    near = min(len(data), 100) if rng.random() < 0.5 else len(data)
    at = int(rng.integers(near))
    if how in (0, 1):
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(near))] ^= 1 << int(rng.integers(8))
    elif how == 2:
        del data[at:]
    elif how == 3:
        n = int(rng.integers(1, 32))
        data[at : at + n] = rng.bytes(n)
    elif how == 4:
        del data[at : at + int(rng.integers(1, 32))]
    elif how == 5:
        data[at:at] = rng.bytes(int(rng.integers(1, 32)))
    elif how == 6:
        data[at : at + 4] = b"\xff" * 4
    else:
        order = "<>"[int(rng.integers(2))]
        form, largest = (("H", 2**16), ("I", 2**32))[int(rng.integers(2))]
        claim = struct.pack(order + form, int(rng.integers(largest)))
        data[at : at + len(claim)] = claim
    return bytes(data)


def png_that_claims(data, rng):
    """A PNG whose header claims any size, with a checksum that is right."""
    sides = [2 ** int(rng.integers(1, 31)) - int(rng.integers(2)) for _ in range(2)]
    chunk = b"IHDR" + struct.pack(">II", *sides) + data[24:29]
    return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
