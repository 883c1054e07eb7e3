r"""
The protocol
============

A forecast of a city with three days of readings is easily made to look better than it is. This page draws what may be
learned from and what not, as :func:`~tsjt_pyg.training.fit` and :func:`~tsjt_pyg.evaluation.compare` have it, and then
breaks the rules one at a time, as published code does, to see by how much that flatters.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Patch

from tsjt_pyg import Forecaster
from tsjt_pyg.data import StandardScaler
from tsjt_pyg.datasets import load_city
from tsjt_pyg.evaluation import masked_mae, masked_rmse
from tsjt_pyg.training import training_split

# Okabe and Ito's colours, which the colour-blind tell apart.
TRAINING, VALIDATION, TEST, CROSSING = "#0072B2", "#E69F00", "#009E73", "#D55E00"
plt.rcParams.update(
    {
        "figure.dpi": 120,
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
)

city = load_city("demo/riverton").select("speed")
visible, test = city.few_shot(days=3)
training, validation = training_split(visible, validation_days=1.0, history=12)

# %%
# Days
# ----
#
# The visible days come first, the test period is all that comes after them. The last visible day validates: it
# chooses checkpoints and settings. Statistics, such as the mean and standard deviation of the scaler, come from the
# days before it. The test period is read once, at the end, and chooses nothing. A *source* city may be used as a
# whole.
#
# Windows, of twelve steps of history and twelve of horizon, are cut out of one part each. The lower pictures show
# every third of them around both borders: history light, horizon dark. A window that validates may look back into the
# training days, as a forecast would; no horizon that is learned from reaches beyond them. Between visible days and
# test period nothing crosses: windows that would (hollow) are in neither.

HOUR = np.timedelta64(1, "h")


def hours(time, of):
    """Hours from a border to a time."""
    return (np.datetime64(time) - np.datetime64(of)) / HOUR


def draw_windows(ax, windows, border, row, colour, crossing=False):
    """The windows within four hours of a border, one below the other; returns the next free row."""
    begin, step = hours(windows.city.start, border), windows.city.interval / HOUR
    for start in range(0, len(windows), 3):
        left = begin + start * step
        middle, right = left + windows.history * step, left + (windows.history + windows.horizon) * step
        if right < -2.5 or left > 2.5 or (crossing and not left < 0 < right):
            continue
        look = {"fill": False, "ec": colour, "lw": 0.9, "ls": ":"} if crossing else {"color": colour, "lw": 0}
        ax.barh(row, middle - left, left=left, height=0.72, alpha=1 if crossing else 0.35, **look)
        ax.barh(row, right - middle, left=middle, height=0.72, **look)
        row += 1
    return row


figure, axes = plt.subplot_mosaic(
    [["days", "days"], ["first", "second"]], figsize=(10.2, 6.2), layout="constrained", height_ratios=[1, 1.9]
)
parts = {"training days": (training, TRAINING), "validation day": (validation, VALIDATION), "test period": (test, TEST)}
borders = [city.start, training.time[-1] + city.interval, test.start, test.time[-1] + city.interval]
mean = city.readings.masked_fill(~city.mask, float("nan")).nanmean(dim=(1, 2))
axes["days"].plot([hours(time, city.start) / 24 for time in city.time], mean, color="0.25", lw=0.7)
for (name, (_, colour)), first, end in zip(parts.items(), borders, borders[1:], strict=False):
    first, end = (hours(time, city.start) / 24 for time in (first, end))
    axes["days"].axvspan(first, end, color=colour, alpha=0.2, lw=0)
    axes["days"].text(
        (first + end) / 2, 55.5, name.removesuffix(" day"), ha="center", color=colour, weight="bold", fontsize=8.5
    )
axes["days"].annotate(
    "", (0, 61), (3, 61), arrowprops={"arrowstyle": "<->", "color": "0.25", "shrinkA": 0, "shrinkB": 0}
)
axes["days"].text(1.5, 61.4, "visible days", ha="center", va="bottom", color="0.25")
axes["days"].set(xlim=(0, 14), ylim=(18, 66), xticks=range(15), xlabel="day", ylabel="mean speed of\nthe city (km/h)")

for key, before, after in (("first", "training days", "validation day"), ("second", "validation day", "test period")):
    ax, border = axes[key], parts[after][0].start if after != "validation day" else borders[1]
    row = draw_windows(ax, parts[before][0].windows(12, 12), border, 0, parts[before][1])
    if key == "second":
        row = draw_windows(ax, city.windows(12, 12), border, row, CROSSING, crossing=True)
    draw_windows(ax, parts[after][0].windows(12, 12), border, row, parts[after][1])
    ax.axvline(0, color="0.25", lw=1.2)
    ax.invert_yaxis()
    ax.set(xlim=(-2.5, 2.5), yticks=[], xlabel="hours from the border", title=f"{before} | {after}")
    ax.spines["left"].set_visible(False)
marks = [Patch(color=colour, label=f"windows of the {name}") for name, (_, colour) in parts.items()]
marks.append(Patch(fill=False, ec=CROSSING, ls=":", label="windows in neither"))
figure.legend(handles=marks, loc="outside lower center", ncols=4)
plt.show()

# %%
# What flatters, and by how much
# ------------------------------
#
# Five ways to break the protocol, most of them found in published code, each measured against the same forecast by the
# rules. The first three need no network:
#
# - **RMSE as the mean over batches** of 64 windows in order of time. A mean of roots is less than the root of the
#   mean, so quiet nights count as much as rush hours. Here of the last value, as forecast.
# - **The typical day of all days**, test period and all, instead of that of the visible ones, for a forecast or for
#   what is subtracted before.
# - **Days of another interval**: "three days" as 864 steps, of a city with a step every ten minutes, are six days.
#   Here the typical day of six days instead of three, tested on the days after both.


def readings_of(part):
    """By day, ``[days, steps, nodes]``, nan where nothing was observed."""
    return part.readings[..., 0].masked_fill(~part.mask[..., 0], float("nan")).view(-1, 288, part.num_nodes)


def typical_day_error(learned_from, tested_on):
    return (readings_of(tested_on) - readings_of(learned_from).nanmean(dim=0)).abs().nanmean().item()


def change(broken, honest):
    return 100 * (broken / honest - 1)


last_values = []
for batch in test.windows(12, 12).batches(64):
    last_values.append((batch.x[:, -1:].expand_as(batch.y), batch.y, batch.y_mask & batch.x_mask[:, -1:]))
pooled = masked_rmse(*(torch.cat(part) for part in zip(*last_values, strict=True))).item()
mean_of_batches = np.mean([masked_rmse(*batch).item() for batch in last_values])

six_days, later = city.few_shot(days=6)
found = {
    "RMSE as the mean over batches": [change(mean_of_batches, pooled)],
    "typical day of all days": [change(typical_day_error(city, test), typical_day_error(visible, test))],
    "six days passed off as three": [change(typical_day_error(six_days, later), typical_day_error(visible, later))],
}

# %%
# The other two are about networks. A small one learns from the training days, three times from other initial
# parameters:
#
# - **Scaled by all days**: mean and standard deviation of the whole record, test period and all. Once with Monday to
#   Wednesday visible, whose statistics are much like those of all days, and once with Saturday to Monday, where they
#   are not.
# - **The best checkpoint on the test period**, instead of the best on the validation day.


def train(visible, test, scaler, seed, steps=60):
    """Validation and test error of every tenth step, ``[steps // 10, 2]``."""
    training, validation = training_split(visible, validation_days=1.0, history=12)
    windows = training.windows(12, 12)
    torch.manual_seed(seed)
    model = Forecaster(torch.nn.GRU(16, 16), history=12, horizon=12, center=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def error(batch):
        x = scaler.transform(batch.x, batch.x_mask)
        forecast = model(x, batch.edge_index, batch.edge_weight, x_mask=batch.x_mask, time_of_day=batch.time_of_day)
        return masked_mae(scaler.inverse_transform(forecast), batch.y, batch.y_mask)

    looks = [part.windows(12, 12, stride=stride) for part, stride in ((validation, 11), (test, 37))]
    looks = [part.batch(torch.arange(len(part))) for part in looks]
    errors = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (error(windows.batch(torch.randint(len(windows), (16,)))) / scaler.std.item()).backward()
        optimizer.step()
        if step % 10 == 0:
            with torch.no_grad():
                errors.append([error(look).item() for look in looks])
    return np.array(errors)


for name, first in (("Monday to Wednesday", 0), ("Saturday to Monday", 5)):
    record = city.between(first * 288, city.num_steps)
    few, rest = record.few_shot(days=3)
    days, _ = training_split(few, validation_days=1.0, history=12)
    by_training_days = StandardScaler().fit(days.readings, days.mask)
    by_all_days = StandardScaler().fit(record.readings, record.mask)
    for seed in range(3):
        honest, leaky = (train(few, rest, scaler, seed) for scaler in (by_training_days, by_all_days))
        chosen = honest[honest[:, 0].argmin(), 1]
        of_leaky = leaky[leaky[:, 0].argmin(), 1]
        found.setdefault(f"scaled by all days\n({name})", []).append(change(of_leaky, chosen))
        found.setdefault("best checkpoint on the test period", []).append(change(honest[:, 1].min(), chosen))

# %%
# What is left of zero flatters. The first three do, and by much. Scaling by all days is of another kind: it may
# flatter, do nothing, or do harm, as here after a weekend. Whoever does it has measured something else than a
# forecast from three days. A checkpoint chosen on the test period can only flatter; here it does next to nothing,
# because these networks are far from overfitting.
#
# :func:`~tsjt_pyg.training.fit` cannot make these mistakes, as it is given the visible days only, and
# :func:`~tsjt_pyg.evaluation.compare` pools errors over all entries.

figure, ax = plt.subplots(figsize=(8.8, 3.4), layout="constrained")
order = sorted(found, key=lambda name: np.mean(found[name]))
for row, name in enumerate(order):
    values = found[name]
    ax.plot([0, np.mean(values)], [row, row], color="0.78", lw=6, solid_capstyle="butt", zorder=1)
    colour = "black" if len(values) == 1 else TRAINING
    ax.plot(values, [row] * len(values), "o", color=colour, ms=6.5, alpha=0.85, mec="white")
ax.axvline(0, color="0.25", lw=1)
ax.set(yticks=range(len(order)), yticklabels=order, xlabel="change of the error where the rule is broken (%)")
ax.tick_params(axis="y", length=0)
ax.spines["left"].set_visible(False)
ax.invert_yaxis()
plt.show()
