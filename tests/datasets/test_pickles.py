"""Pickles are read without running anything of them: what numpy and Python 2 wrote comes back, all else is refused."""

from __future__ import annotations

import collections
import datetime
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tsjt_pyg.datasets.pickles import read_pickle


def python2_pickle(ids: list[str], matrix: np.ndarray) -> bytes:
    """``[ids, id_to_ind, matrix]`` as Python 2's ``pickle.dump(…, protocol=2)`` writes it: its text is bytes."""

    def text(word: str) -> bytes:
        return b"U" + bytes([len(word)]) + word.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    data = matrix.astype("<f4").tobytes()
    listed = b"](" + b"".join(text(node) for node in ids) + b"e"
    positions = b"}(" + b"".join(text(node) + number(i) for i, node in enumerate(ids)) + b"u"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    shape = number(matrix.shape[0]) + number(matrix.shape[1]) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n" + text("f4") + b"K\x00K\x01\x87R(K\x03" + text("<") + b"NNN" + number(-1) * 2 + b"K\x00tb"
    )
    array = made + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<I", len(data)) + data + b"tb"
    return b"\x80\x02](" + listed + positions + array + b"e."


def written(folder: Path, content: bytes) -> Path:
    path = folder / "adj_mx.pkl"
    path.write_bytes(content)
    return path


def test_what_python_2_wrote(tmp_path):
    matrix = np.array([[1, 0.5], [0, 1]], dtype=np.float32)
    content = python2_pickle(["773869", "767541"], matrix)
    assert pickle.loads(content, encoding="latin1")[1] == {"773869": 0, "767541": 1}  # the test's own file is right
    ids, positions, found = read_pickle(written(tmp_path, content))
    assert ids == ["773869", "767541"]
    assert positions == {"773869": 0, "767541": 1}
    assert found.dtype == np.float32
    assert found.tolist() == matrix.tolist()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=PLAIN, protocol=st.integers(0, 5))
def test_lists_dicts_text_and_numbers_come_back(tmp_path, content, protocol):
    if protocol < 3 and _has_bytes(content):
        protocol = 3  # below it, Python 3 writes bytes as calls of builtins.bytes
    assert read_pickle(written(tmp_path, pickle.dumps(content, protocol))) == content


def _has_bytes(content: Any) -> bool:
    if isinstance(content, dict):
        return any(map(_has_bytes, content.values()))
    return isinstance(content, bytes) or (isinstance(content, list | tuple) and any(map(_has_bytes, content)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=st.sampled_from(["<f4", ">f8", "<i8", "|u1", "|b1", "<f2"]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(max_dims=3, max_side=4))
    ),
    protocol=st.integers(0, 5),
    fortran=st.booleans(),
)
def test_arrays_come_back(tmp_path, array, protocol, fortran):
    if fortran:
        array = np.asfortranarray(array)
    found = read_pickle(written(tmp_path, pickle.dumps({"a": [array, array.ravel()[0]]}, protocol)))["a"]
    assert found[0].dtype == array.dtype
    np.testing.assert_array_equal(found[0], array)
    np.testing.assert_array_equal(found[1], array.ravel()[0])


class Runs:
    """Runs ``function(*arguments)`` when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda mark: Runs(os.mkdir, str(mark)), r"posix\.mkdir|nt\.mkdir"),
        (lambda mark: Runs(os.system, f"mkdir {mark}"), r"posix\.system|nt\.system"),
        (lambda mark: Runs(eval, f"__import__('os').mkdir({str(mark)!r})"), r"(__builtin__|builtins)\.eval"),
        (lambda mark: Runs(getattr, "text", "upper"), r"(__builtin__|builtins)\.getattr"),
    ],
)
def test_a_pickle_that_runs_code_does_not_run(tmp_path, protocol, call, named):
    mark = tmp_path / "it-ran"
    harmful = call(mark)
    path = written(tmp_path, pickle.dumps([["a"], {"a": 0}, harmful], protocol))
    with pytest.raises(
        ValueError, match=rf"adj_mx\.pkl: this pickle was refused and nothing .*{named}.*; allowed are "
    ):
        read_pickle(path)
    assert not mark.exists()
    if harmful.reduced[0] is os.mkdir:  # the file would have run where a pickle is trusted
        pickle.loads(path.read_bytes())
        assert mark.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (pickle.dumps(datetime.date(2012, 3, 1)), r"datetime\.date"),
        (pickle.dumps(collections.OrderedDict(a=1)), r"collections\.OrderedDict"),
        (pickle.dumps(np.array([{}, 1], dtype=object)), "an array that holds objects"),
        (pickle.dumps(np.array(["a"])), "an array of dtype 'U1'"),
        (pickle.dumps(np.zeros(2, dtype=[("a", "f4")])), "an array of dtype 'V4'"),
        (pickle.dumps({1, 2}, 4), "it holds a set"),
        (b"cnumpy\nndarray\n.", "it holds a Recipe"),
        (b"cnumpy\nndarray\n)R.", "it holds a Name"),
        (b"cnumpy\ndtype\n(NNtR.", "it holds a DType"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "_codecs.encode with the codec 'rot13'"),
        (b"c_codecs\nencode\n(N}V__defaults__\n)stb.", "it sets attributes of a function"),
        (b"cnumpy.core.multiarray\nscalar.__class__\n.", r"numpy\.core\.multiarray\.scalar\.__class__"),
        (b"ccopyreg\n_reconstructor\n.", r"copyreg\._reconstructor"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)R.", "an array without shape, dtype and data"),
    ],
)
def test_what_is_neither_data_nor_array_is_refused(tmp_path, content, named):
    with pytest.raises(ValueError, match=rf"adj_mx\.pkl: this pickle was refused and nothing of it was run: .*{named}"):
        read_pickle(written(tmp_path, content))


def test_a_file_cannot_change_the_recipes(tmp_path):
    """What one file tries to set does not reach the next."""
    for content in (
        b"cnumpy\ndtype\n(N}Vmade\nVx\nstb.",
        b"cnumpy.core.multiarray\n_reconstruct\n}V__setstate__\nVx\nsb.",
    ):
        with pytest.raises(ValueError, match="refused"):
            read_pickle(written(tmp_path, content))
    assert read_pickle(written(tmp_path, pickle.dumps(np.ones(2)))).tolist() == [1, 1]


@pytest.mark.parametrize(
    "content", [b"", b"sensor_id\n773869\n", b"\x80\x02]", b"l" * 50, b"\x80\x04P1\n.", b"K\x01K\x02t."]
)
def test_no_pickle(tmp_path, content):
    with pytest.raises(ValueError, match=r"adj_mx\.pkl: cannot be read as a pickle"):
        read_pickle(written(tmp_path, content))


def test_a_list_that_holds_itself(tmp_path):
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(ValueError, match=r"cannot be read as a pickle \(RecursionError"):
        read_pickle(written(tmp_path, pickle.dumps(ring)))


WHOLE = python2_pickle(["773869", "767541"], np.eye(2))


@pytest.mark.parametrize("length", range(0, len(WHOLE), 7))
def test_a_truncated_pickle(tmp_path, length):
    with pytest.raises(ValueError, match=r"adj_mx\.pkl: cannot be read as a pickle"):
        read_pickle(written(tmp_path, WHOLE[:length]))


def test_a_number_that_would_take_all_memory(tmp_path):
    data = bytes(pickle.dumps([1], protocol=2)).replace(b"q\x00", b"r" + (2**32 - 2).to_bytes(4, "little"))
    with pytest.raises(ValueError, match=r"adj_mx\.pkl: cannot be read as a pickle .*it numbers an object 4294967294"):
        read_pickle(written(tmp_path, data))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_damaged_pickle_gives_data_or_one_clear_error(tmp_path, place, byte):
    damaged = bytearray(WHOLE)
    damaged[place] = byte
    path = written(tmp_path, bytes(damaged))
    try:
        read_pickle(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
