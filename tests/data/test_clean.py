"""Readings at the door."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from tsjt_pyg.data.clean import clean_readings

ARRAY = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
TABLE = pd.DataFrame(ARRAY, columns=["a", "b", "c"], index=pd.date_range("2024-03-02", periods=4, freq="5min"))


@pytest.mark.parametrize(
    "readings",
    [
        ARRAY,
        ARRAY.astype(np.float64),
        ARRAY.astype(np.int16),
        ARRAY.astype(">f4"),
        np.asfortranarray(ARRAY),
        ARRAY[:, :, None],
        torch.tensor(ARRAY),
        torch.tensor(ARRAY, dtype=torch.int32),
        torch.tensor(ARRAY, requires_grad=True),
        TABLE,
        TABLE.astype(int),
        TABLE.astype("Float64"),
        {"reading": TABLE},
    ],
    ids=lambda r: f"{type(r).__name__}-{getattr(r, 'dtype', '')}",
)
def test_every_kind_of_readings_gives_the_same(readings):
    clean = clean_readings(readings)
    assert clean.readings.dtype == torch.float32
    assert not clean.readings.requires_grad
    assert torch.equal(clean.readings, torch.tensor(ARRAY).unsqueeze(-1))
    assert clean.mask.dtype == torch.bool
    assert clean.mask.all()


@pytest.mark.parametrize(
    "kind",
    [
        lambda a: a,
        torch.tensor,
        pd.DataFrame,
        lambda a: pd.DataFrame(a).astype("Float64"),
        lambda a: {"speed": pd.DataFrame(a)},
        lambda a: np.ma.masked_invalid(np.where(np.isnan(a), np.inf, a)),
        lambda a: np.ma.masked_equal(np.nan_to_num(a, nan=7).astype(int), 7),
    ],
)
def test_missing_readings_are_zero_under_a_false_mask(kind):
    holed = np.where(ARRAY == 7, np.nan, ARRAY)
    clean = clean_readings(kind(holed))
    assert torch.equal(clean.mask[..., 0], torch.tensor(ARRAY != 7))
    assert torch.equal(clean.readings[..., 0], torch.tensor(np.where(ARRAY == 7, 0, ARRAY)))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1)])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
@pytest.mark.parametrize("readings", [ARRAY, ARRAY[..., None], TABLE])
def test_a_mask_joins_the_nans_and_hides_garbage(readings, kind, shape):
    mask = ARRAY.reshape(shape) != 5
    if not isinstance(readings, pd.DataFrame):
        readings = np.where(readings == 5, np.inf, np.where(readings == 2, np.nan, readings))
    clean = clean_readings(readings, kind(mask))
    assert clean.readings[1, 1, 0] == 0
    assert not clean.mask[1, 1, 0]
    assert torch.isfinite(clean.readings).all()
    assert int((~clean.mask).sum()) == (1 if isinstance(readings, pd.DataFrame) else 2)


def test_clean_tensors_and_writable_arrays_are_not_copied():
    tensor = torch.tensor(ARRAY)
    assert clean_readings(tensor).readings.data_ptr() == tensor.data_ptr()
    array = ARRAY.copy()
    assert np.shares_memory(clean_readings(array).readings.numpy(), array)


def test_the_givers_data_stay_as_they_were():
    tensor = torch.tensor(ARRAY)
    clean_readings(tensor, torch.zeros(4, 3, dtype=torch.bool))
    assert torch.equal(tensor, torch.tensor(ARRAY))


def test_a_read_only_array_is_copied_without_a_warning():
    array = ARRAY.copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not np.shares_memory(clean_readings(array).readings.numpy(), array)


def test_tables_say_ids_channels_and_time():
    clean = clean_readings({"speed": TABLE, "flow": TABLE[["c", "a", "b"]] + 100})
    assert (clean.node_ids, clean.channels) == (("a", "b", "c"), ("speed", "flow"))
    assert torch.equal(clean.readings[..., 1], clean.readings[..., 0] + 100)
    assert (clean.start, clean.interval) == (TABLE.index[0], pd.Timedelta("5min"))


def test_a_numbered_table_says_nothing_of_time():
    clean = clean_readings(TABLE.reset_index(drop=True).set_axis([7, 8, 9], axis=1))
    assert (clean.node_ids, clean.channels, clean.start, clean.interval) == (("7", "8", "9"), None, None, None)


def spoiled(position: tuple[int, int], value: float) -> np.ndarray:
    array = ARRAY.copy()
    array[position] = value
    return array


@pytest.mark.parametrize(
    ("readings", "mask", "message"),
    [
        (ARRAY[0], None, r"readings: expected shape \[steps, nodes\] .*found \[3\]"),
        (ARRAY[None, None], None, r"readings: expected shape .*found \[1, 1, 4, 3\]"),
        (ARRAY[:0], None, r"none of them 0, found \[0, 3\]"),
        (ARRAY[:, :0], None, r"none of them 0, found \[4, 0\]"),
        (ARRAY.astype(str), None, "readings: expected numbers, found an array of dtype <U"),
        (ARRAY.astype(complex), None, "readings: expected numbers"),
        (torch.tensor(ARRAY) * 1j, None, "readings: expected real numbers.*complex64"),
        (spoiled((2, 1), np.inf), None, r"found inf at step 2, node 1, channel 0; .*NaN \(or a mask\)"),
        (spoiled((0, 2), -np.inf), None, "found -inf at step 0, node 2"),
        (ARRAY, np.ones((3, 4), bool), r"mask: expected the shape of the readings \[4, 3\], found \[3, 4\]"),
        (
            np.stack([ARRAY, ARRAY], -1),
            np.ones((4, 3), bool),
            r"mask: expected the shape .*\[4, 3, 2\], found \[4, 3\]",
        ),
        ({}, None, "readings: the mapping from channel to table is empty"),
        (TABLE.set_axis(["a", "b", "a"], axis=1), None, "readings: node 'a' has more than one column"),
        (TABLE.set_axis([1, "1", 2], axis=1), None, "readings: node '1' has more than one column"),
        (TABLE.assign(b="x"), None, "readings: column 'b' holds .*pandas.to_numeric, or set the time column as index"),
        (TABLE.reset_index(), None, "column 'index' holds datetime64.*set the time column as index"),
        (
            TABLE.set_axis(TABLE.index.astype(str)),
            None,
            r"labelled with text \('2024-03-02 00:00:00'\).*pandas.to_datetime",
        ),
        ({"v": TABLE, "q": TABLE[["a", "b"]]}, None, r"readings\['q'\]: node 'c' is not in every channel's table"),
        ({"v": TABLE, "q": TABLE[1:]}, None, r"readings\['q'\]: its rows are not the same steps"),
        (TABLE.drop(TABLE.index[1]), None, "irregular time: 2024-03-02 00:10:00 is followed by 2024-03-02 00:15:00"),
        (TABLE.iloc[[0, 1, 3]], None, "irregular time: .*regular_time"),
        (TABLE.iloc[[0, 0, 1]], None, "irregular time: 2024-03-02 00:00:00 is followed by 2024-03-02 00:00:00"),
        (TABLE.iloc[::-1], None, "irregular time: .*sort"),
        (TABLE.tz_localize("America/Los_Angeles"), None, "time zone America/Los_Angeles, .*regular_time"),
        (TABLE.set_axis(TABLE.index.where(TABLE.index != TABLE.index[1])), None, "irregular time: .*NaT"),
    ],
)
def test_messages_say_what_is_wrong_with_the_readings(readings, mask, message):
    with pytest.raises(ValueError, match=message):
        clean_readings(readings, mask)


@pytest.mark.parametrize(
    ("readings", "mask", "message"),
    [
        (
            ARRAY.tolist(),
            None,
            "readings: expected a numpy array, a tensor, a pandas DataFrame or a mapping.*found list",
        ),
        ({"v": ARRAY}, None, r"readings\['v'\]: expected a pandas DataFrame, found ndarray"),
        (ARRAY, np.ones((4, 3)), r"mask: expected dtype bool \(True = observed\), found torch.float64"),
        (TABLE, TABLE.notna(), "mask: expected a numpy array or a tensor .*found DataFrame; NaN readings need no mask"),
    ],
)
def test_messages_say_which_kinds_are_accepted(readings, mask, message):
    with pytest.raises(TypeError, match=message):
        clean_readings(readings, mask)


def test_periods_are_times():
    clean = clean_readings(TABLE.set_axis(pd.period_range("2024-03-04 07:00", periods=len(TABLE), freq="h"), axis=0))
    assert (clean.start, clean.interval) == (pd.Timestamp("2024-03-04 07:00"), pd.Timedelta("1h"))


def test_one_row_has_a_start_and_no_interval():
    clean = clean_readings(TABLE.iloc[:1])
    assert (clean.start, clean.interval) == (TABLE.index[0], None)
