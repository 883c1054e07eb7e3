"""One's own tables: whatever their format and order, the same readings by sensor id."""

from __future__ import annotations

import inspect
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from own_tables import EDGES, IDS, SENSORS, TIME, expected, long, of, wide

from tsjt_pyg import City
from tsjt_pyg.data import read_tables
from tsjt_pyg.data.tables import TableArguments


def roads(city: City) -> dict[tuple[str, str], float]:
    ids = city.node_ids
    pairs = zip(city.edge_index.T.tolist(), city.edge_weight.tolist(), strict=True)
    return {(ids[u], ids[v]): weight for (u, v), weight in pairs}


# --- round trips


def as_csv(table, path, **how):
    table.to_csv(path / "x.csv", **how)
    return path / "x.csv"


def as_parquet(table, path):
    table.to_parquet(path / "x.parquet")
    return str(path / "x.parquet")


WRITERS = {
    "frame": lambda t, p: t,
    "frame, time a column": lambda t, p: t.reset_index(),
    "frame, index without a name": lambda t, p: t.rename_axis(index=None),
    "frame, index of text": lambda t, p: t.rename_axis(index=None).set_axis(t.index.astype(str), axis=0),
    "frame, times of text": lambda t, p: t.reset_index().astype({"timestamp": str}),
    "frame, ids as numbers": lambda t, p: t.rename(columns=int),
    "frame, ids as floats": lambda t, p: t.rename(columns=float),
    "frame, readings of text": lambda t, p: t.astype(object).where(t.isna(), t.astype(str)),
    "frame, nullable": lambda t, p: t.astype("Float64"),
    "csv": as_csv,
    "csv, index without a name": lambda t, p: as_csv(t.rename_axis(index=None), p),
    "csv, row numbers": lambda t, p: as_csv(t.reset_index(), p),
    "csv, ids as floats": lambda t, p: as_csv(t.rename(columns=float), p),
    "csv, semicolons": lambda t, p: as_csv(t, p, sep=";"),
    "csv, tabs": lambda t, p: as_csv(t, p, sep="\t"),
    "csv, quotes": lambda t, p: as_csv(t.reset_index(), p, index=False, quoting=1),
    "csv, byte order mark and CRLF": lambda t, p: as_csv(t, p, encoding="utf-8-sig", lineterminator="\r\n"),
    "csv, ISO 8601": lambda t, p: as_csv(t, p, date_format="%Y-%m-%dT%H:%M"),
    "parquet": as_parquet,
    "parquet, time a column": lambda t, p: as_parquet(t.reset_index(), p),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_wide_table(write, tmp_path):
    """Columns shuffled, rows out of order, in every format."""
    table = wide()[[IDS[2], IDS[0], IDS[3], IDS[1]]].iloc[[3, 0, 5, 1, 4, 2]]
    city, report = read_tables(write(table, tmp_path), SENSORS, name="mine", channels="speed", units="mph")
    assert city.node_ids == tuple(IDS)  # the order of the sensors, not of the columns
    assert all(of(city, node) == expected(node) for node in IDS)
    assert (city.start, city.interval) == (TIME[0], pd.Timedelta("5min"))
    assert (city.name, city.channels, city.units) == ("mine", ("speed",), ("mph",))
    assert (report.layout, report.rows_out_of_order) == ("wide", 3)


@pytest.mark.parametrize(
    "write",
    [
        *(lambda t, p: t, lambda t, p: t.astype({"sensor_id": int}), lambda t, p: t.astype({"sensor_id": float})),
        lambda t, p: t.astype({"sensor_id": "category"}),
        lambda t, p: t.set_index(["timestamp", "sensor_id"]),
        lambda t, p: t.set_index("timestamp"),
        lambda t, p: t.rename(columns={"timestamp": "Time", "sensor_id": "DetID"}),
        *(as_csv, lambda t, p: as_csv(t, p, index=False), as_parquet),
    ],
)
def test_a_long_table(write, tmp_path):
    table = long().sample(frac=1, random_state=0)
    city, report = read_tables(write(table, tmp_path), SENSORS)
    assert city.node_ids == tuple(IDS)
    for node in IDS:
        assert of(city, node, 0) == expected(node)
        assert of(city, node, 1) == expected(node, 1000.0)
    assert (city.channels, report.layout) == (("speed", "flow"), "long")
    assert (city.start, city.interval) == (TIME[0], pd.Timedelta("5min"))


@pytest.mark.parametrize("write", [lambda t, p: t, lambda t, p: as_csv(t, p, index=False), as_parquet])
@pytest.mark.parametrize("ids", [int, float, str])
@pytest.mark.parametrize(
    "names",
    [("station", "lat", "lon"), ("ID", "Lat", "Lng"), ("detid", "y", "x"), ("node", "latitude", "longitude")],
)
def test_sensors_as_users_have_them(write, ids, names, tmp_path):
    sensors = SENSORS.astype({"sensor_id": ids}).set_axis(names, axis=1).assign(road="A 1", lanes=2).iloc[::-1]
    city = City.from_tables(wide(), write(sensors, tmp_path))
    assert city.node_ids == tuple(reversed(IDS))
    assert city.pos[0].tolist() == [34.07, -118.26]
    assert of(city, IDS[0]) == expected(IDS[0])


def test_ids_keep_their_leading_zeros(tmp_path):
    ids = ["007", "7", "A-1", "1.5"]
    as_csv(wide().set_axis(ids, axis=1), tmp_path).rename(tmp_path / "readings.csv")
    sensors = as_csv(SENSORS.assign(sensor_id=ids), tmp_path, index=False)
    city = City.from_tables(tmp_path / "readings.csv", sensors)
    assert city.node_ids == tuple(ids)
    assert of(city, "007") == expected(IDS[0])


def test_columns_named_by_the_user_keep_their_leading_zeros(tmp_path):
    ids = dict(zip(IDS, ["007", "7", "08", "8"], strict=True))
    readings = as_csv(long().replace(ids).rename(columns={"sensor_id": "Loop"}), tmp_path, index=False)
    sensors = SENSORS.replace(ids).rename(columns={"sensor_id": "Loop"})
    city = City.from_tables(readings, sensors, columns={"sensor": "Loop"})
    assert city.node_ids == tuple(ids.values())
    assert of(city, "007") == expected(IDS[0])


def test_sensors_labelled_by_their_index():
    by_name = SENSORS.set_index("sensor_id")
    for sensors in (by_name, by_name.rename_axis(None), by_name.rename(index=int)):
        assert City.from_tables(wide(), sensors.iloc[::-1]).node_ids == tuple(reversed(IDS))


@st.composite
def tables(draw):
    """Sensors and the cells of which there is a row, both in any order, with or without each other."""
    ids = draw(st.lists(st.integers(1, 40), min_size=2, max_size=6, unique=True))
    cells = draw(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(ids)), min_size=2, max_size=40, unique=True))
    sensors = draw(st.lists(st.sampled_from([*ids, 41, 42]), min_size=1, unique=True))
    return cells, sensors


@given(tables(), st.booleans(), st.sampled_from(["drop", "keep"]))
def test_every_reading_arrives_at_its_sensor_and_step_and_no_other(found, as_wide, missing):
    cells, ids = found
    readings = pd.DataFrame(
        [(TIME[0] + step * pd.Timedelta("5min"), node, 100.0 * node + step) for step, node in cells],
        columns=["time", "sensor", "speed"],
    )
    shared = {node for _, node in cells} & set(ids)
    sensors = pd.DataFrame({"id": [float(node) for node in ids], "lat": 1.0, "lon": np.arange(len(ids)) / 100})
    table = readings.pivot(index="time", columns="sensor", values="speed") if as_wide else readings
    if not shared:
        with pytest.raises(ValueError, match=r"readings: none of its \d+ sensor ids .* is an id of sensors"):
            read_tables(table, sensors, interval="5min")
        return
    city, report = read_tables(table, sensors, interval="5min", missing=missing)
    assert city.node_ids == tuple(str(node) for node in ids if missing == "keep" or node in shared)
    observed = {
        (city.time[t], int(city.node_ids[n])): city.readings[t, n, 0].item() for t, n, _ in city.mask.nonzero().tolist()
    }
    assert observed == {(row.time, row.sensor): row.speed for row in readings.itertuples() if row.sensor in shared}
    assert (city.readings[~city.mask] == 0).all()
    assert set(report.sensors_without_readings) == {str(node) for node in ids if node not in shared}
    assert set(report.readings_without_sensor) == {str(node) for _, node in cells} - {str(node) for node in ids}
    for node in city.node_ids:
        count = sum(str(other) == node for _, other in cells)
        assert report.to_frame().loc[node, report.coverage.columns[0]] == pytest.approx(count / city.num_steps)


# --- roads


def test_edges_by_distance_are_joined_by_id_and_counted():
    more = pd.DataFrame(
        {
            "from": [IDS[0], IDS[0], IDS[1], "nowhere", IDS[0], "nowhere"],
            "to": [IDS[1], IDS[1], IDS[1], IDS[0], "773870", "nowhere"],
            "distance": [50.0, 900.0, 1.0, 5.0, 5.0, 5.0],
        }
    )
    edges = pd.concat([EDGES, more]).sample(frac=1, random_state=1)
    city, report = read_tables(wide(), SENSORS, edges, sigma=200.0)
    metres = {(IDS[0], IDS[1]): 50.0, (IDS[1], IDS[2]): 200.0, (IDS[2], IDS[3]): 400.0}
    assert roads(city) == pytest.approx({pair: np.exp(-((d / 200) ** 2)) for pair, d in metres.items()})
    assert report.edges_dropped == {"an end is no node": 3, "from a node to itself": 1, "parallel": 2}
    assert report.edges == 3


def test_edges_below_the_threshold_are_counted():
    city, report = read_tables(wide(), SENSORS, EDGES, sigma=200.0, threshold=0.1)
    assert set(roads(city)) == {(IDS[0], IDS[1]), (IDS[1], IDS[2])}
    assert report.edges_dropped == {"weight below the threshold": 1}


@pytest.mark.parametrize("ids", [int, float, str])
@pytest.mark.parametrize("names", [("from", "to"), ("source", "target"), ("u", "v"), ("Origin_ID", "Destination_ID")])
def test_weights_are_taken_as_they_are(ids, names, tmp_path):
    edges = EDGES.astype({"from": ids, "to": ids}).set_axis([*names, "weight"], axis=1)
    edges = pd.concat([edges, edges.assign(weight=0.5)])
    city = City.from_tables(wide(), SENSORS, as_csv(edges.iloc[::-1], tmp_path, index=False))
    assert roads(city) == {(IDS[0], IDS[1]): 100.0, (IDS[1], IDS[2]): 200.0, (IDS[2], IDS[3]): 400.0}
    assert torch.equal(city.edge_index, torch.tensor([[0, 1, 2], [1, 2, 3]]))
    assert city.pos.shape == (4, 2)


def test_without_distance_and_weight_all_weights_are_one():
    city = City.from_tables(wide(), SENSORS[["sensor_id"]], EDGES[["from", "to"]])
    assert set(roads(city).values()) == {1.0}
    assert city.pos is None


def test_without_edges_the_nearest_are_joined():
    city = City.from_tables(wide(), SENSORS, k=1)
    assert set(roads(city)) == {(IDS[1], IDS[2]), (IDS[2], IDS[1]), (IDS[3], IDS[2]), (IDS[2], IDS[3])} | {
        (IDS[0], IDS[1]),
        (IDS[1], IDS[0]),
    }


# --- what is said and what is asked for


def test_gaps_are_missing_and_counted():
    city, report = read_tables(wide().drop(TIME[[2, 3]]).drop(columns=IDS[3]), SENSORS.iloc[:3])
    assert city.num_steps == 6
    assert not city.mask[[2, 3]].any()
    assert report.steps_added == 2
    assert report.coverage.loc[IDS[1], "reading"] == pytest.approx(4 / 6)
    assert report.coverage.loc[IDS[0], "reading"] == pytest.approx(4 / 6)


def test_rows_are_out_of_order_within_their_sensor_only():
    by_sensor, by_time = long(), long().sort_values(["timestamp", "sensor_id"])
    assert [read_tables(table, SENSORS).report.rows_out_of_order for table in (by_sensor, by_time)] == [0, 0]
    assert read_tables(by_sensor.iloc[::-1], SENSORS).report.rows_out_of_order == 20
    assert read_tables(by_sensor.iloc[[1, 0, *range(2, 24)]], SENSORS).report.rows_out_of_order == 1


def test_the_report_says_what_happened(caplog):
    readings = wide().assign(weekday=0.0, **{IDS[2]: np.nan}).drop(columns=IDS[0])
    with caplog.at_level(logging.INFO, "tsjt_pyg"):
        city, report = read_tables(readings, SENSORS, name="mine")
    assert report.sensors_without_readings == (IDS[0],)
    assert report.readings_without_sensor == ("weekday",)
    assert report.never_observed == (IDS[2],)
    frame = report.to_frame()
    assert frame["status"].to_dict() == {
        **dict.fromkeys(IDS[1:], "joined"),
        IDS[0]: "no readings",
        "weekday": "no sensor",
    }
    assert frame["reading"].isna().tolist() == [False, False, False, True, True]
    text = str(report)
    assert "wide table of 6 rows: 6 steps every 5 min from 2024-03-04 08:00:00" in text
    assert "1 sensors without readings (dropped): 773869" in text
    assert "1 sensor ids of the readings without a sensor (dropped): weekday" in text
    assert "1 nodes never observed: 767542" in text
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", f"mine: {text}")]
    assert city.num_nodes == 3


def test_where_nothing_was_lost_it_is_no_warning(caplog):
    with caplog.at_level(logging.INFO, "tsjt_pyg"):
        City.from_tables(wide(), SENSORS)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_sensors_without_readings_may_stay_as_nodes():
    for readings in (wide().drop(columns=IDS[1]), long().query(f"sensor_id != '{IDS[1]}'")):
        city, report = read_tables(readings, SENSORS, EDGES, missing="keep")
        assert city.node_ids == tuple(IDS)
        assert not city.mask[:, 1].any()
        assert city.num_edges == 3
        assert report.sensors_without_readings == (IDS[1],)
        assert not report.dropped


@pytest.mark.parametrize(("how", "found"), [("mean", 12.0), ("first", 7.0), ("last", 17.0)])
@pytest.mark.parametrize("table", [wide, long])
def test_duplicates_are_joined_as_asked(table, how, found):
    frame = table().reset_index(drop=table is long)
    cell = (frame["timestamp"] == TIME[1]) & ((table is wide) | (frame.get("sensor_id") == IDS[2]))
    column = IDS[2] if table is wide else "speed"
    again = pd.concat([frame, frame[cell].assign(**{column: np.nan}), frame[cell].assign(**{column: 17.0})])
    city, report = read_tables(again, SENSORS, duplicates=how)
    assert of(city, IDS[2]) == [3.0, found, 11.0, 15.0, 19.0, 23.0]
    assert of(city, IDS[0]) == expected(IDS[0])
    assert report.duplicate_rows == 2


def test_the_interval_may_be_said():
    city = City.from_tables(wide().iloc[[0, 2, 4]], SENSORS, interval="5min")
    assert (city.num_steps, city.interval) == (5, pd.Timedelta("5min"))
    assert City.from_tables(wide().iloc[[0, 2, 4]], SENSORS).interval == pd.Timedelta("10min")
    assert City.from_tables(wide().iloc[[3]], SENSORS, interval="5min").num_steps == 1
    with_hole = wide().set_axis([*TIME[:5], TIME[5] + pd.Timedelta("1D")], axis=0)
    assert City.from_tables(with_hole, SENSORS, interval="5min").num_steps == 24 * 12 + 6


@pytest.mark.parametrize("text", ["%d/%m/%Y %H:%M", "%Y%m%d%H%M", "%b %d %Y %I:%M %p"])
def test_times_in_another_format(text, tmp_path):
    city = City.from_tables(as_csv(wide(), tmp_path, date_format=text), SENSORS, time_format=text)
    assert (city.start, city.interval) == (TIME[0], pd.Timedelta("5min"))


def test_columns_are_named_where_they_are_not_found(tmp_path):
    readings = long().rename(columns={"timestamp": "when", "sensor_id": "loop"}).assign(quality="good")
    sensors = SENSORS.set_axis(["nr", "north", "east"], axis=1)
    edges = EDGES.set_axis(["a", "b", "d"], axis=1)
    names = {"time": "when", "sensor": "loop", "latitude": "north", "longitude": "east"}
    names |= {"from": "a", "to": "b", "weight": "d"}
    city, report = read_tables(
        readings, sensors.rename(columns={"nr": "loop"}), edges, columns=names, channels=["flow"]
    )
    assert (city.channels, report.columns_left_out) == (("flow",), ("speed", "quality"))
    assert of(city, IDS[0]) == expected(IDS[0], 1000.0)
    assert roads(city)[IDS[0], IDS[1]] == 100.0


def test_columns_for_position_and_rows_are_no_channels():
    readings = long().merge(SENSORS, on="sensor_id").assign(station="Main St").reset_index(names="id")
    city, report = read_tables(readings, SENSORS)
    assert city.channels == ("speed", "flow")
    assert set(report.columns_left_out) == {"id", "latitude", "longitude", "station"}


def test_the_layout_may_be_said():
    readings = wide().rename(columns={IDS[0]: "node"})
    sensors = SENSORS.replace(IDS[0], "node")
    assert of(City.from_tables(readings, sensors, layout="wide"), "node") == expected(IDS[0])


def test_the_tables_given_are_not_changed():
    readings, sensors, edges = long().sample(frac=1, random_state=0), SENSORS.iloc[::-1], EDGES.copy()
    before = [table.copy() for table in (readings, sensors, edges)]
    City.from_tables(readings, sensors, edges)
    for table, copy in zip((readings, sensors, edges), before, strict=True):
        pd.testing.assert_frame_equal(table, copy)


def test_the_arguments_are_those_of_the_function():
    parameters = inspect.signature(read_tables).parameters
    keywords = [name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert keywords == list(TableArguments.__annotations__)
    with pytest.raises(TypeError, match="intervall"):
        City.from_tables(wide(), SENSORS, intervall="5min")


def test_a_wide_table_whose_rows_are_numbered_is_not_taken_for_a_long_one():
    time = pd.date_range("2024-03-04", periods=2, freq="1h")
    sensors = pd.DataFrame({"sensor_id": [1, 2], "latitude": [34.0, 34.1], "longitude": [-118.0, -118.1]})
    table = pd.DataFrame({"id": [1, 2], "timestamp": time, "1": [60.0, 61.0], "2": [30.0, 31.0]})
    with pytest.raises(ValueError, match=r"column 'id' may hold the sensor ids \(long\), but '1' and '2' are"):
        City.from_tables(table, sensors, k=1)
    wide = City.from_tables(table.drop(columns="id"), sensors, k=1, interval="1h")
    assert wide.readings[..., 0].tolist() == [[60.0, 30.0], [61.0, 31.0]]


def test_quoted_fields_with_spaces_before_them_keep_leading_zeros(tmp_path):
    sensors = pd.DataFrame({"sensor_id": ["007", "008"], "latitude": [34.0, 34.1], "longitude": [-118.0, -118.1]})
    lines = [f'2024-03-04 0{hour}:00, "{node}", {hour}' for hour in (1, 2) for node in ("007", "008")]
    (tmp_path / "r.csv").write_text("\n".join(['"timestamp", "sensor_id", "speed"', *lines]))
    assert City.from_tables(tmp_path / "r.csv", sensors, k=1).node_ids == ("007", "008")
