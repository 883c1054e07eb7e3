"""The forecaster: readings of one city's history in, its horizon out, with any transferable recurrent cell."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import Linear, Module, ReLU, Sequential

from tsjt_pyg.nn.adapters import adapt, final_state, reset_cell
from tsjt_pyg.nn.node_prompting import NodePrompting
from tsjt_pyg.nn.published_prompting import PublishedNodePrompting
from tsjt_pyg.nn.transferable import refuse_bound_layers


class Forecaster(Module):
    r"""A recurrent graph cell with node prompts before it and a head behind it.

    With :math:`\ell` the last observed reading of a node in the window (0 if none was observed),

    .. math::
        \mathbf{f}^t &= [\, x^t - \ell \, \Vert \, \ell \, \Vert \, \mathrm{mask}^t \, \Vert \,
        \sin 2 \pi \tau^t, \cos 2 \pi \tau^t \, \Vert \, \mathrm{prompt}^t \,]

        \mathbf{h} &= \mathrm{cell}(\mathbf{W} \mathbf{f}^1 + \mathbf{b}, \ldots, \mathbf{W} \mathbf{f}^T + \mathbf{b})

        \hat{y} &= \ell + \mathrm{MLP}(\mathbf{h} \, \Vert \, \ell \, \Vert \, \sin 2 \pi \tau^T,
        \cos 2 \pi \tau^T),

    where a missing reading counts as :math:`\ell`. The MLP's last layer starts at zero: the untrained model forecasts
    the last value, in any city. The prompts are drawn from the readings themselves (missing ones filled with
    :math:`\ell`), not from the differences. With ``center=False`` the readings enter as they are, missing ones filled
    the same way, and the forecast is the MLP's output alone.

    Nothing in the model depends on the city: any number of nodes, another road network at every call.

    Args:
        cell: GConvGRU, GConvLSTM, GCLSTM, TGCN, A3TGCN or DCRNN of torch-geometric-temporal, or
            :class:`torch.nn.GRU` (every node on its own). Any input and hidden size.
        history: Steps ``T_in`` the model reads.
        horizon: Steps ``T_out`` it forecasts.
        in_channels: Channels ``C`` of a reading.
        out_channels: Channels ``C_out`` of a forecast, the first ones of a reading.
        prompting: A :class:`NodePrompting` with the same ``in_channels``, or ``None``.
        center: Forecast the difference to the last observed value.
        time_of_day: Let the model see the time of day. If false, ``time_of_day`` of :meth:`forward` is not used.

    Shapes:
        - **input:** x :math:`(B, T_{in}, N, C)` as scaled by the caller, edge_index :math:`(2, E)`,
          edge_weight :math:`(E)` *(optional)*, x_mask :math:`(B, T_{in}, N, C)` bool, true where observed *(optional:
          all observed)*, time_of_day :math:`(B, T_{in})`, the fraction of the day in :math:`[0, 1)` *(optional:
          unknown, both time channels are 0)*
        - **output:** :math:`(B, T_{out}, N, C_{out})`
    """

    def __init__(
        self,
        cell: Module,
        history: int,
        horizon: int,
        in_channels: int = 1,
        out_channels: int = 1,
        prompting: NodePrompting | PublishedNodePrompting | None = None,
        *,
        center: bool = True,
        time_of_day: bool = True,
    ) -> None:
        super().__init__()
        for name, size in (
            ("history", history),
            ("horizon", horizon),
            ("in_channels", in_channels),
            ("out_channels", out_channels),
        ):
            if size < 1:
                raise ValueError(f"{name} must be a positive integer, found {size}")
        refuse_bound_layers(cell)
        adapter = adapt(cell)
        if adapter.periods not in (None, history):
            raise ValueError(
                f"history must equal the periods of {type(cell).__name__} ({adapter.periods}), found {history}"
            )
        if center and out_channels > in_channels:
            raise ValueError(
                f"out_channels must not exceed in_channels={in_channels} with center=True (a forecast is the last "
                f"reading plus a difference), found {out_channels}"
            )
        if prompting is not None and prompting.in_channels != in_channels:
            raise ValueError(
                f"prompting.in_channels must equal in_channels={in_channels} (prompts are drawn from the readings), "
                f"found {prompting.in_channels}"
            )
        self.history = history
        self.horizon = horizon
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.center = center
        self.time_of_day = time_of_day

        time_channels = 2 if time_of_day else 0
        prompt_channels = 0 if prompting is None else prompting.prompt_channels
        hidden = adapter.out_channels
        self.prompting = prompting
        self.embedding = Linear(3 * in_channels + time_channels + prompt_channels, adapter.in_channels)
        self.cell = cell
        self.head = Sequential(
            Linear(hidden + in_channels + time_channels, hidden),
            ReLU(),
            Linear(hidden, horizon * out_channels),
        )
        self._start_at_zero()

    def reset_parameters(self) -> None:
        """Draws all parameters anew, those of the cell and of the prompting too."""
        if self.prompting is not None:
            self.prompting.reset_parameters()
        self.embedding.reset_parameters()
        reset_cell(self.cell)
        for layer in self.head:
            if isinstance(layer, Linear):
                layer.reset_parameters()
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        last = self.head[-1]
        assert isinstance(last, Linear)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        *,
        x_mask: Tensor | None = None,
        time_of_day: Tensor | None = None,
    ) -> Tensor:
        self._check(x, edge_index, edge_weight, x_mask, time_of_day)
        filled, level, observed = _fill(x, x_mask)
        clock = self._clock(x, time_of_day)

        features = [filled - level if self.center else filled, level.expand_as(filled), observed]
        if clock is not None:
            features.append(clock[:, :, None].expand(-1, -1, x.size(2), -1))
        if self.prompting is not None:
            features.append(self.prompting(filled, edge_index, edge_weight)[..., self.in_channels :])
        state = final_state(self.cell, self.embedding(torch.cat(features, dim=-1)), edge_index, edge_weight)

        summary = [state, level[:, 0]]
        if clock is not None:
            summary.append(clock[:, -1:].expand(-1, x.size(2), -1))
        out = self.head(torch.cat(summary, dim=-1))
        forecast = out.view(x.size(0), x.size(2), self.horizon, self.out_channels).transpose(1, 2)
        return level[..., : self.out_channels] + forecast if self.center else forecast

    def _clock(self, x: Tensor, time_of_day: Tensor | None) -> Tensor | None:
        """Sine and cosine of the time of day, ``[B, T, 2]``."""
        if not self.time_of_day:
            return None
        if time_of_day is None:
            return x.new_zeros(x.size(0), x.size(1), 2)
        angle = 2.0 * math.pi * time_of_day
        return torch.stack([angle.sin(), angle.cos()], dim=-1).to(x.dtype)

    def _check(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None,
        x_mask: Tensor | None,
        time_of_day: Tensor | None,
    ) -> None:
        if x.dim() != 4 or x.size(1) != self.history or x.size(3) != self.in_channels or not x.is_floating_point():
            raise ValueError(
                f"x must be floating point [B, {self.history}, N, {self.in_channels}] (history={self.history}, "
                f"in_channels={self.in_channels}), found {x.dtype} {list(x.shape)}"
            )
        if x_mask is not None and (x_mask.shape != x.shape or x_mask.dtype != torch.bool):
            raise ValueError(
                f"x_mask must be bool {list(x.shape)} like x (True = observed), found {x_mask.dtype} "
                f"{list(x_mask.shape)}"
            )
        if time_of_day is not None and (time_of_day.shape != x.shape[:2] or not time_of_day.is_floating_point()):
            raise ValueError(
                f"time_of_day must be floating point {list(x.shape[:2])}, the fraction of the day of each history "
                f"step, found {time_of_day.dtype} {list(time_of_day.shape)}"
            )
        if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype != torch.long:
            raise ValueError(f"edge_index must be int64 [2, E], found {edge_index.dtype} {list(edge_index.shape)}")
        if edge_weight is not None and edge_weight.shape != edge_index.shape[1:]:
            raise ValueError(
                f"edge_weight must be [{edge_index.size(1)}], one weight an edge, found {list(edge_weight.shape)}"
            )
        # What follows looks at values: free on the CPU, but on an accelerator it would wait for all work queued there.
        if x.device.type != "cpu":
            return
        if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < x.size(2):
            raise ValueError(
                f"edge_index must name nodes 0 to {x.size(2) - 1} (x has {x.size(2)} nodes), found "
                f"{int(edge_index.min())} to {int(edge_index.max())}"
            )
        finite = torch.isfinite(x) if x_mask is None else torch.isfinite(x) | ~x_mask
        if not bool(finite.all()):
            raise ValueError(
                f"x must be finite wherever it is observed, found {int((~finite).sum())} observed entries that are "
                f"NaN or infinite; mark missing readings with False in x_mask"
            )

    def extra_repr(self) -> str:
        return (
            f"history={self.history}, horizon={self.horizon}, in_channels={self.in_channels}, "
            f"out_channels={self.out_channels}, center={self.center}, time_of_day={self.time_of_day}"
        )


def _fill(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Readings with the missing ones filled, the last observed value ``[B, 1, N, C]``, and the mask as numbers.

    What stands at a missing entry is never multiplied, only replaced, so that NaN is as good as any value there.
    """
    if mask is None:
        return x, x[:, -1:], torch.ones_like(x)
    steps = torch.arange(1, x.size(1) + 1, device=x.device).view(1, -1, 1, 1)
    last = (steps * mask).amax(dim=1, keepdim=True)  # 0: none observed
    level = torch.where(last > 0, x.gather(1, (last - 1).clamp(min=0)), 0.0)
    return torch.where(mask, x, level), level, mask.to(x.dtype)
