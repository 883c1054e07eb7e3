"""The forecaster: readings of one city's history in, its horizon out, with any transferable cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Linear, Module, Sequential

from tsjt_pyg.nn.adapters import CellAdapter, reset_cell
from tsjt_pyg.nn.cell_stack import cells_of, check_decoder, check_stack, run_stack, stacked
from tsjt_pyg.nn.city_embedding import CityEmbedding
from tsjt_pyg.nn.export import export_forecaster
from tsjt_pyg.nn.features import check_profile, check_window, clock_features, fill, horizon_clock, profile_features
from tsjt_pyg.nn.heads import RecurrentHead, direct_head, reset_direct_head
from tsjt_pyg.nn.node_prompting import NodePrompting
from tsjt_pyg.nn.published_prompting import PublishedNodePrompting
from tsjt_pyg.nn.road_graph import road_graph
from tsjt_pyg.nn.transferable import refuse_bound_layers


class Forecaster(Module):
    r"""A recurrent graph cell with node prompts before it and a head behind it.

    With :math:`\ell` the last observed reading of a node in the window (0 if none was observed) and
    :math:`\mathbf{c}^t` sine and cosine of :math:`2 \pi` times the time of day :math:`\tau^t` (and, if wanted, of the
    day of the week :math:`d^t / 7`),

    .. math::
        \mathbf{f}^t &= [\, x^t - \ell \, \Vert \, \ell \, \Vert \, \mathrm{mask}^t \, \Vert \, \mathbf{c}^t
        \, \Vert \, \mathrm{prompt}^t \, \Vert \, \mathbf{e} \,]

        \mathbf{h} &= \mathrm{cell}(\mathbf{W} \mathbf{f}^1 + \mathbf{b}, \ldots, \mathbf{W} \mathbf{f}^T + \mathbf{b})

        \hat{y} &= \ell + \mathrm{MLP}(\mathbf{h} \, \Vert \, \ell \, \Vert \, \mathbf{c}^T),

    where a missing reading counts as :math:`\ell`. The MLP's last layer starts at zero: the untrained model forecasts
    the last value, in any city. The prompts are drawn from the readings themselves (missing ones filled with
    :math:`\ell`), not from the differences. With ``center=False`` the readings enter as they are, missing ones filled
    the same way, and the forecast is the MLP's output alone.

    With a ``decoder`` there is no MLP: the decoder starts from the cell's final state and makes one step for each step
    of the horizon,

    .. math::
        \mathbf{h}^{T + k} = \mathrm{decoder}(\mathbf{W}^{\prime} [\, \mathbf{o}^{k - 1} \, \Vert \,
        \mathbf{c}^{T + k} \, \Vert \, \mathbf{e} \,] + \mathbf{b}^{\prime}, \mathbf{h}^{T + k - 1}), \quad
        \mathbf{o}^k = \mathbf{W}^{\prime \prime} \mathbf{h}^{T + k} + \mathbf{b}^{\prime \prime}, \quad
        \hat{y}^k = \ell + \mathbf{o}^k,

    fed its own last output, never the truth, and :math:`\mathbf{o}^0 = 0`; its readout starts at zero too. The clock of
    the horizon goes on in the step from the last but one to the last step of the history, over midnight and Sunday.
    Where a step lasts a day or longer, it is known only with ``day_of_week`` as well.

    With ``profile=True`` it also sees a support profile :math:`p`, what was read at the same time of day on a few other
    days (:class:`~tsjt_pyg.data.SupportProfile`): at each step of the history as features

    .. math::
        \mathbf{q}^t = [\, m^t \odot (p^t - \ell) \, \Vert \, m^t \, \Vert \, s^t \,]

    of the cell, with :math:`m^t` what is known of :math:`p^t` and :math:`s^t` whether its days are of the step's type;
    those of the horizon go to the MLP, which then gives a gate :math:`\mathbf{g}` beside the difference
    :math:`\boldsymbol{\delta}`,

    .. math::
        \hat{y}^k = \ell + \delta^k + g^k \cdot m^{T + k} \cdot (p^{T + k} - \ell), \quad
        [\, \boldsymbol{\delta} \, \Vert \, \mathbf{g} \,] = \mathrm{MLP}(\mathbf{h} \, \Vert \, \ell \, \Vert \,
        \mathbf{c}^T \, \Vert \, \mathbf{q}^{T + 1} \, \Vert \, \ldots),

    so that it can rely on the profile where that is better. The gate starts at zero too. A decoder, which has no gate,
    sees :math:`\mathbf{q}^{T + k}` in its step :math:`k`. With ``center=False`` both :math:`\ell` of these formulas are
    left out: :math:`p` enters as it is.

    Nothing in the model depends on the city but the embedding :math:`\mathbf{e}` where there is one: any number of
    nodes, another road network at every call.

    Args:
        cell: A recurrent layer of torch-geometric-temporal whose parameters do not depend on the node count (GConvGRU,
            GConvLSTM, GCLSTM, LRGCN, DyGrEncoder, TGCN, TGCN2, A3TGCN, A3TGCN2, DCRNN, BatchedDCRNN, AGCRN, EvolveGCNO
            or MSTGCN), :class:`torch.nn.GRU` (every node on its own), or a module of your own with ``in_channels``,
            ``out_channels`` and ``forward(x, edge_index, edge_weight)`` from :math:`(B, T, N, C)` to
            :math:`(B, T, N, F)`, :math:`(B, 1, N, F)` or :math:`(B, N, F)`, such as
            :class:`~tsjt_pyg.nn.GraphWaveNet`. Any input and hidden size. A sequence of cells is a stack: each reads
            the states of the one before it. LRGCN's relations are as many classes of edges by their weight, of equal
            size (without weights: one). AGCRN takes the city embedding for its node embedding. EvolveGCNO, whose
            weight starts anew in every pass, has no state of a node: its outputs' mean over the steps is
            :math:`\mathbf{h}`.
        history: Steps ``T_in`` the model reads.
        horizon: Steps ``T_out`` it forecasts.
        in_channels: Channels ``C`` of a reading.
        out_channels: Channels ``C_out`` of a forecast, the first ones of a reading.
        prompting: A :class:`NodePrompting` with the same ``in_channels``, or ``None``.
        decoder: A cell, or as many as ``cell`` has, each with a state like that of its counterpart: an
            encoder-decoder. ``None``: all steps at once, by an MLP.
        city_embedding: Embeddings :math:`\mathbf{e}` of the nodes of each city, seen at each step, or given to AGCRN
            in place of that. ``None``: no parameter belongs to a city.
        compile: Compile the recurrence of cell and decoder with :func:`torch.compile`, where the cell is one of those
            of torch-geometric-temporal that :func:`~tsjt_pyg.nn.accelerate` takes (others run as they are). Meant for
            GPUs; the compilation takes a while and happens again where shapes change, and compiled code has no second
            derivatives.
        center: Forecast the difference to the last observed value.
        time_of_day: Let the model see the time of day. If false, ``time_of_day`` of :meth:`forward` is used for the
            length of a step only.
        day_of_week: Let the model see the day of the week. If false, ``day_of_week`` of :meth:`forward` is used for
            the length of a step only.
        profile: Let the model see a support profile, where :meth:`forward` is given one.

    Shapes:
        - **input:** x :math:`(B, T_{in}, N, C)` as scaled by the caller, edge_index :math:`(2, E)`,
          edge_weight :math:`(E)` *(optional)*, x_mask :math:`(B, T_{in}, N, C)` bool, true where observed *(optional:
          all observed)*, time_of_day :math:`(B, T_{in})`, the fraction of the day in :math:`[0, 1)` *(optional:
          unknown, both time channels are 0)*, day_of_week :math:`(B, T_{in})` int64, 0 = Monday *(optional: unknown,
          both day channels are 0)*, city, its name *(needed with a city_embedding, else not used)*, profile
          :math:`(B, T_{in} + T_{out}, N, C)`, scaled like x *(optional: nothing is known; not used without
          profile=True)*, profile_mask, bool, the same shape, true where known *(optional: all of it)*,
          profile_same_type :math:`(B, T_{in} + T_{out})` bool, whether the profile's days are of the step's own type,
          working day or weekend *(optional: all are)*
        - **output:** :math:`(B, T_{out}, N, C_{out})`

    Raises:
        ValueError: If arguments do not fit each other or a layer is bound to one city.
        TypeError: If a cell is not one that can be run.
    """

    def __init__(
        self,
        cell: Module | Sequence[Module],
        history: int,
        horizon: int,
        in_channels: int = 1,
        out_channels: int = 1,
        prompting: NodePrompting | PublishedNodePrompting | None = None,
        *,
        decoder: Module | Sequence[Module] | None = None,
        city_embedding: CityEmbedding | None = None,
        compile: bool = False,
        center: bool = True,
        time_of_day: bool = True,
        day_of_week: bool = False,
        profile: bool = False,
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
        cell = stacked(cell)
        refuse_bound_layers(cell)
        adapters = check_stack(cells_of(cell), history)
        decoders: list[CellAdapter] = []
        if decoder is not None:
            decoder = stacked(decoder)
            refuse_bound_layers(decoder)
            decoders = check_decoder(cells_of(decoder), cells_of(cell), adapters)
            if history == 1 and (time_of_day or day_of_week):
                raise ValueError(
                    "history must be at least 2 with a decoder, which takes the length of a step from two of them, "
                    "found 1; or use time_of_day=False and day_of_week=False"
                )
        if center and out_channels > in_channels:
            raise ValueError(
                f"out_channels must not exceed in_channels={in_channels} with center=True (a forecast is the last "
                f"reading plus a difference), found {out_channels}"
            )
        if profile and decoder is None and out_channels > in_channels:
            raise ValueError(
                f"out_channels must not exceed in_channels={in_channels} with profile=True (a forecast goes part of "
                f"the way to the profile of its channel), found {out_channels}"
            )
        if prompting is not None and prompting.in_channels != in_channels:
            raise ValueError(
                f"prompting.in_channels must equal in_channels={in_channels} (prompts are drawn from the readings), "
                f"found {prompting.in_channels}"
            )
        needs_embedding = _check_embedding([*adapters, *decoders], city_embedding)
        self.history = history
        self.horizon = horizon
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.compile_recurrence = compile  # Module.compile is a method
        self.center = center
        self.time_of_day = time_of_day
        self.day_of_week = day_of_week
        self.profile = profile

        clock_channels = 2 * (time_of_day + day_of_week)
        prompt_channels = 0 if prompting is None else prompting.prompt_channels
        # A cell with node embeddings of its own gets them as such, and not a second time as features.
        self._embeds_steps = city_embedding is not None and not needs_embedding
        city_channels = city_embedding.channels if city_embedding is not None and self._embeds_steps else 0
        hidden = adapters[-1].out_channels
        self.prompting = prompting
        self.city_embedding = city_embedding
        profile_channels = 2 * in_channels + 1 if profile else 0
        self.embedding = Linear(
            3 * in_channels + clock_channels + prompt_channels + city_channels + profile_channels,
            adapters[0].in_channels,
        )
        self.cell = cell
        self.head: Sequential | RecurrentHead
        if decoder is None:
            summary_channels = hidden + in_channels + clock_channels + horizon * profile_channels
            self.head = direct_head(summary_channels, hidden, (1 + profile) * horizon * out_channels)
        else:
            self.head = RecurrentHead(decoder, out_channels, clock_channels + city_channels + profile_channels)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, those of the cell, of the prompting and of the cities too."""
        for part in (self.prompting, self.city_embedding, self.embedding):
            if part is not None:
                part.reset_parameters()
        for cell in cells_of(self.cell):
            reset_cell(cell)
        if isinstance(self.head, RecurrentHead):
            self.head.reset_parameters()
        else:
            reset_direct_head(self.head)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        *,
        x_mask: Tensor | None = None,
        time_of_day: Tensor | None = None,
        day_of_week: Tensor | None = None,
        city: str | None = None,
        profile: Tensor | None = None,
        profile_mask: Tensor | None = None,
        profile_same_type: Tensor | None = None,
    ) -> Tensor:
        """The forecast of a batch of windows of one city, :math:`(B, T_{out}, N, C_{out})`, scaled as ``x`` is.

        Args:
            x: Histories :math:`(B, T_{in}, N, C)`, scaled.
            edge_index: The road network, :math:`(2, E)`.
            edge_weight: Its weights, :math:`(E)`; default: all 1.
            x_mask: What of ``x`` was observed; default: all of it.
            time_of_day: :math:`(B, T_{in})`, fraction of the day in [0, 1); default: unknown.
            day_of_week: :math:`(B, T_{in})` int64, 0 = Monday; default: unknown.
            city: Name of the city, for a model with a ``city_embedding``.
            profile: Support profile :math:`(B, T_{in} + T_{out}, N, C)`, scaled as ``x``; default: nothing is known.
            profile_mask: What of it is known; default: all of it.
            profile_same_type: :math:`(B, T_{in} + T_{out})`, whether its days are of each step's own type;
                default: all.

        Raises:
            ValueError: If a shape does not fit, or the city is not one of the ``city_embedding``.
        """
        check_window(x, edge_index, edge_weight, x_mask, time_of_day, day_of_week, self.history, self.in_channels)
        if self.profile:
            check_profile(x, self.horizon, profile, profile_mask, profile_same_type)
        windows, steps, nodes, _ = x.shape
        filled, level, observed = fill(x, x_mask)
        uses = (self.time_of_day, self.day_of_week)
        clock = clock_features(x, steps, time_of_day, day_of_week, uses)
        of_nodes = self._of_nodes(city, nodes)

        features = [filled - level if self.center else filled, level.expand_as(filled), observed]
        if clock is not None:
            features.append(clock[:, :, None].expand(-1, -1, nodes, -1))
        if self.prompting is not None:
            features.append(self.prompting(filled, edge_index, edge_weight)[..., self.in_channels :])
        if of_nodes is not None and self._embeds_steps:
            features.append(of_nodes.to(x.dtype).expand(windows, steps, -1, -1))
        typical: Tensor | None = None
        if self.profile:
            typical = profile_features(x, level, self.horizon, profile, profile_mask, profile_same_type, self.center)
            features.append(typical[:, :steps])
        graph = road_graph(edge_index, edge_weight, nodes)
        # Nodes first, as the cells want them: the features rather than what they become, which is larger.
        embedded = self.embedding(torch.cat(features, dim=-1).permute(2, 1, 0, 3).contiguous())
        # Where the whole model is compiled, its cells are with it.
        compiles = self.compile_recurrence and not torch.compiler.is_compiling()
        state, ends = run_stack(cells_of(self.cell), embedded, graph, None, of_nodes, compiles)

        if isinstance(self.head, RecurrentHead):
            later = horizon_clock(time_of_day, day_of_week, self.horizon)
            known = [x.new_zeros(nodes, self.horizon, windows, 0)]
            clock = clock_features(x, self.horizon, *later, uses)
            if clock is not None:
                known.append(clock.transpose(0, 1).expand(nodes, -1, -1, -1))
            if of_nodes is not None and self._embeds_steps:
                known.append(of_nodes.to(x.dtype)[:, None, None].expand(-1, self.horizon, windows, -1))
            if typical is not None:
                known.append(typical[:, steps:].permute(2, 1, 0, 3))
            forecast = self.head(ends, torch.cat(known, dim=-1), graph, of_nodes, compiles).permute(2, 1, 0, 3)
        else:
            summary = [state.transpose(0, 1), level[:, 0]]
            if clock is not None:
                summary.append(clock[:, -1:].expand(-1, nodes, -1))
            if typical is not None:
                summary.append(typical[:, steps:].transpose(1, 2).flatten(2))
            out = self.head(torch.cat(summary, dim=-1)).view(windows, nodes, self.horizon, -1).transpose(1, 2)
            forecast = out[..., : self.out_channels]
            if typical is not None:
                forecast = forecast + out[..., self.out_channels :] * typical[:, steps:, :, : self.out_channels]
        return level[..., : self.out_channels] + forecast if self.center else forecast

    def export(self, path: str | Path) -> None:
        """Writes the model as a program of :mod:`torch.export`, which is loaded and run where there is torch alone.

        ``torch.export.load(path).module()`` takes what :meth:`forward` takes, by name and all of it but ``city``:
        ``x``, ``edge_index``, ``edge_weight`` (ones for equal roads) and ``x_mask``, then ``time_of_day``,
        ``day_of_week`` and the three of the profile where the model uses them. Any number of windows, nodes and edges,
        on the CPU; with MSTGCN up to 300 nodes, beyond which the eigenvalue that it needs takes too long. Nothing looks
        at the values: what is not observed has to be false in a mask. The file says the same as JSON under
        ``about.json``, one of the ``extra_files`` of :func:`torch.export.load`.

        The numbers are those of the model in evaluation mode. The program is tried on another city before the file
        appears.

        Args:
            path: The file to write, ``….pt2``.

        Raises:
            ValueError: If the model has parameters of the nodes of its cities (``city_embedding``), or a module in it
                cannot be exported; names it.

        Example:
            >>> model = Forecaster(torch.nn.GRU(8, 8, batch_first=True), history=12, horizon=6)
            >>> model.export("forecaster.pt2")
            >>> roads = {"edge_index": torch.tensor([[0, 1], [1, 2]]), "edge_weight": torch.ones(2)}
            >>> windows = {"x": torch.zeros(4, 12, 3, 1), "x_mask": torch.ones(4, 12, 3, 1, dtype=torch.bool)}
            >>> program = torch.export.load("forecaster.pt2").module()
            >>> program(**windows, **roads, time_of_day=torch.zeros(4, 12)).shape
            torch.Size([4, 6, 3, 1])
        """
        export_forecaster(self, path)

    def _of_nodes(self, city: str | None, nodes: int) -> Tensor | None:
        """The embeddings of the city's nodes, ``[N, channels]``."""
        if self.city_embedding is None:
            return None
        embedding: Tensor = self.city_embedding(city)
        if embedding.size(0) != nodes:
            raise ValueError(
                f"x must have {embedding.size(0)} nodes, as city_embedding was told of {city!r}, found {nodes}"
            )
        return embedding

    def extra_repr(self) -> str:
        return (
            f"history={self.history}, horizon={self.horizon}, in_channels={self.in_channels}, "
            f"out_channels={self.out_channels}, center={self.center}, time_of_day={self.time_of_day}, "
            f"day_of_week={self.day_of_week}" + ", profile=True" * self.profile
        )


def _check_embedding(adapters: Sequence[CellAdapter], city_embedding: CityEmbedding | None) -> bool:
    """Whether cells need node embeddings, which then have to be there in their size."""
    needed = {adapter.embedding_channels for adapter in adapters} - {None}
    if not needed:
        return False
    if city_embedding is None:
        raise ValueError(
            f"city_embedding must be given to AGCRN, whose graph is made of it: "
            f"CityEmbedding({{name: number of nodes}}, channels={max(filter(None, needed))})"
        )
    if needed != {city_embedding.channels}:
        raise ValueError(
            f"city_embedding.channels must equal the embedding_dimensions of AGCRN ({sorted(filter(None, needed))}), "
            f"found {city_embedding.channels}"
        )
    return True
