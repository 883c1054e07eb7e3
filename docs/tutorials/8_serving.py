"""
Serving forecasts
=================

A trained model is of use once it forecasts by itself, all day, from a feed in which sensors fall silent and files are
broken. At the end of this page you have forecast a table, let ``tsjt forecast`` run beside a feed of CSVs, seen what it
does with a bad file, exported the model to one file that torch alone can run, and measured how long a forecast takes
and what silent sensors cost. It takes ten minutes to read and about half a minute to run.
"""

# %%
# A model to serve
# ----------------
#
# A small one, trained for a moment. Two arguments matter for serving: ``output`` is the folder that is kept, and
# ``config`` writes the settings of the model beside its parameters, so that it can be built again from the file alone.
# (``tsjt train`` does both.) The visible days are kept too, since the model looks at each road's typical day.

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import torch

from tsjt_pyg.datasets import load_city
from tsjt_pyg.training import ModelConfig, fit

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

torch.manual_seed(0)
torch.set_num_threads(1)  # for models this small, one is fastest

city = load_city("demo/riverton").select("speed")
sources = [load_city(f"demo/{name}").select("speed") for name in ("gridport", "ringwood")]
visible, test = city.few_shot(days=3)
config = ModelConfig(cell="GConvGRU", hidden_channels=16, history=12, horizon=12)
options = {"steps": 100, "batch_size": 8, "lr": 0.01}
fit(config.build(), visible, sources, output=folder / "run", **options)
print(*sorted(path.name for path in (folder / "run").iterdir()))

# %%
# From Python
# -----------
#
# ``SavedModel`` is the model with all that a forecast needs: the road network, the visible days, the unit. It takes a
# table as it comes from a database: a row a step, a column a node, in original units, NaN where nothing was observed.
# ``table`` plays the feed: all that would be read after the visible days.

import pandas as pd

from tsjt_pyg.training import SavedModel

saved = SavedModel.load(folder / "run")
table = test.to_frame()


def last_hour(until):
    """The twelve readings up to this time."""
    return table.loc[:until].iloc[-12:]


forecast = saved.forecast(last_hour("2024-05-17 07:55"))
print(f"{forecast.shape[0]} steps of {forecast.shape[1]} nodes, in {saved.unit}")
print(forecast.iloc[[0, 5, 11], :5].to_string(float_format="%.1f"))

# %%
# Beside a feed
# -------------
#
# Where files come and go, no Python is needed:
#
# .. code-block:: text
#
#    tsjt forecast --checkpoint run --readings latest.csv --output forecast.csv --every 5
#
# It loads the model once, looks at the file every five seconds, and forecasts it whenever it has changed. Here we look
# more often, start the command from Python, and play the feed ourselves. A feed should write elsewhere on the same disk
# and rename: then no reader ever sees half a file. The forecast appears in the same manner, whole or not at all.

command = ["forecast", "--checkpoint=run", "--readings=latest.csv", "--output=forecast.csv", "--every=0.1"]
log = folder / "log.txt"
with log.open("w") as opened:
    server = subprocess.Popen(
        [sys.executable, "-m", "tsjt_pyg", *command],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "TERM": "dumb"},  # no colours, also in a notebook
        stdout=opened,
        stderr=subprocess.STDOUT,
    )


def write(readings):
    readings.to_csv(folder / "next")
    (folder / "next").replace(folder / "latest.csv")


def wait_for(files):
    """Until the command has said what became of so many files."""
    while sum(line.startswith(("forecast.csv:", "error:")) for line in log.read_text().splitlines()) < files:
        assert server.poll() is None, log.read_text()
        time.sleep(0.02)


write(last_hour("2024-05-17 07:55"))
wait_for(1)
write(last_hour("2024-05-17 08:55").drop(columns=city.node_ids[3]))  # somebody forgot a sensor
wait_for(2)
kept = pd.read_csv(folder / "forecast.csv", index_col="time", parse_dates=True)
write(last_hour("2024-05-17 09:55"))
wait_for(3)
server.send_signal(signal.SIGTERM)
status = server.wait()

print(log.read_text())
print("status", status)
print("after the bad file, forecast.csv began at", kept.index[0])

# %%
# The bad file cost one line and nothing else: the last good forecast stayed where it was, and the next good file was
# forecast. SIGTERM, as ``systemctl stop`` and ``docker stop`` send it, ends the loop with status 143. What was written
# is what Python gave, up to the last digits of a float32:

print("largest difference:", float((kept - forecast).abs().max(axis=None)), saved.unit)

# %%
# What is forgiven, and what is not
# ---------------------------------
#
# A sensor that is silent is an everyday matter: leave its fields empty, and it is forecast from its typical day and its
# neighbours. Nor does the order of the columns matter. But what might mean something else is an error, because a wrong
# forecast would be worse than none. A service catches ``ValueError`` and shows its one line:

good = last_hour("2024-05-17 07:55")
silent = good.copy()
silent.iloc[:, 3] = float("nan")
backwards = saved.forecast(good[good.columns[::-1]])[good.columns]
print("a silent sensor is forecast:", bool(saved.forecast(silent).notna().all(axis=None)))
print("columns in another order:", float((backwards - forecast).abs().max(axis=None)), f"{saved.unit} of difference")

tables = {
    "a column is absent": good.drop(columns=good.columns[3]),
    "a column nobody knows": good.rename(columns={good.columns[3]: "R99"}),
    "too few rows": good.iloc[1:],
    "a row is absent": table.loc[:"2024-05-17 07:55"].iloc[-13:].drop(index=good.index[6]),
    "nothing was read at all": good * float("nan"),
}
for what, readings in tables.items():
    try:
        saved.forecast(readings)
    except ValueError as error:
        print(f"{what}:", *textwrap.wrap(str(error), 100), sep="\n    ")

# %%
# On a server that has torch alone
# --------------------------------
#
# ``export`` writes model, road network and visible days as one program. What runs it needs neither this package nor
# PyTorch Geometric: below is the whole server, in a process of its own, which says so. The program takes readings
# in original units; ``about.json`` in the same file says in which order, and what else there is to know.

saved.export(folder / "model.pt2")
(folder / "server.py").write_text("""
import csv, datetime, json, sys
import torch

files = {"about.json": ""}
program = torch.export.load("model.pt2", extra_files=files).module()
about = json.loads(files["about.json"])  # node_ids, history, horizon, unit, interval, inputs and output

with open("latest.csv") as file:
    rows = list(csv.DictReader(file))[-about["history"]:]
readings = torch.tensor([[float(row[node] or "nan") for node in about["node_ids"]] for row in rows])
last = datetime.datetime.fromisoformat(rows[-1]["time"]) - datetime.datetime(1970, 1, 1)
forecast = program(readings=readings[None], time=torch.tensor([int(last.total_seconds())]))[0]
torch.save(forecast, "served.pt")
print(f"{about['city']}: {list(forecast.shape)} in {about['unit']}")
print("loaded:", [name for name in ("torch", "torch_geometric", "tsjt_pyg") if name in sys.modules])
""")
write(good)
print(subprocess.run([sys.executable, "server.py"], cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout)
served = torch.load(folder / "served.pt", weights_only=True)
print("largest difference:", float((served - torch.tensor(forecast.to_numpy())).abs().max()), saved.unit)

# %%
# How long does it take?
# ----------------------
#
# A hundred times each, with one thread, on the machine that ran this page and may have had other work to do. The median
# is what you may expect, the time within which 95 of 100 were done is what you have to plan for:

program = torch.export.load(folder / "model.pt2").module()
inputs = {"readings": torch.tensor(good.to_numpy())[None], "time": torch.tensor([int(good.index[-1].timestamp())])}


def milliseconds(work):
    seconds = []
    for _ in range(100):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return 1000 * pd.Series(seconds).quantile([0.5, 0.95])


with torch.no_grad():
    ways = {
        "SavedModel.forecast": milliseconds(lambda: saved.forecast(good)),
        "the exported program": milliseconds(lambda: program(**inputs)),
    }
for name, found in ways.items():
    print(f"{name}: median {found[0.5]:.1f} ms, 95 of 100 within {found[0.95]:.1f} ms")

# %%
# A process for every forecast would take seconds, nearly all of it start-up; that is what ``--every`` saves. Cities of
# up to 20,000 nodes are measured in :doc:`/serving`; GPUs were not measured.
#
# A day of forecasts, and what silent sensors cost
# ------------------------------------------------
#
# We forecast a Friday, once an hour, for the hour to come. Then the same with a share of the sensors silent all day,
# drawn at random, three times for each share. The error is that of *all* roads, silent ones included: what they would
# have read is in the test period, and the model does not see it.

day = pd.date_range("2024-05-17 00:00", periods=24, freq="h") - saved.interval  # the last reading before the hour


def forecasts(readings):
    return pd.concat([saved.forecast(readings.loc[:until].iloc[-12:]) for until in day])


def mean_error(found):
    return float((found - table.loc[found.index]).abs().stack().mean())


shares = [0, 0.1, 0.25, 0.5, 0.75]
generator = torch.Generator().manual_seed(0)
by_share = {}
for share in shares:
    errors = []
    for _ in range(3):
        drawn = torch.randperm(city.num_nodes, generator=generator)[: round(share * city.num_nodes)]
        heard = table.copy()
        heard.iloc[:, drawn.tolist()] = float("nan")
        errors.append(mean_error(forecasts(heard)))
    by_share[share] = errors
    print(f"{share:4.0%} silent: MAE {sum(errors) / len(errors):.2f} {saved.unit}")

# %%
# The picture
# -----------
#
# Above, a road with two jams on that day. Each blue line is one forecast, and its dot is when it was made. Below, the
# error by the share of silent sensors.

import matplotlib.dates as mdates
import matplotlib.pyplot as plt

road = "riverton-031"
figure, (above, below) = plt.subplots(2, 1, figsize=(10, 7.5), height_ratios=[1.5, 1], layout="constrained")
found = forecasts(table)[road]
above.plot(table.loc["2024-05-17", road], color="0.6", linewidth=2.5, label="read")
for number in range(24):
    one = found.iloc[12 * number : 12 * number + 12]
    above.plot(one, color="#0072B2", label="forecast of the next hour" if number == 0 else None)
    above.plot(one.index[0], one.iloc[0], "o", color="#0072B2", markersize=4)
above.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
above.set(xlabel=f"time of day on {day[1]:%d %B %Y}", ylabel=f"speed ({saved.unit})")
above.set_title(f"Road {road}, forecast once an hour", loc="left", fontsize=10)
above.legend(loc="lower center")

below.plot([100 * share for share in shares], [sum(e) / len(e) for e in by_share.values()], color="#0072B2")
for share, errors in by_share.items():
    below.plot([100 * share] * len(errors), errors, "o", color="#0072B2", markersize=5)
below.set(
    xlabel="silent sensors (%)", xticks=[100 * share for share in shares], ylabel=f"MAE ({saved.unit})", ylim=(0, None)
)
below.set_title("All roads, each dot a draw of the silent sensors", loc="left", fontsize=10)
for axes in (above, below):
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

temporary.cleanup()

# %%
# The road is jammed on the afternoons of all three visible days, and the model sees that jam come and go. On none of
# their mornings was there one, and nobody told the model about Friday's.
#
# What to remember
# ----------------
#
# - ``SavedModel.load(folder).forecast(table)`` from Python, ``tsjt forecast --every`` beside files, ``export`` for
#   torch alone: three ways to the same numbers.
# - Write a file elsewhere and rename it; leave a silent sensor's column there, empty.
# - What could mean two things is not forecast: the error says what to mend, and the service goes on.
#
# Where to go next: :doc:`/serving` for folders of files, programs that take any city, and what each way costs;
# :doc:`/bad_days` for readings that are wrong and not absent; :doc:`/_generated/tutorials/7_several_gpus_and_long_runs`
# for the training of a model that is not small.
