"""Source and target batches side by side, without end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .windows import WindowBatch, Windows, ahead, check_prefetch

if TYPE_CHECKING:
    from .city import City

logger = logging.getLogger(__name__)


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

    A loop goes on where the one before it stopped: an epoch of 100 steps is ``islice(loader, 100)``, and the next one
    sees other pairs. So it does after :meth:`load_state_dict`; :meth:`from_step` starts at any step.

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
        TypeError: If ``sources`` is one city's windows and not a list of them.
        ValueError: If there is no source, history, horizon, channels or interval of a source differ from the target's,
            or ``batch_size``, ``weights`` or ``prefetch`` make no sense.

    Example:
        >>> from itertools import islice
        >>> from tsjt_pyg.datasets import load_city
        >>> target, *sources = (load_city(f"demo/{name}").windows(12, 12) for name in ("riverton", "gridport"))
        >>> for source_batch, target_batch, _ in islice(CityPairLoader(sources, target, batch_size=8), 3):
        ...     x, y = source_batch.x, target_batch.y
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
        if isinstance(sources, Windows):
            raise TypeError("sources: expected a list of windows, one a source city, found Windows; write [windows]")
        if not sources:
            raise ValueError("sources: expected the windows of at least one source city, found none")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        check_prefetch(prefetch)
        for i, windows in enumerate(sources):
            for what in ("history", "horizon"):
                found, expected = getattr(windows, what), getattr(target, what)
                if found != expected:
                    raise ValueError(
                        f"sources[{i}]: {windows.city.name} has {what} {found}, the target {target.city.name} has "
                        f"{expected}; one model reads both, so make them equal"
                    )
            check_comparable(windows.city, target.city, f"sources[{i}]")
        try:
            shares = torch.ones(len(sources)) if weights is None else torch.tensor(weights, dtype=torch.float32)
            fits = tuple(shares.shape) == (len(sources),) and bool((shares >= 0).all()) and 0 < shares.sum() < torch.inf
        except (TypeError, ValueError):  # no numbers
            fits = False
        if not fits:
            raise ValueError(f"weights: expected {len(sources)} weights >= 0, one a source, not all 0; found {weights}")
        self.sources, self.target, self.batch_size, self.seed = tuple(sources), target, batch_size, seed
        self.weights = shares / shares.sum()

        self.device, self.prefetch = device, prefetch
        self._next_step = 0

    def target_batch(self, step: int) -> WindowBatch:
        """The target batch of step ``step``."""
        index = shuffled_index(len(self.target), self.batch_size, step, self.seed)
        return self.target.batch(index, self.device)

    def source_windows(self, step: int) -> tuple[Tensor, int]:
        """The numbers of the windows of step ``step``'s source batch, and which source it comes from."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_033 + step) % 2**63)
        which = int(torch.multinomial(self.weights, 1, generator=generator))
        # Its own seed a source, so that two sources of one length are not walked through in step.
        return shuffled_index(len(self.sources[which]), self.batch_size, step, self.seed * 97 + which + 1), which

    def source_batch(self, step: int) -> tuple[WindowBatch, int]:
        """The source batch of step ``step`` and which source it comes from."""
        index, which = self.source_windows(step)
        return self.sources[which].batch(index, self.device), which

    def __getitem__(self, step: int) -> CityPair:
        if step < 0:
            raise IndexError(f"step: expected 0 or more, found {step}; a loader has no last step")
        source, which = self.source_batch(step)
        return CityPair(source, self.target_batch(step), which)

    def __iter__(self) -> Iterator[CityPair]:
        return self.from_step(self._next_step)

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
        """Which step comes next, and what the steps depend on, in plain numbers and strings."""
        return {"step": self._next_step, **self._about()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The next loop goes on where the loader of ``state_dict`` was; cities, :attr:`batch_size` and so on must be
        the same.

        Raises:
            ValueError: If they are not: its batches would be others.
        """
        about = self._about()
        missing = [name for name in ("step", *about) if name not in state_dict]
        if missing:
            raise ValueError(
                f"state_dict: it has no {missing[0]!r}, so it is not what CityPairLoader.state_dict() gives; found "
                f"{', '.join(map(repr, state_dict)) or 'nothing'}"
            )
        for name, here in about.items():
            if state_dict[name] != here:
                raise ValueError(
                    f"{name}: the state is of a loader with {state_dict[name]}, this one has {here}; its batches would "
                    "be others"
                )
        self._next_step = int(state_dict["step"])

    def _about(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "weights": self.weights.tolist(),
            "sources": [_described(windows) for windows in self.sources],
            "target": _described(self.target),
        }


def _described(windows: Windows) -> list[Any]:
    """What the windows of a city are, without reading a city that may be larger than memory."""
    city = windows.city
    return [city.name, str(city.start), city.num_nodes, windows.stride, len(windows)]


def check_comparable(source: City, target: City, label: str) -> None:
    """One model reads both: the channels and the interval must be the same, the units need not.

    Raises:
        ValueError: If they are not; ``label`` says which source it is.
    """
    ways = {"channels": "City.select, or City.rename if it is a matter of names", "interval": "City.resample"}
    for argument, way in ways.items():
        here, there = getattr(target, argument), getattr(source, argument)
        if here != there:
            raise ValueError(
                f"{label}: {source.name} has {argument} {there}, the target {target.name} has {here}; bring them "
                f"together with {way}"
            )
    if source.units != target.units:
        logger.info(
            "%s is in %s, %s in %s: scale each by its own statistics",
            *(
                part
                for city in (target, source)
                for part in (city.name, ", ".join(filter(None, city.units)) or "unknown units")
            ),
        )
