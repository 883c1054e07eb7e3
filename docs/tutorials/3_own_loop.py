"""
TargetSkewedOptimizer in your own loop, with any PyG-Temporal model
===================================================================

You have a model of PyG-Temporal, a loop that trains it, and no wish to give either away. At the end of this page the
same loop learns from other cities too, and you can see in a picture how often they wanted something else than your
city does. Five lines change. It takes a quarter of an hour to read and less than a minute to run.
"""

# %%
# The loop you have
# -----------------
#
# A model as PyG-Temporal's own examples have it, around ``GConvGRU``: a snapshot in, the next hour of every node out.
# No parameter depends on the number of nodes, and so it fits any city. :func:`~tsjt_pyg.check_transferable` says of
# your model whether that is so, and if not, what binds it to one city.

import torch
from torch.nn import Linear

from tsjt_pyg import check_transferable
from torch_geometric_temporal.nn.recurrent import GConvGRU  # after tsjt_pyg, which makes it work without torch-sparse


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = GConvGRU(in_channels=12, out_channels=16, K=2)
        self.head = Linear(16, 12)

    def forward(self, x, edge_index, edge_weight):
        x = x[:, 0]  # [N, 1, 12] -> [N, 12], the last hour of each node
        hidden = self.cell(x, edge_index, edge_weight)
        return x[:, -1:] + self.head(hidden.relu())  # what is added to the last value


check_transferable(Recurrent())

# %%
# Snapshots come from a city. ``to_signal`` makes PyG-Temporal's own ``StaticGraphTemporalSignal``, without copying a
# reading; a snapshot's ``mask`` says what was observed. Each city is scaled by its own statistics, the target by those
# of its visible days.

from dataclasses import replace

from tsjt_pyg.data import StandardScaler
from tsjt_pyg.datasets import load_city

target = load_city("demo/riverton").select("speed")
visible, test = target.few_shot(days=2)
scaler = StandardScaler().fit(visible.readings, visible.mask)


def signal(city, scaler):
    return replace(city, readings=scaler.transform(city.readings, city.mask)).to_signal(history=12, horizon=12)


train_signal, test_signal = signal(visible, scaler), signal(test, scaler)
snapshot = train_signal[0]
print(snapshot)
assert snapshot.x.shape == (target.num_nodes, 1, 12)
assert snapshot.y.shape == (target.num_nodes, 12)

# %%
# And this is the loop: a few snapshots a step, their loss, backward, step.

steps, per_step = 150, 4


def loss(model, signal, draw):
    """Mean absolute error over a few random snapshots, of what was observed."""
    total = 0.0
    for i in torch.randint(signal.snapshot_count, (per_step,), generator=draw):
        snapshot = signal[int(i)]
        forecast = model(snapshot.x, snapshot.edge_index, snapshot.edge_attr)
        total += ((forecast - snapshot.y).abs() * snapshot.mask).sum() / snapshot.mask.sum()
    return total / per_step


torch.manual_seed(0)
draw = torch.Generator().manual_seed(0)
plain = Recurrent()
optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
for _ in range(steps):
    optimizer.zero_grad()
    loss(plain, train_signal, draw).backward()
    optimizer.step()

# %%
# Measured on the test period, in km/h, beside the forecast that everything stays as it is:


@torch.no_grad()
def error(forecast):
    found = total = 0.0
    for i in range(0, test_signal.snapshot_count, 12):
        snapshot = test_signal[i]
        found += float(((forecast(snapshot) - snapshot.y).abs() * snapshot.mask).sum())
        total += float(snapshot.mask.sum())
    return found / total * float(scaler.std)


def of(model):
    return lambda snapshot: model(snapshot.x, snapshot.edge_index, snapshot.edge_attr)


print(f"last value       {error(lambda snapshot: snapshot.x[:, 0, -1:]):.2f} km/h")
print(f"target alone     {error(of(plain)):.2f} km/h")

# %%
# Another city
# ------------
#
# A second city is a second loss. Summed with the first, its gradient would pull the model wherever that city wants it.
# Instead, tell the optimizer which gradient is whose:
#
# .. code-block:: diff
#
#    -optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
#    +optimizer = TargetSkewedOptimizer(model.parameters(), base=torch.optim.Adam, lr=0.01)
#     for _ in range(steps):
#         optimizer.zero_grad()
#    -    loss(model, train_signal, draw).backward()
#    +    with optimizer.source():
#    +        loss(model, rich_signal, draw).backward()
#    +    with optimizer.target():
#    +        loss(model, train_signal, draw).backward()
#         optimizer.step()
#
# That is all. Where the source's gradient points against the target's (a *conflict*), the part that does is removed,
# and Adam steps along the rest. After the last block ``.grad`` is an ordinary gradient. Let us see what happens to it
# in a single step:

from tsjt_pyg import TargetSkewedOptimizer

rich = load_city("demo/ringwood").select("speed")
rich_signal = signal(rich, StandardScaler().fit(rich.readings, rich.mask))


def flat(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


torch.manual_seed(0)
model = Recurrent()
optimizer = TargetSkewedOptimizer(model.parameters(), base=torch.optim.Adam, lr=0.01)
optimizer.zero_grad()
with optimizer.source():
    loss(model, rich_signal, draw).backward()
    g_s = flat(model)  # within a block: this gradient alone
with optimizer.target():
    loss(model, train_signal, draw).backward()
    g_t = flat(model)
g = flat(model)  # after both: what the step goes along
print(f"<g_s, g_t> = {g_s @ g_t:+.4f},  <g, g_t> = {g @ g_t:+.4f},  |g_t|^2 = {g_t @ g_t:.4f}")
assert g @ g_t >= 0.999 * (g_t @ g_t)  # a short step along g lowers the target's loss as much as one along g_t, or more

# %%
# What you are used to goes on working
# ------------------------------------
#
# The rest of a grown-up loop stays as it is: several sources have a name each and are filtered each by itself, clipping
# comes between the last block and ``step()``, a scheduler holds the optimizer as any other.
# :class:`~tsjt_pyg.optim.SkewHistory` writes down what the filter found, without waiting for a GPU.
#
# One of the "sources" below is no other city: ``riverton again`` is a second draw from the target itself, with weight
# 0, so that it is looked at and not learned from. Two gradients of four snapshots each differ although they want the
# same. How often these two are in conflict is mere noise, and that is what to hold the other cities against.

from torch.optim.lr_scheduler import CosineAnnealingLR

from tsjt_pyg.optim import SkewHistory

signals = {"riverton again": train_signal, "ringwood": rich_signal}
far = load_city("demo/gridport").select("speed")
signals["gridport"] = signal(far, StandardScaler().fit(far.readings, far.mask))
weights = {"riverton again": 0.0, "ringwood": 1.0, "gridport": 1.0}

torch.manual_seed(0)
draw = torch.Generator().manual_seed(0)
model = Recurrent()
optimizer = TargetSkewedOptimizer(model.parameters(), base=torch.optim.Adam, lr=0.01, gamma_source=weights)
scheduler = CosineAnnealingLR(optimizer, T_max=steps)
history = SkewHistory(optimizer)
for _ in range(steps):
    optimizer.zero_grad()
    for name, source_signal in signals.items():
        with optimizer.source(name):
            loss(model, source_signal, draw).backward()
    with optimizer.target():
        loss(model, train_signal, draw).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    scheduler.step()

print(f"target alone     {error(of(plain)):.2f} km/h")
print(f"with two others  {error(of(model)):.2f} km/h")

# %%
# So this little model is not helped by the neighbours of these simulated cities. That is a common outcome, and why one
# measures: what the optimizer promises is what was asserted above, a step that does not oppose the target, and no gain.
# :doc:`/results` says where sources help; :doc:`/optimizer` how to compare fairly (a step with three gradients costs
# three times as much), and that a plain sum of the losses with a well-chosen weight is often as good.
#
# What happened
# -------------
#
# ``stats()`` sums up, also by source: the share of steps in conflict, and of the last step the cosine of the two
# gradients and ``kappa``, by how much the target's weight was raised to make up for a conflict.

import pandas as pd

print(pd.DataFrame(optimizer.stats(per="source")).T[["conflict_rate", "cosine", "kappa"]].round(3).to_string())

# %%
# And over the training, of each source: above, whether it agreed with the target (the cosine of the two gradients, 1
# for the same direction, below 0 for a conflict); below, in how many of the last steps it did not.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from tsjt_pyg.evaluation import plot_conflict

with tempfile.TemporaryDirectory() as folder:
    picture = plt.imread(plot_conflict(history.to_frame(), Path(folder) / "conflict.png", window=20))
figure = plt.figure(figsize=(picture.shape[1] / 120, picture.shape[0] / 120), dpi=120)
axes = figure.add_axes((0, 0, 1, 1))
axes.imshow(picture)
axes.set_axis_off()
plt.show()

# %%
# What to remember
# ----------------
#
# - ``source()`` and ``target()`` are the whole interface. The model, the loss, the batches and the base optimizer are
#   yours.
# - Conflicts with a source mean little until you know how many mere noise makes. A source that stays well above that is
#   one to leave out.
# - Scale each city by its own statistics, the target by those of its visible days.
#
# Where to go next: :doc:`/optimizer` has the options and recipes for mixed precision, accumulation, DDP, Lightning and
# Accelerate, :doc:`/models` says which layers fit any city, and :func:`~tsjt_pyg.training.fit` is this loop with
# scaling, checkpoints and the guard.
