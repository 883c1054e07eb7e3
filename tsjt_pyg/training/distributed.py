"""One training by several processes, through Lightning Fabric; or by this one alone, which needs none of it."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from ..optim.parallel import prepare_reducer
from .model_state import unwrapped
from .skipped_steps import step_if_finite

T = TypeVar("T")

PARALLEL = ("ddp", "fsdp")
"""Every process has the whole model (DistributedDataParallel), or a part of every parameter (FSDP2)."""

OLDEST_FSDP = "2.13"
"""The oldest torch whose FSDP2 is known to train as one process does."""

PRECISIONS = ("32", "bf16-mixed", "16-mixed")
"""Of the forward passes in training; parameters, losses and everything that is measured are float32."""

TIMEOUT = 600.0
"""Seconds that a process waits for the others."""

_LOST = re.compile(r"gloo|nccl|connection (was )?(closed|reset)|broken pipe|timed? ?out|socket", re.IGNORECASE)


class ProcessLostError(ConnectionError):
    """Another process of the training ended or hung, so that this one cannot go on."""


class OneProcess:
    """A training by this process alone: there is nobody to share with or to wait for."""

    rank, size = 0, 1
    device: torch.device | None = None
    """That models should be on, where there is a rule for it."""
    number_format = "32"
    """Of the forward passes in training: one of :data:`PRECISIONS`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        return None

    def first(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in the process of rank 0, which does it alone; an exception of it is one everywhere."""
        return work()

    def check_same(self, settings: Mapping[str, Any]) -> None:
        """Raises a ValueError that names what differs between the processes."""

    def any(self, flag: bool) -> bool:
        """Whether it is true in some process."""
        return flag

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        return values

    def share(self, number: int) -> slice:
        """Which of so many windows are this process's."""
        return slice(None)

    def weight(self, observed: Tensor) -> Tensor | float:
        """What makes the masked mean over this process's windows, averaged over the processes, that over all windows:
        with ``observed`` entries here, ``size * observed / (observed everywhere)``."""
        return 1.0

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model, with the parameters of rank 0 in every process, or with this process's part of them."""
        return model

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """What is to be called in training instead of a placed model, so that gradients are those of all processes."""
        return model

    def precision(self) -> AbstractContextManager[Any]:
        """Context of the forward passes in training."""
        return nullcontext()

    def scaled(self, loss: Tensor) -> Tensor:
        """What is to be differentiated for ``loss``."""
        return loss

    def prepare(self, model: torch.nn.Module, loss: Tensor) -> None:
        """Before a backward pass of ``loss``, of several forward passes of what :meth:`wrap` gave, outside of a
        TargetSkewedOptimizer."""

    def step(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor], max_grad_norm: float) -> bool:
        """A step along the gradient of what :meth:`scaled` gave, clipped; or none, if it is not finite. Whether it was
        taken."""
        return step_if_finite(optimizer, parameters, max_grad_norm)

    def whole(self, content: T) -> T:
        """Content of any nesting with whole tensors, which every process has to ask for."""
        return content

    def parts_of(self, state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
        """The state with this process's parts of its tensors, where ``like`` has parts."""
        return dict(state)

    def optimizer_parts(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state with this process's parts of its tensors."""
        return dict(state)

    def scaler_state(self) -> dict[str, Any]:
        """Of the gradient scaler; empty where there is none."""
        return {}

    def load_scaler_state(self, state: Mapping[str, Any]) -> None:
        """What :meth:`scaler_state` gave."""


ALONE = OneProcess()


class Processes(OneProcess):
    r"""The processes that torchrun or SLURM's srun started, as one training.

    Every process draws the same batch and computes the loss of its share of the windows, weighted so that the mean over
    the processes is the masked mean :math:`\frac{1}{|M|} \sum_{i \in M} |\hat y_i - y_i|` over all of them, however
    uneven the shares and the observed entries are. Source and target gradient are reduced over the processes before the
    filter sees them. So the global batch, and the result up to rounding, are those of one process. (But for modules
    that look at a batch as a whole, such as batch normalisation, and for what is drawn in the forward pass, such as
    dropout.)

    Rank 0 alone writes files, decides and is asked for what was saved; all processes have to read the same cities.

    Args:
        parallel: One of :data:`PARALLEL`.
        precision: One of :data:`PRECISIONS`. ``"16-mixed"`` scales losses (``torch.amp.GradScaler``) and leaves steps
            out whose gradients are not finite; it needs ``"ddp"``.
        device: ``"cuda"`` for a GPU a process, or ``"cpu"``.
        timeout: Seconds after which a process that waits for the others ends with a :class:`ProcessLostError`.

    Raises:
        ImportError: If Lightning Fabric is not installed.
        ValueError: If an argument is none of those, or the device is not there.

    Example:
        >>> from tsjt_pyg.datasets import load_city
        >>> from tsjt_pyg.training import ModelConfig, fit
        >>> visible, _ = load_city("demo/riverton").select("speed").few_shot(days=3)
        >>> with Processes() as processes:  # in a script that torchrun starts
        ...     result = fit(ModelConfig().build(), visible, strategy="target_only", steps=1, processes=processes)
    """

    def __init__(
        self, parallel: str = "ddp", precision: str = "32", device: str = "cpu", timeout: float = TIMEOUT
    ) -> None:
        for argument, value, allowed in (("parallel", parallel, PARALLEL), ("precision", precision, PRECISIONS)):
            if value not in allowed:
                raise ValueError(f"{argument}: expected one of {', '.join(allowed)}, found {value!r}")
        kind = device.partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"device: expected cpu or cuda with several processes or a precision, found {device!r}")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device: {device!r} cannot be used here (torch finds no GPU)")
        self.size, local, nodes = launched_size()
        self.parallel = parallel if self.size > 1 else "ddp"
        if self.parallel == "fsdp" and torch.__version__ < OLDEST_FSDP:
            raise ValueError(
                "parallel: fsdp was seen to train otherwise than one process does, without an error, with torch 2.7.0; "
                f"the oldest torch known to be right is {OLDEST_FSDP}, found {torch.__version__}; take ddp"
            )
        if self.parallel == "fsdp" and precision == "16-mixed":
            raise ValueError(
                "precision: 16-mixed scales gradients, and torch's scaler does not know those of fsdp; expected "
                "bf16-mixed or 32 with fsdp, or ddp"
            )
        try:
            from lightning_fabric import Fabric
            from lightning_fabric.plugins import MixedPrecision, Precision
            from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
            from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
            from lightning_fabric.strategies.ddp import DDPStrategy
        except ImportError as error:
            raise ImportError(
                f"several processes, or a precision, need Lightning Fabric, which is not installed here ({error}); "
                "pip install 'tsjt-pyg[fabric]'"
            ) from error
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        self.number_format = precision
        self._precision = Precision() if precision == "32" else MixedPrecision(precision, kind)  # type: ignore[arg-type]
        self._scaler: torch.amp.GradScaler | None = getattr(self._precision, "scaler", None)
        self._timeout = timedelta(seconds=timeout)
        self.device: torch.device = torch.device(device)
        self._fabric: Any = None
        self._objects: Any = None
        if self.size > 1:
            self._fabric = Fabric(
                accelerator=kind,
                devices=local,
                num_nodes=nodes,
                strategy=DDPStrategy(timeout=self._timeout),
                plugins=[TorchElasticEnvironment() if "RANK" in os.environ else SLURMEnvironment(auto_requeue=False)],
            )

    def __enter__(self) -> Self:
        """Meets the other processes.

        Raises:
            ProcessLostError: If they do not come, here or at any time until this context is left.
        """
        if self._fabric is not None:
            try:
                self._fabric.launch()
                self.rank, self.device = self._fabric.global_rank, self._fabric.device
                # What processes tell each other beside gradients does not pass through the GPU.
                self._objects = torch.distributed.new_group(backend="gloo", timeout=self._timeout)
            except (RuntimeError, ConnectionError) as error:
                self.__exit__(type(error), error, None)
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        # The process group lives as long as the process: a DDP model that is freed after it would hang at times.
        lost = isinstance(error, RuntimeError | ConnectionError) and not isinstance(error, ProcessLostError)
        if self.size > 1 and lost and _LOST.search(str(error)):
            raise ProcessLostError(
                f"rank {self.rank} of {self.size}: another process ended, or did not come within "
                f"{self._timeout.total_seconds():g} s; its own message says why ({str(error).splitlines()[0]})"
            ) from error

    def first(self, work: Callable[[], T]) -> T:
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        torch.distributed.broadcast_object_list(outcome, src=0, group=self._objects)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def check_same(self, settings: Mapping[str, Any]) -> None:
        if self.size == 1:
            return
        every: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(every, dict(settings), group=self._objects)
        for rank, there in enumerate(every):
            differing = [
                f"{key} (rank 0 has {every[0].get(key)!r}, rank {rank} {there.get(key)!r})"
                for key in sorted({*every[0], *there})
                if every[0].get(key) != there.get(key)
            ]
            if differing:
                raise ValueError(
                    f"processes: they were started with different settings or cities: {'; '.join(differing)}; give all "
                    "the same command and the same files"
                )

    def any(self, flag: bool) -> bool:
        if self.size == 1:
            return flag
        found = torch.tensor(int(flag))
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self._objects)
        return bool(found)

    def mean(self, values: Tensor) -> Tensor:
        if self.size == 1:
            return values
        total = values.detach().to("cpu", torch.float64)
        torch.distributed.all_reduce(total, group=self._objects)
        return (total / self.size).to(values)

    def share(self, number: int) -> slice:
        return slice(number * self.rank // self.size, number * (self.rank + 1) // self.size)

    def weight(self, observed: Tensor) -> Tensor | float:
        if self.size == 1:
            return 1.0
        everywhere = observed.detach().to(self.device, torch.float64)
        torch.distributed.all_reduce(everywhere)
        return (self.size * observed / everywhere.clamp(min=1)).float()

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        if self.size == 1:
            return model
        for tensor in unwrapped(model).state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
        if self.parallel == "ddp":
            return model
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # A copy, so that the caller's model stays an ordinary one and can take the result.
        placed = copy.deepcopy(model)
        mesh = init_device_mesh(self.device.type, (self.size,))
        fully_shard(placed, mesh=mesh, reshard_after_forward=True)
        return placed

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        if self.size == 1 or self.parallel == "fsdp":
            return model
        # A parameter may belong to one city, and then has no gradient from a batch of another.
        return torch.nn.parallel.DistributedDataParallel(
            model, device_ids=[self.device] if self.device.type == "cuda" else None, find_unused_parameters=True
        )

    def precision(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._precision.forward_context()
        return context

    def scaled(self, loss: Tensor) -> Tensor:
        return loss if self._scaler is None else self._scaler.scale(loss)

    def prepare(self, model: torch.nn.Module, loss: Tensor) -> None:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            prepare_reducer(model, loss)

    def step(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor], max_grad_norm: float) -> bool:
        if self._scaler is None:
            return super().step(optimizer, parameters, max_grad_norm)
        self._scaler.unscale_(optimizer)
        finite = bool(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm).isfinite())
        self._scaler.step(optimizer)  # which leaves a step out by itself
        self._scaler.update()
        return finite

    def whole(self, content: T) -> T:
        return _whole(content) if self.parallel == "fsdp" else content

    def parts_of(self, state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
        return {key: _parts_of(value, like.get(key)) for key, value in state.items()}

    def optimizer_parts(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        parts = {
            number: {key: _parts_of(value, params[number]) for key, value in of_one.items()}
            for number, of_one in state["state"].items()
        }
        return {**state, "state": parts}

    def scaler_state(self) -> dict[str, Any]:
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_scaler_state(self, state: Mapping[str, Any]) -> None:
        if self._scaler is not None and state:
            self._scaler.load_state_dict(dict(state))


def processes_for(parallel: str, precision: str, device: str) -> OneProcess:
    """The processes that were started with this one, or :data:`ALONE` where nobody was and the precision is 32."""
    if launched_size()[0] == 1 and precision == "32" and parallel in PARALLEL:
        return ALONE
    return Processes(parallel, precision, device)


def launched_size() -> tuple[int, int, int]:
    """``(processes, processes of this node, nodes)`` that torchrun or srun started; (1, 1, 1) where neither did."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        size = int(env["WORLD_SIZE"])
        local = int(env.get("LOCAL_WORLD_SIZE", size))
        return size, local, size // local
    # Not SLURM_NTASKS: a batch script that starts one process without srun has it, too.
    if "SLURM_PROCID" in env and int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        size = int(env["SLURM_STEP_NUM_TASKS"])
        nodes = int(env.get("SLURM_STEP_NUM_NODES", 1))
        return size, size // nodes, nodes
    return 1, 1, 1


def launched_rank() -> int:
    """The rank of this process among those of :func:`launched_size`."""
    if launched_size()[0] == 1:
        return 0
    return int(os.environ.get("RANK") or os.environ["SLURM_PROCID"])


def _whole(content: Any) -> Any:
    from torch.distributed.tensor import DTensor

    if isinstance(content, DTensor):
        return content.full_tensor()
    if isinstance(content, Mapping):
        return {key: _whole(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_whole(value) for value in content)
    return content


def _parts_of(value: Any, like: Any) -> Any:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value
