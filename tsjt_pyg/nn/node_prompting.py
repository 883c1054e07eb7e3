"""Node prompts: features drawn from a bank which all cities share, so that nodes which behave alike look alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import LayerNorm, Linear, Parameter
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter

from tsjt_pyg.nn.prompt_bank import load_balance, slot_scores, slot_shares, slot_usage
from tsjt_pyg.nn.prompt_graph import (
    divide,
    join_factorised,
    join_road,
    join_topk,
    refuse_other_messages,
    road_weight,
)
from tsjt_pyg.nn.road_graph import check_edges

_PROMPT_GRAPHS = ("road", "topk", "factorised", None)
_CPU_ROWS, _ACCELERATOR_ROWS = 4096, 32768
"""Nodes of all windows that are encoded at a time: what fits the processor's caches, or an accelerator's grid."""


class NodePrompting(MessagePassing):
    r"""The node prompting module, after `"Drawing Informative Gradients from Sources: A One-stage Transfer Learning
    Framework for Cross-city Spatiotemporal Forecasting" <https://doi.org/10.1609/aaai.v39i1.32102>`_ (Zhang et al.,
    AAAI 2025).

    A node is encoded by a graph convolution over the road network and attention over its own steps,

    .. math::
        \mathbf{U}_i^t &= \mathrm{ReLU} \Big( \mathbf{W}_1 \mathbf{x}_i^t + \mathbf{W}_2 \sum_{j \in \mathcal{N}(i)}
        \frac{e_{j,i}}{\sum_{k} e_{k,i}} \mathbf{x}_j^t + \mathbf{b} \Big) + \mathrm{position}(t)

        \mathbf{Z}_i &= \mathrm{LayerNorm}(\mathbf{U}_i + \mathrm{SelfAttention}(\mathbf{U}_i)),

    draws a prompt from the :math:`S` slots of a bank of keys :math:`\mathbf{K}` and values :math:`\mathbf{V}`,

    .. math::
        \mathbf{P}_i^t = \mathrm{softmax}(\mathbf{Z}_i^t \mathbf{K}^{\top} / \sqrt{D}) \mathbf{V}

    (with ``top_k``, the softmax is over its best slots alone), and adds to it the prompts of the nodes that are like it
    in this window,

    .. math::
        \mathbf{P}_i^{\prime t} = \mathbf{P}_i^t + \sum_j a_{i,j} \mathbf{P}_j^t, \quad
        \mathbf{x}_i^{\prime t} = \mathbf{x}_i^t \, \Vert \, \mathbf{P}_i^{\prime t}.

    The prompt graph :math:`a` compares the prompts' means over the window, :math:`\bar{\mathbf{P}}` (which nodes are
    alike is a property of a window, not of one step). Its rows sum to one, or to zero where a node has no neighbour:

    * ``"road"``: the road network re-weighted, :math:`a_{i,j} \propto e_{j,i} \exp(\bar{\mathbf{P}}_i^{\top}
      \bar{\mathbf{P}}_j / \sqrt{P})` over the edges :math:`(j, i)`; time and memory :math:`O(E)`.
    * ``"topk"``: the :math:`k` most similar other nodes of the whole city, softmax of the same similarity; they are
      found block by block, memory :math:`O(N k)`, but time :math:`O(N^2)`.
    * ``"factorised"``: all nodes, :math:`a_{i,j} \propto \phi(\bar{\mathbf{P}}_i)^{\top} \phi(\bar{\mathbf{P}}_j)`
      with :math:`\phi = \mathrm{elu} + 1`, multiplied out from the right; time and memory :math:`O(N)`.
    * ``None``: no prompt graph, :math:`\mathbf{P}^{\prime} = \mathbf{P}`.

    This differs from the module as published where that one is bound to a city or to a batch. There, the bank is
    summed over its slots, so that it acts as one matrix: here each node retrieves its own mixture. There, LayerNorm is
    sized by the number of nodes: here all norms are over channels. There, attention runs across the samples of a
    batch: here over the steps of one node in one window. There, the prompt adjacency is dense and
    unnormalised: here it is one of the sparse or factorised forms above. There, inputs are detached: here they are not.
    No parameter or buffer depends on the number of nodes or of steps. :class:`PublishedNodePrompting` is the
    module as published, for comparison.

    Nodes are encoded some thousands at a time, and beyond these their activations are computed anew in the backward
    pass: a step costs as much a node in a large city as in a small one.

    Explainers and hooks of :meth:`propagate` see the messages of the encoder, and explainers also those of the
    ``"road"`` prompt graph; the other two forms have no messages along edges.

    Args:
        in_channels: Channels of each node's input.
        prompt_channels: Channels ``P`` of a prompt.
        num_prompts: Slots ``S`` of the bank.
        hidden_channels: Channels ``D`` of the encoder and of the keys, even. (default: ``prompt_channels``, rounded up
            to a multiple of ``2 * heads``)
        heads: Heads of the attention over time.
        prompt_graph: ``"road"``, ``"topk"``, ``"factorised"`` or ``None``.
        k: Neighbours of a node where ``prompt_graph="topk"``.
        block_size: Nodes which are compared with the whole city at a time where ``prompt_graph="topk"``.
        top_k: Slots that a node draws from at each step, at most ``num_prompts``. (default: all)
        load_balance: Keep what :meth:`load_balance_loss` needs.
        **kwargs: Arguments of :class:`torch_geometric.nn.conv.MessagePassing`, but for ``aggr``, ``flow`` and
            ``node_dim``: messages are weighted sums along the edges.

    Shapes:
        - **input:** node features :math:`(N, F)`, :math:`(T, N, F)` or :math:`(B, T, N, F)`,
          edge indices :math:`(2, E)`, non-negative edge weights :math:`(E)` *(optional)*,
          graph of each node :math:`(N)` *(optional)*
        - **output:** node features and prompts, :math:`(\ldots, N, F + P)`

    Raises:
        ValueError: If a size is not positive or does not fit the others, or ``prompt_graph`` is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        prompt_channels: int,
        num_prompts: int,
        *,
        hidden_channels: int | None = None,
        heads: int = 1,
        prompt_graph: str | None = "road",
        k: int = 8,
        block_size: int = 256,
        top_k: int | None = None,
        load_balance: bool = False,
        **kwargs: object,
    ) -> None:
        refuse_other_messages(kwargs)
        kwargs.setdefault("aggr", "add")
        super().__init__(node_dim=1, **kwargs)
        if hidden_channels is None:
            hidden_channels = -(-prompt_channels // (2 * heads)) * 2 * heads if heads > 0 else prompt_channels
        sizes = {
            "in_channels": in_channels,
            "prompt_channels": prompt_channels,
            "num_prompts": num_prompts,
            "hidden_channels": hidden_channels,
            "heads": heads,
            "k": k,
            "block_size": block_size,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be a positive integer, found {size}")
        if hidden_channels % heads or hidden_channels % 2:
            raise ValueError(f"hidden_channels must be even and a multiple of heads={heads}, found {hidden_channels}")
        if prompt_graph not in _PROMPT_GRAPHS:
            raise ValueError(f"prompt_graph must be one of {_PROMPT_GRAPHS}, found {prompt_graph!r}")
        if top_k is not None and not 1 <= top_k <= num_prompts:
            raise ValueError(f"top_k must be from 1 to num_prompts={num_prompts}, or None for all, found {top_k}")

        self.in_channels = in_channels
        self.prompt_channels = prompt_channels
        self.num_prompts = num_prompts
        self.hidden_channels = hidden_channels
        self.heads = heads
        self.prompt_graph = prompt_graph
        self.k = k
        self.block_size = block_size
        self.top_k = top_k
        self.load_balance = load_balance
        self._balance: Tensor | None = None

        self.lin_root = Linear(in_channels, hidden_channels)
        self.lin_neighbour = Linear(in_channels, hidden_channels, bias=False)
        self.lin_attention = Linear(hidden_channels, 3 * hidden_channels)
        self.lin_out = Linear(hidden_channels, hidden_channels)
        self.norm = LayerNorm(hidden_channels)
        self.keys = Parameter(torch.empty(num_prompts, hidden_channels))
        self.values = Parameter(torch.empty(num_prompts, prompt_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for layer in (self.lin_root, self.lin_neighbour, self.lin_attention, self.lin_out, self.norm):
            layer.reset_parameters()
        torch.nn.init.normal_(self.keys)
        torch.nn.init.normal_(self.values)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        batch: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Appends the prompts to the input.

        Args:
            x: Node features, of one node type: under :class:`torch_geometric.nn.HeteroConv` and
                :func:`torch_geometric.nn.to_hetero`, every edge type among its nodes has prompts of its own.
            edge_index: Edges, from and to.
            edge_weight: Their weights. (default: all the same)
            batch: The graph of each node, as in :class:`torch_geometric.data.Batch`: the prompt graph then joins nodes
                of the same graph only. (default: one graph)
            batch_size: Number of graphs. (default: looked up in ``batch``, which an accelerator waits for)
        """
        prompts = self.prompts(x, edge_index, edge_weight, batch, batch_size)
        return torch.cat([x, prompts], dim=-1)

    def prompts(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        batch: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        r"""The prompts :math:`\mathbf{P}^{\prime}` alone, :math:`(\ldots, N, P)`; arguments as those of
        :meth:`forward`."""
        windows, weight = self._windows(x, edge_index, edge_weight, batch)
        neighbours = self._neighbours(windows, edge_index, weight)
        prompts, mean, usage = self._by_rows(self._draw, windows, neighbours)
        prompts = prompts.view(*windows.shape[:3], self.prompt_channels)
        mean = mean.view(*windows.shape[:2], self.prompt_channels)
        if self.load_balance and torch.is_grad_enabled():
            self._balance = load_balance(usage.sum(dim=0))
        prompts = self._mix(prompts, mean, edge_index, weight, batch, batch_size)
        # A view, not a copy: who joins the prompts to something copies them anyway.
        return prompts.transpose(1, 2).view(*x.shape[:-1], self.prompt_channels)

    def slot_share(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        r"""How much each slot of the bank contributes to a node's prompt, :math:`(\ldots, N, S)`: sums to one."""
        windows, weight = self._windows(x, edge_index, edge_weight, None)
        neighbours = self._neighbours(windows, edge_index, weight)
        (share,) = self._by_rows(lambda *rows: (slot_shares(self._scores(*rows), self.top_k),), windows, neighbours)
        return share.view(*windows.shape[:3], -1).transpose(1, 2).reshape(*x.shape[:-1], self.num_prompts)

    def load_balance_loss(self) -> Tensor:
        r"""The loss of Switch Transformers that spreads nodes over slots, of the last forward pass with a gradient:

        .. math::
            \mathcal{L} = S \sum_{s=1}^{S} f_s \, p_s,

        with :math:`f_s` the fraction of nodes and steps that chose slot :math:`s` and :math:`p_s` its mean probability
        (:func:`tsjt_pyg.nn.prompt_bank.load_balance`). It is 1 where all slots are used evenly. Add it to the loss with
        a small weight, such as 0.01: ``(loss + 0.01 * prompting.load_balance_loss()).backward()``. It is handed out
        once, so that no graph is held longer than needed; a further forward pass replaces it.

        Raises:
            RuntimeError: If there is none: no forward pass since the last call, or ``load_balance=False``.
        """
        balance, self._balance = self._balance, None
        if balance is None:
            raise RuntimeError(
                "load_balance_loss() is that of the last forward pass with a gradient, and there was none since it was "
                "last asked for"
                if self.load_balance
                else "load_balance_loss() needs NodePrompting(..., load_balance=True), found load_balance=False"
            )
        return balance

    def __getstate__(self) -> dict[str, object]:
        """Without the last load-balance loss: copies of a module have no part in its graph."""
        return {**self.__dict__, "_balance": None}

    def _windows(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None, batch: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Input ``[B, N, T, F]`` and weights ``[E]``, checked."""
        if isinstance(x, tuple):  # what PyG passes for an edge type between two node types
            raise ValueError(
                "x must be the features of one node type, found a pair: prompts come from edges among nodes of one "
                "type; leave out the edge types between two"
            )
        if x.dim() not in (2, 3, 4) or x.size(-1) != self.in_channels:
            raise ValueError(
                f"x must be [N, {self.in_channels}], [T, N, {self.in_channels}] or [B, T, N, {self.in_channels}], "
                f"found {list(x.shape)}"
            )
        check_edges(edge_index, edge_weight, x.size(-2))
        if batch is not None and batch.shape != x.shape[-2:-1]:
            raise ValueError(f"batch must be [{x.size(-2)}], the graph of each node of x, found {list(batch.shape)}")
        edge_weight = x.new_ones(edge_index.size(1)) if edge_weight is None else edge_weight.to(x.dtype)
        windows = x.reshape((1,) * (4 - x.dim()) + x.shape)
        # A node's steps lie in one piece, for the attention over them and as one row of the prompt graph's product.
        return windows.transpose(1, 2).contiguous(), edge_weight

    def _neighbours(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """The mean of each node's in-neighbours, ``[B, N, T, F]``."""
        target = edge_index[1]
        degree = scatter(edge_weight, target, dim_size=x.size(1), reduce="sum")
        share = divide(edge_weight, degree[target])
        # propagate_type: (x: Tensor, weight: Tensor)
        return self.propagate(edge_index, x=x, weight=share[None, :, None, None])

    def _by_rows(
        self, function: Callable[[Tensor, Tensor], tuple[Tensor, ...]], x: Tensor, neighbours: Tensor
    ) -> list[Tensor]:
        """``function`` of so many nodes ``[R, T, F]`` at a time, its results in one."""
        rows = _CPU_ROWS if x.device.type == "cpu" else _ACCELERATOR_ROWS
        whole = x.flatten(0, 1), neighbours.flatten(0, 1)
        if torch.compiler.is_compiling() or whole[0].size(0) <= rows:  # the compiler decides itself what to keep
            return list(function(*whole))
        results = []
        for piece in zip(*(part.split(rows) for part in whole), strict=True):
            if torch.is_grad_enabled():
                results.append(checkpoint(function, *piece, use_reentrant=False, preserve_rng_state=False))
            else:
                results.append(function(*piece))
        return [torch.cat(parts) for parts in zip(*results, strict=True)]

    def _draw(self, x: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts ``[R, T, P]``, their means ``[R, P]``, and the use of the bank's slots ``[1, 2, S]``."""
        scores = self._scores(x, neighbours)
        prompts = slot_shares(scores, self.top_k) @ self.values
        usage = slot_usage(scores, self.top_k) if self.load_balance else scores.new_zeros(2, 0)
        mean = prompts.mean(dim=1, dtype=torch.promote_types(prompts.dtype, torch.float32))
        return prompts, mean, usage.unsqueeze(0)

    def _scores(self, x: Tensor, neighbours: Tensor) -> Tensor:
        return slot_scores(self._encode(x, neighbours), self.keys)

    def _mix(
        self,
        prompts: Tensor,
        mean: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor,
        batch: Tensor | None,
        batch_size: int | None,
    ) -> Tensor:
        """Prompts ``[B, N, T, P]`` with those of the prompt graph's neighbours added."""
        if self.prompt_graph is None:
            return prompts
        with torch.autocast(prompts.device.type, enabled=False):  # sums over a large city leave float16's range
            own = prompts.to(mean.dtype)
            if self.prompt_graph == "topk":
                joined = join_topk(own, mean, self.k, self.block_size, batch)
            elif self.prompt_graph == "factorised":
                joined = join_factorised(own, mean, batch, batch_size)
            else:
                weight = road_weight(mean, edge_index, edge_weight)
                if self.explain:  # an explainer looks at the messages themselves
                    joined = own + self.propagate(edge_index, x=own, weight=weight[..., None, None])
                else:
                    joined = join_road(own, edge_index, weight)
            return joined.to(prompts.dtype)

    def _encode(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """``[R, T, F] -> [R, T, D]``."""
        hidden = torch.relu(self.lin_root(x) + self.lin_neighbour(neighbours))
        hidden = hidden + self._positions(x.size(1), hidden)
        return self.norm(hidden + self._attend(hidden))

    def _attend(self, hidden: Tensor) -> Tensor:
        """Attention over time, each node of each window on its own."""
        rows, steps, channels = hidden.shape
        projected = self.lin_attention(hidden).view(rows, steps, 3, self.heads, channels // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return self.lin_out(out.transpose(1, 2).reshape(rows, steps, channels))

    def _positions(self, steps: int, like: Tensor) -> Tensor:
        """Sinusoids counted back from the last step, so that "now" looks the same for every length of history."""
        dtype = torch.promote_types(like.dtype, torch.float32)  # half precision cannot count to long histories
        back = torch.arange(steps - 1, -1, -1, device=like.device, dtype=dtype)
        half = self.hidden_channels // 2
        frequency = torch.exp(torch.arange(half, device=like.device, dtype=dtype) * (-math.log(10000.0) / half))
        angle = back[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1).to(like.dtype)

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        return weight * x_j

    def __repr__(self) -> str:
        top_k = "" if self.top_k is None else f", top_k={self.top_k}"
        return (
            f"{self.__class__.__name__}({self.in_channels}, {self.prompt_channels}, num_prompts={self.num_prompts}, "
            f"hidden_channels={self.hidden_channels}, heads={self.heads}, prompt_graph={self.prompt_graph!r}{top_k})"
        )
