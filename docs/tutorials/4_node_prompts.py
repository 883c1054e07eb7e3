"""
Node prompts: what two cities share
===================================

A motorway's roads behave unlike a lane's, in every city. Node prompts let one network treat them differently without
knowing any road by name. At the end of this page you have put the layer into a forecaster, trained it on two cities of
different size, seen on their maps which roads the bank of prompts takes for alike, and measured whether it made the
forecast better. It takes ten minutes to read and less than a minute to run.
"""

# %%
# A layer like any other
# ----------------------
#
# :class:`~tsjt_pyg.NodePrompting` is a ``MessagePassing`` layer of PyTorch Geometric. It looks at what a node and its
# neighbours read in a window, draws a vector from a *bank* of a few slots that all cities share, and appends it to the
# node's input. So a road is described by how it behaves and not by its number.

import torch

from tsjt_pyg import NodePrompting
from tsjt_pyg.data import StandardScaler
from tsjt_pyg.datasets import load_city

prompting = NodePrompting(in_channels=1, prompt_channels=8, num_prompts=8)
rich = load_city("demo/ringwood").select("speed")
city = load_city("demo/riverton").select("speed")

for each in (rich, city):
    windows = each.windows(history=12, horizon=12)
    batch = next(windows.batches(4))
    x = StandardScaler().fit(each.readings, each.mask).transform(batch.x, batch.x_mask)
    out = prompting(x, batch.edge_index, batch.edge_weight)
    print(each.name, tuple(x.shape), "->", tuple(out.shape))
    assert out.shape == (4, 12, each.num_nodes, 1 + 8)

# %%
# The same layer, the same parameters, and two cities of different size: no parameter has the number of nodes in its
# shape.

for name, parameter in prompting.named_parameters():
    print(f"{name:28}", tuple(parameter.shape))

# %%
# ``keys`` and ``values`` are the bank. Which slots a node draws on is the softmax of how well its code fits their keys:

share = prompting.slot_share(x, batch.edge_index, batch.edge_weight)
print(tuple(share.shape))  # windows, steps, nodes, slots
assert torch.allclose(share.sum(dim=-1), torch.ones(share.shape[:-1]))

# %%
# In a forecaster
# ---------------
#
# A :class:`~tsjt_pyg.Forecaster` puts the layer before its recurrent cell. ``top_k=2`` lets a node draw on its two best
# slots alone, which makes the maps below easier to read. We train the same network with and without prompts, from two
# seeds each, on ringwood and on three visible days of riverton.

from tsjt_pyg import Forecaster
from tsjt_pyg.evaluation import HorizonErrors
from tsjt_pyg.training import fit, forecast_windows
from torch_geometric_temporal.nn.recurrent import GConvGRU

visible, test = city.few_shot(days=3)


def train(seed, with_prompts):
    torch.manual_seed(seed)
    prompting = NodePrompting(1, 8, num_prompts=8, top_k=2) if with_prompts else None
    model = Forecaster(GConvGRU(16, 16, K=2), history=12, horizon=12, prompting=prompting)
    return fit(model, visible, [rich], "tsjt", steps=80, batch_size=8, lr=0.005, seed=seed)


def error(result):
    errors = HorizonErrors(horizon=12)
    for batch, forecast in forecast_windows(result.model, test.windows(12, 12, stride=3), result.scaler):
        errors.update(forecast, batch.y, batch.y_mask)
    return errors.compute().mean_mae


results = {(seed, prompts): train(seed, prompts) for seed in (0, 1) for prompts in (False, True)}

# %%
# Did it help?
# ------------
#
# The mean absolute error on the test period, in km/h:

import pandas as pd

found = pd.DataFrame(
    {
        "without prompts": {seed: error(results[seed, False]) for seed in (0, 1)},
        "with prompts": {seed: error(results[seed, True]) for seed in (0, 1)},
    }
).rename_axis("seed")
print(found.round(3).to_string())

# %%
# No. The rows differ as much as the columns do, and so it was in the real cities of :doc:`/results`: what prompts
# change cannot be told from chance (one run a city there). They are therefore off unless you ask for them
# (``num_prompts=16``, ``--prompts 16``). What they do give you is a look at what the network takes for alike.
#
# Which roads share prompts
# -------------------------
#
# ``mean_slot_share`` is how much each slot contributes to each node's prompts. We ask for a working day's morning, from
# seven to ten, when roads differ most.

from tsjt_pyg.evaluation import mean_slot_share

cities = (rich, city)
prompting = results[0, True].model.prompting
shares, speeds = [], []
for each in cities:
    scaled = StandardScaler().fit(each.readings, each.mask).transform(each.readings, each.mask)
    morning = scaled[each.steps_per_day :][7 * 12 : 10 * 12]  # of the second day
    shares.append(mean_slot_share(prompting, each, morning, history=12))
    speeds.append(morning[..., 0].mean(dim=0))
assert [tuple(share.shape) for share in shares] == [(rich.num_nodes, 8), (city.num_nodes, 8)]

leading = pd.DataFrame({each.name: share.argmax(dim=1).bincount(minlength=8) for each, share in zip(cities, shares)})
print(leading.rename_axis("leading slot").T.to_string())

# %%
# Few slots lead at most nodes. With ``top_k`` a slot that nobody chooses learns nothing; a loss that keeps all in use
# is in :doc:`/prompts`.
#
# The picture
# -----------
#
# Above, the two cities with each node in the colour of its leading slot. Below, whether that colour says anything: how
# fast the nodes of a slot were that morning, compared with all readings of their own city.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from tsjt_pyg.evaluation import plot_shared_prompts

with tempfile.TemporaryDirectory() as folder:
    maps = plt.imread(plot_shared_prompts(cities, shares, Path(folder) / "shared.png"))

figure, (above, below) = plt.subplots(2, 1, figsize=(9, 7.8), height_ratios=[2.2, 1], layout="constrained")
above.imshow(maps)
above.set_axis_off()
used = [slot for slot in leading.index if leading.loc[slot].sum() > 0]
generator = torch.Generator().manual_seed(0)
looks = {rich.name: ("#0072B2", "o", -0.18), city.name: ("#D55E00", "s", 0.18)}
for each, share, speed in zip(cities, shares, speeds):
    colour, marker, side = looks[each.name]
    row = torch.tensor([used.index(slot) for slot in share.argmax(dim=1).tolist()])
    spread = 0.2 * (torch.rand(each.num_nodes, generator=generator) - 0.5)
    below.scatter(row + side + spread, speed, s=14, color=colour, marker=marker, alpha=0.7, label=each.name)
below.axhline(0, color="0.5", linewidth=1)
below.set_xticks(range(len(used)), used)
below.set_xlabel("leading slot")
below.set_ylabel("speed, 7:00 to 10:00\n(standard deviations)")
below.set_title("Each dot is a node; 0 is its city's mean of all days", loc="left", fontsize=10)
below.legend(fontsize=9)
plt.show()

# %%
# What to remember
# ----------------
#
# - A node prompt tells nodes apart by what they do, in any city of any size.
# - Prompts are a look inside, not a gain that was ever measured beyond chance. Compare with and without, over several
#   seeds.
# - Colours show what the network uses, and that changes from seed to seed. They are no classes of roads.
#
# Where to go next: :doc:`/prompts` for the prompt graph, its forms for large cities, and how to explain a prompt;
# :doc:`/models` for the cells that go behind it.
