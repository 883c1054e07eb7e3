"""
A better forecast in ten minutes
================================

A city has just put up its sensors and has three days of readings. Two neighbours have two weeks. At the end of this
page you have trained two forecasts for it, one from its own days and one with the neighbours' help, held both against
forecasts that need no training, and seen in a picture which of them to trust. You need no knowledge of graphs, and no
data: three small simulated cities are in the package. It takes ten minutes to read and less than one to run.
"""

# %%
# Three cities
# ------------
#
# A city is a table of readings with a map. Each *node* is a road with a sensor, here one that reads the mean speed
# every five minutes; an *edge* joins two nodes where one can drive from one to the other. The map matters because jams
# travel along it: a road that slows down tells its neighbours something.
#
# ``riverton`` is the city we forecast, the *target*. ``gridport`` and ``ringwood`` are the *sources*. Note that they
# have other roads, and another number of them. The network we train has no parameter that belongs to a single road,
# so one network fits all three.

from tsjt_pyg.datasets import load_city

city = load_city("demo/riverton").select("speed")
sources = [load_city(f"demo/{name}").select("speed") for name in ("gridport", "ringwood")]
for each in (city, *sources):
    print(each)

# %%
# Three days, and not a minute more
# ---------------------------------
#
# ``few_shot`` cuts the target in two. The training may look at the *visible days*. What comes after them is the test
# period, which is kept for measuring: a forecast is only worth something for days that it was not made from.

visible, test = city.few_shot(days=3)
print(f"visible: {visible.start} to {visible.time[-1]}")
print(f"test:    {test.start} to {test.time[-1]}")

# %%
# Two trainings
# -------------
#
# From the last hour of readings (``history=12`` steps of five minutes) the network writes the next hour
# (``horizon=12``), for all roads at once. We train it twice, from the same initial parameters:
#
# - ``target_only`` learns from the visible days of the target and from nothing else,
# - ``tsjt`` learns from the sources too. Where what helps a source would hurt the target, it is filtered out
#   (:doc:`/optimizer`).
#
# ``profile=False`` leaves out each road's typical day, which :doc:`/transfer` explains. In the real cities that were
# measured such profiles help; in these simulated ones they mislead, so we go without. That is a choice you should make
# by measuring, as on this page, and not by taste.

import torch

from tsjt_pyg.training import ModelConfig, fit

config = ModelConfig(cell="GConvGRU", hidden_channels=16, history=12, horizon=12, profile=False)


def train(days, strategy):
    torch.manual_seed(0)
    options = {"steps": 120, "batch_size": 8, "lr": 0.005, "validation_days": 1 if days > 1 else 0.5}
    return fit(config.build(), city.few_shot(days).visible, sources, strategy, **options)


alone = train(3, "target_only")
helped = train(3, "tsjt")

# %%
# Before the training, a *guard* tries each source for a few steps, and leaves out one that has nothing to teach. Its
# verdicts:

print(*helped.verdicts, sep="\n")

# %%
# A zero-shot error of 1 says: after a few steps on this source, and none on the target, the network forecasts the
# target as well as the best guess that needs no network. From a city like that something can be learned. (Persistence
# is how well a reading tells the next ones, next to the target's.)
#
# Better than what?
# -----------------
#
# An error of two kilometres an hour is neither good nor bad by itself. So we measure forecasts that need no network as
# well: the *last value* (it will stay as it is) and the *historical average* (it will be as it was at this time on the
# visible days). All are measured on the same windows of the test period, over what was observed. The number is the mean
# absolute error (MAE) in km/h, for forecasts of a quarter, half and a whole hour ahead, and over all twelve steps.

import pandas as pd

from tsjt_pyg.evaluation import HorizonErrors
from tsjt_pyg.evaluation.naive import fit_historical_average, fit_last_value
from tsjt_pyg.training import forecast_windows


def measure(pairs):
    errors = HorizonErrors(horizon=12)
    for batch, forecast in pairs:
        errors.update(forecast, batch.y, batch.y_mask)
    return errors.compute().mae  # one for each step of the horizon


def of_network(result, days=3):
    return forecast_windows(result.model, city.few_shot(days).test.windows(12, 12), result.scaler)


def of_guess(forecast, days=3):
    test = city.few_shot(days).test
    return ((batch, forecast(batch, test)) for batch in test.windows(12, 12).batches(256))


three_days = {
    "last value": measure(of_guess(fit_last_value(visible))),
    "historical average": measure(of_guess(fit_historical_average(visible))),
    "target_only": measure(of_network(alone)),
    "tsjt": measure(of_network(helped)),
}
minutes = [5 * (step + 1) for step in range(12)]
table = pd.DataFrame(three_days, index=minutes).T
table["mean"] = table.mean(axis=1)
print(table[[15, 30, 60, "mean"]].round(2).to_string())

# %%
# Both networks are clearly better than the guesses. That is the better forecast of the title. But read the last two
# lines again: with three visible days of this city, the neighbours' help is not to be seen.
#
# Nor is a network the only way here. Gradient boosting, which takes longer to compute than this page may, reaches 2.31
# (``compare(…, naive=("gradient boosting",))`` puts it into its table).
#
# When one day is all there is
# ----------------------------
#
# Help is worth most to those who have least. The same again, with a single visible day:

first_day = city.few_shot(days=1).visible
one_day = {
    "last value": measure(of_guess(fit_last_value(first_day), days=1)),
    "historical average": measure(of_guess(fit_historical_average(first_day), days=1)),
    "target_only": measure(of_network(train(1, "target_only"), days=1)),
    "tsjt": measure(of_network(train(1, "tsjt"), days=1)),
}
table = pd.DataFrame(one_day, index=minutes).T
table["mean"] = table.mean(axis=1)
print(table[[15, 30, 60, "mean"]].round(2).to_string())

# %%
# Now the training on the target alone gains little on the guess that everything stays as it is, and the neighbours make
# the difference. This is what the method is for: a city with too little of its own. (Gradient boosting reaches 2.48.)
#
# The picture
# -----------
#
# Above, the road whose speed varies most, on a Friday: what was read, and what each network had said half an hour
# before. Below, the error by how far ahead one looks.

import matplotlib.dates as mdates
import matplotlib.pyplot as plt

road = int(visible.readings[..., 0].std(dim=0).argmax())
step = 5  # the sixth of the horizon: 30 minutes ahead
start = int((pd.Timestamp("2024-05-17 13:00") - test.start) / test.interval)
shown = slice(start, start + 8 * 12)  # eight hours


def half_an_hour_before(result):
    """What had been forecast for each step shown, half an hour before it."""
    # The first window's forecast is of the step after its history of 12, and ``step`` further on.
    found = torch.cat([forecast[:, step, road, 0] for _, forecast in of_network(result)])
    return found[shown.start - 12 - step : shown.stop - 12 - step]


readings = test.readings[:, road, 0].where(test.mask[:, road, 0], torch.nan)[shown]
time = test.time[shown]

styles = {
    "last value": {"color": "0.5", "linestyle": "--"},
    "target_only": {"color": "#D55E00", "marker": "s", "markersize": 4},
    "tsjt": {"color": "#0072B2", "marker": "o", "markersize": 4},
}
figure = plt.figure(figsize=(10, 7.5), layout="constrained")
axes = figure.subplot_mosaic([["road", "road"], ["three", "one"]], height_ratios=[1, 1.1])
axes["road"].plot(time, readings, color="black", linewidth=1, label="read")
for name, result in (("target_only", alone), ("tsjt", helped)):
    line = styles[name] | {"markevery": 3}
    axes["road"].plot(time, half_an_hour_before(result), label=f"{name}, 30 minutes before", **line)
axes["road"].xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
axes["road"].set(xlabel=f"time of day on {time[0]:%d %B}", ylabel="speed (km/h)")
axes["road"].set_title(f"Road {city.node_ids[road]}, after three visible days", loc="left", fontsize=10)
axes["road"].legend(fontsize=9, loc="lower left")
for panel, title, errors in (("three", "Three visible days", three_days), ("one", "One visible day", one_day)):
    for name, style in styles.items():
        axes[panel].plot(minutes, errors[name], label=name, **style)
    axes[panel].set(xlabel="time ahead (minutes)", ylabel="MAE (km/h)", ylim=(1.4, 3.8), xticks=minutes[2::3])
    axes[panel].set_title(
        f"{title} (historical average {errors['historical average'][0]:.1f})", loc="left", fontsize=10
    )
    axes[panel].grid(alpha=0.3)
axes["one"].legend(fontsize=9)
plt.show()

# %%
# An error of two kilometres an hour on average is nearly nothing at most times and much in a jam. Neither network sees
# the jam come half an hour before; both follow it, and differ in when they expect it to end.
#
# What to remember
# ----------------
#
# - Hold every forecast against guesses, on days that it was not made from.
# - One run with one seed is an anecdote. Before you decide anything, let
#   :func:`~tsjt_pyg.evaluation.compare` (or ``tsjt compare``) repeat it with several seeds and give intervals.
# - Simulated cities are for learning the tool. What was measured on real ones, where profiles and sources help more, is
#   in :doc:`/results`.
#
# Where to go next: :doc:`your own city </own_city>` instead of ``riverton``, and :doc:`/transfer`, which explains
# profiles and the guard.
