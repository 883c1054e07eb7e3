"""Graph WaveNet without a parameter of any one city's: a backbone of convolutions instead of a recurrence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Conv1d, LayerNorm, Linear, Module, ModuleList
from torch_geometric.utils import scatter

from .propagation import Propagation
from .road_graph import RoadGraph, road_graph


class GraphWaveNet(Module):
    r"""The backbone of `"Graph WaveNet for Deep Spatial-Temporal Graph Modeling"
    <https://www.ijcai.org/proceedings/2019/264>`_ (Wu et al., IJCAI 2019), for cities of any size.

    Each layer is a gated convolution over time and a diffusion over the roads, in both directions,

    .. math::
        \mathbf{G} &= \tanh(\mathbf{\Theta}_1 \star \mathbf{X}) \odot \sigma(\mathbf{\Theta}_2 \star \mathbf{X})

        \mathbf{X}^{\prime} &= \mathrm{LayerNorm} \Big( \mathbf{X} + \mathbf{G} \mathbf{W}_0 + \sum_{k=1}^{K}
        \mathbf{P}_f^k \mathbf{G} \mathbf{W}_k + \mathbf{P}_b^k \mathbf{G} \mathbf{W}_k^{\prime} \Big),

    with transition matrices :math:`\mathbf{P}_f` and :math:`\mathbf{P}_b` along and against the roads: a node hands on
    its features in the proportion of its out-edges' (in-edges') weights. Convolutions of ``kernel_size`` steps are
    dilated by 1, 2, 4, … within a block. What is given is

    .. math::
        \mathbf{H} = \mathbf{W}_b \, \mathrm{ReLU} \Big( \mathbf{W}_a \, \mathrm{ReLU} \Big( \sum_{\mathrm{layers}}
        \mathbf{S} \mathbf{G} \Big) \Big)

    at the last step. Histories shorter than :attr:`receptive_field` are padded with zeros in front.

    Two things differ from the paper, because they belong to one city or one batch. Its adaptive adjacency, two
    embeddings of every node, is left out: give a :class:`~tsjt_pyg.nn.CityEmbedding` to the
    :class:`~tsjt_pyg.nn.Forecaster` where nodes shall have parameters of their own. Its batch normalisation, whose
    running statistics would be those of all cities together, is a normalisation over the channels of each node and
    step. No parameter depends on the number of nodes.

    Args:
        in_channels: Channels of each step.
        out_channels: Channels of the output.
        hidden_channels: Channels of the layers.
        skip_channels: Channels of the skip connections. (default: ``4 * hidden_channels``)
        num_blocks: Blocks of layers.
        num_layers: Layers of a block.
        kernel_size: Steps of a convolution over time.
        K: Steps of diffusion.
        dropout: Share of the diffused features that training drops.

    Shapes:
        - **input:** x :math:`(B, T, N, C)`, edge_index :math:`(2, E)`, edge_weight :math:`(E)` *(optional)*
        - **output:** :math:`(B, N, F)`

    Raises:
        ValueError: If a size is not positive or ``dropout`` is no share.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 32,
        skip_channels: int | None = None,
        *,
        num_blocks: int = 4,
        num_layers: int = 2,
        kernel_size: int = 2,
        K: int = 2,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        skip_channels = 4 * hidden_channels if skip_channels is None else skip_channels
        sizes = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "hidden_channels": hidden_channels,
            "skip_channels": skip_channels,
            "num_blocks": num_blocks,
            "num_layers": num_layers,
            "kernel_size": kernel_size,
            "K": K,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be a positive integer, found {size}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), found {dropout}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.hidden_channels = hidden_channels
        self.K = K
        self.dropout = dropout
        self.start = Linear(in_channels, hidden_channels)
        dilations = [2**layer for layer in range(num_layers)] * num_blocks
        self.temporal = ModuleList(
            Conv1d(hidden_channels, 2 * hidden_channels, kernel_size, dilation=dilation) for dilation in dilations
        )
        self.skips = ModuleList(Linear(hidden_channels, skip_channels) for _ in dilations)
        # Nothing reads what the last layer would diffuse.
        self.spatial = ModuleList(Linear((2 * K + 1) * hidden_channels, hidden_channels) for _ in dilations[1:])
        self.norms = ModuleList(LayerNorm(hidden_channels) for _ in dilations[1:])
        self.end = Linear(skip_channels, skip_channels)
        self.out = Linear(skip_channels, out_channels)
        self.receptive_field = 1 + (kernel_size - 1) * sum(dilations)

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for layer in [self.start, *self.temporal, *self.spatial, *self.skips, *self.norms, self.end, self.out]:
            layer.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """What the last step of the history makes of the window, ``[B, N, out_channels]``.

        Args:
            x: ``[B, T, N, in_channels]``.
            edge_index: ``[2, E]``.
            edge_weight: ``[E]``; default: all 1.

        Raises:
            ValueError: If ``x`` has another number of channels.
        """
        windows, _, nodes, channels = x.shape
        if channels != self.in_channels:
            raise ValueError(f"x must be [B, T, N, {self.in_channels}], found {list(x.shape)}")
        walks = _transitions(road_graph(edge_index, edge_weight, nodes), x)
        x = x.permute(2, 0, 1, 3)[:, :, -self.receptive_field :]  # earlier steps are out of sight
        x = torch.nn.functional.pad(x, (0, 0, self.receptive_field - x.size(2), 0))
        x = self.start(x)
        skip = x.new_zeros(())
        for number, (temporal, to_skip) in enumerate(zip(self.temporal, self.skips, strict=True)):
            over_time = temporal(x.flatten(0, 1).transpose(1, 2)).transpose(1, 2)
            level, gate = over_time.view(nodes, windows, -1, 2 * self.hidden_channels).chunk(2, dim=-1)
            gated = torch.tanh(level) * torch.sigmoid(gate)
            skip = skip + to_skip(gated[:, :, -1])
            if number < len(self.spatial):
                mixed = self.spatial[number](self._diffused(gated, walks))
                mixed = torch.nn.functional.dropout(mixed, self.dropout, self.training)
                x = self.norms[number](mixed + x[:, :, -gated.size(2) :])
        return self.out(torch.relu(self.end(torch.relu(skip)))).transpose(0, 1)

    def _diffused(self, x: Tensor, walks: tuple[Propagation, Propagation]) -> Tensor:
        terms = [x]
        for walk in walks:
            term = x
            for _ in range(self.K):
                term = walk(term)
                terms.append(term)
        return torch.cat(terms, dim=-1)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, receptive_field={self.receptive_field}, K={self.K}"


def _transitions(graph: RoadGraph, x: Tensor) -> tuple[Propagation, Propagation]:
    """The random walks along and against the roads."""

    def build() -> tuple[Propagation, Propagation]:
        weight = graph.weight(x.dtype)
        if weight is None:
            weight = x.new_ones(graph.edge_index.size(1))
        walks = []
        for index in (graph.edge_index, graph.edge_index.flip(0)):
            degree = scatter(weight, index[0], dim_size=graph.num_nodes, reduce="sum")[index[0]]
            share = torch.where(degree == 0, 0.0, weight / degree.masked_fill(degree == 0, 1.0))
            walks.append(Propagation(index, share, graph.num_nodes))
        return walks[0], walks[1]

    return graph.operator(("transitions", x.dtype), build)
