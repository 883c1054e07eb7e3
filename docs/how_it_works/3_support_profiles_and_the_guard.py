r"""
Support profiles, centred windows, and the guard
================================================

Most of what ``strategy="tsjt"`` gains over training on the target alone comes from making cities comparable: windows
that are centred on their last value, and a *support profile*, the typical day of a node made of the few days there are
(:doc:`/results` has the numbers). Then a *guard* looks at each source city before it may take part. This page draws all
three, on simulated cities; how to use them in code of your own is in :doc:`/transfer`.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.lines import Line2D

from tsjt_pyg.data import StandardScaler, SupportProfile
from tsjt_pyg.datasets import load_city
from tsjt_pyg.training import ModelConfig, fit

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"
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

target = load_city("demo/riverton").select("speed")
rich = load_city("demo/ringwood").select("speed")
visible, test = target.few_shot(days=3)
support = SupportProfile(visible)

# %%
# From few days to a profile
# --------------------------
#
# Left, the three visible days of one node, and what is made of them: at every time of day, the mean of what was
# observed then. Right, a window of the test period in which a jam begins. At its last reading :math:`\ell` a model
# knows the history, and through the profile :math:`p` what was usual at the times to come, on other days. It forecasts
#
# .. math::
#     \hat y = \ell + \delta + a\,(p - \ell),
#
# with a correction :math:`\delta` and a gate :math:`a` between 0 and 1 for every step of the horizon. It is learned
# when to believe the profile. (The forecast is not drawn: how much a network makes of this is measured in
# :doc:`/results`.)

node = 10
windows = test.windows(history=12, horizon=12)
index = torch.tensor([82])
batch, profile = windows.batch(index), support.at(windows, index)


def observed(values, mask):
    """Readings of the node, with gaps where nothing was observed."""
    return values.masked_fill(~mask, float("nan"))


figure, axes = plt.subplots(1, 2, figsize=(10.2, 3.7), layout="constrained", sharey=True, width_ratios=[1.25, 1])
hours = np.arange(288) / 12
days = observed(visible.readings, visible.mask)[:, node, 0].view(3, 288)
for day, (readings, colour) in enumerate(zip(days, (SKY, ORANGE, PURPLE), strict=True)):
    axes[0].plot(hours, readings, color=colour, lw=0.9, label=f"visible day {day + 1}")
axes[0].plot(hours, days.nanmean(dim=0), color="black", lw=2, label="their mean: the profile $p$")
axes[0].set(
    xlabel="hour", ylabel="speed (km/h)", xlim=(0, 24), xticks=range(0, 25, 4), title="three visible days of a node"
)
axes[0].legend(loc="lower right")

minutes = np.arange(-11, 13) * 5
x, y = (observed(v, m)[0, :, node, 0] for v, m in ((batch.x, batch.x_mask), (batch.y, batch.y_mask)))
p = observed(profile.values, profile.mask)[0, :, node, 0]
axes[1].axvline(0, color="0.6", lw=0.8, ls=":")
axes[1].plot(minutes, p, color="black", lw=2, label="profile $p$")
axes[1].plot(minutes[:12], x, "o-", color=BLUE, ms=3.5, lw=1.2, label="history")
axes[1].plot(minutes[11:], x[-1].expand(13), "--", color=BLUE, lw=1.2, label=r"last value $\ell$")
axes[1].plot(minutes[12:], y, "o", mfc="white", mec=RED, ms=5, label="what came")
axes[1].set(xlabel="minutes from the last reading", title=f"a window of the test period, {test.time[82 + 11]:%A %H:%M}")
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
# A source plays the few-shot city
# --------------------------------
#
# The source has two weeks, the target three days. Were a model to see the source's profile of two weeks in training,
# it would learn to believe it more than a profile of three days deserves. So each window of a source gets 1 to 3 of
# its other days, drawn anew (``most=3``). Left: forty such profiles of one node beside the one of all other days.
# Right: how far, over all nodes and times of day, a profile of so many days is from what is read on another day.

node = 60
rich_windows = rich.windows(history=12, horizon=276)  # a window a day, to look at a whole one
index = torch.full((40,), 9 * 288)
generator = torch.Generator().manual_seed(0)
episodes = SupportProfile(rich).at(rich_windows, index, most=3, generator=generator)
whole = SupportProfile(rich).at(rich_windows, index[:1])

figure, axes = plt.subplots(1, 2, figsize=(10.2, 3.5), layout="constrained", width_ratios=[1.25, 1])
for values, mask in zip(episodes.values, episodes.mask, strict=True):
    axes[0].plot(hours, observed(values, mask)[:, node, 0], color=SKY, lw=0.5, alpha=0.7)
axes[0].plot([], [], color=SKY, label="of 1 to 3 days, drawn at random")
axes[0].plot(hours, observed(whole.values, whole.mask)[0, :, node, 0], color="black", lw=2, label="of all other days")
axes[0].set(
    xlabel="hour",
    ylabel="speed (km/h)",
    xlim=(0, 24),
    xticks=range(0, 25, 4),
    title="profiles of one node of the source",
)
axes[0].set_ylim(top=66)
axes[0].legend(loc="upper center", ncols=2)

working_days = [0, 1, 2, 3, 4, 7, 8, 9, 10]
errors = []
for count in range(1, len(working_days) + 1):
    of_count = []
    for _ in range(12):
        drawn = torch.randperm(len(working_days), generator=generator)[:count]
        few = torch.stack([observed(rich.readings, rich.mask).view(14, 288, -1)[working_days[day]] for day in drawn])
        other = observed(rich.readings, rich.mask).view(14, 288, -1)[11]  # a Friday, never among them
        of_count.append((few.nanmean(dim=0) - other).abs().nanmean())
    errors.append(torch.stack(of_count))
for count, of_count in enumerate(errors, start=1):
    axes[1].plot([count] * len(of_count), of_count, "o", color=SKY, ms=3.5, alpha=0.7, mew=0)
axes[1].plot(range(1, len(errors) + 1), [e.mean() for e in errors], "o-", color="black", ms=4, label="mean of 12 draws")
axes[1].axvspan(0.6, 3.4, color="0.94", lw=0, zorder=0)
axes[1].text(2, axes[1].get_ylim()[0], "what the target has", ha="center", va="bottom", color="0.35")
axes[1].set(
    xlabel="support days",
    ylabel="MAE of the profile (km/h)",
    xlim=(0.5, len(errors) + 0.5),
    xticks=range(1, len(errors) + 1),
)
axes[1].set_title("what so small a profile is worth")
axes[1].legend()
plt.show()

# %%
# Windows centred on their last value
# -----------------------------------
#
# Cities differ in speed limits and units, and a model that learned one city's level has to unlearn it in the next. Each
# city is scaled by its own mean and standard deviation, of the days one may learn from, and each window is shown to the
# model less its last value. Then windows of both cities are of one kind, and a model that does nothing forecasts the
# last value, which is hard to beat as it is.

figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.3), layout="constrained")
torch.manual_seed(3)
minutes = np.arange(-11, 1) * 5
for city, colour in ((rich, ORANGE), (visible, BLUE)):
    scaler = StandardScaler().fit(city.readings, city.mask)
    windows = city.windows(12, 12)
    batch = windows.batch(torch.randint(len(windows), (30,)))
    chosen = torch.randint(city.num_nodes, (30,))
    one = torch.arange(30)
    raw = observed(batch.x, batch.x_mask)[one, :, chosen, 0]
    scaled = observed(scaler.transform(batch.x), batch.x_mask)[one, :, chosen, 0]
    for ax, values in zip(axes, (raw, scaled, scaled - scaled[:, -1:]), strict=True):
        ax.plot(minutes, values.T, color=colour, lw=0.8, alpha=0.8)
for ax, title in zip(axes, ["as read", "scaled", "scaled and centred"], strict=True):
    ax.set(
        title=title, xlabel="minutes", ylabel="speed (km/h)" if title == "as read" else "speed (standard deviations)"
    )
figure.legend(
    handles=[Line2D([], [], color=ORANGE, label="ringwood"), Line2D([], [], color=BLUE, label="riverton")],
    loc="outside lower center",
    ncols=2,
)
plt.show()

# %%
# The guard
# ---------
#
# Before the training, a copy of the model sees a few dozen steps of each source alone, and forecasts the target's
# visible days. A source takes part if
#
# - that zero-shot error is at most 1.01 times that of the best naive forecast (of the last value, and of its mean with
#   the profile),
# - its *persistence*, the correlation of its readings with those some steps later, is at least half of the target's,
# - at most a fifth of its days are unlike its other days, and it has a hundred windows or more.
#
# Below, two good sources and four that were spoiled: shuffled in time, noise, in reverse, and stuck at one value from
# its eighth day on. Each is judged three times, from other initial parameters. The green field is where the first two
# conditions hold; a cross says that the guard left the source out.

generator = torch.Generator().manual_seed(0)
order = torch.randperm(rich.num_steps, generator=generator)
noise = 50 + 15 * torch.randn(rich.readings.shape, generator=generator)
stuck = torch.arange(rich.num_steps).clamp(max=rich.num_steps // 2)
sources = {
    "ringwood": rich,
    "gridport": load_city("demo/gridport").select("speed"),
    "ringwood, in reverse": replace(rich, readings=rich.readings.flip(0), mask=rich.mask.flip(0)),
    "ringwood, stuck": replace(rich, readings=rich.readings[stuck], mask=rich.mask[stuck]),
    "ringwood, shuffled": replace(rich, readings=rich.readings[order], mask=rich.mask[order]),
    "noise": replace(rich, readings=noise.masked_fill(~rich.mask, 0.0)),
}
verdicts = {name: [] for name in sources}
for seed in range(3):
    torch.manual_seed(seed)
    model = ModelConfig(cell="GRU", hidden_channels=16).build()
    named = [replace(city, name=name) for name, city in sources.items()]
    result = fit(model, visible, named, "tsjt", steps=4, batch_size=16, seed=seed, evaluations=1)
    for verdict in result.verdicts:
        verdicts[verdict.name].append(verdict)

figure, axes = plt.subplots(1, 2, figsize=(10.2, 3.9), layout="constrained", width_ratios=[1.9, 1], sharey=False)
ax = axes[0]
ax.fill_between([0.85, 1.01], 0.5, 1.2, color=GREEN, alpha=0.12, lw=0)
ax.axvline(1.01, color=GREEN, lw=1)
ax.axhline(0.5, color=GREEN, lw=1)
looks = dict(zip(sources, (BLUE, SKY, PURPLE, ORANGE, RED, "0.45"), strict=True))
for name, found in verdicts.items():
    for verdict in found:
        taken = verdict.weight > 0
        ax.plot(
            verdict.error,
            verdict.persistence,
            "o" if taken else "X",
            color=looks[name],
            ms=7 if taken else 8,
            alpha=0.85,
        )
ax.set(xlim=(0.85, 1.35), ylim=(-0.1, 1.2))
ax.set(xlabel="zero-shot error / error of the best naive forecast", ylabel="persistence / the target's")
ax.text(0.855, 1.18, "may take part", color=GREEN, va="top")

odd = [found[0].odd for found in verdicts.values()]
axes[1].barh(range(len(odd)), odd, color=list(looks.values()), height=0.6)
axes[1].axvline(0.2, color=GREEN, lw=1)
axes[1].set(yticks=range(len(odd)), yticklabels=list(verdicts), xlim=(0, 1), xlabel="share of odd days (at most 0.2)")
axes[1].invert_yaxis()
for label, colour in zip(axes[1].get_yticklabels(), looks.values(), strict=True):
    label.set_color(colour)
plt.show()
