"""Pickles of lists, dicts, text, numbers and arrays, read without ever calling what a file names.

A pickle is a program: :func:`pickle.load` calls whatever function the file names. Here nothing of the file's choosing
is called. The few names that numpy writes for an array are replaced by recipes of this module, which only take down
what they are given; every other name is refused before anything is made of it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ALLOWED = "lists, tuples, dicts, text, numbers and numpy arrays of numbers"


class _RefusedError(ValueError):
    """A pickle that names what is not allowed in it."""


class _DType:
    """What a file says of an array's dtype."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise _RefusedError(f"an array's dtype has the state {state!r}")
        self.order = state[1]

    def made(self) -> np.dtype:
        if not isinstance(self.code, str) or self.code[:1] not in "fiub" or not self.code[1:].isdigit():
            raise _RefusedError(f"an array of dtype {self.code!r}")
        return np.dtype(self.code).newbyteorder("=" if self.order == "|" else self.order)  # type: ignore[arg-type]


class _Array:
    """What a file says of an array: made into one by :func:`_made` when the file has been read to its end."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def made(self) -> np.ndarray:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise _RefusedError("an array without shape, dtype and data")
        _, shape, dtype, fortran, data = self.state
        if isinstance(data, str):
            data = data.encode("latin1")
        if not isinstance(dtype, _DType) or not isinstance(data, bytes) or not isinstance(shape, tuple):
            raise _RefusedError("an array that holds objects")
        return np.frombuffer(data, dtype.made()).reshape(shape, order="F" if fortran else "C").copy()


class _Buffer(_Array):
    """An array as protocol 5 writes it: ``(data, dtype, shape, order)``."""

    def __init__(self, data: object = None, dtype: object = None, shape: object = None, order: object = "C") -> None:
        super().__init__()
        self.state = (1, shape, dtype, order == "F", bytes(data) if isinstance(data, bytes | bytearray) else data)


class _Scalar(_Array):
    """A numpy scalar: ``(dtype, data)``."""

    def __init__(self, dtype: object = None, data: object = None) -> None:
        super().__init__()
        self.state = (1, (), dtype, False, data)


class _Name:
    """Stands for a class that is an argument of a recipe; what is made of it is refused."""

    def __init__(self, *_: object) -> None:
        pass


class _Recipe:
    """What a name in a file stands for. A file can call it, as pickles do, but cannot change it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _RefusedError("it sets attributes of a function")


def _latin1(text: object, encoding: object = "latin1") -> bytes:
    """``bytes`` as Python 3 writes them under protocol 2: text and the codec that encodes it."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError(f"_codecs.encode with the codec {encoding!r}")
    return text.encode("latin1")


_RECIPES: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): _Name,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1,
    **{
        (f"{core}.{module}", name): recipe
        for core in ("numpy.core", "numpy._core")
        for module, name, recipe in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _Scalar),
            ("numeric", "_frombuffer", _Buffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        recipe = _RECIPES.get((module, name))
        if recipe is None:
            raise _RefusedError(f"it names {module}.{name}")
        return _Recipe(recipe)


def read_pickle(path: Path) -> Any:
    """What a pickle holds, where it holds nothing but lists, tuples, dicts, text, numbers and numpy arrays of numbers.

    Pickles of Python 2 are read as latin1. No code that the file names is imported or called.

    Raises:
        ValueError: If the file names anything else (the message says what), or is damaged.
    """
    try:
        data = path.read_bytes()
        _check_numbers(data)
        return _made(_Unpickler(io.BytesIO(data), fix_imports=False, encoding="latin1").load())
    except _RefusedError as error:
        raise ValueError(
            f"{path}: this pickle was refused and nothing of it was run: {error}; allowed are {ALLOWED}. Get the file "
            "from its authors, or bring the same content as CSV"
        ) from error
    except Exception as error:  # what pickle raises on a damaged file is anything
        raise ValueError(f"{path}: cannot be read as a pickle ({type(error).__name__}: {error})") from error


def _check_numbers(data: bytes) -> None:
    """A pickle numbers its objects, and is given a table as long as the highest number: no more than it has bytes."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument >= len(data):  # type: ignore[operator]
            raise ValueError(f"it numbers an object {argument} and has {len(data)} bytes only")


def _made(found: Any) -> Any:
    """The content with recipes made into arrays."""
    if isinstance(found, _Scalar):
        return found.made()[()]
    if isinstance(found, _Array):
        return found.made()
    if isinstance(found, list):
        return [_made(item) for item in found]
    if isinstance(found, tuple):
        return tuple(_made(item) for item in found)
    if isinstance(found, dict):
        return {_made(key): _made(value) for key, value in found.items()}
    if found is None or isinstance(found, str | bytes | int | float):
        return found
    raise _RefusedError(f"it holds a {type(found).__name__.strip('_')}")
