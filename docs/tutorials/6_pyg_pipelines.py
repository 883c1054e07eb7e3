"""
Data sets in PyG pipelines
==========================

You have a model of PyTorch Geometric, or of PyG-Temporal, and want cities for it: with masks, with transforms, split by
time, in the loaders that you know. At the end of this page a plain ``GCNConv`` has been trained on a city through PyG's
``DataLoader``, the same city has gone through a loop of PyG-Temporal, and you see on a map where the forecasts are
good. It takes ten minutes to read and half a minute to run.
"""

# %%
# Which cities there are
# ----------------------
#
# :func:`~tsjt_pyg.datasets.list_cities` knows all names. Three simulated cities are in the package. Of the others few
# come with a licence, so you bring the files yourself; ``root`` says where they lie.

import pandas as pd

from tsjt_pyg.datasets import list_cities, load_city

entries = pd.DataFrame([(entry.name, entry.group, entry.present) for entry in list_cities()])
entries.columns = ["name", "group", "present"]
for group, names in entries.groupby("group", sort=False)["name"]:
    print(f"{group}: {', '.join(names)}")

# %%
# A :class:`~tsjt_pyg.City` is the road network with all its readings and a mask of what was observed. ``select`` keeps
# one channel.

city = load_city("demo/riverton").select("speed")
print(city)
print(f"observed: {city.mask.float().mean():.1%}, from {city.start} on, {city.num_steps / city.steps_per_day:.0f} days")

# %%
# One window, one graph
# ---------------------
#
# ``to_dataset`` makes a :class:`torch_geometric.data.Dataset`: each :class:`~torch_geometric.data.Data` is a *window*,
# the whole road network with an hour of history (``x``) and the hour after it (``y``).

print(city.to_dataset(history=12, horizon=12)[0])

# %%
# ``x`` is ``[N, C, T_in]``, ``y`` is ``[N, T_out]``. ``x_mask`` and ``mask`` belong to them: a missing reading is 0 in
# the one and ``False`` in the other. A zero that was read is ``True``, so a street that stands still is not mistaken
# for a sensor that is dead.
#
# The windows are views of one tensor, so 4009 of them take no more memory than the city itself. For the same reason do
# not change a window in place.
#
# The same by name, with transforms
# ---------------------------------
#
# :class:`~tsjt_pyg.datasets.CityDataset` does the same from files, stores the city once, and takes the three hooks of
# PyG. ``pre_transform`` sees the city as a whole, once; here it gives every node what random walks from it come back
# with in 1 to 8 steps, a feature of the road network that fits any city. ``transform`` sees every window.

import tempfile

from torch_geometric import transforms

from tsjt_pyg.datasets import CityDataset

root = tempfile.TemporaryDirectory()  # yours would be a folder that stays
dataset = CityDataset(
    root.name,
    "demo/riverton",
    history=12,
    horizon=12,
    channels="speed",
    pre_transform=transforms.AddRandomWalkPE(walk_length=8),
    transform=transforms.Compose([transforms.ToUndirected(reduce="max"), transforms.AddSelfLoops("edge_attr")]),
)
print(dataset)
print(dataset[0])

# %%
# Every named data set has a class of its own, :class:`~tsjt_pyg.datasets.METRLA`, :class:`~tsjt_pyg.datasets.PEMS04`
# and so on. Where files are missing it says which, and where to get them:

from tsjt_pyg.datasets import PEMS04

try:
    PEMS04(root.name)
except FileNotFoundError as error:
    print(str(error).replace(root.name, "ROOT")[:160], "…")

# %%
# Split by time
# -------------
#
# A random split would put a window into training whose neighbour, five minutes later, is in the test. So cut at a time,
# and leave out the windows that cross the border. Ten days train, four test.

border = 10 * city.steps_per_day
train, test = dataset[: border - 12 - 12 + 1], dataset[border:]
print(len(train), "windows to learn from,", len(test), "to measure on")

# %%
# Means and standard deviations are statistics too, so they come from the training days, and from observed readings:

known = city.readings[:border][city.mask[:border]]
mean, std = known.mean(), known.std()

# %%
# What time is it?
# ----------------
#
# Traffic knows the clock, a graph does not. ``city.time_of_day`` (0 to 1) and ``city.day_of_week`` (0 = Monday) have
# one value a step. Window ``i`` ends its history at step ``i + 11``; put on a circle, midnight has no edge:

import math

import torch

angle = 2 * math.pi * city.time_of_day
clock = torch.stack([angle.sin(), angle.cos()], dim=1)


def with_clock(windows, first):
    """The windows, each with the time of day at the end of its history, for every node."""
    for number, data in enumerate(windows, start=first):
        data.clock = clock[number + 11].expand(data.num_nodes, 2)
        yield data


# %%
# A plain model
# -------------
#
# Two graph convolutions. It forecasts the *change* from the mean of the hour before, which is easier to learn than a
# speed. Both means leave out what was missing, and the model is told what that was.

from torch_geometric.nn import GCNConv


class PlainGCN(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = GCNConv(12 + 12 + 2 + 8, 32, add_self_loops=False)  # the transform has added them
        self.second = GCNConv(32, 32, add_self_loops=False)
        self.head = torch.nn.Linear(32 + 12 + 12 + 2 + 8, 12)

    def forward(self, data):
        x, observed = data.x[:, 0], data.x_mask[:, 0]
        count = observed.sum(dim=1, keepdim=True)
        centre = torch.where(count > 0, x.sum(dim=1, keepdim=True) / count.clamp(min=1), mean)
        deviation = (x - centre) / std * observed
        features = torch.cat([deviation, observed, data.clock, data.random_walk_pe], dim=1)
        hidden = self.first(features, data.edge_index, data.edge_attr).relu()
        hidden = self.second(hidden, data.edge_index, data.edge_attr).relu()
        return centre + std * self.head(torch.cat([hidden, features], dim=1))


# %%
# PyG's loader puts the road networks of a batch side by side into one large graph. Errors are taken over what was
# observed: ``error[batch.mask]`` is all there is to it.

from itertools import islice

from torch_geometric.loader import DataLoader

torch.manual_seed(0)
model = PlainGCN()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
loader = DataLoader(list(with_clock(train, first=0)), batch_size=16, shuffle=True)
losses = []
for batch in islice(loader, 150):
    loss = (model(batch) - batch.y)[batch.mask].abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"first 30 steps {sum(losses[:30]) / 30:.2f} km/h, last 30 steps {sum(losses[-30:]) / 30:.2f} km/h")

# %%
# On the test days, beside the guess that everything stays as it was read last:

truth, observed, forecasts, last = [], [], [], []
with torch.no_grad():
    for batch in DataLoader(list(with_clock(test, first=border)), batch_size=64):
        shape = (-1, city.num_nodes, 12)  # the large graph, cut into its windows again
        forecasts.append(model(batch).view(shape))
        truth.append(batch.y.view(shape))
        observed.append(batch.mask.view(shape))
        there = torch.where(batch.x_mask[:, 0], torch.arange(12), -1).amax(dim=1, keepdim=True)
        there, any_at_all = there.clamp(min=0), there >= 0
        guess = torch.where(any_at_all, batch.x[:, 0].gather(1, there), mean)
        last.append(guess.expand(-1, 12).reshape(shape))
truth, observed, forecasts, last = (torch.cat(parts) for parts in (truth, observed, forecasts, last))
for name, guess in (("last value", last), ("PlainGCN", forecasts)):
    print(f"{name}: {(guess - truth)[observed].abs().mean():.2f} km/h")

# %%
# The same in a loop of PyG-Temporal
# ----------------------------------
#
# ``to_signal`` gives a real ``StaticGraphTemporalSignal``, so ``temporal_signal_split`` and every recurrent cell work.
# Cut the city first: the split knows nothing of windows that cross its border.

from torch_geometric_temporal.nn.recurrent import A3TGCN
from torch_geometric_temporal.signal import temporal_signal_split

signal = city.between(0, border).to_signal(history=12, horizon=12)
learn, validate = temporal_signal_split(signal, train_ratio=0.8)
cell, head = A3TGCN(in_channels=1, out_channels=16, periods=12), torch.nn.Linear(16, 12)
temporal = torch.optim.Adam([*cell.parameters(), *head.parameters()], lr=1e-2)
for snapshot in islice(learn, 20):
    hidden = cell((snapshot.x - mean) / std, snapshot.edge_index, snapshot.edge_attr)
    error = (mean + std * head(hidden.relu()) - snapshot.y).abs()
    loss = (error * snapshot.mask).sum() / snapshot.mask.sum()
    temporal.zero_grad()
    loss.backward()
    temporal.step()
print(
    f"{learn.snapshot_count} snapshots to learn from, {validate.snapshot_count} to validate; the loop is PyG-Temporal's"
)

# %%
# Two cities at a time
# --------------------
#
# Cities have different numbers of nodes, so one dense batch is always of one city. :class:`~tsjt_pyg.CityPairLoader`
# pairs a batch of the target's visible days with one of a source, without end, which is what joint training needs.
# These batches are ``[B, T, N, C]``, hold their road network once, and bring the clock along.

from tsjt_pyg import CityPairLoader

rich = load_city("demo/ringwood").select("speed")
visible = city.few_shot(days=3).visible
pairs = CityPairLoader([rich.windows(12, 12)], visible.windows(12, 12), batch_size=16, seed=0)
source, target, _ = next(iter(pairs))
print("source", list(source.x.shape), source.city)
print("target", list(target.x.shape), target.city, "time of day", list(target.time_of_day.shape))

# %%
# What to do with the two is :doc:`/optimizer`'s.
#
# The picture
# -----------
#
# Where is a forecast good, and what does a mask look like? Left, the error of every node on the test days. Right, the
# node that varies most among those with long gaps: where nothing was read there is no line, and no error was counted.


import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection

by_node = ((forecasts - truth).abs() * observed).sum(dim=(0, 2)) / observed.sum(dim=(0, 2))
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=[1, 1.25])

latitude, longitude = city.pos.T.numpy()
ends = city.pos.flip(1)[city.edge_index.T].numpy()  # [E, 2, 2]: from (longitude, latitude) to the same
left.add_collection(LineCollection(ends, colors="0.75", linewidths=1, zorder=1))
shades = {"cmap": "viridis", "vmin": by_node.min(), "vmax": by_node.max(), "edgecolors": "black", "linewidths": 0.5}
for size, part in ((150, slice(0, None, 2)), (40, slice(1, None, 2))):  # two nodes a road: one for each direction
    dots = left.scatter(longitude[part], latitude[part], c=by_node[part], s=size, zorder=2, **shades)
left.set_aspect(1 / np.cos(np.radians(latitude.mean())))
left.set(xlabel="longitude (°)", ylabel="latitude (°)")
left.ticklabel_format(useOffset=False)
left.tick_params(axis="x", labelrotation=30)
left.set_title("By node; rim and core: a road's two directions", loc="left", fontsize=10)
figure.colorbar(dots, ax=left, shrink=0.85, label="MAE of PlainGCN on the test days (km/h)")

step = 5  # the sixth of the horizon: 30 minutes ahead
day = slice(5 * 12 - 12 - step, 23 * 12 - 12 - step)  # of the first test day, 05:00 to 23:00
read, seen, said = (windows[day, :, step] for windows in (truth, observed, forecasts))  # [steps, N]
read = read.where(seen, torch.nan)
spread = torch.tensor(np.nanstd(read, axis=0))
node = int(torch.where(seen.float().mean(dim=0) < 0.97, spread, 0).argmax())
time = city.time[border + 12 + step :][day]
gap = {"color": "0.88", "transform": right.get_xaxis_transform(), "label": "not read"}
right.fill_between(time, 0, 1, where=~seen[:, node].numpy(), **gap)
right.plot(time, said[:, node], color="#0072B2", linewidth=1.8, label="PlainGCN, 30 minutes before")
right.plot(time, read[:, node], color="black", linewidth=1, marker=".", markersize=4, label="read")
right.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
right.set(xlabel=f"time of day on {time[0]:%d %B}", ylabel="speed (km/h)", xlim=(time[0], time[-1]))
right.set_title(f"Node {city.node_ids[node]}", loc="left", fontsize=11)
right.legend(fontsize=9, loc="lower left")
plt.show()
root.cleanup()

# %%
# What to remember
# ----------------
#
# - A window is a graph: ``x`` ``[N, C, T_in]``, ``y`` ``[N, T_out]``, ``x_mask``, ``mask``, weights in ``edge_attr``.
# - A loss over ``[mask]``, always. A missing reading is a 0 that nobody read.
# - Cut by time, leave out the windows that cross, and take means from what lies before the cut.
# - For the fastest batches of one city, ``city.windows(12, 12).batches(64)`` makes no copies of the road network.
#
# Where to go next: :doc:`/pyg_datasets` has every class and what is stored; :doc:`/formats` says which files each
# reader takes; :doc:`/models` fits recurrent layers to any city; :doc:`/own_city` brings your own.
