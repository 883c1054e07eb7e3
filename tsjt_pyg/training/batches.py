"""Training batches as a pure function of the step, each city seen through its own statistics and support days."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import City, CityPairLoader, NodeBlock, NodeBlocks, Profile, StandardScaler, SupportProfile
from ..data.node_blocks import node_blocks
from ..data.pairs import shuffled_index
from .distributed import ALONE, OneProcess
from .forecasting import forecast_scaled, takes_profile
from .losses import masked_mae
from .model_state import window_size


class CityBatches:
    """Windows of one city, with its scaler and, where the model takes one, a support profile for each.

    The support days of a window are drawn from the other days of the city, at most as many as the target has to show.
    Of a city with :class:`~tsjt_pyg.data.NodeBlocks` every batch holds one block, each once a pass, in an order drawn
    anew for every pass.
    """

    def __init__(
        self, city: City, history: int, horizon: int, most: int | None, blocks: NodeBlocks | None = None
    ) -> None:
        self.windows = city.windows(history, horizon)
        try:
            self.scaler = StandardScaler().fit(city.readings, city.mask)
        except ValueError as error:
            raise ValueError(f"{city.name}: {error}") from error
        self.most, self.blocks = most, blocks
        self.support = None if most is None else SupportProfile(city)

    def block(self, step: int, seed: int) -> NodeBlock | None:
        """The block of step ``step``; ``None`` where batches hold the whole city."""
        if self.blocks is None:
            return None
        return self.blocks[int(shuffled_index(len(self.blocks), 1, step, seed))]

    def loss(
        self,
        model: torch.nn.Module,
        index: Tensor,
        seed: int,
        block: NodeBlock | None = None,
        processes: OneProcess = ALONE,
    ) -> Tensor:
        """The masked MAE of a batch of these windows, in scaled units.

        Args:
            model: The model.
            index: Numbers of the windows.
            seed: Draws the support days.
            block: The nodes of the batch, of whose core the errors are; default: all.
            processes: Each sees its share of the windows; the losses' mean over them is that of the batch.
        """
        mine = processes.share(len(index))
        device = next(model.parameters()).device
        batch = self.windows.batch(index[mine], block=block)
        profile: Profile | None = None
        if self.support is not None:
            generator = torch.Generator().manual_seed(seed % 2**63)
            nodes = None if block is None else block.nodes
            profile = self.support.at(self.windows, index, self.most, generator, nodes, mine).to(device)
        batch = batch.to(device)
        with processes.precision():
            forecast = forecast_scaled(model, batch, self.scaler, profile)
        loss = masked_mae(forecast.float(), self.scaler.transform(batch.y), batch.y_mask)
        return loss if processes.size == 1 else loss * processes.weight(batch.y_mask.sum())


class TrainingBatches:
    """The source and the target batch of every step.

    Args:
        model: The model, which may take a support profile.
        training: The target's days that are learned from.
        sources: The source cities.
        most: Support days of a window at most; see :class:`CityBatches`.
        batch_size: Windows a batch.
        seed: Seed of order and support days.
        weights: How often each source takes its turn; ``None``: all equally.
        nodes_per_batch: A city of more nodes is seen in blocks of at most so many; ``None``: every city as a whole.
        num_hops: Width of the blocks' halo.
        processes: Who shares the windows of a batch.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        training: City,
        sources: Sequence[City],
        most: int,
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        nodes_per_batch: int | None = None,
        num_hops: int = 1,
        processes: OneProcess = ALONE,
    ) -> None:
        self.processes = processes
        blocks = [node_blocks(city, nodes_per_batch, num_hops) for city in (training, *sources)]
        size = window_size(model)
        # Who never saw a profile in training cannot read one later: a single day has none for its own windows.
        learns_profile = takes_profile(model) and any(
            _has_profiles(city, *size, parts) for city, parts in zip((training, *sources), blocks, strict=True)
        )
        support_days = most if learns_profile else None
        self.target, *self.sources = (
            CityBatches(city, *size, support_days, parts)
            for city, parts in zip((training, *sources), blocks, strict=True)
        )
        self.pairs = (
            CityPairLoader([s.windows for s in self.sources], self.target.windows, batch_size, seed, weights)
            if self.sources
            else None
        )
        self.batch_size, self.seed = batch_size, seed

    def drawn(self, step: int, source: bool) -> tuple[CityBatches, Tensor, NodeBlock | None]:
        """Step ``step``'s source or target batch: its city, the numbers of its windows, and the block of its nodes."""
        if source:
            assert self.pairs is not None
            index, which = self.pairs.source_windows(step)
            city = self.sources[which]
            return city, index, city.block(step, self.seed * 97 + which + 1)
        index = shuffled_index(len(self.target.windows), self.batch_size, step, self.seed)
        return self.target, index, self.target.block(step, self.seed)

    def loss(self, model: torch.nn.Module, step: int, source: bool) -> Tensor:
        """The masked MAE of step ``step``'s source or target batch, in scaled units; of several processes, a share."""
        city, index, block = self.drawn(step, source)
        return city.loss(model, index, self.support_seed(step, source), block, self.processes)

    def support_seed(self, step: int, source: bool) -> int:
        """Of the support days of a batch: another for the source's than for the target's, so that the two are not drawn
        in step."""
        return self.seed * 1_000_003 + 2 * step + source


def _has_profiles(city: City, history: int, horizon: int, blocks: NodeBlocks | None) -> bool:
    """Whether some time of day of the city's windows was observed on another of its days, too."""
    support, windows = SupportProfile(city), city.windows(history, horizon)
    if support.num_days > 2:
        return True
    index = torch.linspace(0, len(windows) - 1, min(16, len(windows))).round().long()
    parts = [None] if blocks is None else (block.core for block in blocks)
    return any(bool(support.at(windows, index, nodes=nodes).mask.any()) for nodes in parts)
