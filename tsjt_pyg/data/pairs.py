"""Source and target batches side by side, without end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .windows import WindowBatch, Windows


class CityPair(NamedTuple):
    """One step's batches; ``source_index`` says which of the sources ``source`` is."""

    source: WindowBatch
    target: WindowBatch
    source_index: int


def shuffled_index(num_windows: int, batch_size: int, step: int, seed: int) -> Tensor:
    """The window numbers of batch ``step`` of an endless loader that reshuffles after each pass.

    A pure function of its arguments: resuming at any step needs no other state. A batch has ``batch_size`` windows
    always; one that reaches past the end of a pass continues in the next.
    """
    wanted = torch.arange(step * batch_size, (step + 1) * batch_size)
    passes = wanted // num_windows
    index = torch.empty(batch_size, dtype=torch.int64)
    for number in passes.unique().tolist():
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        order = torch.randperm(num_windows, generator=generator)
        here = passes == number
        index[here] = order[wanted[here] % num_windows]
    return index


class CityPairLoader:
    """Endless, reshuffled (source, target) batches of one target city and one or many source cities.

    Step ``k`` is a pure function of ``seed`` and ``k``. The target has few windows and is passed over many times; the
    sources take turns in a random order, each as often as its share of ``weights`` says.

    Args:
        sources: Windows of each source city.
        target: Windows of the target city's visible days.
        batch_size: Windows a batch, of the source and of the target.
        seed: Seed of the order.
        weights: How often each source takes its turn; default: all equally.

    Raises:
        ValueError: If there is no source, history, horizon or number of channels of a source differ from the target's,
            or ``batch_size`` or ``weights`` make no sense.

    Example:
        >>> for source, target, _ in itertools.islice(CityPairLoader(sources, target), 500): ...
    """

    def __init__(
        self,
        sources: Sequence[Windows],
        target: Windows,
        batch_size: int = 64,
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        if not sources:
            raise ValueError("sources: expected the windows of at least one source city, found none")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        for i, windows in enumerate(sources):
            for what, found, expected in (
                ("history", windows.history, target.history),
                ("horizon", windows.horizon, target.horizon),
                ("channels", windows.city.num_channels, target.city.num_channels),
            ):
                if found != expected:
                    raise ValueError(
                        f"sources[{i}]: {windows.city.name} has {what} {found}, the target {target.city.name} has "
                        f"{expected}; one model reads both, so make them equal (City.select chooses channels)"
                    )
        shares = torch.ones(len(sources)) if weights is None else torch.tensor(weights, dtype=torch.float32)
        if tuple(shares.shape) != (len(sources),) or not (shares >= 0).all() or not 0 < shares.sum() < torch.inf:
            raise ValueError(f"weights: expected {len(sources)} weights >= 0, one a source, not all 0; found {weights}")
        self.sources, self.target, self.batch_size, self.seed = tuple(sources), target, batch_size, seed
        self.weights = shares / shares.sum()

    def target_batch(self, step: int) -> WindowBatch:
        """The target batch of step ``step``."""
        return self.target.batch(shuffled_index(len(self.target), self.batch_size, step, self.seed))

    def source_batch(self, step: int) -> tuple[WindowBatch, int]:
        """The source batch of step ``step`` and which source it comes from."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_033 + step) % 2**63)
        which = int(torch.multinomial(self.weights, 1, generator=generator))
        windows = self.sources[which]
        # Its own seed a source, so that two sources of one length are not walked through in step.
        index = shuffled_index(len(windows), self.batch_size, step, self.seed * 97 + which + 1)
        return windows.batch(index), which

    def __getitem__(self, step: int) -> CityPair:
        source, which = self.source_batch(step)
        return CityPair(source, self.target_batch(step), which)

    def __iter__(self) -> Iterator[CityPair]:
        step = 0
        while True:
            yield self[step]
            step += 1
