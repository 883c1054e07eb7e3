"""What torch hangs on an optimizer: hooks, learning rate schedulers, checkpoint libraries, wrappers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizer_options import equal, losses, small_model, train, weights
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import SGD, Adam, Optimizer, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.optim.swa_utils import SWALR

from tsjt_pyg.optim import TargetSkewedOptimizer


def test_every_hook_fires_once_with_our_optimizer(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), Adam)
    fired: list[tuple[str, Any]] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda opt, *args: fired.append((name, opt))

    global_hooks = [
        register_optimizer_step_pre_hook(hook("all pre")),
        register_optimizer_step_post_hook(hook("all post")),
    ]
    optimizer.register_step_pre_hook(hook("pre"))
    optimizer.register_step_post_hook(hook("post"))
    optimizer.register_state_dict_pre_hook(hook("save pre"))
    optimizer.register_state_dict_post_hook(hook("save post"))
    optimizer.register_load_state_dict_pre_hook(hook("load pre"))
    optimizer.register_load_state_dict_post_hook(hook("load post"))
    try:
        optimizer.step()
    finally:
        for handle in global_hooks:
            handle.remove()
    optimizer.load_state_dict(optimizer.state_dict())
    names = ["all pre", "pre", "post", "all post", "save pre", "save post", "load pre", "load post"]
    assert [name for name, _ in fired] == names
    assert all(opt is optimizer for _, opt in fired)


def test_hooks_of_the_base_instance_fire_once(model: nn.Module) -> None:
    base, fired = SGD(model.parameters(), lr=0.1), []
    base.register_step_pre_hook(lambda *args: fired.append("before"))
    optimizer = TargetSkewedOptimizer(None, base)
    base.register_step_post_hook(lambda *args: fired.append("after"))
    base.register_state_dict_post_hook(lambda *args: fired.append("saved"))
    optimizer.step()
    optimizer.state_dict()
    assert fired == ["before", "after", "saved"]


def test_state_dict_hooks_may_replace_what_is_saved_and_loaded(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), SGD, lr=0.1)
    optimizer.register_state_dict_post_hook(lambda opt, saved: {**saved, "extra": 1})
    saved = optimizer.state_dict()
    assert saved["extra"] == 1

    def double_lr(opt: Optimizer, state_dict: dict) -> dict:
        groups = [{**group, "lr": 0.2} for group in state_dict.pop("param_groups")]  # from a copy, not from `saved`
        return {**state_dict, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(double_lr)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert saved["param_groups"][0]["lr"] == 0.1


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "SWALR": lambda o: SWALR(o, 0.05, anneal_epochs=2),
}


def test_the_table_of_schedulers_holds_all_of_torchs() -> None:
    public = {name for name in lr_scheduler.__all__ if name != "LRScheduler"}
    assert public <= set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("wrapped_first", [True, False], ids=["on ours", "on the base before"])
def test_every_scheduler_drives_it_as_it_drives_the_base(name: str, wrapped_first: bool) -> None:
    model, twin = small_model(), small_model()
    plain = SGD(twin.parameters(), lr=0.1, momentum=0.9)
    base = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="The epoch parameter")  # torch 2.7's SequentialLR warns of itself
        ours: Optimizer = base
        if wrapped_first:
            ours = TargetSkewedOptimizer(None, base)
        schedulers = [SCHEDULERS[name](ours), SCHEDULERS[name](plain)]
        if not wrapped_first:
            ours = TargetSkewedOptimizer(None, base)
        rates = []
        for step in range(4):
            for optimizer, net, scheduler in ((ours, model, schedulers[0]), (plain, twin, schedulers[1])):
                optimizer.zero_grad()
                losses(net, step)[1].backward()
                optimizer.step()
                scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
                rates.append(optimizer.param_groups[0]["lr"])
    assert rates[::2] == rates[1::2]
    assert len(set(rates)) > 1
    assert equal(weights(model), weights(twin))


@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpoint_saves_and_restores_it(model: nn.Module, twin: nn.Module, flatten: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    ours, resumed = TargetSkewedOptimizer(model.parameters()), TargetSkewedOptimizer(twin.parameters())
    train(model, ours, range(3))
    twin.load_state_dict(model.state_dict())
    saved = copy.deepcopy(get_optimizer_state_dict(model, ours, options=options))
    set_optimizer_state_dict(twin, resumed, saved, options=options)
    assert resumed.stats() == ours.stats()
    train(model, ours, range(3, 5))
    train(twin, resumed, range(3, 5))
    assert equal(weights(model), weights(twin))


def test_a_wrapper_that_copies_its_attributes_shares_its_state(model: nn.Module, twin: nn.Module) -> None:
    """Lightning Fabric subclasses on the fly and copies ``__dict__``: only changes in place reach the original."""
    ours, other = TargetSkewedOptimizer(model.parameters()), TargetSkewedOptimizer(twin.parameters())
    train(twin, other, range(3))
    wrapper = type("Fabric", (TargetSkewedOptimizer,), {"__init__": lambda self: None})()
    wrapper.__dict__ = dict(ours.__dict__)
    for step in range(3):
        wrapper.zero_grad()
        source_loss, target_loss = losses(model, step)
        with wrapper.source():
            source_loss.backward()
        with wrapper.target():
            target_loss.backward()
        ours.step()
    wrapper.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    assert equal(weights(model), weights(twin))
    assert ours.stats() == wrapper.stats() == other.stats()


def test_setstate_accepts_what_a_plain_optimizer_hands_on(model: nn.Module) -> None:
    optimizer = TargetSkewedOptimizer(model.parameters(), Adam)
    train(model, optimizer, range(1))
    state, groups = copy.copy(optimizer.state), optimizer.param_groups
    optimizer.__setstate__({"state": state, "param_groups": groups})
    assert optimizer.base.state is state
    assert torch.is_tensor(optimizer.state_dict()["param_groups"][0]["skew_counts"])
