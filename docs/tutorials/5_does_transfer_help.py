"""
Does transfer help me? Reading the comparison honestly
======================================================

Whether other cities help *yours* is a question that you can answer by measuring, and that is easy to answer wrongly. At
the end of this page you can read the table of :func:`~tsjt_pyg.evaluation.compare` row by row, you have seen four ways
to fool yourself with its numbers, and you have held a gain against a placebo. It takes fifteen minutes to read and
about a minute to run, on the simulated cities of the package.
"""

# %%
# The question
# ------------
#
# ``riverton`` has one day of readings. Do two weeks of its neighbours help to forecast it? We look at four days of it:
# a Monday to learn from, and the three days after it to measure on. ``compare`` splits them itself, gives training the
# visible day alone, and reads the test period once, at the end.
#
# The trainings are short, so that this page stays short, and have no support profile, which needs a second day. For a
# real decision take more steps, more seeds and your own days; how to read the result stays the same.

import pandas as pd

from tsjt_pyg.datasets import load_city
from tsjt_pyg.evaluation import compare
from tsjt_pyg.training import ModelConfig

riverton = load_city("demo/riverton").select("speed")
sources = [load_city(f"demo/{name}").select("speed") for name in ("gridport", "ringwood")]
per_day = riverton.steps_per_day
city = riverton.between(0, 4 * per_day)

settings = {
    "visible_days": 1,
    "validation_days": 0.5,  # the second half of the visible day chooses the checkpoint
    "model": ModelConfig(hidden_channels=16, history=6, horizon=12, profile=False),
    "steps": 60,
    "jobs": 2,  # runs at the same time; the numbers do not depend on it
    "batch_size": 8,
    "lr": 0.005,
    "naive": ("last value", "historical average"),
    "verbose": False,
}
comparison = compare(city, sources, ("target_only", "target_only_2x", "pooled", "tsjt"), seeds=3, **settings)

# %%
# The table
# ---------
#
# ``comparison.show()`` prints all of it, by step of the horizon. These are the columns that decide:


def decisive(comparison):
    columns = ["mae", "mae_std", "gain_percent", "gain_low", "gain_high"]
    return comparison.to_frame().set_index("name")[columns].astype(float).round(2).to_string(na_rep="")


print(decisive(comparison))

# %%
# ``mae`` is the mean absolute error in km/h over all nodes, windows and steps of the horizon of the test period, and
# the mean over the seeds. Read the rows from the top:
#
# - **Naive forecasts** need no network. *Last value*: it stays as it is. *Historical average*: it will be as it was at
#   this time on the visible day. A network that is no better than these is not worth its trouble, with or without
#   transfer.
# - ``target_only`` learned from the visible day alone. The gains are measured against it.
# - ``target_only_2x`` did the same with twice the steps. A joint step computes two gradients, one of a source and one
#   of the target, so this is the row with the *same compute* as those below it. Without it, one may take the effect of
#   more training for the effect of other cities.
# - ``pooled`` adds the losses of sources and target. If a clever method is no better than this, the sources help, and
#   the cleverness does not.
# - ``tsjt`` judges the sources first, filters their gradients, and averages its parameters (:doc:`/transfer`).
#
# Gain, and over whom
# -------------------
#
# ``gain_low`` and ``gain_high`` are the ends of a 95 % interval. A gain whose interval contains 0 cannot be told from
# chance. Look at ``tsjt`` over each of the two trainings on the target alone:

for reference in ("target_only", "target_only_2x"):
    print(f"tsjt over {reference}: {comparison.gain('tsjt', over=reference)} %")

# %%
# The first line alone would be a press release. The second has equal compute, and the interval is wider, because the
# longer training on so little data now and then finds something, and mostly does not. So hold yourself to the better of
# the two, as :func:`~tsjt_pyg.evaluation.advise` does:

from tsjt_pyg.evaluation import advise

print(advise(comparison))

# %%
# "No gain can be told from chance" is not "there is no gain". Three short runs say little, in either direction.
#
# An interval of seeds, not of days
# ---------------------------------
#
# The interval says what would change with other initial parameters and other batches. It does *not* say what would
# change with another visible day, and that may be more. Here is the same measurement (one seed) with a Tuesday and with
# a Wednesday to learn from:

first_days = {"Monday": comparison}
for number, day in enumerate(("Tuesday", "Wednesday"), start=1):
    later = riverton.between(number * per_day, (number + 4) * per_day)
    first_days[day] = compare(later, sources, ("target_only_2x", "tsjt"), seeds=[0], **settings)


def gains(comparison, over):
    """The gain of tsjt of each seed, in percent of the reference's error."""
    pairs = zip(comparison.runs("tsjt"), comparison.runs(over), strict=True)
    return [100 * (1 - mine.errors.mean_mae / other.errors.mean_mae) for mine, other in pairs]


for day, found in first_days.items():
    error = found.runs("target_only_2x")[0].errors.mean_mae
    print(f"{day}, seed 0: target_only_2x {error:.2f} km/h, gain of tsjt {gains(found, 'target_only_2x')[0]:+.1f} %")

# %%
# If you have the days, repeat the whole comparison from several first days. That is how :doc:`/results` was measured.
#
# Four ways to fool yourself
# --------------------------
#
# **One seed.** Each of these is the gain of a single pair of runs. Whoever runs once, reports one of them:

print("gain of tsjt over target_only_2x, by seed:", *(f"{gain:+.1f} %" for gain in gains(comparison, "target_only_2x")))

# %%
# ``compare`` takes three seeds unless told otherwise, pairs them, and ``advise`` refuses to judge a single one.
#
# **Choosing by the test error.** Every training passes better and worse parameters on its way. If the test period
# chooses among them, its error is no longer that of a forecast. The library lets the end of the visible days choose
# (``validation_loss``). Training on the target alone needs such a choice badly, as its last parameters show:

rows = [
    (run.name, run.seed, run.best_step, run.validation_loss, run.errors.mean_mae, run.last.mean_mae)
    for run in comparison.records
    if run.seed is not None
]
columns = ["name", "seed", "chosen step", "validation", "test, chosen", "test, last step"]
runs = pd.DataFrame(rows, columns=columns)
print(runs.round(3).to_string(index=False))

# %%
# ``test, chosen`` counts. The smaller of the last two columns, picked row by row, would be a number that nobody can
# have in use, where the test period has not happened yet:

honest, picked = runs["test, chosen"], runs[["test, chosen", "test, last step"]].min(axis=1)
print("flattered, at most:")
for name, percent in (100 * (1 - picked / honest)).groupby(runs["name"], sort=False).max().items():
    print(f"  {name} {percent:.1f} %")

# %%
# That is a choice between two; with every step to choose from, and settings beside, it grows. ``fit`` is not even given
# the test period.
#
# **Statistics of days that have not come.** A mean over *all* days, test period included, is an innocent line of code.
# For the historical average it is a leak, and makes it look far better than it is:

from tsjt_pyg.evaluation import HorizonErrors
from tsjt_pyg.evaluation.naive import fit_historical_average

visible, test = city.few_shot(days=1)


def historical_average(days):
    forecast, errors = fit_historical_average(days), HorizonErrors(horizon=12)
    for batch in test.windows(6, 12).batches(64):
        errors.update(forecast(batch, test), batch.y, batch.y_mask)
    return errors.compute().mean_mae


print(f"average of the visible day: {historical_average(visible):.2f} km/h")
print(f"average of all days:        {historical_average(city):.2f} km/h, which is no forecast")

# %%
# The same leak in a scaler is smaller and harder to see. Here ``few_shot`` cuts the city first, and everything that is
# learned, scalers, profiles and averages, is learned from ``visible``.
#
# **Nothing to beat.** Among networks there is always a best one, and without the first rows of the table nobody sees
# that all of them are worse than to say "it stays as it is". The naive rows are in every table; more of them, such as
# ``"gradient boosting"``, which was hard to beat in :doc:`/results`, are a word in ``naive=(…)`` away.
#
# A placebo
# ---------
#
# Did ``pooled`` learn from the other cities how traffic goes on, or did it only profit from more data of any kind? Give
# it a source that cannot know. Shuffled in time, ``ringwood`` still has its true readings, with their mean and spread,
# but what follows on what is chance:

import dataclasses

import torch

ringwood = sources[1]
order = torch.randperm(ringwood.num_steps, generator=torch.Generator().manual_seed(0))
placebo = dataclasses.replace(
    ringwood, name="ringwood, shuffled", readings=ringwood.readings[order], mask=ringwood.mask[order]
)
shuffled = compare(city, [placebo], ("pooled",), seeds=3, **settings)


def mae(comparison, name):
    runs = comparison.runs(name)
    return sum(run.errors.mean_mae for run in runs) / len(runs)


print(f"target_only_2x                {mae(comparison, 'target_only_2x'):.2f} km/h")
print(f"pooled, from a shuffled city  {mae(shuffled, 'pooled'):.2f} km/h")
print(f"pooled, from two real cities  {mae(comparison, 'pooled'):.2f} km/h")

# %%
# Only what a real city gives *beyond* the placebo was learned from how its traffic goes on.
#
# The guard
# ---------
#
# ``tsjt`` takes no placebo. Before the training, its *guard* judges each source on the visible days of the target
# alone, and the verdicts are kept with each run:

guarded = compare(city, [placebo], ("tsjt",), seeds=[0], **settings)
for found in (comparison, guarded):
    for verdict in found.runs("tsjt")[0].sources:
        state = "contributes" if verdict["weight"] else "was left out"
        print(f"{verdict['name']} {state}: error {verdict['error']:.2f}, persistence {verdict['persistence']:.2f}")

# %%
# *Error* is that of a network which saw a few steps of this source alone, on the visible day, relative to the best
# naive forecast of it. It has to be below 1.03 here, where one day is visible. *Persistence* is how well a reading
# tells the later ones, relative to the target's, and has to be at least 0.5. The shuffled city fails by the second.
# With no source left, ``tsjt`` is ``target_only_2x``, and not roughly: the digests of their parameters are equal.

same = guarded.runs("tsjt")[0].digest == comparison.runs("target_only_2x")[0].digest
print("the same parameters:", same)

# %%
# The picture
# -----------
#
# On the left every run, as a dot, with what its last parameters would have had (cross). On the right what may be said
# of the gain.

import matplotlib.pyplot as plt

colours = {"target_only": "#D55E00", "target_only_2x": "#CC79A7", "pooled": "#009E73", "tsjt": "#0072B2"}
markers = {"target_only": "s", "target_only_2x": "D", "pooled": "^", "tsjt": "o"}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained", width_ratios=[1.25, 1])

lines = [(name, comparison.runs(name), name) for name in colours]
lines += [("pooled,\nshuffled city", shuffled.runs("pooled"), "pooled")]
lines += [("tsjt,\nshuffled city", guarded.runs("tsjt"), "tsjt")]
for row, (_, runs_of_it, name) in enumerate(lines):
    last = [run.last.mean_mae for run in runs_of_it]
    chosen = [run.errors.mean_mae for run in runs_of_it]
    left.plot(last, [row + 0.18] * len(last), "x", color="0.45", label="by its last parameters" if row == 0 else None)
    left.plot(chosen, [row] * len(chosen), markers[name], color=colours[name], markersize=8, alpha=0.8)
for name, dash in (("last value", "--"), ("historical average", ":")):
    left.axvline(comparison.runs(name)[0].errors.mean_mae, color="0.3", linestyle=dash, linewidth=1.2, label=name)
left.set_yticks(range(len(lines)), [label for label, _, _ in lines])
left.axhline(3.5, color="0.8", linewidth=1)
left.margins(y=0.08)
left.invert_yaxis()
left.set_xlabel("MAE on the test period (km/h; left is better)")
left.set_title("Every run; one visible day, a Monday", loc="left", fontsize=11)
left.legend(fontsize=9, loc="center", bbox_to_anchor=(0.6, 0.5))
left.grid(axis="x", alpha=0.3)

labels = []
for reference in ("target_only", "target_only_2x"):
    gain, row = comparison.gain("tsjt", over=reference), len(labels)
    right.plot([gain.low, gain.high], [row, row], color=colours[reference], linewidth=3, alpha=0.5)
    right.plot(gains(comparison, reference), [row] * 3, markers[reference], color=colours[reference], markersize=7)
    labels.append(f"over {reference},\nthree seeds, Monday")
for day in ("Tuesday", "Wednesday"):
    right.plot(
        gains(first_days[day], "target_only_2x"), [len(labels)], "D", color=colours["target_only_2x"], markersize=7
    )
    labels.append(f"over target_only_2x,\none seed, {day}")
right.set_yticks(range(len(labels)), labels)
right.margins(y=0.12)
right.invert_yaxis()
right.axvline(0, color="0.3", linewidth=1)
right.set_xlabel("gain (% of MAE; right is better)")
right.set_title("Gain of tsjt (bar: 95 % interval of the seeds)", loc="left", fontsize=11)
right.grid(axis="x", alpha=0.3)
plt.show()

# %%
# What to remember
# ----------------
#
# - First the naive rows, then the target alone *with equal compute*, then the gain.
# - An interval that contains 0 means: not told from chance. It is an interval of seeds; other days may change more.
# - What the test period chose, it cannot measure.
# - A source that has nothing to teach is left out by the guard. One that has, is not thereby sure to help: that is what
#   the comparison is for.
#
# Where to go next: :doc:`/results` has real cities, several first days and spoiled sources of many kinds;
# :doc:`/transfer` explains profiles, the guard and the advice; :doc:`/own_city` brings the city that you care about. On
# the command line all this is ``tsjt compare``.
