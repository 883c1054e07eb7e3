"""One's own tables: what is refused, and what is said about it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from own_tables import EDGES, IDS, SENSORS, TIME, long, wide

from tsjt_pyg import City

TWICE = pd.concat([long(), long().iloc[[7]]], ignore_index=True)


def times(*found: object) -> pd.DataFrame:
    return wide().reset_index().assign(timestamp=list(found))


def case(message: str, readings: pd.DataFrame | None = None, **how: object) -> tuple[pd.DataFrame, dict, str]:
    """What is bad, everything else being good, and what is said about it."""
    return wide() if readings is None else readings, {"sensors": SENSORS, **how}, message


@pytest.mark.parametrize(
    ("readings", "how", "message"),
    [
        case(
            r"readings: row 24: sensor '767541' at 2024-03-04 08:05:00 is there again \(first in row 7; 1 duplicate "
            "rows in all; .*autumn.*duplicates='mean', 'first' or 'last'",
            TWICE,
        ),
        case("readings: row 24: sensor '767541' .*first in row 7;", TWICE, sensors=SENSORS.iloc[1:]),
        case(
            "sensors: column 'sensor_id', row 1: sensor '773869' is there more than once",
            sensors=SENSORS.assign(sensor_id=[773869, "773869", 1, 2]),
        ),
        case("readings: row 6: 2024-03-04 08:10:00 is there again", pd.concat([wide(), wide().iloc[[2]]])),
        case(
            "sensors: column 'sensor_id', row 1: sensor '767541' is there more than once",
            sensors=SENSORS.replace("773869", "767541"),
        ),
        case("readings: column '1' is there 2 times", wide().set_axis(["1", "2", "3", "1.0"], axis=1)),
        case(
            r"none of its 4 sensor ids \(such as 'S-038'\) is an id of sensors \(such as '773869'\); make the ids "
            "of both equal, as text: prefixes and leading zeros count .*taken as wide.*of a long one, name .*columns=",
            wide().set_axis(["S-038", "b", "c", "d"], axis=1),
        ),
        case(
            r"is an id of sensors .*leading zeros count \(the table was taken as long; if another column is it, name .*"
            r"columns=\{'sensor': ",
            long().assign(sensor_id=lambda table: "0" + table["sensor_id"]),
        ),
        case("is an id of sensors .* taken as wide", long().rename(columns={"sensor_id": "loop"})),
        case(
            r"readings: there is no column for 'sensor': expected one named sensor_id, .* found \['timestamp', "
            r"'loop', .*columns=\{'sensor': \.\.\.\}",
            long().rename(columns={"sensor_id": "loop"}),
            layout="long",
        ),
        case("readings: there is no column for 'time'", wide().reset_index(drop=True)),
        case("readings: there is no column for 'time'", long().drop(columns="timestamp")),
        case("sensors: there is no column for 'sensor'", sensors=SENSORS.rename(columns={"sensor_id": "nr"})),
        case("sensors: there is no column for 'latitude'", sensors=SENSORS.drop(columns="latitude")),
        case("sensors: there is no column for 'longitude'", sensors=SENSORS.drop(columns="longitude"), edges=EDGES),
        case(r"positions: node '767542' is at \[nan, ", sensors=SENSORS.assign(latitude=[1, 2, np.nan, 4])),
        case("positions: node '773869' is at .*in degrees", sensors=SENSORS.assign(longitude=200.0)),
        case(
            "sensors: column 'latitude', row 0: found 'north', expected a number",
            sensors=SENSORS.assign(latitude="north"),
        ),
        case(
            "sensors: column 'sensor_id', row 0: found nothing, expected an id",
            sensors=SENSORS.assign(sensor_id=[None, *IDS[1:]]),
        ),
        case("readings: column 'sensor_id', row 0: found nothing", long().assign(sensor_id=[None] * 24)),
        case(
            "readings: column '767541', row 1: found 'n/a.', expected a number",
            wide().astype(object).replace(6.0, "n/a?"),
        ),
        case(
            "readings: column 'speed', row 7: found '6 mph', expected a number; if the column is no channel, name "
            "those that are with channels=",
            long().astype(object).replace(6.0, "6 mph"),
        ),
        case("readings: column '767541', row 1: found inf, expected a finite", wide().replace(6.0, np.inf)),
        case("readings: column '773869', row 0: found Timestamp", wide().assign(**{IDS[0]: TIME})),
        case(
            r"channels: readings has \['speed', 'flow'\] beside 'timestamp' and 'sensor_id', found 'occupancy'",
            long(),
            channels=["speed", "occupancy"],
        ),
        case(r"channels: readings has \[\] beside .*none of which", long().drop(columns=["speed", "flow"])),
        case("channels: readings is wide, so it has one channel", channels=["speed", "flow"]),
        case("units: the readings have 1 channels", units=["mph", "km/h"]),
        case(
            "column 'timestamp', row 0: the times have a time zone .2024-03-04 "
            r"08:00:00\+00:00.*tz_convert.*tz_localize\(None\)",
            wide().tz_localize("UTC"),
        ),
        case("the times have a time zone", times(*TIME[:5].astype(str), "2024-03-04 08:25Z")),
        case("the times have a time zone", times(*(f"2024-03-04 08:00+0{i}:00" for i in range(6)))),
        case(
            r"column 'timestamp', row 5: found '2024-03-04 25:00', expected a time \(ISO 8601\)",
            times(*TIME[:5].astype(str), "2024-03-04 25:00"),
        ),
        case("column 'timestamp', row 5: found nothing, expected a time", times(*TIME[:5], pd.NaT)),
        case(
            "row 0: found '03/04/2024', expected date and time such as .* the year first; .*time_format=",
            times(*TIME.strftime("%m/%d/%Y")),
        ),
        case("column 'timestamp', row 0: found the number 0, expected a time", times(*range(6))),
        case(
            r"row 0: found '2024-03-04 08:00:00', expected a time \(%d.%m.%Y\)",
            times(*TIME.astype(str)),
            time_format="%d.%m.%Y",
        ),
        case(
            r"readings: row 5: 2024-03-04 08:27:00 is no step of 5 min from 2024-03-04 08:00:00 on \(the "
            r"most frequent gap; nor are 0 other rows\): intervals are mixed or times jitter",
            times(*TIME[:5], TIME[5] + pd.Timedelta("2min")),
        ),
        case(r"row 1: .*is no step of 15 min .*\(given; nor are 3 other", interval="15min"),
        case("interval: expected a positive part of a day", interval="-5min"),
        case("interval: expected a time with its unit", interval=5),
        case(
            "interval: expected a positive part of a day .* found 7 min",
            wide().set_axis(TIME[0] + np.arange(6) * pd.Timedelta("7min")),
        ),
        case(
            r"readings: its 6 times from 2024.* would be \d+ steps of 5 min .*almost all missing; if no "
            "time is wrong, confirm with interval=, or say how times are written with time_format=",
            times(*TIME[:5], TIME[5] + pd.Timedelta("36500D")),
        ),
        case("all rows are of one time, 2024-03-04 08:00:00; say .* interval=", wide().iloc[:1]),
        case("readings: found a header and no rows", wide().iloc[:0]),
        case("readings: found the column 'timestamp' and no other, expected a column a sensor id", wide()[[]]),
        case("readings: found no reading, all fields of its 4 sensors are empty", wide() * np.nan),
        case("readings: column '773869', row 0: found 1e[+]300, expected a finite number", wide() * 1e300),
        case("readings: its columns have 2 levels", pd.concat({"speed": wide()}, axis=1)),
        case(
            r"missing: '773869' of readings is no sensor \(0 without readings, 1 without sensor",
            sensors=SENSORS.iloc[1:],
            missing="error",
        ),
        case("missing: sensor '773869' of sensors has no readings", wide()[IDS[1:]], missing="error"),
        case(
            "edges: column 'from', row 1: found '9', expected the id of a sensor with readings",
            edges=EDGES.replace("767541", "9"),
            missing="error",
        ),
        case(
            "edges: none of its 3 edges joins two nodes of the city: it says '773869' to '9', nodes have ids such as "
            "'773869'",
            edges=EDGES.assign(to="9"),
        ),
        case("edges: column 'distance', row 1: found -2, expected m", edges=EDGES.assign(distance=[1, -2, 3])),
        case("edges: column 'distance', row 2: found nothing", edges=EDGES.assign(distance=[1, 2, np.nan])),
        case("edges: column 'distance', row 0: found 'far'", edges=EDGES.assign(distance="far")),
        case(
            "edges: column 'weight', row 0: found -1.0, expected a weight, not negative",
            edges=EDGES.set_axis(["from", "to", "weight"], axis=1).assign(weight=-1.0),
        ),
        case(r"edges: found a distance \('distance'\) and a weight \('weight'\)", edges=EDGES.assign(weight=1.0)),
        case("edges: there is no column for 'distance'", edges=EDGES.rename(columns={"distance": "km"})),
        case("edges: there is no column for 'to'", edges=EDGES.drop(columns="to")),
        case(r"threshold: expected a weight in \[0, 1\), found 1.0", edges=EDGES, threshold=1.0),
        case("columns: expected 'time', 'sensor', .* found 'when'", columns={"when": "timestamp"}),
        case(
            r"columns: there is no column 'when' \(for 'time'\) in any table: readings has \['timestamp', '773869', "
            r"'767541', '767542', '717447'\], sensors has \['sensor_id', 'latitude', 'longitude'\]$",
            columns={"time": "when"},
        ),
        case("layout: expected 'auto', 'wide', 'long', found 'square'", layout="square"),
        case("missing: expected 'drop', 'keep', 'error', found 'ignore'", missing="ignore"),
        case(
            "readings: column '773869', row 0: found '14,1', expected a number; with decimal commas: decimal=','$",
            wide().astype(object).replace(1.0, "14,1"),
        ),
        case(
            "readings: column '773869', row 0: found '1.234,5', expected a number$",
            wide().astype(object).replace(1.0, "1.234,5"),
        ),
        *(
            case(
                f"readings: column '773869', row 0: found '{text}', expected a number with a decimal comma",
                wide().astype(object).replace(1.0, text),
                decimal=",",
            )
            for text in ("1.234", "1.234,5", "14,1 km/h", "")
        ),
        case("decimal: expected '.', ',', found ';'", decimal=";"),
        *(
            case(f"missing_values: expected numbers .* found {found!r}", missing_values=given)
            for given, found in (("n/a", "n/a"), ([0, "n/a"], "n/a"), (True, True), (None, None))
        ),
        case("duplicates: expected 'error', 'mean', 'first', 'last', found", duplicates="sum"),
    ],
)
def test_bad_tables(readings, how, message):
    with pytest.raises(ValueError, match=message):
        City.from_tables(readings, **how)


def test_what_is_no_table():
    with pytest.raises(TypeError, match="sensors: expected a pandas DataFrame or the path of a file, found list"):
        City.from_tables(wide(), [1, 2])
