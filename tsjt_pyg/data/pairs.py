"""Source and target batches side by side, without end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .windows import WindowBatch, Windows, ahead, check_prefetch


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
    first, last = step * batch_size, (step + 1) * batch_size
    pieces = []
    while first < last:
        number, at = divmod(first, num_windows)
        pieces.append(_order_of_pass(num_windows, (seed * 1_000_003 + number) % 2**63)[at : at + last - first])
        first += len(pieces[-1])
    return torch.cat(pieces)


@lru_cache(maxsize=32)  # a pass is drawn once, not at every step of it; of so many cities beside each other
def _order_of_pass(num_windows: int, seed: int) -> Tensor:
    return torch.randperm(num_windows, generator=torch.Generator().manual_seed(seed))


class CityPairLoader:
    """Endless, reshuffled (source, target) batches of one target city and one or many source cities.

    Step ``k`` is a pure function of ``seed`` and ``k``: ``loader[k]``. The target has few windows and is passed over
    many times; the sources take turns in a random order, each as often as its share of ``weights`` says.

    Each loop starts at step 0, but the first after :meth:`load_state_dict`, which goes on with the batch that would
    have come next (as torchdata's StatefulDataLoader does); :meth:`from_step` starts at any.

    Args:
        sources: Windows of each source city.
        target: Windows of the target city's visible days.
        batch_size: Windows a batch, of the source and of the target.
        seed: Seed of the order.
        weights: How often each source takes its turn; default: all equally.
        device: Where the batches are wanted; default: where each city's readings are.
        prefetch: Pairs that a background thread makes in advance in loops; default: as in
            :meth:`Windows.batches <tsjt_pyg.data.Windows.batches>`.

    Raises:
        ValueError: If there is no source, history, horizon or number of channels of a source differ from the target's,
            or ``batch_size``, ``weights`` or ``prefetch`` make no sense.

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
        device: torch.device | str | None = None,
        prefetch: int | None = None,
    ) -> None:
        if not sources:
            raise ValueError("sources: expected the windows of at least one source city, found none")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        check_prefetch(prefetch)
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

        self.device, self.prefetch = device, prefetch
        self._next_step = 0
        self._resume = False

    def target_batch(self, step: int) -> WindowBatch:
        """The target batch of step ``step``."""
        index = shuffled_index(len(self.target), self.batch_size, step, self.seed)
        return self.target.batch(index, self.device)

    def source_batch(self, step: int) -> tuple[WindowBatch, int]:
        """The source batch of step ``step`` and which source it comes from."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_033 + step) % 2**63)
        which = int(torch.multinomial(self.weights, 1, generator=generator))
        windows = self.sources[which]
        # Its own seed a source, so that two sources of one length are not walked through in step.
        index = shuffled_index(len(windows), self.batch_size, step, self.seed * 97 + which + 1)
        return windows.batch(index, self.device), which

    def __getitem__(self, step: int) -> CityPair:
        if step < 0:
            raise IndexError(f"step: expected 0 or more, found {step}; a loader has no last step")
        source, which = self.source_batch(step)
        return CityPair(source, self.target_batch(step), which)

    def __iter__(self) -> Iterator[CityPair]:
        step = self._next_step if self._resume else 0
        self._resume = False
        return self.from_step(step)

    def from_step(self, step: int) -> Iterator[CityPair]:
        """The pairs of steps ``step``, ``step + 1``, … without end.

        Raises:
            ValueError: If ``step`` is negative.
        """
        if step < 0:
            raise ValueError(f"step: expected 0 or more, found {step}")
        return self._from_step(step)

    def _from_step(self, step: int) -> Iterator[CityPair]:
        self._next_step = step
        pairs = ahead(
            lambda: map(self.__getitem__, count(step)),
            lambda pair: [*pair.source.tensors(), *pair.target.tensors()],
            [*self.sources, self.target],
            self.batch_size,
            self.device,
            self.prefetch,
        )
        with closing(pairs):
            for self._next_step, pair in enumerate(pairs, step + 1):
                yield pair

    def state_dict(self) -> dict[str, Any]:
        """Which step comes next in the latest loop, and what the steps depend on."""
        return {"step": self._next_step, **self._about()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The next loop goes on where the loader of ``state_dict`` was; :attr:`batch_size` and so on must be the same.

        Raises:
            ValueError: If they are not: its batches would be others.
        """
        for name, here in self._about().items():
            if state_dict[name] != here:
                raise ValueError(
                    f"{name}: the state is of a loader with {state_dict[name]}, this one has {here}; its batches would "
                    "be others"
                )
        self._next_step, self._resume = int(state_dict["step"]), True

    def _about(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "weights": self.weights.tolist(),
            "source_windows": [len(windows) for windows in self.sources],
            "target_windows": len(self.target),
        }
