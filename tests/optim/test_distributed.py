"""Two processes with half a batch each equal one process with the whole batch: DDP, FSDP2, ZeRO."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed

from tsjt_pyg.optim import skew

if not (distributed.is_available() and distributed.is_gloo_available()):
    pytest.skip("this torch was built without torch.distributed or without gloo", allow_module_level=True)

with warnings.catch_warnings():  # torch.distributed.optim scripts its optimizers when it is imported
    warnings.simplefilter("ignore", DeprecationWarning)
    import distributed_runs as runs
from two_processes import TOLERANCE, TwoProcesses, assert_equals_one_process, assert_ranks_agree, assert_same

VIEWS = pytest.mark.parametrize("views", [False, True], ids=["copies", "views of buckets"])


@VIEWS
@pytest.mark.parametrize("blocks", ["st", "ts"])
@pytest.mark.parametrize("one_each", [False, True], ids=["one bucket", "a bucket a parameter"])
def test_ddp_equals_one_process(two_processes: TwoProcesses, blocks: str, views: bool, one_each: bool) -> None:
    options = {"bucket_cap_mb": 1e-6} if one_each else {}
    work = partial(runs.ddp, blocks=blocks, gradient_as_bucket_view=views, **options)
    outcomes = assert_equals_one_process(two_processes, work)
    assert outcomes[0].extra == (4 if one_each else 1)


def test_the_runs_meet_conflicts_and_their_halves_filtered_apart_would_give_something_else() -> None:
    assert 0 < runs.ddp(None).stats["conflict_rate"] < 1
    model = runs.CityModel()
    differences = []
    for number in range(0, 10 * runs.STEPS, 10):
        halves = []
        for rank in (0, 1, None):
            gradients = [
                torch.autograd.grad(runs.loss_of(model, city, number + i, rank), list(model.parameters()))
                for i, city in enumerate(runs.CITY.values())
            ]
            halves.append(torch.cat([g.flatten() for g in skew(*gradients, **runs.GAMMAS)[0] if g is not None]))
        differences.append(((halves[0] + halves[1]) / 2 - halves[2]).abs().max().item())
    assert max(differences) > 1e-3


@VIEWS
@pytest.mark.parametrize("no_sync", [False, True], ids=["each synchronised", "no_sync"])
@pytest.mark.parametrize("blocks", ["sstt", "ttss", "stst", "tsts", "sst", "tts", "sts"])
def test_ddp_accumulation_equals_one_process(
    two_processes: TwoProcesses, blocks: str, views: bool, no_sync: bool
) -> None:
    work = partial(runs.ddp, blocks=blocks, gradient_as_bucket_view=views, no_sync=no_sync)
    assert_equals_one_process(two_processes, work)


@VIEWS
@pytest.mark.parametrize(
    ("blocks", "no_sync"), [("st", False), ("ts", False), ("stst", False), ("sstt", True), ("ttss", True)]
)
def test_ddp_with_layers_of_one_city_equals_one_process(
    two_processes: TwoProcesses, blocks: str, no_sync: bool, views: bool
) -> None:
    work = partial(
        runs.ddp,
        blocks=blocks,
        own_layers=True,
        no_sync=no_sync,
        find_unused_parameters=True,
        gradient_as_bucket_view=views,
    )
    outcome, *_ = assert_equals_one_process(two_processes, work)
    before = dict(runs.CityModel(own_layers=True).named_parameters())
    moved = {name for name, weights in outcome.weights.items() if not torch.equal(weights, before[name])}
    assert moved == {name for name in before if "nobody" not in name}


def test_no_sync_over_both_cities_at_a_time_is_refused_by_torch_if_they_have_layers_of_their_own(
    two_processes: TwoProcesses,
) -> None:
    """DDP keeps one list of used parameters over all blocks under no_sync: gather one city after the other instead."""
    work = partial(
        runs.ddp_that_torch_refuses, blocks="stst", own_layers=True, no_sync=True, find_unused_parameters=True
    )
    for message in two_processes.run(work):
        assert "gradient which is undefined" in message


@pytest.mark.parametrize("in_blocks", [False, True], ids=["backward()", "blocks"])
@pytest.mark.parametrize(
    ("forward", "find_unused"),
    [("one", False), ("one", True), ("two", False), ("two", True), ("two with layers of one city", True)],
)
def test_ddp_with_both_losses_first_equals_one_process_or_is_refused(
    two_processes: TwoProcesses, forward: str, find_unused: bool, in_blocks: bool
) -> None:
    """DDP reduces one backward pass a forward pass: the gradients of the other would silently stay those of a rank."""
    work = partial(runs.ddp_forwards_first, forward=forward, in_blocks=in_blocks, find_unused_parameters=find_unused)
    outcomes = two_processes.run(work)
    if isinstance(outcomes[0], str):
        assert all("forward" in message for message in outcomes)
    else:
        assert_ranks_agree(outcomes)
        assert_same(outcomes[0], work(None))


@VIEWS
@pytest.mark.parametrize("blocks", ["st", "ts", "stst"])
def test_the_forward_pass_of_ddp_may_run_before_the_block(
    two_processes: TwoProcesses, blocks: str, views: bool
) -> None:
    """The second forward pass moves the gradients of the first block to new buckets, as new tensors in ``.grad``."""
    work = partial(runs.ddp, blocks=blocks, forward_outside=True, gradient_as_bucket_view=views)
    assert_equals_one_process(two_processes, work)


CITIES = pytest.mark.parametrize("city", ["source", "target"])


@CITIES
@pytest.mark.parametrize("batched", [False, True])
def test_powersgd_is_refused(two_processes: TwoProcesses, city: str, batched: bool) -> None:
    """Its error feedback of one gradient would leak into the other."""
    prepare = partial(runs.powersgd, batched=batched)
    for message in two_processes.run(partial(runs.refusal_of_the_first_block, city=city, prepare=prepare)):
        assert "PowerSGD" in message


@CITIES
def test_a_static_graph_is_refused(two_processes: TwoProcesses, city: str) -> None:
    work = partial(runs.refusal_of_the_first_block, city=city, static_graph=True)
    for message in two_processes.run(work):
        assert "static_graph" in message


def test_other_hooks_and_a_static_graph_of_other_parameters_are_not_refused(two_processes: TwoProcesses) -> None:
    assert_equals_one_process(two_processes, runs.ddp_with_an_ordinary_hook)
    assert_equals_one_process(two_processes, runs.ddp_beside_somebody_elses_static_graph)


LAYERS = pytest.mark.parametrize("per_layer", [False, True], ids=["whole", "per layer"])


@LAYERS
@pytest.mark.parametrize("blocks", ["st", "ts", "stst"])
def test_fsdp_equals_one_process(two_processes: TwoProcesses, blocks: str, per_layer: bool) -> None:
    assert_equals_one_process(two_processes, partial(runs.fsdp, blocks=blocks, per_layer=per_layer))


@LAYERS
@pytest.mark.parametrize("blocks", ["sstt", "ttss"])
def test_fsdp_accumulation_without_synchronisation_equals_one_process(
    two_processes: TwoProcesses, blocks: str, per_layer: bool
) -> None:
    work = partial(runs.fsdp, blocks=blocks, per_layer=per_layer, accumulate=True)
    assert_equals_one_process(two_processes, work)


@pytest.mark.parametrize("blocks", ["stst", "tsts", "sts"])
def test_fsdp_accumulation_of_both_cities_at_a_time_equals_one_process_or_is_refused(
    two_processes: TwoProcesses, blocks: str
) -> None:
    """FSDP2 keeps gradients that were not synchronised: the next synchronised block reduces them along with its own."""
    work = partial(runs.fsdp_or_refusal, blocks=blocks)
    outcomes = two_processes.run(work)
    if isinstance(outcomes[0], str):
        assert all("set_requires_gradient_sync" in message for message in outcomes)
    else:
        assert_ranks_agree(outcomes)
        assert_same(outcomes[0], work(None))


@LAYERS
def test_fsdp_with_layers_of_one_city_equals_one_process(two_processes: TwoProcesses, per_layer: bool) -> None:
    assert_equals_one_process(two_processes, partial(runs.fsdp, per_layer=per_layer, own_layers=True))


def test_fsdp_with_both_forward_passes_first_equals_one_process(two_processes: TwoProcesses) -> None:
    assert_equals_one_process(two_processes, runs.fsdp_forwards_first)


def test_fsdp_gradients_can_be_clipped(two_processes: TwoProcesses) -> None:
    outcome, _, alone = assert_equals_one_process(two_processes, partial(runs.fsdp, max_norm=0.1))
    torch.testing.assert_close(outcome.extra, alone.extra, **TOLERANCE)
    assert min(alone.extra) > 0.1


def test_fsdp_ranks_skip_a_step_together_if_one_shard_is_not_finite(two_processes: TwoProcesses) -> None:
    outcome, *_ = assert_equals_one_process(two_processes, runs.fsdp_with_one_bad_shard)
    assert (outcome.stats["steps"], outcome.stats["skipped_steps"]) == (4, 1)


@pytest.mark.parametrize("full", [False, True], ids=["sharded", "full"])
def test_fsdp_state_dicts_are_restored_and_equal_those_of_one_process(two_processes: TwoProcesses, full: bool) -> None:
    work = partial(runs.fsdp_saved_and_restored, full=full)
    alone, _, alone_saved = work(None)
    ranks = two_processes.run(work)
    for outcome, resumed, _ in ranks:
        assert_same(outcome, alone)
        assert resumed.extra == outcome.extra
        assert resumed.stats == outcome.stats
        torch.testing.assert_close(resumed.weights, outcome.weights, rtol=0, atol=0)
    assert_ranks_agree([outcome for outcome, _, _ in ranks])
    if full:
        torch.testing.assert_close(ranks[0][2]["state"], alone_saved["state"], **TOLERANCE)


def test_fsdp_checkpoints_on_disk_are_restored(two_processes: TwoProcesses, tmp_path: Path) -> None:
    for outcome, resumed in two_processes.run(partial(runs.fsdp_saved_to_disk, folder=str(tmp_path))):
        assert resumed.stats == outcome.stats
        torch.testing.assert_close(resumed.weights, outcome.weights, rtol=0, atol=0)


@pytest.mark.parametrize("views", [False, True], ids=["parameters", "views of buckets"])
def test_zero_as_the_base_equals_one_process(two_processes: TwoProcesses, views: bool) -> None:
    work = partial(runs.zero, parameters_as_bucket_view=views)
    outcome, _, alone = assert_equals_one_process(two_processes, work)
    torch.testing.assert_close(outcome.extra["optimizer"]["state"], alone.extra["optimizer"]["state"], **TOLERANCE)


def test_a_consolidated_state_dict_of_zero_goes_on_in_two_processes_or_in_one(two_processes: TwoProcesses) -> None:
    expected, _ = two_processes.run(runs.zero)
    (begun, _), rest = two_processes.run(partial(runs.zero, steps=range(3))), range(3, runs.STEPS)
    work = partial(runs.zero_resumed, saved=begun.extra, steps=rest)
    resumed, *_, alone = assert_equals_one_process(two_processes, work)
    torch.testing.assert_close(resumed.weights, expected.weights, rtol=0, atol=0)
    assert resumed.stats == expected.stats
    assert resumed.extra == alone.extra == pytest.approx(0.01 * 0.9**runs.STEPS)


def test_zero_around_ours_has_no_blocks(two_processes: TwoProcesses) -> None:
    for message in two_processes.run(runs.blocks_of_zero_around_ours):
        assert "no attribute 'source'" in message
