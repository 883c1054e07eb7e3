"""What the two processes do under Accelerate and Lightning, and one process with the batches of both."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from distributed_runs import CITY, GAMMAS, STEPS, CityModel, Outcome, loss_of, outcome
from torch.optim import SGD
from torch.utils.data import DataLoader
from two_processes import WORLD_SIZE, launched

from tsjt_pyg.optim import TargetSkewedOptimizer


def optimizer_for(model: torch.nn.Module) -> TargetSkewedOptimizer:
    return TargetSkewedOptimizer(model.parameters(), SGD, lr=0.05, momentum=0.9, **GAMMAS)


def forget_accelerator() -> None:
    """Accelerator() keeps its settings for the whole process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def accelerated(rank: int | None, own_layers: bool = False, sync_each_batch: bool = False) -> Outcome:
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import GradientAccumulationPlugin

    forget_accelerator()
    net = CityModel(own_layers)
    ours = optimizer_for(net)
    with launched(rank):
        accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=2, sync_each_batch=sync_each_batch),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=own_layers)],
        )
        model, optimizer = accelerator.prepare(net, ours)
        for number in range(2 * STEPS):
            with accelerator.accumulate(model):
                for city in CITY.values():
                    with getattr(ours, city)():
                        accelerator.backward(loss_of(model, city, number, rank))
                optimizer.step()
                optimizer.zero_grad()
    forget_accelerator()
    return outcome(net, ours, extra=type(model).__name__)


def _lightning_options(rank: int | None, own_layers: bool) -> dict[str, Any]:
    logging.getLogger("lightning").setLevel(logging.ERROR)
    options = {"accelerator": "cpu", "precision": "64-true"}
    if rank is None:
        return options | {"devices": 1}
    return options | {"devices": WORLD_SIZE, "strategy": "ddp_find_unused_parameters_true" if own_layers else "ddp"}


def fabricated(rank: int | None, own_layers: bool = False) -> Outcome:
    from lightning import Fabric

    with launched(rank):
        fabric = Fabric(**_lightning_options(rank, own_layers))
        fabric.launch()
        net = CityModel(own_layers)
        model, optimizer = fabric.setup(net, optimizer_for(net))
        for number in range(STEPS):
            optimizer.zero_grad()
            for city in CITY.values():
                with getattr(optimizer, city)():
                    fabric.backward(loss_of(model, city, number, rank))
            optimizer.step()
    return outcome(net, optimizer.optimizer, extra=type(model._forward_module).__name__)


def trained_by_lightning(rank: int | None, own_layers: bool = False, forward_first: bool = False) -> Outcome:
    from lightning import LightningModule, Trainer

    class JointTraining(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = CityModel(own_layers)

        def configure_optimizers(self) -> TargetSkewedOptimizer:
            return optimizer_for(self.net)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            early = {city: loss_of(self.net, city, batch_idx, rank) for city in CITY.values() if forward_first}
            for city in CITY.values():
                with getattr(optimizer, city)():
                    self.manual_backward(early[city] if early else loss_of(self.net, city, batch_idx, rank))
            optimizer.step()

    with launched(rank), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        trainer = Trainer(
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **_lightning_options(rank, own_layers),
        )
        module = JointTraining()
        trainer.fit(module, DataLoader(range(STEPS), batch_size=1))
    ours: Any = trainer.optimizers[0]
    return outcome(module.net, ours, extra=type(trainer.strategy).__name__)
