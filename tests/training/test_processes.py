"""Two processes with a share of every batch each equal one process with the whole batches."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from unittest import mock

import pytest
import torch
import trainings
from torch import distributed
from two_processes import TwoProcesses

from tsjt_pyg.training import Processes, fit
from tsjt_pyg.training.distributed import ALONE, launched_size, processes_for

if not (distributed.is_available() and distributed.is_gloo_available()):
    pytest.skip("this torch was built without torch.distributed or without gloo", allow_module_level=True)
pytest.importorskip("lightning_fabric")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def task(commuters):
    visible, _ = commuters("target", seed=1, missing=0.4).few_shot(3)
    return visible, [commuters("north", num_nodes=8, seed=2), commuters("south", num_nodes=5, seed=3, missing=0.2)]


def assert_ranks_agree(ranks):
    for name, value in ranks[0].model.items():
        assert torch.equal(value, ranks[1].model[name]), name
        assert torch.equal(ranks[0].last[name], ranks[1].last[name]), name
    for what in ("log", "best_step", "verdicts", "stats"):
        assert getattr(ranks[0], what) == getattr(ranks[1], what), what


def assert_same(found, expected, **tolerance):
    tolerance = tolerance or CLOSE
    torch.testing.assert_close(found.last, expected.last, **tolerance)
    torch.testing.assert_close(found.model, expected.model, **tolerance)
    assert found.best_step == expected.best_step
    assert [verdict.weight for verdict in found.verdicts] == [verdict.weight for verdict in expected.verdicts]
    for one, other in zip(found.log, expected.log, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("strategy", ["tsjt", slow("pooled"), slow("tsjt_paper"), slow("finetune")])
def test_ddp_equals_one_process(two_processes: TwoProcesses, task, strategy):
    work = partial(trainings.trained, task=task, strategy=strategy)
    ranks, alone = two_processes.run(work), work(None)
    assert_ranks_agree(ranks)
    assert_same(ranks[0], alone)
    begun = trainings.trained(None, task=task, strategy=strategy, steps=1)
    assert max((alone.last[name] - begun.last[name]).abs().max() for name in alone.last) > 1e-2
    if strategy == "tsjt":
        assert [verdict.weight for verdict in alone.verdicts] == [0.5, 0.5]
        assert 0 < alone.stats["conflict_rate"] < 1


@pytest.mark.parametrize(
    ("strategy", "parallel"), [slow("tsjt", "ddp"), ("tsjt", "fsdp"), ("pooled", "ddp"), slow("pooled", "fsdp")]
)
def test_parameters_of_one_city_are_trained_by_its_batches(two_processes: TwoProcesses, task, strategy, parallel):
    work = partial(trainings.trained, task=task, strategy=strategy, embedding=True, parallel=parallel, steps=15)
    ranks, alone = two_processes.run(work), work(None)
    assert_ranks_agree(ranks)
    assert_same(ranks[0], alone)
    assert sum("city " in name for name in alone.model) == 3


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_step_that_is_not_finite_in_one_process_is_left_out_by_all(two_processes: TwoProcesses, task, parallel):
    work = partial(trainings.trained, task=task, strategy="tsjt_paper", parallel=parallel, steps=10)
    ranks, alone = two_processes.run(partial(work, spoilt=(3, 8))), work(None, spoilt=(3, 8))
    assert_ranks_agree(ranks)
    assert_same(ranks[0], alone)
    assert sum(entry["skipped_steps"] for entry in alone.log) == 2
    for message in two_processes.run(partial(work, spoilt=tuple(range(100)), steps=30)):
        assert message.startswith("FloatingPointError: training: 20 steps in a row were left out")


@pytest.mark.slow
def test_fsdp_equals_one_process(two_processes: TwoProcesses, task):
    work = partial(trainings.trained, task=task, parallel="fsdp")
    ranks = two_processes.run(work)
    assert_ranks_agree(ranks)
    assert_same(ranks[0], work(None))


@pytest.mark.parametrize(
    ("first", "then"),
    [slow("ddp", None), slow(None, "ddp"), slow("fsdp", None), slow(None, "fsdp"), ("fsdp", "ddp")],
)
def test_a_checkpoint_goes_on_in_one_process_or_in_two(two_processes: TwoProcesses, task, tmp_path, first, then):
    """One rank alone is asked to stop; both stop after the same step."""

    def run(parallel, **settings):
        work = partial(trainings.trained, task=task, output=tmp_path / "run", **settings)
        return [work(None)] if parallel is None else two_processes.run(partial(work, parallel=parallel))

    for stopped in run(first, stop_at=20):
        assert stopped.startswith("TrainingStopped: stopped at step 20 of 50; resume=True (--resume) continues")
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    assert all(type(value) is torch.Tensor for value in state.values())
    assert set(state) == set(trainings.CONFIG.build().state_dict())
    for resumed in run(then, resume=True):
        assert_same(resumed, trainings.trained(None, task=task))
    for refused in run(then):
        assert "holds a run already" in refused


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_bf16_is_close_to_float32(two_processes: TwoProcesses, task, parallel):
    work = partial(trainings.trained, task=task)
    ranks = two_processes.run(partial(work, precision="bf16-mixed", parallel=parallel))
    assert_ranks_agree(ranks)
    exact = work(None)
    assert_same_to_rounding(ranks[0], exact)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_one_process_may_have_another_precision_too(task, precision):
    exact, half = (trainings.trained(None, task, precision=this) for this in ("32", precision))
    assert_same_to_rounding(half, exact)


def assert_same_to_rounding(half, exact):
    assert all(value.dtype == torch.float32 for value in half.model.values())
    difference = max((half.last[name] - exact.last[name]).abs().max() for name in exact.last)
    assert 1e-6 < difference < 0.2
    assert half.log[-1]["validation_loss"] == pytest.approx(exact.log[-1]["validation_loss"], rel=0.05)


@pytest.mark.slow
def test_fp16_scales_both_losses_alike_and_skips_what_overflows(two_processes: TwoProcesses, task):
    work = partial(trainings.trained, task=task, precision="16-mixed")
    ranks = two_processes.run(work)
    assert_ranks_agree(ranks)
    # The scaler begins with 65,536 and halves it until nothing overflows: the first steps may be left out.
    assert_same_to_rounding(ranks[0], work(None))
    assert ranks[0].log[-1]["validation_loss"] < ranks[0].log[0]["validation_loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
def test_a_gpu_trains_in_every_precision(task, precision):
    visible, sources = task
    with Processes(precision=precision, device="cuda") as processes:
        model = trainings.CONFIG.build().to(processes.device)
        result = fit(model, visible, sources, processes=processes, **trainings.SETTINGS)
    assert result.log[-1]["validation_loss"] < result.log[0]["validation_loss"]


def test_processes_that_were_started_differently_say_in_what(two_processes: TwoProcesses, task):
    for message in two_processes.run(partial(trainings.with_other_settings, task=task)):
        assert message.startswith("ValueError: processes: they were started with different settings or cities: ")
        assert "seed (rank 0 has 0, rank 1 1)" in message


def test_every_process_needs_a_window(two_processes: TwoProcesses, task):
    for message in two_processes.run(partial(trainings.trained, task=task, batch_size=1)):
        assert "batch_size: expected at least one window for each of 2 processes, found 1" in message


@pytest.mark.parametrize("hang", [False, slow(True)])
def test_a_process_that_is_lost_ends_the_others_with_a_message(two_processes: TwoProcesses, task, hang):
    first, second = two_processes.run(partial(trainings.with_one_lost, task=task, hang=hang))
    assert re.match(
        r"ProcessLostError: rank 0 of 2: another process ended, or did not come within 5 s; its own message says why",
        first,
    )
    assert second.startswith("OSError: rank 1 is gone")
    two_processes.stop()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parallel": "zero"}, "parallel: expected one of ddp, fsdp, found 'zero'"),
        ({"precision": "8"}, "precision: expected one of 32, bf16-mixed, 16-mixed, found '8'"),
        ({"device": "mps"}, "device: expected cpu or cuda with several processes or a precision, found 'mps'"),
    ],
)
def test_arguments_that_cannot_work_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Processes(**arguments)


def test_fsdp_of_an_old_torch_is_refused(monkeypatch):
    env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.9.1+cpu"))
    with mock.patch.dict(os.environ, env), pytest.raises(ValueError, match=r"is 2\.13, found 2\.9\.1\+cpu; take ddp"):
        Processes(parallel="fsdp")


def test_fsdp_in_fp16_is_refused():
    env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    with mock.patch.dict(os.environ, env), pytest.raises(ValueError, match="precision: 16-mixed scales gradients"):
        Processes(parallel="fsdp", precision="16-mixed")


def test_without_fabric_the_error_names_the_extra_and_one_process_needs_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert processes_for("ddp", "32", "cpu") is ALONE
    with pytest.raises(ImportError, match=r"pip install 'tsjt-pyg\[fabric\]'"):
        processes_for("ddp", "bf16-mixed", "cpu")
    with pytest.raises(ValueError, match="parallel: expected one of"):
        processes_for("zero", "32", "cpu")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (1, 1, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, (8, 4, 2)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, (8, 4, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (1, 1, 1)),  # a batch script that has not called srun
    ],
)
def test_who_was_started_with_this_process(variables, expected):
    with mock.patch.dict(os.environ, variables, clear=True):
        assert launched_size() == expected


TRAIN = [
    "train", "--target", "demo/riverton", "--cell", "GRU", "--hidden", "8", "--batch-size", "8", "--visible-days", "13",
    "--validation-days", "0.25", "--steps", "3", "--strategy", "pooled", "--output",
]  # fmt: skip


def test_on_the_command_line_rank_0_alone_prints_and_writes(two_processes: TwoProcesses, tmp_path):
    (status, text), other = two_processes.run(partial(trainings.typed, arguments=[*TRAIN, str(tmp_path / "a")]))
    assert (status, other) == (0, (0, ""))
    assert re.search(r"^pooled: test MAE", text, flags=re.MULTILINE)
    written = {"config.json", "best.pt", "last.pt", "metrics.json", "details"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == written
    (status, text), other = two_processes.run(partial(trainings.typed, arguments=[*TRAIN, str(tmp_path / "a")]))
    assert status == other[0] == 2
    assert text.startswith("error: output:")
    assert other[1].startswith("rank 1: error: output:")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_torchrun_and_srun_give_what_one_process_gives(launcher, tmp_path):
    module = ["-m", "tsjt_pyg", *TRAIN]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *module, str(tmp_path / "one")], env=env, check=True, capture_output=True)
    command = [*module, str(tmp_path / "two")]
    if launcher == "torchrun":
        run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command]
        subprocess.run([sys.executable, *run], env=env, check=True, capture_output=True)
    else:
        slurm = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"}
        slurm |= {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "4321", "SLURM_NTASKS_PER_NODE": "2"}
        ranks = [
            subprocess.Popen([sys.executable, *command], env={**env, **slurm, "SLURM_PROCID": r, "SLURM_LOCALID": r})
            for r in "01"
        ]
        assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert two["test"]["mean_mae"] == pytest.approx(one["test"]["mean_mae"], rel=1e-5)
    assert two["log"][-1]["source_loss"] == pytest.approx(one["log"][-1]["source_loss"], rel=1e-5)
    assert two["log"][-1]["step"] == 3
