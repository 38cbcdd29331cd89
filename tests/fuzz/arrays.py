"""Odd arrays by every public method: refused by name, or answered as their numbers are.

What a method accepts must give what it gives for the same numbers in a plain float64 array.
"""

import functools

import model_kinds
import numpy as np
import pandas as pd
import scipy.sparse

import pydfm
from fuzz.children import WrongError
from pydfm.features.inputs.images import ImageError

SEED = 18
_N, _D = 40, model_kinds.N_FEATURES
_FITTING = ("fit", "partial_fit", "fit_predict", "forget", "recalibrate", "extra")
_SCORING = (
    *("score", "score_samples", "predict", "p_value", "decision_function", "layer_scores"),
    *("predict_class", "assess", "drift", "extract", "batches", "score_map"),
)
METHODS = (*_FITTING, *_SCORING)
_DOCUMENTED = (ValueError, TypeError, FileNotFoundError, ImageError)
_TYPES = (
    *("f2", "f4", "f8", ">f4", ">f8", "g", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4"),
    *("?", "c8", "c16", "O", "U8", "S8", "M8[s]", "m8[s]", "V8"),
)


def case(number, folder):
    """Pass an odd array to a method of one fitted model, and return how it ended."""
    rng = np.random.default_rng([SEED, number])
    method = METHODS[number % len(METHODS)]
    images = bool(rng.random() < 0.2)
    values, label = odd_values(rng, images)
    if method == "forget" and rng.random() < 0.5:
        values, label = rows(images)[: int(rng.integers(1, 9))].copy(), "fitted ones"
    X, form = in_form(values, rng)
    said = f"{method}({label} as {form})"
    others = odd_arguments(method, values, rng)
    try:
        found = call(method, X, images, others)
    except (ValueError, TypeError, OSError) as error:
        if type(error) not in _DOCUMENTED:
            raise
        if not str(error) or len(str(error)) > 1500:
            raise WrongError(f"{said}: the message is {str(error)[:99]!r}") from error
        return f"{method}: refused"
    if form in ("generator", "batches", "ragged"):
        return f"{method}: answered"
    plain = np.ascontiguousarray(np.asarray(values.tolist(), dtype=np.float64))
    if images and values.dtype == np.uint8:
        plain = np.ascontiguousarray(values)
    want = call(method, plain, images, others)
    check(said, found, want)
    return f"{method}: answered"


def prepare():
    """Compute what all cases need, which does not count."""
    for images in (False, True):
        fitted(images)


def check(said, found, want):
    """Raise WrongError unless two answers of a method are the same but for rounding."""
    for one, other in zip(flat(found), flat(want), strict=True):
        if one.shape != other.shape:
            raise WrongError(f"{said}: {one.shape}, and of plain numbers {other.shape}")
        if one.dtype.kind not in "fc":
            same = np.array_equal(one, other)
        else:
            scale = np.abs(other[np.isfinite(other)]).max(initial=0.0)
            same = np.allclose(one, other, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)
        if not same:
            raise WrongError(f"{said}: {one.ravel()[:3]}, and of plain numbers {other.ravel()[:3]}")


def flat(answer):
    if isinstance(answer, dict):
        return [np.asarray(own) for own in answer.values()]
    if isinstance(answer, tuple | list):
        return [np.asarray(own) for own in answer]
    return [np.asarray(answer)]


def call(method, X, images, others):
    """Call a method on a model of its own, or a shared one where it changes nothing."""
    if method not in _FITTING:
        dfm = fitted(images)
        found = getattr(dfm, method)(X, **others)
        if method == "batches":
            return [part for _, part, *_ in found]
        if method == "assess":
            return [found.scores, found.p_values]
        if method == "drift":
            return [found.p_value]
        return found
    dfm = model(images)
    if method in ("fit", "extra"):
        return dfm.fit(X, **others).score(queries(images))
    if method == "fit_predict":
        return dfm.fit_predict(X, **others)
    dfm.fit(rows(images))
    if method == "recalibrate":
        return [dfm.recalibrate(X, **others).found]
    return getattr(dfm, method)(X, **others).score(queries(images))


def odd_arguments(method, values, rng):
    """Labels or groups, mostly none, of the right length or not."""
    if method not in ("extra", "fit_predict", "partial_fit") or rng.random() < 0.5:
        return {}
    n = int(values.shape[0]) if values.ndim else 1
    odd = (
        *(np.arange(n) % 2, np.arange(n + 1), ["a", "b"] * (n // 2), np.full(n, np.nan)),
        *(np.zeros((n, 2)), "folders", "loader", "nothing", 7, {}, [None] * n, [[]] * n),
        *(np.arange(n) % 2 == 0, [b"x"] * n, np.arange(n) % 2 * 1.0, np.datetime64("2020")),
        pd.Series(["a", "b", None] * n)[:n],
    )
    own = odd[int(rng.integers(len(odd)))]
    return {"groups" if rng.random() < 0.3 else "labels": own}


def model(images):
    if not images:
        return pydfm.DFM(2, n_threads=2)
    sizes = {"layers": "2", "image_size": 16, "device": "cpu", "n_threads": 2}
    return pydfm.DFM(2, backbone=network(), **sizes)


@functools.cache
def network():
    return model_kinds.network()


@functools.cache
def fitted(images):
    return model(images).fit(rows(images))


def rows(images):
    return model_kinds.IMAGES if images else model_kinds.ROWS


def queries(images):
    return model_kinds.QUERIES if images else model_kinds.FEATURES


def odd_values(rng, images):
    """Numbers of a type, a shape and values of any kind, and words for them."""
    n = int(rng.choice([0, 1, 2, 3, 9, _N]))
    if images:
        shapes = ((n, 3, 16, 16), (n, 16, 16, 3), (n, 1, 16, 16), (3, 16, 16), (n, 3, 0, 16))
    else:
        shapes = ((n, _D), (n, _D + 1), (n, 0), (n, 1), (_D,), (), (2, 2, 2, 2, 2))
    shape = shapes[int(rng.integers(len(shapes)) if rng.random() < 0.3 else 0)]
    values = rng.normal(size=shape)
    if images:
        values = rng.random(shape)
    how = int(rng.integers(12))
    words = ("", "constant", "zero", "huge", "tiny", "denormal", "with NaN", "with inf")[how % 8]
    if how == 1:
        values = np.ones(shape)
    elif how == 2:
        values = np.zeros(shape)
    elif how in (3, 4, 5):
        values = values * (1e200, 1e-200, 1e-310)[how - 3]
    elif how in (6, 7) and values.size:
        values = np.array(values)
        values.flat[int(rng.integers(values.size))] = (np.nan, np.inf)[how - 6]
    elif how > 7:
        words = ""
    kind = _TYPES[int(rng.integers(len(_TYPES)))] if rng.random() < 0.5 else "f4"
    if kind.lstrip(">")[0] in "iu":
        values = values * 50
        if images:
            values, kind = values * 5, "u1"
    with np.errstate(all="ignore"):
        try:
            values = np.asarray(values, dtype=np.float64).astype(kind)
        except (TypeError, ValueError):
            values = np.zeros(shape, dtype=kind)
    return values, f"{words} {kind} {shape}"


def in_form(values, rng):
    """Give values in another layout or container, and the word for it."""
    import torch

    def misaligned(a):
        raw = np.zeros(a.nbytes + 1, dtype=np.uint8)
        own = raw[1:].view(a.dtype).reshape(a.shape) if a.dtype.kind not in "O" else a
        own[...] = a
        return own

    def read_only(a):
        own = a.copy()
        own.flags.writeable = False
        return own

    forms = {
        "array": lambda a: a,
        "Fortran": np.asfortranarray,
        "reversed": lambda a: a[::-1].copy()[::-1] if a.ndim else a,
        "strided": lambda a: np.repeat(a, 2, axis=0)[::2] if a.ndim else a,
        "misaligned": misaligned,
        "read-only": read_only,
        "list": lambda a: a.tolist(),
        "tuple": lambda a: tuple(a.tolist()) if a.ndim else a,
        "rows": lambda a: list(a) if a.ndim else [a],
        "generator": lambda a: iter([a, a[:0]]) if a.ndim else iter([a]),
        "frame": lambda a: pd.DataFrame(a) if a.ndim == 2 else pd.Series([a]),
        "masked": np.ma.masked_invalid if values.dtype.kind in "fc" else np.ma.asarray,
        "sparse": lambda a: scipy.sparse.csr_matrix(a) if a.ndim == 2 else a,
        "tensor": lambda a: torch.from_numpy(np.array(a)),
        "matrix": lambda a: np.asmatrix(a) if a.ndim == 2 else a,
        "buffer": lambda a: memoryview(a),
        "objects": lambda a: a.astype(object),
        "mapping": lambda a: {"x": a},
        "set": lambda a: {1, 2},
        "bytes": lambda a: a.tobytes(),
        "text": lambda a: "no such file",
        "none": lambda a: None,
        "ragged": lambda a: [a, a[:1, :1]] if a.ndim == 2 else [a, [a]],
        "batches": lambda a: [a, a],
    }
    names = list(forms)
    name = names[int(rng.integers(len(names)))] if rng.random() < 0.7 else "array"
    try:
        return forms[name](values), name
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return values, "array"
