"""Mutated model files of every kind: refused with one sentence, or answered as a model answers.

Case n mutates the file n mod 34 of the fixtures. Where the hash is as it was, only the scores of
the file as it was are right. Where it is computed again, as one who forges a file would, other
values are other models: their answers must be numbers, and of the shapes of the model's.
"""

import copy
import functools
import json
import re
import struct
from pathlib import Path

import model_files
import model_kinds
import numpy as np
import safetensors

import pydfm
from fuzz.children import WrongError

SEED = 16
FILES = sorted((Path(__file__).parents[1] / "io" / "fixtures").glob("*.pydfm"))
_LACKING = "has no maps of held-out images|there are no held-out scores|scores cannot be combined"
ODD = (
    *(None, True, False, -1, 0, 1, 2, 3, 10**6, 2**31, 2**63, 10**40, 0.5, -0.5, 1e-320, 1e300),
    *(float("nan"), float("inf"), "", "x", "fre", "nll", "max", "../x", "a\nb", "\x1b[31m"),
    *([], [1], [0, 0], ["a", "b"], [[1]], {}, {"a": 1}, [2**40, 2**40]),
)


def case(number, folder):
    """Mutate, load, and use; return how it ended."""
    rng = np.random.default_rng([SEED, number])
    source = FILES[number % len(FILES)]
    path = folder / f"model-{number % 2}.pydfm"
    kind = ("bytes", "header", "tensor", "container")[number // len(FILES) % 4]
    if kind == "bytes":
        path.write_bytes(mutated_bytes(source.read_bytes(), rng))
    elif kind == "container":
        path.write_bytes(mutated_container(source.read_bytes(), rng))
    else:
        model_files.write(
            path, *(mutated_header if kind == "header" else mutated_tensors)(source, rng)
        )
    rows, want, own = wanted(source)
    try:
        dfm = pydfm.load(path, **own)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        text = str(error)
        # One sentence; of the file, or of what the network of the file does not fit.
        named = str(path) in text or re.match("(backbone|weights|pool) is ", text)
        if not named or "\n" in text or "\x1b" in text:
            raise WrongError(f"the message is {text!r}") from error
        return f"{kind}: refused"
    try:
        found = model_kinds.answers(dfm, rows)
    except ValueError as error:
        # A model may lack what a question needs.
        if kind not in ("header", "tensor") or not re.search(_LACKING, str(error)):
            raise
        return f"{kind}: loaded, a question refused"
    if kind in ("bytes", "container"):
        return f"{kind}: {check_same(found, want)}"
    check_answers(found, want)
    return f"{kind}: loaded"


def prepare():
    """Compute what all cases need, which does not count."""
    wanted(FILES[0])
    model_kinds.network()


def check_same(found, want):
    """Raise WrongError unless two sets of answers are the same."""
    for name, own in want.items():
        if not np.array_equal(found[name], own):
            raise WrongError(f"{name} differs, and nothing was said")
    return "same"


def check_answers(found, want):
    """Raise WrongError unless answers are such as a model may give."""
    for name, own in found.items():
        if name == "threshold":  # one for each class, and NaN for one without held-out scores
            continue
        if own.dtype.kind == "f" and np.isnan(own).any():
            raise WrongError(f"{name} is NaN")
        if name in want and len(own) != len(want[name]):
            raise WrongError(f"{name} has {len(own)} of {len(want[name])}")
        if name == "p_values" and not ((own > 0) & (own <= 1)).all():
            raise WrongError(f"p_values are {own}")


@functools.cache
def wanted(source):
    """Return rows, the answers of a file to them, and what its network is loaded with."""
    own = {}
    with safetensors.safe_open(source, framework="np") as file:
        if json.loads(file.metadata()["pydfm"])["features"] is not None:
            own = {"backbone": model_kinds.network(), "device": "cpu"}
    dfm = pydfm.load(source, **own)
    rows = np.load(source.with_suffix(".npz"))["queries"]
    return rows, model_kinds.answers(dfm, rows), own


parts = functools.cache(model_files.parts)


def mutated_bytes(data, rng):
    """Flip bits, cut, overwrite, insert, double or move."""
    data = bytearray(data)
    # Half of the places are in the header, which is a small part of a large file.
    near = min(len(data), 2000) if rng.random() < 0.5 else len(data)
    at = int(rng.integers(near))
    how = int(rng.integers(7))
    if how == 0:
        for _ in range(int(rng.integers(1, 9))):
            data[int(rng.integers(near))] ^= 1 << int(rng.integers(8))
    elif how == 1:
        del data[at:]
    elif how == 2:
        del data[at : at + int(rng.integers(1, 64))]
    elif how == 3:
        n = int(rng.integers(1, 64))
        data[at : at + n] = rng.bytes(n)
    elif how == 4:
        data[at:at] = rng.bytes(int(rng.integers(1, 64)))
    elif how == 5:
        data += bytes(data[at:])
    else:
        data[at : at + 8] = bytes(8) if rng.random() < 0.5 else b"\xff" * 8
    return bytes(data)


def mutated_container(data, rng):
    """Change what safetensors says of a file: lengths, types, shapes and places of tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    described, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    how = int(rng.integers(5))
    if how == 0:
        claims = (0, 1, length - 1, length + 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1)
        claim = claims[int(rng.integers(len(claims)))]
        return struct.pack("<Q", claim) + data[8:]
    names = [name for name in described if name != "__metadata__"]
    own = described[names[int(rng.integers(len(names)))]]
    if how == 1:
        kinds = ("F32", "F64", "I64", "U8", "BOOL", "BF16", "F16", "I128", "", None)
        own["dtype"] = kinds[int(rng.integers(len(kinds)))]
    elif how == 2:
        shape = own["shape"]
        odd = (0, 1, 2**31, 2**40, 2**63, -1, 0.5, "x", *shape)
        own["shape"] = [odd[int(rng.integers(len(odd)))] for _ in range(int(rng.integers(4)))]
    elif how == 3:
        spread = max(1, len(body))
        own["data_offsets"] = [int(x) for x in rng.integers(-4, spread + 2**33 // 7, 2)]
    else:
        described["__metadata__"] = ODD[int(rng.integers(len(ODD)))]
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text + body


def places(value, before=()):
    """Yield the places in a header, of long lists the first."""
    if before:
        yield before
    inner = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = list(enumerate(value))[:4]
    for key, own in inner:
        yield from places(own, (*before, key))


def mutated_header(source, rng):
    """Give a field of the header an odd value, that of another field, or none at all."""
    tensors, header = parts(source)
    header = copy.deepcopy(header)
    every = list(places(header))
    for _ in range(1 if rng.random() < 0.8 else 3):
        *outer, last = every[int(rng.integers(len(every)))]
        inner = header
        try:
            for key in outer:
                inner = inner[key]
            how = rng.random()
            if how < 0.1:
                del inner[last]
            elif how < 0.15:
                inner[last] = json.loads("[" * 300 + "]" * 300)
            elif how < 0.3 and isinstance(inner[last], int | float):
                inner[last] = inner[last] * 2 + 1
            else:
                inner[last] = copy.deepcopy(ODD[int(rng.integers(len(ODD)))])
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    return tensors, header


def mutated_tensors(source, rng):
    """Change values, shape, type or name of a tensor, or leave it out."""
    tensors, header = parts(source)
    names = sorted(tensors)
    name = names[int(rng.integers(len(names)))]
    old = tensors[name]
    floats = old.dtype.kind == "f"
    largest = float(np.finfo(old.dtype).max) if floats else 2**62
    changes = [
        lambda a: np.zeros_like(a),
        lambda a: -a - 1,
        lambda a: np.ones_like(a),
        np.ravel,
        np.transpose,
        lambda a: a[:-1],
        lambda a: a[:0],
        lambda a: np.concatenate([a, a]),
        lambda a: a.astype(np.float32),
        lambda a: a.astype(np.float64),
        lambda a: a.astype(np.int64),
        lambda a: a.astype(np.uint8),
        lambda a: a[::-1],
        lambda a: a[..., None],
        lambda a: np.full_like(a, largest),
        lambda a: np.full_like(a, -largest),
        lambda a: (a * 3).astype(a.dtype),
        lambda a: (a + 1).astype(a.dtype),
        None,
        "renamed",
    ]
    if floats:
        bad = (np.nan, np.inf, -np.inf, 1e-310, 1e-30, 1e30)
        changes += [lambda a, v=v: np.full_like(a, v) for v in bad]
        changes += [lambda a, v=v: one_replaced(a, v, rng) for v in bad]
        changes += [lambda a: a * (1 + 1e-7 * rng.normal(size=a.shape).astype(a.dtype))]
    else:
        changes += [lambda a, v=v: one_replaced(a, v, rng) for v in (-1, 0, 2**40, 2**62)]
    change = changes[int(rng.integers(len(changes)))]
    others = {key: value for key, value in tensors.items() if key != name}
    if change is None:
        return others, header
    if change == "renamed":
        return {**others, name + "x": old}, header
    return {**others, name: np.ascontiguousarray(change(old))}, header


def one_replaced(array, value, rng):
    array = array.copy()
    if array.size:
        array.flat[int(rng.integers(array.size))] = value
    return array
