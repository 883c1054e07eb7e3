"""
Your own city, from OpenStreetMap and a sensor table
====================================================

You have an export of OpenStreetMap, a list of sensors, and a table of readings that somebody sent you. At the end of
this page they are a city: roads and sensors joined, oddities of the table found and told, readings that cannot be true
taken out, the next hour forecast, and two other cities asked for help. It takes a quarter of an hour to read and half a
minute to run. Reading OpenStreetMap's XML needs one more package, ``pip install "tsjt-pyg[osm]"``.
"""

# %%
# Three files
# -----------
#
# So that this page runs anywhere, it makes the files itself: a small town that does not exist. In your case they are
# there already, and you can skip this cell. Roads can be exported on openstreetmap.org (*Export*), or be a graph that
# you downloaded with OSMnx; :doc:`/road_networks` lists what can be read.

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

rng = np.random.default_rng(0)
folder = tempfile.TemporaryDirectory()
here = Path(folder.name)

# Seven streets cross five; about 180 metres lie between two of them.
columns, rows = 7, 5
place = {
    (i, j): (52.0 + 0.0016 * j + rng.normal(0, 1e-4), 4.3 + 0.0026 * i + rng.normal(0, 2e-4))
    for i in range(columns)
    for j in range(rows)
}
number = {corner: 100 + k for k, corner in enumerate(place)}
streets = [[(i, j) for i in range(columns)] for j in range(rows)] + [
    [(i, j) for j in range(rows)] for i in range(columns)
]
osm = ['<osm version="0.6">']
osm += [f'<node id="{number[c]}" lat="{lat:.6f}" lon="{lon:.6f}"/>' for c, (lat, lon) in place.items()]
for k, street in enumerate(streets):
    kind, limit = ("primary", 50) if k in (2, 8) else ("residential", 30)
    tags = {"highway": kind, "maxspeed": limit, "oneway": "yes" if k in (1, 3) else "no"}
    osm.append(f'<way id="{k + 1}">' + "".join(f'<nd ref="{number[c]}"/>' for c in street))
    osm += [f'<tag k="{key}" v="{value}"/>' for key, value in tags.items()] + ["</way>"]
(here / "town.osm").write_text("\n".join([*osm, "</osm>"]))

# Sensors lie a few metres beside a road, the last one in a field.
sensors = []
for k in rng.permutation([s for s in range(len(streets)) for _ in range(3)])[:30]:
    street = streets[k]
    at = int(rng.integers(len(street) - 1))
    (lat, lon), (lat2, lon2) = place[street[at]], place[street[at + 1]]
    part = rng.uniform(0.2, 0.8)
    bearing = 90 if k < rows else 0
    sensors.append(
        (lat + part * (lat2 - lat) - 4e-5, lon + part * (lon2 - lon) + 4e-5, bearing, 50 if k in (2, 8) else 30)
    )
sensors.append((52.02, 4.35, 0, 30))
sensors = pd.DataFrame(sensors, columns=["lat", "lon", "bearing", "limit"])
sensors.insert(0, "loop", [f"L{k:02d}" for k in range(len(sensors))])
sensors["unit"] = ["mph" if k % 5 == 2 else "km/h" for k in range(len(sensors))]

# Ten days, a quarter of an hour apart: two rush hours, worse on some days and near the centre.
time = pd.date_range("2024-03-04", periods=10 * 96, freq="15min")
hour = time.hour + time.minute / 60
workday = np.where(time.dayofweek < 5, 1.0, 0.3) * rng.uniform(0.6, 1.2, 10).repeat(96)
away = np.hypot((sensors["lat"] - 52.0032) / 0.004, (sensors["lon"] - 4.3078) / 0.008).to_numpy()
rush = sum(np.exp(-(((hour.to_numpy()[:, None] - peak - 0.3 * away) / 1.2) ** 2)) for peak in (8, 17))
speed = sensors["limit"].to_numpy() * (1 - (0.7 * np.exp(-away)) * rush * workday[:, None])
speed = (speed + rng.normal(0, 1.2, speed.shape)).clip(2)
speed[:, 5] = 0.0  # a sensor that has died,
speed[300:380, 11] = 41.0  # one that stands still for twenty hours,
speed[500, 3] = 655.35  # and a number that no car drove
speed /= np.where(sensors["unit"] == "mph", 1.609344, 1.0)

readings = pd.DataFrame(speed, index=time, columns=sensors["loop"]).stack().rename("v_mean").reset_index()
readings.columns = ["when", "loop", "v_mean"]
readings["when"] = readings["when"].dt.strftime("%d.%m.%Y %H:%M")
readings["v_mean"] = readings["v_mean"].round(2)
readings["remark"] = ""
readings.loc[rng.random(len(readings)) < 0.03, "v_mean"] = np.nan
readings = pd.concat([readings, readings.sample(200, random_state=0)]).sample(frac=1, random_state=1)
readings.to_csv(here / "loops.csv", sep=";", index=False, na_rep="NA")
sensors.drop(columns="limit").to_csv(here / "places.csv", index=False)

print(*(here / "loops.csv").read_text().splitlines()[:4], sep="\n")
print(*(here / "places.csv").read_text().splitlines()[:4], sep="\n")

# %%
# The roads
# ---------
#
# ``read_roads`` takes what is open to cars and cuts it into *segments*, one for each direction between two junctions.
# ``component="strong"`` keeps the largest part in which one can drive from everywhere to everywhere: an export is cut
# off somewhere, and what hangs loose at its edge has nothing to say.

from tsjt_pyg.data import read_roads

roads = read_roads(here / "town.osm", component="strong")
print(roads)

# %%
# The table
# ---------
#
# The table of readings is as such tables are. Columns have names that nobody guesses, the day comes before the month,
# missing readings are ``NA``, rows are in no order and some are there twice, and every fifth sensor is in miles an
# hour. Nothing of this needs to be repaired by hand; you say what is meant, and the report says what was done.

from tsjt_pyg.data import read_tables

table, report = read_tables(
    here / "loops.csv",
    here / "places.csv",
    columns={"time": "when", "sensor": "loop"},
    channels=["v_mean"],
    time_format="%d.%m.%Y %H:%M",
    duplicates="mean",
    units="km/h",  # what all are converted to; the column "unit" says from what
    name="town",
)
print(report)

# %%
# Without ``duplicates="mean"`` the same call ends in an error that names the first double row, for a table with double
# rows may well be two tables. :doc:`/own_city` has the list of such arguments.
#
# Sensors on roads
# ----------------
#
# ``table`` is a city already. As there was no table of edges, each sensor is joined with its eight nearest. But now we
# have roads, so let us go along them. Each sensor is *snapped* to the nearest segment; its bearing (degrees clockwise
# from north) says in which direction of the road it looks.

from tsjt_pyg.data import snap_sensors

places = pd.read_csv(here / "places.csv").rename(columns={"loop": "sensor_id"})
snapped = snap_sensors(places, roads, limit=30)
print(snapped)
print(snapped.unmatched[["sensor", "distance"]].to_string(index=False))

# %%
# Look at who is left out: here it is the sensor in the field, but a mistyped coordinate looks just like it. The others
# become the nodes, joined by the shortest ways along the roads, and the shorter a way, the heavier its edge.

from tsjt_pyg import City

city = City.from_road_network(
    table.readings,
    snapped,
    roads,
    mask=table.mask,
    node_ids=table.node_ids,
    channels="speed",
    units=table.units,
    start=table.start,
    interval=table.interval,
    path_limit=1000,  # metres; with none, nearly every sensor of a small town is joined with every other
    name="town",
)
print(city)

# %%
# From a networkx graph
# ---------------------
#
# Your network may be neither OpenStreetMap nor roads, but a graph whose nodes have readings. Then one call is enough:

import networkx as nx

graph = nx.DiGraph()
graph.add_edge("L00", "L01", length=250.0)  # metres
graph.add_edge("L01", "L04", length=400.0)
read = table.to_frame()[["L00", "L01", "L04"]]  # a column a node, NaN where nothing was read
print(City.from_networkx(read, graph, channels="speed", units="km/h", name="three sensors"))

# %%
# What cannot be true
# -------------------
#
# ``describe`` looks and changes nothing.

print(city.describe())

# %%
# ``repair`` takes what cannot be true out of the *mask*, which says what was observed; it fills in nothing. It looks at
# whole series, so it may see the visible days only: who cleans by the test period has seen it. Of the test period only
# the limits are used, which judge each reading by itself.

visible, test = city.few_shot(days=4)
visible, repairs = visible.repair(dead="drop")
test, limits = test.drop_nodes(repairs.dropped).repair(dead=False, stuck=None)
print("visible days", repairs)
print(repairs.nodes[repairs.nodes.sum(axis=1) > 0].to_string())
print("test period ", limits)
assert visible.node_ids == test.node_ids

# %%
# The next hour
# -------------
#
# From here on the town is a city like any other. As sources we try two of the bundled cities, brought to the town's
# interval. (Units need not be the same, since every city is scaled by its own statistics.) Beside the two trainings are
# two guesses that need none.

import torch

from tsjt_pyg.datasets import load_city
from tsjt_pyg.evaluation import HorizonErrors
from tsjt_pyg.evaluation.naive import fit_last_value, fit_last_value_and_profile
from tsjt_pyg.training import ModelConfig, fit, forecast_windows

sources = [load_city(f"demo/{name}").select("speed").resample("15min") for name in ("gridport", "ringwood")]
history, horizon = 8, 4  # two hours in, one hour out
config = ModelConfig(cell="GConvGRU", hidden_channels=16, history=history, horizon=horizon)
windows = test.windows(history, horizon)


def train(strategy):
    torch.manual_seed(0)
    return fit(config.build(), visible, sources, strategy, steps=100, batch_size=16, lr=0.005)


def forecasts(result):
    return list(forecast_windows(result.model, windows, result.scaler, support=result.support))


def guesses(forecast):
    return ((batch, forecast(batch, test)) for batch in windows.batches(256))


def error(pairs):
    errors = HorizonErrors(horizon)
    for batch, forecast in pairs:
        errors.update(forecast, batch.y, batch.y_mask)
    return errors.compute().mean_mae


alone, helped = train("target_only"), train("tsjt")
print(*helped.verdicts, sep="\n")
found = {
    "last value": error(guesses(fit_last_value(visible))),
    "last value and typical day": error(guesses(fit_last_value_and_profile(visible))),
    "target_only": error(forecasts(alone)),
    "tsjt": error(forecasts(helped)),
}
print(pd.Series(found, name="MAE (km/h)").round(2).to_string())

# %%
# The guard has left out both sources: after a few steps on one of them, the network forecast the town worse than a
# guess does. That is no failure. The town was made with a formula, of another kind than the simulated traffic, and what
# does not help must not hurt. Where no source is left, ``tsjt`` spends the steps on the target alone, twice as many as
# ``target_only`` had. Try sources that are like your city; :doc:`/transfer` says what the guard looks at.
#
# The picture
# -----------
#
# :func:`~tsjt_pyg.evaluation.plot_city` draws a city on its roads, here at five in the afternoon of the first day.
# Below it, a Monday of the test period at the sensor whose speed varies most, with what had been forecast an hour
# before.

import matplotlib.dates as mdates
import matplotlib.pyplot as plt

from tsjt_pyg.evaluation import plot_city

picture = plot_city(visible, here / "map.png", step="2024-03-04 17:00", roads=roads, title="Speeds on Monday, 17:00")

node = int(visible.to_frame().std().argmax())
start = int((pd.Timestamp("2024-03-11 05:00") - test.start) / test.interval)
shown = slice(start, start + 17 * 4)
# The last step of each forecast, which is for ``history + horizon - 1`` steps after the window's first.
ahead = torch.cat([forecast[:, -1, node, 0] for _, forecast in forecasts(helped)])
ahead = ahead[shown.start - history - horizon + 1 : shown.stop - history - horizon + 1]
read = test.readings[:, node, 0].where(test.mask[:, node, 0], torch.nan)[shown]

figure, (above, below) = plt.subplots(2, 1, figsize=(9, 10), height_ratios=[2, 1], layout="constrained")
above.imshow(plt.imread(picture))
above.set_axis_off()
below.plot(test.time[shown], read, color="black", linewidth=1, label="read")
below.plot(test.time[shown], ahead, color="#0072B2", marker="o", markersize=3, label="tsjt, an hour before")
below.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
below.set(xlabel="time of day on 11 March", ylabel="speed (km/h)")
below.set_title(f"Sensor {visible.node_ids[node]}", loc="left", fontsize=11)
below.grid(alpha=0.3)
below.legend(fontsize=9)
plt.show()

folder.cleanup()

# %%
# What to remember
# ----------------
#
# - Everything is joined by id, and whatever is left out is reported. Read the reports.
# - ``describe`` before you ``repair``, and ``repair`` the visible days without the others.
# - ``city.save("town.npz")`` keeps it for :meth:`City.load <tsjt_pyg.City.load>`; a folder with ``readings.csv`` and
#   ``sensors.csv`` is also a city for the command line.
#
# Where to go next: :doc:`/own_city` for tables, :doc:`/road_networks` for roads, :doc:`/repair` for what can be wrong
# with readings and times, and :doc:`/serving` to forecast all day from files that change.
