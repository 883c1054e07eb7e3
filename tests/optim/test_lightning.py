"""Lightning drives the optimizer as a plain loop does: Fabric, and a LightningModule with manual optimization."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_options import equal, losses, small_model, weights
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader
from two_processes import TwoProcesses, assert_equals_one_process

from tsjt_pyg.optim import TargetSkewedOptimizer

lightning = pytest.importorskip("lightning", reason="Lightning is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("error:Detected call of `lr_scheduler.step:UserWarning"),
]

MAX_NORM = 0.5
STEPS_AN_EPOCH = 3


def optimizer_for(model: nn.Module) -> TargetSkewedOptimizer:
    return TargetSkewedOptimizer(model.parameters(), Adam, lr=0.01, gamma_source=0.7)


class Autocast(nn.Module):
    """What mixed precision means: the forward pass in bfloat16, all else in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(x).float()


def plain_loop(precision: str = "32-true", steps: int = 4, decay: float = 1.0) -> tuple[nn.Module, Any]:
    model = small_model()
    forward = Autocast(model) if precision == "bf16-mixed" else model
    optimizer = optimizer_for(model)
    scheduler = ExponentialLR(optimizer, decay)
    for step in range(steps):
        optimizer.zero_grad()
        optimizer.backward(*losses(forward, step))
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        scheduler.step()
    return model, optimizer


def fabric_loop(fabric: Any, model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        with optimizer.source():
            fabric.backward(losses(model, step)[0])
        with optimizer.target():
            fabric.backward(losses(model, step)[1])
        fabric.clip_gradients(model, optimizer, max_norm=MAX_NORM)
        optimizer.step()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric_equals_the_plain_loop(precision: str) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    net = small_model()
    ours = optimizer_for(net)
    model, optimizer = fabric.setup(net, ours)
    fabric_loop(fabric, model, optimizer, range(4))
    twin, plain = plain_loop(precision)
    assert equal(weights(net), weights(twin))
    assert optimizer.stats() == ours.stats() == plain.stats()
    assert ours.stats()["conflict_rate"] > 0


def test_a_checkpoint_of_fabric_is_restored_bit_for_bit(tmp_path: Path) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    net = small_model()
    model, optimizer = fabric.setup(net, optimizer_for(net))
    fabric_loop(fabric, model, optimizer, range(2))
    fabric.save(tmp_path / "checkpoint.pt", {"model": model, "optimizer": optimizer, "step": 2})
    other = small_model(seed=1)
    model, optimizer = fabric.setup(other, optimizer_for(other))
    state = {"model": model, "optimizer": optimizer, "step": 0}
    fabric.load(tmp_path / "checkpoint.pt", state)
    fabric_loop(fabric, model, optimizer, range(state["step"], 4))
    twin, plain = plain_loop()
    assert equal(weights(other), weights(twin))
    assert optimizer.stats() == plain.stats()


class JointTraining(lightning.LightningModule):
    def __init__(self, reach: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = small_model()
        self.reach = reach

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = optimizer_for(self.net)
        return {"optimizer": optimizer, "lr_scheduler": ExponentialLR(optimizer, 0.9)}

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        ours = optimizer if self.reach == "wrapper" else optimizer.optimizer
        step = batch_idx + STEPS_AN_EPOCH * self.current_epoch
        optimizer.zero_grad()
        with ours.source():
            self.manual_backward(losses(self.net, step)[0])
        with ours.target():
            self.manual_backward(losses(self.net, step)[1])
        self.clip_gradients(optimizer, gradient_clip_val=MAX_NORM, gradient_clip_algorithm="norm")
        optimizer.step()
        self.lr_schedulers().step()


def fit(module: JointTraining, epochs: int, checkpoint: Path | None = None) -> Any:
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(range(STEPS_AN_EPOCH), batch_size=1), ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("reach", ["wrapper", "optimizer"])
def test_a_lightning_module_equals_the_plain_loop(reach: str) -> None:
    module = JointTraining(reach)
    trainer = fit(module, epochs=2)
    twin, plain = plain_loop(steps=2 * STEPS_AN_EPOCH, decay=0.9)
    assert equal(weights(module.net), weights(twin))
    assert trainer.optimizers[0].stats() == plain.stats()
    assert trainer.optimizers[0].param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    assert trainer.global_step == 2 * STEPS_AN_EPOCH


def test_a_resumed_trainer_continues_bit_for_bit(tmp_path: Path) -> None:
    fit(JointTraining("wrapper"), epochs=1).save_checkpoint(tmp_path / "first.ckpt")
    resumed = JointTraining("wrapper")
    trainer = fit(resumed, epochs=2, checkpoint=tmp_path / "first.ckpt")
    twin, plain = plain_loop(steps=2 * STEPS_AN_EPOCH, decay=0.9)
    assert equal(weights(resumed.net), weights(twin))
    assert trainer.optimizers[0].stats() == plain.stats()


@pytest.mark.parametrize("own_layers", [False, True])
def test_fabric_with_ddp_equals_one_process(two_processes: TwoProcesses, own_layers: bool) -> None:
    import framework_runs

    work = partial(framework_runs.fabricated, own_layers=own_layers)
    outcome, *_ = assert_equals_one_process(two_processes, work)
    assert outcome.extra == "DistributedDataParallel"


@pytest.mark.parametrize("forward_first", [False, True])
@pytest.mark.parametrize("own_layers", [False, True])
def test_a_trainer_with_ddp_equals_one_process(
    two_processes: TwoProcesses, own_layers: bool, forward_first: bool
) -> None:
    """``manual_backward`` prepares DDP for each backward pass, so that here the losses may come first."""
    import framework_runs

    work = partial(framework_runs.trained_by_lightning, own_layers=own_layers, forward_first=forward_first)
    outcome, *_ = assert_equals_one_process(two_processes, work)
    assert outcome.extra == "DDPStrategy"
