r"""
The prompt bank
===============

A model that fits any city cannot know a node by its number. Node prompts tell nodes apart by how they behave: each node
asks a bank of :math:`S` slots, which all cities share, and gets a vector that is appended to its input. Two roads that
behave alike, in whichever cities, get alike prompts.

This page draws what :class:`~tsjt_pyg.NodePrompting` does with real tensors of two simulated cities. Forms, options and
costs are in :doc:`/prompts`; what prompts bring, which in the cities measured is nothing beyond chance, is in
:doc:`/results`.
"""

from itertools import islice

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.patches import FancyBboxPatch

from tsjt_pyg import CityPairLoader, Forecaster, NodePrompting
from tsjt_pyg.data import StandardScaler
from tsjt_pyg.datasets import load_city
from tsjt_pyg.evaluation import masked_mae, mean_slot_share

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"]
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

# %%
# From nodes to prompts
# ---------------------
#
# A short joint training first, so that the bank holds something (a demonstration, no result). ``top_k=2`` lets a node
# draw from its two best slots, and the load-balance loss keeps all slots in use.

torch.manual_seed(0)
cities = {name: load_city(f"demo/{name}").select("speed") for name in ("ringwood", "riverton")}
scalers = {name: StandardScaler().fit(city.readings, city.mask) for name, city in cities.items()}
prompting = NodePrompting(in_channels=1, prompt_channels=4, num_prompts=6, top_k=2, load_balance=True)
model = Forecaster(torch.nn.GRU(16, 16), history=12, horizon=12, prompting=prompting)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
windows = {name: city.windows(12, 12) for name, city in cities.items()}
loader = CityPairLoader([windows["ringwood"]], windows["riverton"], batch_size=4)
for *batches, _ in islice(loader, 40):
    optimizer.zero_grad()
    for batch, scaler in zip(batches, scalers.values(), strict=True):
        x, y = scaler.transform(batch.x, batch.x_mask), scaler.transform(batch.y)
        forecast = model(x, batch.edge_index, batch.edge_weight, x_mask=batch.x_mask, time_of_day=batch.time_of_day)
        (masked_mae(forecast, y, batch.y_mask) + 0.01 * prompting.load_balance_loss()).backward()
    optimizer.step()

# %%
# Every coloured field in this diagram is a real tensor, of one window of twelve steps that ends at a quarter to nine in
# the morning. Twelve of the nodes are drawn, :math:`\mathbf{X}` over the window and the others at its last step.

city, scaler = cities["riverton"], scalers["riverton"]
x = scaler.transform(city.readings, city.mask)[93:105]  # [T, N, C]
roads = city.edge_index, city.edge_weight
with torch.no_grad():
    share = prompting.slot_share(x, *roads)  # [T, N, S]
    drawn = share @ prompting.values  # [T, N, P]
    mixed = prompting.prompts(x, *roads)  # [T, N, P]
    out = prompting(x, *roads)  # [T, N, C + P]

figure, ax = plt.subplots(figsize=(10.6, 4.9), layout="constrained")
ax.set(xlim=(0, 16), ylim=(-3.6, 3.9), aspect="equal")
ax.axis("off")


def heat(tensor, left, width, cmap, below=0.0, height=3.0, **limits):
    """A tensor as it is."""
    edges = (left, left + width, below, below + height)
    ax.imshow(tensor, extent=edges, cmap=cmap, aspect="auto", zorder=2, **limits)
    ax.add_patch(plt.Rectangle((left, below), width, height, fill=False, ec="0.3", lw=0.8, zorder=3))


def named(centre, symbol, letters, tensor):
    """Its symbol above, its shape below."""
    ax.text(centre, 3.15, symbol, ha="center", va="bottom", fontsize=12)
    sizes = r" \times ".join(str(size) for size in tensor.shape)
    ax.text(centre, -0.12, f"${letters}$\n${sizes}$", ha="center", va="top", fontsize=8.5, color="0.25")


def then(left, text, length):
    """An arrow that says what happens."""
    ax.annotate("", (left + length, 1.5), (left, 1.5), arrowprops={"arrowstyle": "-|>", "lw": 1.4, "color": "0.2"})
    ax.text(left + length / 2, 1.68, text, ha="center", va="bottom", fontsize=8.5, linespacing=1.2)


nodes, last = slice(0, 12), -1
bound = mixed[last, nodes].abs().max().item()
prompt = {"cmap": "PuOr", "vmin": -bound, "vmax": bound}
speed = {"cmap": "viridis", "vmin": x[:, nodes].min(), "vmax": x[:, nodes].max()}
heat(x[:, nodes, 0].T, 0.2, 1.6, **speed)
named(1.0, r"$\mathbf{X}$", r"T \times N \times C", x)
then(1.95, "roads, and\nattention\nover time", 1.4)
ax.add_patch(plt.Rectangle((3.5, 0), 1.0, 3.0, fc="0.94", ec="0.3", lw=0.8))
ax.text(4.0, 1.5, "code of\na node", ha="center", va="center", fontsize=8.5, color="0.25")
named(4.0, r"$\mathbf{Z}$", r"T \times N \times D", torch.empty(12, city.num_nodes, prompting.hidden_channels))
then(4.65, r"$\mathrm{softmax}$" + "\n" + r"$(\mathbf{Z}\mathbf{K}^{\!\top} / \sqrt{D})$", 1.7)
heat(share[last, nodes], 6.5, 1.5, "Blues", vmin=0, vmax=1)
named(7.25, r"$\alpha$", r"T \times N \times S", share)
then(8.15, r"$\alpha\,\mathbf{V}$", 1.0)
heat(drawn[last, nodes], 9.3, 1.0, **prompt)
named(9.8, r"$\mathbf{P}$", r"T \times N \times P", drawn)
then(10.45, "those of the\nneighbours\non the road", 1.5)
heat(mixed[last, nodes], 12.1, 1.0, **prompt)
named(12.6, r"$\mathbf{P}'$", r"T \times N \times P", mixed)
then(13.25, "joined to\nthe input", 1.1)
heat(x[last, nodes], 14.5, 0.25, **speed)
heat(mixed[last, nodes], 14.75, 1.0, **prompt)
named(15.12, r"$\mathbf{X} \,\Vert\, \mathbf{P}'$", r"T \times N \times (C + P)", out)

ax.add_patch(
    FancyBboxPatch((3.75, -3.45), 6.6, 1.75, boxstyle="round,pad=0.08", fc="#FFF6E3", ec="#E69F00", lw=1.4, zorder=1)
)
bank = {"keys": (5.0, r"\mathbf{K}", r"S \times D", 5.5), "values": (7.6, r"\mathbf{V}", r"S \times P", 8.65)}
for name, (left, symbol, letters, towards) in bank.items():
    tensor = getattr(prompting, name).detach()
    heat(tensor, left, 0.9, "PuOr", below=-3.15, height=1.2)
    sizes = r" \times ".join(str(size) for size in tensor.shape)
    ax.text(left - 0.15, -2.55, f"${symbol}$", ha="right", va="center", fontsize=12)
    ax.text(left + 1.0, -2.55, f"${letters}$\n${sizes}$", va="center", fontsize=8.5, color="0.25")
    line = {"arrowstyle": "-|>", "lw": 1.2, "color": "#E69F00", "ls": "--"}
    ax.annotate("", (towards, 1.4), (left + 0.45, -1.9), arrowprops=line, zorder=0)
ax.text(10.6, -2.55, "the bank: one for all cities", va="center", color="0.25")
plt.show()

# %%
# Who draws on which slot
# -----------------------
#
# The same bank, asked by all nodes of both cities from seven to ten in the morning, twelve steps at a time. A row is
# a node, sorted by the slot that leads; the blue is its share. On the right, what the nodes led by one slot have in
# common: their mean speed on working days, as the model sees it (in standard deviations of their city), in the slot's
# colour. In both cities many of the roads that jam in the morning are led by the same slot.

shares = {
    name: mean_slot_share(prompting, city, scalers[name].transform(city.readings, city.mask)[84:120], history=12)
    for name, city in cities.items()
}
figure, axes = plt.subplots(1, 3, figsize=(9.8, 4.4), layout="constrained", width_ratios=[1, 1, 1.7])
for ax, (name, of_nodes) in zip(axes, shares.items(), strict=False):
    lead = of_nodes.argmax(dim=1)
    order = np.lexsort((-of_nodes.max(dim=1).values, lead))
    picture = ax.imshow(of_nodes[order], cmap="Blues", aspect="auto", vmin=0, vmax=0.5, interpolation="nearest")
    ax.set(title=f"{name}, {len(of_nodes)} nodes", xlabel="slot", xticks=range(6), yticks=[])
    ax.set_xticklabels(range(1, 7))
    for slot, label in enumerate(ax.get_xticklabels()):
        label.set(color=COLOURS[slot], weight="bold")
    for border in lead.bincount(minlength=6).cumsum(0)[:-1]:
        ax.axhline(border - 0.5, color="0.6", lw=0.6)
axes[0].set_ylabel("nodes")
figure.colorbar(
    picture, ax=axes[:2], label=r"share $\alpha$ of the slot, mean over the window", location="bottom", aspect=30
)

hours = np.arange(288) / 12
for name, ls in (("ringwood", "-"), ("riverton", "--")):
    city, lead = cities[name], shares[name].argmax(dim=1)
    speed = scalers[name].transform(city.readings)[..., 0].masked_fill(~city.mask[..., 0], float("nan"))
    working_days = speed.view(14, 288, -1)[[0, 1, 2, 3, 4, 7, 8, 9, 10, 11]]  # both cities begin on a Monday
    for slot in range(6):
        members = lead == slot
        if members.sum() >= 3:
            axes[2].plot(hours, working_days[:, :, members].nanmean(dim=(0, 2)), ls, color=COLOURS[slot], lw=1.5)
    axes[2].plot([], [], ls, color="0.3", label=name)
axes[2].axvspan(7, 10, color="0.93", lw=0, zorder=0)
axes[2].set(title="their working day", xlabel="hour", ylabel="scaled speed", xlim=(0, 24), xticks=range(0, 25, 4))
axes[2].legend(loc="lower right")
plt.show()

# %%
# Mixing over the roads
# ---------------------
#
# The last step but one adds to a node's prompt those of its neighbours that are like it. Here the first principal
# component of the prompts, before and after, on the map of one city. Right: how alike the prompts at both ends of a
# road are, and those of two nodes taken at random.

city, scaler = cities["riverton"], scalers["riverton"]
x = scaler.transform(city.readings, city.mask)[93:105]
with torch.no_grad():
    share = prompting.slot_share(x, city.edge_index, city.edge_weight)
    before = (share @ prompting.values).mean(dim=0)
    after = prompting.prompts(x, city.edge_index, city.edge_weight).mean(dim=0)
torch.manual_seed(0)
ends = {"joined by\na road": city.edge_index, "taken at\nrandom": torch.randint(city.num_nodes, (2, city.num_edges))}

figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.6), layout="constrained", width_ratios=[1, 1, 0.9])
place = city.pos.flip(-1).numpy()
for ax, (title, prompts) in zip(axes, {r"$\mathbf{P}$": before, r"$\mathbf{P}'$": after}.items(), strict=False):
    centred = prompts - prompts.mean(dim=0)
    axis = torch.linalg.svd(before - before.mean(dim=0), full_matrices=False).Vh[0]
    component = centred @ axis
    component = component / component.abs().quantile(0.9)
    ax.add_collection(LineCollection(place[city.edge_index.T.numpy()], colors="0.8", linewidths=0.8, zorder=1))
    picture = ax.scatter(*place.T, c=component, cmap="PuOr", vmin=-1, vmax=1, s=26, edgecolor="0.3", lw=0.4, zorder=2)
    ax.set(title=title, xticks=[], yticks=[], aspect=1 / np.cos(np.deg2rad(place[:, 1].mean())))
    ax.spines[:].set_visible(False)
figure.colorbar(picture, ax=axes[:2], label="first principal component of the prompts", location="bottom", aspect=40)
for row, (i, j) in enumerate(ends.values()):
    for prompts, colour, shift, label in (
        (before, "#56B4E9", -0.2, r"$\mathbf{P}$"),
        (after, "#0072B2", 0.2, r"$\mathbf{P}'$"),
    ):
        centred = prompts - prompts.mean(dim=0)
        alike = torch.cosine_similarity(centred[i], centred[j], dim=-1).mean()
        axes[2].bar(row + shift, alike, 0.36, color=colour, label=label if row == 0 else None)
axes[2].axhline(0, color="0.3", lw=0.8)
axes[2].set(xticks=range(2), xticklabels=ends, ylabel="mean cosine of two prompts")
axes[2].legend()
plt.show()

# %%
# What changes with the city
# --------------------------
#
# Nothing in the module. Its parameters are those of the bank and the encoder, whatever the city. What a window computes
# grows with nodes and roads; an adjacency of all pairs of nodes, as in the published code, would grow with the square.

counts = {"parameters": [], r"prompts, $T N P$": [], "weights of the prompt graph, $E$": [], r"all pairs, $N^2$": []}
sizes = []
for nodes in (68, 250, 1000, 4000, 16000):
    if nodes == 68:
        roads = cities["riverton"].edge_index
    else:
        near = torch.arange(nodes).repeat_interleave(4)
        roads = torch.stack([near, (near + torch.tensor([-2, -1, 1, 2]).repeat(nodes)) % nodes])
    x = torch.randn(12, nodes, 1)
    with torch.no_grad():
        prompts = prompting.prompts(x, roads)
    sizes.append(nodes)
    numbers = [sum(p.numel() for p in prompting.parameters()), prompts.numel(), roads.size(1), nodes**2]
    for values, number in zip(counts.values(), numbers, strict=True):
        values.append(number)
assert len(set(counts["parameters"])) == 1

figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
looks = [("#D55E00", "o-"), ("#0072B2", "s-"), ("#009E73", "^-"), ("0.55", "--")]
for (name, values), (colour, look) in zip(counts.items(), looks, strict=True):
    ax.loglog(sizes, values, look, color=colour, ms=4, lw=1.6)
    ax.text(sizes[-1] * 1.15, values[-1], name, color=colour, va="center", fontsize=9)
ax.set(xlabel="nodes $N$ of the city", ylabel="numbers", xlim=(50, 20000))
plt.show()
