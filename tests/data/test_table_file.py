"""Files of tables: what they say when they are damaged."""

from __future__ import annotations

import builtins
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from own_tables import EDGES, IDS, SENSORS, TIME, long, wide

from tsjt_pyg import City
from tsjt_pyg.data.ids import id_text
from tsjt_pyg.data.table_file import open_table

HEADER = "timestamp,sensor_id,speed\n"
ROWS = "".join(f"{time},{node},{i}\n" for i, time in enumerate(TIME) for node in IDS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((773869, "773869"), ("773869", "773869"), (773869.0, "773869"), (np.float32(7), "7"), (np.int8(7), "7")),
        *((" 773869 ", "773869"), ("773869.0", "773869"), ("007", "007"), ("1.5", "1.5"), (1.5, "1.5"), ("a.0", "a.0")),
        *((b"773869", "773869"), ("1.0.0", "1.0.0"), ("", ""), (np.str_("b-1"), "b-1"), ("0.0", "0")),
        *(((1, 2, 0), "1-2-0"), ((1.0, "2", np.int64(0)), "1-2-0"), (((0, 1), (1, 1)), "0-1-1-1")),
    ],
)
def test_one_id_whatever_its_type(value, text):
    assert id_text(value) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as CSV (the file is empty"),
        ("\n \n", "cannot be read as CSV (the file is empty"),
        (HEADER, "found a header and no rows"),
        (HEADER + ROWS + "2024-03-04 09:00,773869\n", "CSV (line 26 has 2 fields, the first line 3)"),
        ("\n" + HEADER + "\n" + ROWS[:-1] + ",7\n", "cannot be read as CSV (line 27 has 4 fields"),
        (HEADER + '2024-03-04 08:00,"A 1, north",5,6\n', "line 2 has 4 fields"),
        (HEADER.replace("speed", "sensor_id") + ROWS, "column 'sensor_id' is there 2 times"),
        (HEADER + "\n" + ROWS.replace(",3\n", ",slow\n", 1), "column 'speed', line 15: found 'slow', expected"),
        (HEADER + ROWS.replace(",3\n", ",inf\n", 1), "column 'speed', line 14: found inf, expected"),
        (HEADER + ROWS.replace("767542,", ",", 1), "column 'sensor_id', line 4: found nothing, expected"),
        (HEADER + ROWS.replace("08:05:00", "", 1).replace("2024-03-04 ,", ",", 1), "line 6: found "),
        (HEADER + ROWS.replace("08:05", "08:65", 1), "line 6: found '2024-03-04 08:65:00', expected"),
        (HEADER + ROWS + ROWS.splitlines()[5] + "\n", "line 26: sensor '767541' at 2024-03-04 08:05:00 is there again "
         "(first in line 7; 1 duplicate rows in all"),
        (HEADER + ROWS.replace("08:10", "08:12"), "line 10: 2024-03-04 08:12:00 is no step of 5 min"),
        (HEADER.replace("sensor_id", "loop") + ROWS, "is an id of sensors"),
        (HEADER.replace("timestamp", "when") + ROWS, "there is no column for 'time': expected one"),
        ((HEADER + ROWS).encode("utf-16"), "cannot be read as CSV (it is not UTF-8 text; save it as UTF-8), or give "
         "the table itself: pandas.read_csv(…, encoding=…)"),
        ((HEADER + ROWS + "2024-03-04 09:00,café,1\n").encode("latin-1"), "CSV (it is not UTF-8 text"),
    ],
)  # fmt: skip
def test_bad_csv(content, message, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"mine\.csv") as caught:
        City.from_tables(path, SENSORS)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_bad_lines_of_sensors_and_edges_are_named(tmp_path):
    sensors, edges = tmp_path / "s.csv", tmp_path / "e.csv"
    SENSORS.replace(34.11, "34°").to_csv(sensors, index=False)
    with pytest.raises(ValueError, match=r"s\.csv: column 'latitude', line 4: found '34°', expected a number"):
        City.from_tables(wide(), sensors)
    EDGES.replace(200.0, -2.0).to_csv(edges, index=False)
    with pytest.raises(ValueError, match=r"e\.csv: column 'distance', line 3: found -2.0, expected metres"):
        City.from_tables(wide(), SENSORS, edges)


def test_damaged_parquet(tmp_path):
    path = tmp_path / "mine.parquet"
    long().to_parquet(path)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-1], b"timestamp,a\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"mine\.parquet: cannot be read as Parquet \("):
            City.from_tables(path, SENSORS)
    path.write_bytes(whole)
    assert City.from_tables(path, SENSORS).num_nodes == 4


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "mine.parquet"
    long().to_parquet(path)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'mine\.parquet: .*pip install "tsjt-pyg\[parquet\]"'):
        City.from_tables(path, SENSORS)


def test_no_file_and_files_of_other_kinds(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"readings: there is no file .*nowhere\.csv"):
        City.from_tables(tmp_path / "nowhere.csv", SENSORS)
    with pytest.raises(FileNotFoundError, match="sensors: there is no file"):
        City.from_tables(wide(), tmp_path)
    for name in ("x.xlsx", "x.pkl", "x"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
        with pytest.raises(ValueError, match=rf"{name}: expected a file \.csv, .*\.parquet, .* or a pandas DataFrame"):
            City.from_tables(tmp_path / name, SENSORS)


def test_an_index_that_is_a_column_too():
    with pytest.raises(ValueError, match="readings: column 'timestamp' is there 2 times"):
        City.from_tables(wide().assign(timestamp=1.0), SENSORS)


def test_rows_of_a_filtered_table_lose_their_numbers():
    table = open_table(SENSORS.iloc[[2, 3]], "sensors").frame
    assert list(table.columns) == list(SENSORS.columns)
    assert list(table.index) == [0, 1]


def test_numbers_of_other_types():
    table = open_table(pd.DataFrame({"a": [Decimal("1.5"), None], "b": ["2", "3"], "c": [True, False]}), "x")
    assert table.numbers("a").tolist()[0] == 1.5
    assert np.isnan(table.numbers("a")[1])
    assert table.numbers("b").tolist() == [2.0, 3.0]
    assert table.numbers("c").tolist() == [1.0, 0.0]
