r"""
The rule in pictures
====================

A step has two gradients over the same parameters: :math:`g_s` of a source city's loss and :math:`g_t` of the target
city's. Where they conflict, :math:`\langle g_s, g_t\rangle < 0`, the component of :math:`g_s` along :math:`g_t` is
removed:

.. math::
    g = \gamma_s\, g_s + (\gamma_t + \gamma_s \kappa)\, g_t, \qquad
    \kappa = \max\Bigl(0, -\frac{\langle g_s, g_t\rangle}{\|g_t\|^2}\Bigr).

That is the whole rule. This page draws it, with the functions that :class:`~tsjt_pyg.TargetSkewedOptimizer` is made of,
and then looks at what it does to a training, and when it does nothing. All options are in :doc:`/optimizer`.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.lines import Line2D

from tsjt_pyg import TargetSkewedOptimizer
from tsjt_pyg.optim import combine, gramian, projection_coefficient, skew

# Okabe and Ito's colours, which the colour-blind tell apart.
TARGET, SOURCE, KEPT, STEP, SUM = "#0072B2", "#D55E00", "#E69F00", "#000000", "#7F7F7F"
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


def arrow(ax, start, end, colour, label="", at=(0.0, 0.0), **style):
    """An arrow, and its label beside its tip."""
    start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    look = {"arrowstyle": "-|>", "color": colour, "lw": 2.2, "mutation_scale": 14, "shrinkA": 0, "shrinkB": 0} | style
    ax.annotate("", xy=end, xytext=start, arrowprops=look)
    ax.text(*(end + at), label, color=colour, fontsize=12, ha="center", va="center")


def bare(ax, x, y):
    """A plane without ticks, of equal scales."""
    ax.set(xlim=x, ylim=y, aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.plot(0, 0, "o", color="black", ms=4, zorder=5)


# %%
# Two gradients
# -------------
#
# Three steps: inner products, a coefficient, a weighted sum. The shaded half of the plane holds the gradients that
# agree with :math:`g_t`. On the left :math:`g_s` is one of them, and passes as it is. On the right it is not: what
# opposes :math:`g_t` is taken out, and what is left is perpendicular to it.

g_t = torch.tensor([0.0, 1.0])
pairs = {"agreement": torch.tensor([1.3, 0.6]), "conflict": torch.tensor([1.3, -0.8])}

figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained")
for ax, (title, g_s) in zip(axes, pairs.items(), strict=True):
    kappa = projection_coefficient(gramian([g_s], [g_t]))
    kept = combine([1.0, kappa], [g_s], [g_t])[0]
    step = skew([g_s], [g_t], gamma_source=1.0, gamma_target=1.0)[0][0]
    torch.testing.assert_close(step, kept + g_t)

    bare(ax, (-0.75, 2.1), (-1.1, 2.0))
    ax.axhspan(0, 2.0, color=TARGET, alpha=0.08, lw=0)
    ax.axhline(0, color=TARGET, lw=0.8, ls=":")
    ax.text(-0.7, 1.93, r"$\langle\cdot,\,g_t\rangle \geq 0$", color=TARGET, fontsize=10, va="top")
    ax.plot(*zip(kept, step, strict=True), color="0.6", lw=0.9, ls="--", zorder=0)
    ax.plot(*zip(g_t, step, strict=True), color="0.6", lw=0.9, ls="--", zorder=0)
    arrow(ax, (0, 0), g_s, SOURCE, "$g_s$", (0.15, -0.05 if kappa else 0.04))
    arrow(ax, (0, 0), g_t, TARGET, "$g_t$", (-0.16, 0.02))
    if kappa:
        arrow(ax, g_s, kept, TARGET, lw=1.4, mutation_scale=10)
        ax.text(1.37, -0.4, r"$\kappa\, g_t$", color=TARGET, fontsize=11)
        arrow(ax, (0, 0), kept, KEPT, r"$g_s + \kappa\, g_t$", (0.36, 0.1))
    arrow(ax, (0, 0), step, STEP, "$g$", (0.1, 0.08))
    ax.set_title(rf"{title}:  $\cos(g_s, g_t) = {torch.cosine_similarity(g_s, g_t, 0):+.2f}$,  $\kappa = {kappa:.2g}$")
plt.show()

# %%
# Where a step may go
# -------------------
#
# Let the source's gradient turn through all directions. The plain sum :math:`g_s + g_t` then runs along a circle,
# part of which lies below zero: a step there raises the target's loss. The rule folds the lower half of the circle up
# to the line :math:`\langle g, g_t\rangle = \gamma_t \|g_t\|^2`. Whatever the source says, the step makes at least
# the progress on the target that :math:`\gamma_t g_t` alone would make, and under conflict exactly that.

angles = torch.linspace(0, 2 * torch.pi, 73)[:-1]
figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.2), layout="constrained", sharey=True)
for ax, (gamma_s, gamma_t) in zip(axes, [(1.0, 1.0), (0.5, 0.6)], strict=True):
    every = 1.5 * torch.stack([angles.sin(), angles.cos()], dim=1)
    sums = gamma_s * every + gamma_t * g_t
    steps = torch.stack([skew([g_s], [g_t], gamma_source=gamma_s, gamma_target=gamma_t)[0][0] for g_s in every])
    assert (steps @ g_t >= gamma_t * g_t @ g_t - 1e-6).all()

    bare(ax, (-2.1, 2.1), (-0.95, 2.85))
    ax.axhspan(gamma_t, 2.85, color=TARGET, alpha=0.08, lw=0)
    ax.axhline(gamma_t, color=TARGET, lw=1)
    ax.axhspan(-0.95, 0, color="0.93", lw=0, zorder=-2)
    allowed = r"allowed:  $\langle g,\, g_t\rangle \geq \gamma_t\,\|g_t\|^2$"
    ax.text(0, 2.8, allowed, color=TARGET, ha="center", va="top")
    ax.text(0, -0.9, r"$\langle g,\, g_t\rangle < 0$: raises the target's loss", color="0.35", ha="center", va="bottom")
    moved = (sums - steps).norm(dim=1) > 1e-6
    for before, after in zip(sums[moved], steps[moved], strict=True):
        ax.plot(*zip(before, after, strict=True), color="0.75", lw=0.7, zorder=-1)
    ax.plot(*sums[moved].T, "o", ms=4, mfc="white", mec=SUM, zorder=1)
    ax.plot(*steps.T, "o", ms=4, color=STEP, zorder=2)
    arrow(ax, (0, 0), gamma_t * g_t, TARGET, r"$\gamma_t\, g_t$", (-0.26, -gamma_t / 2))
    ax.set_title(rf"$\gamma_s = {gamma_s:g}$, $\gamma_t = {gamma_t:g}$")
marks = {"step $g$": {"color": STEP}, "plain sum, where the step is another": {"mfc": "white", "mec": SUM}}
handles = [Line2D([], [], marker="o", ls="", ms=5, label=label, **mark) for label, mark in marks.items()]
figure.legend(handles=handles, loc="outside lower center", ncols=2)
plt.show()

# %%
# With more parameters nothing changes but the picture: the line is a hyperplane, and everything happens in the plane
# that :math:`g_s` and :math:`g_t` span.
#
# Several sources
# ---------------
#
# Each source is filtered by itself, then all are added to the target. So a source in conflict costs the others nothing:
# below, A agrees with the target, B and C do not. Were their sum filtered as one gradient (dashed), what A brings would
# be lost against what B and C take.

sources = {"A": torch.tensor([-0.8, 0.6]), "B": torch.tensor([0.5, -1.1]), "C": torch.tensor([0.9, -0.5])}
colours = {"A": "#D55E00", "B": "#CC79A7", "C": "#E69F00"}
parameter = torch.nn.Parameter(torch.zeros(2))
optimizer = TargetSkewedOptimizer([parameter], base=torch.optim.SGD, lr=0.1)
optimizer.backward({name: parameter @ g_s for name, g_s in sources.items()}, parameter @ g_t)
step = parameter.grad
together = skew([sum(sources.values())], [g_t], gamma_source=1.0, gamma_target=1.0)[0][0]
kept = {
    name: combine([1.0, projection_coefficient(gramian([g_s], [g_t]))], [g_s], [g_t])[0]
    for name, g_s in sources.items()
}

figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.6), layout="constrained")
for ax, title in zip(axes, ["as they come", "each filtered", "added to $g_t$"], strict=True):
    bare(ax, (-1.3, 1.5), (-1.35, 1.85))
    ax.axhspan(0, 1.85, color=TARGET, alpha=0.08, lw=0)
    ax.axhline(0, color=TARGET, lw=0.8, ls=":")
    ax.set_title(title)
    arrow(ax, (0, 0), g_t, TARGET, "$g_t$", (0.18, -0.2))
beside = {"A": (-0.2, 0.05), "B": (0.16, -0.12), "C": (0.2, -0.08)}
for name, g_s in sources.items():
    arrow(axes[0], (0, 0), g_s, colours[name], f"$g_{name}$", beside[name])
    axes[1].plot(*zip(g_s, kept[name], strict=True), color=colours[name], lw=1, ls=":")
    axes[1].plot(*g_s, "o", ms=3, color=colours[name])
arrow(axes[1], (0, 0), kept["A"], colours["A"], "$g_A$", beside["A"])
arrow(axes[1], (0, 0), kept["C"], colours["C"], lw=4)
arrow(axes[1], (0, 0), kept["B"], colours["B"], lw=2)
end = g_t
for name in sources:
    arrow(axes[2], end, end + kept[name], colours[name], lw=1.8, mutation_scale=11)
    end = end + kept[name]
torch.testing.assert_close(end, step)
arrow(axes[2], (0, 0), together, SUM, lw=1.4, ls="--", mutation_scale=11)
axes[2].text(*(together + torch.tensor([0.1, -0.16])), "their sum\nfiltered", color=SUM, fontsize=8, va="center")
arrow(axes[2], (0, 0), step, STEP, "$g$", (0.14, 0.06))
plt.show()

# %%
# From agreement to conflict
# --------------------------
#
# The same question is answered by other rules, all of them a ``filter=`` of the optimizer. Here the source's gradient
# is twice as long as the target's and turns from 0 to 180°. Left: the angle between the step and :math:`g_t`; above
# 90° it does harm. Right: that between the step and :math:`g_s`. The lower a line is in both, the more it serves
# both. `torchjd <https://torchjd.org>`_'s rules are drawn where it is installed; they treat all losses as equals.

rules = {"plain sum": None, "project (tsjt)": "project", "gate": "gate", "cosine_gate": "cosine_gate"}
try:
    from torchjd.aggregation import CAGradWeighting, PCGradWeighting, UPGradWeighting
except ImportError:
    pass
else:
    rules |= {"PCGrad": PCGradWeighting(), "UPGrad": UPGradWeighting(), "CAGrad, c = 0.5": CAGradWeighting(c=0.5)}

looks = dict(
    zip(
        rules,
        [
            {"color": SUM, "lw": 2.5},
            {"color": STEP, "lw": 2.5},
            {"color": "#E69F00", "ls": "--"},
            {"color": "#D55E00", "ls": "-."},
            {"color": "#009E73", "ls": "--"},
            {"color": "#CC79A7", "ls": ":", "lw": 2.2},
            {"color": "#56B4E9", "ls": "-."},
        ],
        strict=False,
    )
)


def step_of(rule, g_s):
    """What the optimizer puts into ``.grad``."""
    if rule is None:
        return g_s + g_t
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = TargetSkewedOptimizer([parameter], base=torch.optim.SGD, lr=0.1, filter=rule)
    optimizer.backward(parameter @ g_s, parameter @ g_t)
    return parameter.grad


def angle(a, b):
    return torch.rad2deg(torch.acos(torch.cosine_similarity(a, b, dim=0).clamp(-1, 1)))


degrees = torch.arange(2.0, 180.0, 4.0)
figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.7), layout="constrained", sharey=True)
for name, rule in rules.items():
    directions = [2 * torch.stack([a.sin(), a.cos()]) for a in torch.deg2rad(degrees)]
    steps = [step_of(rule, g_s) for g_s in directions]
    axes[0].plot(degrees, [angle(step, g_t) for step in steps], label=name, **looks[name])
    axes[1].plot(degrees, [angle(step, g_s) for step, g_s in zip(steps, directions, strict=True)], **looks[name])
for ax, other in zip(axes, ("t", "s"), strict=True):
    ax.axhspan(90, 180, color="0.93", lw=0, zorder=-1)
    ax.axvline(90, color="0.7", lw=0.8, ls=":")
    ax.set(xlim=(0, 180), ylim=(0, 180), xticks=range(0, 181, 45), yticks=range(0, 181, 45))
    ax.set(xlabel="angle between $g_s$ and $g_t$ (°)", ylabel=f"angle between the step and $g_{other}$ (°)")
    whose = {"t": "target", "s": "source"}[other]
    ax.text(4, 176, f"a step raises the {whose}'s loss", color="0.35", va="top")
    ax.set_title(f"for the {whose}")
figure.legend(loc="outside right center")
plt.show()

# %%
# Up to 90° the rule *is* the plain sum: without a conflict it does nothing. Beyond, the target gets the better of it
# the more they conflict, and the source pays. The rules for equals find a middle, in which PCGrad and UPGrad, of two
# gradients, go in one direction.
#
# What it does to a training
# --------------------------
#
# A model with two parameters, :math:`y = w_1 x_1 + w_2 x_2`, so that its loss is a landscape one can draw. The target
# city shows twelve noisy examples. The contours are its loss on all examples that it does *not* show, which is what
# counts. Three sources: one with many examples of nearly the same :math:`w`, one with many of quite another, and the
# twelve examples of the target itself.
#
# Three ways to learn, with equal steps and batches: the target alone, the plain sum, the rule. All 24 runs, of other
# examples and batches each, are made at once: each has a parameter, and ``scope="tensor"`` a decision, of its own.

RUNS, BATCH = 24, 4
TRUTH = torch.tensor([1.0, 0.6])
SOURCES = {
    "a good source": TRUTH + torch.tensor([0.08, -0.08]),
    "a bad source": TRUTH + torch.tensor([-0.4, -1.3]),
    "the target's own examples": None,
}
SHEAR = torch.tensor([[1.0, 0.0], [0.8, 0.45]])  # the second input says nearly what the first one does


def examples(truth, count):
    x = torch.randn(RUNS, count, 2) @ SHEAR.T
    return x, x @ truth + 0.7 * torch.randn(RUNS, count)


def loss(w, data, chosen):
    """Of each run's own batch; summed, so that each run has its own gradient."""
    x, y = (part.take_along_dim(chosen if part.dim() == 2 else chosen[..., None], dim=1) for part in data)
    return ((x * w[:, None]).sum(dim=-1) - y).square().mean(dim=1).sum()


def train(way, source, target, steps=80):
    """The parameters ``[steps + 1, RUNS, 2]``, and the share of the steps with a conflict."""
    torch.manual_seed(1)
    w = [torch.nn.Parameter(torch.tensor([-0.6, 0.1])) for _ in range(RUNS)]
    optimizer = TargetSkewedOptimizer(w, base=torch.optim.SGD, lr=0.05, scope="tensor")
    path = [torch.stack(w).detach()]
    for _ in range(steps):
        of_target, of_source = (torch.rand(data[1].shape).argsort(dim=1)[:, :BATCH] for data in (target, source))
        of_source = of_target if source is target else of_source
        optimizer.zero_grad()
        source_loss, target_loss = loss(torch.stack(w), source, of_source), loss(torch.stack(w), target, of_target)
        if way == "skewed":
            optimizer.backward(source_loss, target_loss)
        else:
            (target_loss if way == "target alone" else source_loss + target_loss).backward()
        optimizer.step()
        path.append(torch.stack(w).detach())
    return torch.stack(path), optimizer


def unseen_loss(w):
    """What the target's loss is beyond the smallest possible one, on all examples there could be."""
    return ((w - TRUTH) @ SHEAR).square().sum(dim=-1)


WAYS = {"target alone": TARGET, "plain sum": SUM, "skewed": STEP}
torch.manual_seed(0)
target = examples(TRUTH, 12)
paths, conflicts = {}, {}
for name, truth in SOURCES.items():
    source = target if truth is None else examples(truth, 400)
    for way in WAYS:
        paths[name, way], optimizer = train(way, source, target)
    of_runs = optimizer.stats(per="scope")["source"].values()
    conflicts[name] = np.mean([stats["conflict_rate"] for stats in of_runs])

# %%
# The run nearest to the medians above; below, the last loss of all runs, and their medians.
#
# - With the good source the plain sum is best. The filter finds a conflict in about half of the steps all the same:
#   near the target's minimum little is left of its gradient but the noise of twelve examples, and what opposes noise
#   is filtered, too.
# - With the bad source the plain sum ends between the two cities. The filter undoes most of that harm, but not all:
#   in the steps in which noise makes the two agree, the bad source passes. To know a bad source as such, one has to
#   look at more than two batches, which is what the guard of ``strategy="tsjt"`` does
#   (:doc:`3_support_profiles_and_the_guard`).
# - With the target's own examples as the source there is never a conflict, and the filter does nothing: its path is
#   that of the plain sum.
#
# In the cities that were measured it went the same way: where sources are good, the filter adds nothing to the plain
# sum that can be told from chance (:doc:`/results`).

torch.testing.assert_close(
    paths["the target's own examples", "skewed"], paths["the target's own examples", "plain sum"]
)
losses = torch.stack([unseen_loss(path[-1]).log() for path in paths.values()])
shown = int((losses - losses.median(dim=1, keepdim=True).values).abs().sum(dim=0).argmin())

w1, w2 = torch.meshgrid(torch.linspace(-0.9, 1.9, 141), torch.linspace(-1.0, 1.6, 131), indexing="xy")
landscape = unseen_loss(torch.stack([w1, w2], dim=-1))
figure, axes = plt.subplots(2, 3, figsize=(9.6, 5.9), layout="constrained", sharey="row", height_ratios=[3, 1.7])
for column, (name, truth) in enumerate(SOURCES.items()):
    above, below = axes[:, column]
    levels = [0.03, 0.12, 0.3, 0.7, 1.3, 2.2, 3.4, 5]
    above.contour(w1, w2, landscape, levels=levels, colors="0.8", linewidths=0.8)
    for place, (way, colour) in enumerate(WAYS.items()):
        path = paths[name, way][:, shown]
        above.plot(*path.T, color=colour, lw=1.3, ls="--" if way == "skewed" else "-")
        above.plot(*path[-1], "o", color=colour, ms=6, mec="white", zorder=4)
        last = unseen_loss(paths[name, way][-1])
        below.plot(place + torch.linspace(-0.18, 0.18, RUNS), last, "o", color=colour, ms=3, alpha=0.6, mew=0)
        below.plot([place - 0.3, place + 0.3], [last.median()] * 2, color=colour, lw=2)
    above.plot(*TRUTH, "*", color="#009E73", ms=12, mec="white", zorder=3)
    if truth is not None:
        above.plot(*truth, "X", color=SOURCE, ms=8, mec="white", zorder=3)
    above.set_title(f"{name}\nconflict in {conflicts[name]:.0%} of the steps".replace("%", " %"))
    above.set(xlabel="$w_1$", aspect="equal")
    below.set(xticks=range(3), xticklabels=list(WAYS), yscale="log", xlim=(-0.5, 2.5))
axes[0, 0].set_ylabel("$w_2$")
axes[1, 0].set_ylabel("loss on unseen\nexamples")
marks = [Line2D([], [], color=colour, ls="--" if way == "skewed" else "-", label=way) for way, colour in WAYS.items()]
marks += [
    Line2D([], [], marker="*", ls="", color="#009E73", ms=10, label="the target's best $w$"),
    Line2D([], [], marker="X", ls="", color=SOURCE, ms=7, label="the source's best $w$"),
]
figure.legend(handles=marks, loc="outside lower center", ncols=5)
plt.show()
