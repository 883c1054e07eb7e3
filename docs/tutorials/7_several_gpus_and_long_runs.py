"""
Several GPUs, and long runs
===========================

A training that takes a night should use all the GPUs there are, and a crash should cost minutes of it, not the night.
At the end of this page you have trained one model by two processes, stopped them on the way, gone on, and seen that
the result has the same bits as that of a run which nobody stopped. On the CPU, so that it runs anywhere; with GPUs the
commands are the same but for two options. It takes ten minutes to read and one to run. You need
``pip install 'tsjt-pyg[fabric]'``.
"""

# %%
# One training, two processes
# ---------------------------
#
# ``tsjt train`` is started by one command. Put *torchrun* before it, which comes with torch, and it is started by every
# process of the training:
#
# .. code-block:: text
#
#    torchrun --standalone --nproc-per-node=2 -m tsjt_pyg train --target demo/riverton --output runs/a
#
# Below, Python types the same command (``python -m torch.distributed.run`` is torchrun), so that this page can run by
# itself. On the CPU the processes talk by *gloo*, on GPUs by *nccl*, a GPU each: add ``--device cuda`` and, with
# recent cards, ``--precision bf16-mixed``. Model and training are tiny here, so that the page is quick.

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

temporary = tempfile.TemporaryDirectory()
runs = Path(temporary.name)

torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
command = ["-m", "tsjt_pyg", "train", "--target", "demo/riverton", "--strategy", "tsjt"]
settings = [
    "--cell=GRU",
    "--hidden=8",
    "--no-profile",
    "--batch-size=8",
    "--lr=0.01",
    "--steps=100",
    "--checkpoint-every=40",
]


def start(name, *more):
    return subprocess.Popen(
        [*torchrun, *command, *settings, "--output", name, *more],
        cwd=runs,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"},  # a thread each; no colours, also in a notebook
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def show(text):
    """What our two processes said; torchrun and torch itself say more."""
    print(*(line for line in text.splitlines() if line.startswith(("tsjt:", "source", "stopped", "warning"))), sep="\n")


process = start("whole")
text, _ = process.communicate()
assert process.returncode == 0, text
show(text)

# %%
# Only rank 0, the first of the processes, printed this and wrote files. ``--batch-size 8`` is still eight windows a
# step: each process took four of them, and both gradients, that of the source cities and that of the target, were
# averaged over the processes *before* the filter compared them. So the result is that of one process up to rounding
# (:doc:`/clusters` says how far apart they were), and no setting has to be tuned again for another number of GPUs.
#
# Stopped on the way
# ------------------
#
# The same training once more, in another folder. As soon as its first checkpoint lies there, we send SIGTERM, as a
# cluster does that wants its machine back. (Where the run is at that moment depends on the machine.)

process = start("stopped")
while not (runs / "stopped" / "last.pt").exists():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.02)
process.send_signal(signal.SIGTERM)
text, _ = process.communicate()
show(text)

# %%
# Both processes ended the step they were at, agreed on that step, and wrote one more checkpoint. torchrun passes the
# signal on and kills what has not ended after 30 seconds; one step and its checkpoint have to be faster than that.
#
# The folder of the run holds the newest checkpoint, ``last.pt``, the one before it (``--keep-checkpoints`` says how
# many), and ``best.pt``, the model that one would forecast with. Each is an ordinary file of ``torch.save`` that holds
# no code, so it can be read with ``weights_only=True``:

import torch


def load(name, file="last.pt"):
    return torch.load(runs / name / file, weights_only=True)


for file in sorted((runs / "stopped").glob("*.pt")):
    print(f"{file.name:10} step {load('stopped', file.name)['step']:3}, {file.stat().st_size / 1024:3.0f} KiB")

at_stop = load("stopped")
print("last.pt holds:", ", ".join(at_stop))

# %%
# So a checkpoint is more than parameters: the optimizer's moments, what the filter remembers, the log, the guard's
# verdicts on the sources, random generators, and fingerprints of all cities. A SHA-256 at its end tells every changed
# byte. Were ``last.pt`` damaged, ``--resume`` would take ``last-1.pt`` and say so (:doc:`/long_runs`).
#
# And on
# ------
#
# The same command with ``--resume``. It may always be there: where there is no checkpoint yet, the run begins at its
# beginning, so the script of a job that is started again and again is the same every time.

process = start("stopped", "--resume")
text, _ = process.communicate()
assert process.returncode == 0, text
show(text)

# %%
# The last lines of both runs say the same but for the seconds. That could be rounding, so we look at the bits:

whole, resumed = load("whole"), load("stopped")


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


print("stopped after step", at_stop["step"], "of", resumed["step"])
print("parameters:", same_bits(whole["model"], resumed["model"]))
print("their running average, which forecasts:", same_bits(whole["best_model"], resumed["best_model"]))
print("log:", whole["log"] == resumed["log"])
conflicts = [(runs / name / "conflict.csv").read_bytes() for name in ("whole", "stopped")]
print("cosine and conflict of every step:", conflicts[0] == conflicts[1])
assert same_bits(whole["model"], resumed["model"])

# %%
# Had it gone on with other settings, other readings in a city, or another version of torch, ``--resume`` would have
# refused and said what differs. Another *number of processes* is fine: what two began, one or eight can go on with, to
# the same result up to rounding.
#
# Many trainings instead of a large one
# -------------------------------------
#
# Often one does not want one training sooner but many of them: every strategy with every seed. These know nothing of
# each other, so they need no torchrun:
#
# .. code-block:: text
#
#    tsjt compare --target demo/riverton --jobs 4 --output runs/compare
#    tsjt compare --target demo/riverton --dask tcp://HOST:8786 --output runs/compare
#
# ``--jobs`` uses the cores of this machine, ``--dask`` those of a cluster. Every finished run is a line of a file, and
# the same command trains only what is missing. :doc:`/clusters` has both, and the script for SLURM.
#
# What was not measured
# ---------------------
#
# GPUs, half precision on them, and speed were not measured. The guard and the validation day are done by every process
# alike, so they do not get faster. A model as small as those of this library may be done with its step sooner than the
# processes have told each other their gradients, and then a second GPU has nothing to give. Time a few hundred steps of
# your own training with one GPU and with two before you reserve eight.
#
# The picture
# -----------
#
# Above, the validation loss of both runs, one drawn upon the other, with the place of the stop. Below, what the filter
# saw in every step: the cosine between the gradients of source and target. Where it is negative, the two are in
# conflict, and what would hurt the target is taken out of the source's gradient.

import matplotlib.pyplot as plt
import pandas as pd


def curve(log):
    return [entry["step"] for entry in log], [entry["validation_loss"] for entry in log]


at = at_stop["step"]
after = resumed["log"][len(at_stop["log"]) - 1 :]  # from the last evaluation before the stop
conflict = pd.read_csv(runs / "stopped/conflict.csv")

figure, (above, below) = plt.subplots(2, 1, figsize=(9, 7), sharex=True, layout="constrained")
above.plot(*curve(whole["log"]), color="0.8", linewidth=8, label="never stopped", solid_capstyle="round")
above.plot(*curve(at_stop["log"]), color="#D55E00", marker="s", label="until the stop", zorder=3)
above.plot(*curve(after), color="#0072B2", marker="o", label="after --resume")
above.set(ylabel="validation loss\n(MAE in standard deviations)")
above.legend()

opposed = conflict["cosine"] < 0
colours = opposed.map({True: "#D55E00", False: "#0072B2"})
below.bar(conflict["step"], conflict["cosine"], width=0.8, color=colours)
below.axhline(0, color="black", linewidth=0.8)
below.set(xlabel="step", ylabel="cosine of source and\ntarget gradient")
for axes in (above, below):
    axes.axvline(at + 0.5, color="black", linestyle="--", linewidth=1)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
above.annotate(f"stopped after step {at}", (at + 0.5, 1), (6, -4), ("data", "axes fraction"), "offset points", va="top")
below.set_title(f"In conflict (orange) in {int(opposed.sum())} of {len(conflict)} steps", loc="left", fontsize=10)
plt.show()

temporary.cleanup()

# %%
# What to remember
# ----------------
#
# - torchrun or srun before ``-m tsjt_pyg train``: the same result up to rounding, by as many processes as you like.
# - Always give ``--resume``, and let the cluster send SIGTERM first. A stop costs one step, a crash the steps since the
#   last checkpoint.
# - On the CPU, a run that was stopped ends with the same bits.
#
# Where to go next: :doc:`/long_runs` for what was tried against checkpoints (kills, full disks, flipped bits),
# :doc:`/clusters` for SLURM, Dask, FSDP and a training script of your own,
# :doc:`/_generated/tutorials/8_serving` to forecast with what was trained.
