"""The named cities as data sets of PyG."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, Dataset

from ..data import City
from ..data.atomic import atomic_path
from ..data.signal import WindowDataset
from ..progress import progress_bar
from .cards import CardFile, missing_files, read_card, where_to_get
from .catalogue import ROOT_VARIABLE, list_cities, load_city
from .download import download
from .stored import city_from_state, city_state, described, transformed_city

logger = logging.getLogger(__name__)

FORMAT = "tsjt_pyg.CityDataset/1"


def _in(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


class CityDataset(Dataset):
    r"""A named city as a :class:`torch_geometric.data.Dataset`: one :class:`~torch_geometric.data.Data` a window.

    The files are read where :func:`~tsjt_pyg.datasets.load_city` finds them, in ``<root>/<name>/``; the city is stored
    once, in ``<root>/<name>/processed/city.pt``, and mapped into memory from there. Windows are views of its readings:
    nothing is stored a window, and what changes a window in place changes the readings (as in any in-memory data set of
    PyG).

    What is stored is made anew if it is damaged, or was made by another version of this package, from other raw files
    (by size and time), or with another ``pre_transform`` or ``pre_filter`` (by their attributes or code).

    Args:
        root: Folder with one folder a data set; default: the environment variable ``TSJT_CITIES``.
        name: Name of the city, as ``load_city`` takes it: ``"demo/riverton"``, ``"los_loop"``, …
        history: Steps in.
        horizon: Steps out.
        transform: Applied to every window when it is asked for.
        pre_transform: Applied once, before the city is stored, to the whole city as one ``Data``: ``x`` and bool
            ``mask`` ``[N, C, T]`` with all T steps, ``edge_index``, ``edge_attr``, ``pos`` where known, and ``node``
            ``[N]``, the numbers of the nodes. It may drop nodes, change edges and readings, and add attributes, which
            are then on every window; it may not change C or T.
        pre_filter: Which windows are kept; asked once, before ``pre_transform``.
        force_reload: Whether to store the city anew.
        channels: The channels to keep; default: all.

    Shapes of a window:
        - ``x``: ``[N, C, T_in]``, ``x_mask`` the same
        - ``y``: ``[N, T_out]`` for one channel, else ``[N, C, T_out]``, ``mask`` the same; ``True`` = observed
        - ``edge_index``: ``[2, E]``, ``edge_attr``: ``[E]``, the weights

    Raises:
        ValueError: If there is no such city, its files are damaged, no window fits or is kept, or ``pre_transform``
            returns something that is no city.
        FileNotFoundError: If files are missing; the message says where to get them and where they belong.
    """

    def __init__(
        self,
        root: str | Path | None,
        name: str,
        history: int = 12,
        horizon: int = 12,
        transform: Callable[[Data], Any] | None = None,
        pre_transform: Callable[[Data], Data] | None = None,
        pre_filter: Callable[[Data], bool] | None = None,
        force_reload: bool = False,
        channels: Sequence[str] | str | None = None,
    ) -> None:
        base = root if root is not None else os.environ.get(ROOT_VARIABLE)
        if not base:
            raise FileNotFoundError(
                f"root: say in which folder {name!r} is stored, or set the environment variable {ROOT_VARIABLE}"
            )
        if name not in [entry.name for entry in list_cities(base)]:
            load_city(name, base)  # says which there are, where this is none
            raise ValueError(
                f"name: expected a city of the catalogue, found the file {name}; use City.load and to_dataset"
            )
        self.name, self.history, self.horizon = name, history, horizon
        self.channels = [channels] if isinstance(channels, str) else channels and list(channels)
        self._described = described(pre_transform), described(pre_filter)  # before a call may change them
        super().__init__(str(base), transform, pre_transform, pre_filter, force_reload=force_reload)
        self._load()

    # --- files ------------------------------------------------------------------------------------------------------

    @property
    def raw_dir(self) -> str:
        """Where the files lie, ``<root>/<name>``."""
        return str(Path(self.root) / self.name)

    @property
    def processed_dir(self) -> str:
        """Where the stored city lies, ``<root>/<name>/processed``."""
        return str(Path(self.root) / self.name / "processed")

    @property
    def files(self) -> tuple[CardFile, ...]:
        """The files of the data set, from its card; none where the city is bundled."""
        return () if self.name.startswith("demo/") else read_card(self.name, Path(self.raw_dir)).files

    @property
    def raw_file_names(self) -> list[str]:
        """The files without which the city cannot be read; of several that would do, one that is there."""
        folder = Path(self.raw_dir)
        return [next((_in(p, folder) for p in f.paths(folder)), f.name) for f in self.files if not f.optional]

    @property
    def processed_file_names(self) -> list[str]:
        """The file that holds the city."""
        return ["city.pt"]

    def _download(self) -> None:
        folder = Path(self.raw_dir)
        if any(not (folder / name).is_file() for name in self.raw_file_names):
            self.download()

    def download(self) -> None:
        """Downloads the missing files that may be downloaded; for the others says where to get them.

        Raises:
            FileNotFoundError: If a missing file has no URL on the card; nothing is downloaded then.
            OSError, ValueError: See :func:`~tsjt_pyg.datasets.download.download`.
        """
        folder = Path(self.raw_dir)
        card = read_card(self.name, folder)
        absent = [file for file in self.files if file.name in missing_files(card, folder)]
        if any(file.url is None or file.sha256 is None for file in absent):
            raise FileNotFoundError(where_to_get(card, folder))
        folder.mkdir(parents=True, exist_ok=True)
        for file in absent:
            assert file.url is not None
            assert file.sha256 is not None
            with progress_bar(f"{self.name}/{file.name}", unit="B") as progress:
                download(file.url, folder / file.name, file.sha256, progress=progress)

    # --- the stored city --------------------------------------------------------------------------------------------

    def _process(self) -> None:
        if self.force_reload or self._stored() is None:
            Path(self.processed_dir).mkdir(parents=True, exist_ok=True)
            self.process()

    def process(self) -> None:
        """Reads the city, filters its windows, transforms it, and stores it."""
        city = load_city(self.name, self.root)
        kept = None if self.pre_filter is None else self._kept(self._selected(city))
        extra: dict[str, Tensor] = {}
        if self.pre_transform is not None:
            city, extra = transformed_city(city, self.pre_transform)
        with atomic_path(self.processed_paths[0]) as temporary:
            torch.save({"made_of": self._made_of(), "windows": kept, "extra": extra, **city_state(city)}, temporary)

    def _kept(self, city: City) -> Tensor:
        windows = WindowDataset(city, self.history, self.horizon)
        assert self.pre_filter is not None
        kept = [i for i in range(len(windows)) if self.pre_filter(windows.get(i))]
        if not kept:
            raise ValueError(f"pre_filter: none of the {len(windows)} windows of {self.name} is kept")
        return torch.tensor(kept)

    def _made_of(self) -> dict[str, Any]:
        """What the stored city depends on, in plain values."""
        from .. import __version__

        found: dict[str, Any] = {"format": FORMAT, "version": __version__, "name": self.name}
        found |= {"pre_transform": self._described[0], "pre_filter": self._described[1]}
        if self.pre_filter is not None:  # only then does it matter which windows there are
            found["windows"] = [self.history, self.horizon, self.channels]
        folder = Path(self.raw_dir)
        paths = [path for file in self.files for path in file.paths(folder)]
        found["files"] = [[_in(path, folder), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
        return found

    def _stored(self) -> dict[str, Any] | None:
        """What is stored, mapped into memory; ``None`` where it is absent, damaged or made of something else."""
        path = Path(self.processed_paths[0])
        if not path.is_file():
            return None
        try:
            state = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
            found = state["made_of"]
        except Exception as error:  # torch, zipfile and pickle raise what they like on a damaged file
            logger.warning("%s: cannot be read (%s); it is made anew", path, str(error).splitlines()[0])
            return None
        differing = [key for key, value in self._made_of().items() if found.get(key) != value]
        if differing or len(found) != len(self._made_of()):
            logger.info("%s: was made with another %s; it is made anew", path, ", ".join(differing) or "pre_filter")
            return None
        return dict(state)

    def _load(self) -> None:
        state = self._stored()
        if state is None:
            raise ValueError(f"{self.processed_paths[0]}: was changed by another process meanwhile; try again")
        self.city = self._selected(city_from_state(state))
        self._extra: dict[str, Tensor] = state["extra"]
        self._kept_windows: Tensor | None = state["windows"]
        self._windows = WindowDataset(self.city, self.history, self.horizon)

    def _selected(self, city: City) -> City:
        return city if self.channels is None else city.select(self.channels)

    # --- windows ----------------------------------------------------------------------------------------------------

    def len(self) -> int:
        """Number of windows."""
        return len(self._windows) if self._kept_windows is None else len(self._kept_windows)

    def get(self, idx: int) -> Data:
        """Window ``idx``, as views."""
        data = self._windows.get(int(idx if self._kept_windows is None else self._kept_windows[idx]))
        for name, value in self._extra.items():
            data[name] = value
        return data

    @property
    def num_node_features(self) -> int:
        """Number of channels C, that is of features a step, where ``x`` is ``[N, C, T_in]``.

        (``Data`` counts the last dimension; so does this where a transform has made something else of ``x``.)
        """
        x = self[0].x
        return int(x.size(1)) if x.dim() == 3 else super().num_node_features

    @property
    def num_classes(self) -> int:
        """Size of the last dimension of ``y``, the steps out, as PyG infers it; from one window instead of all."""
        return int(self[0].y.size(-1))

    def get_dataset(self, num_timesteps_in: int = 12, num_timesteps_out: int = 12) -> Any:
        """All windows as a :class:`torch_geometric_temporal.signal.StaticGraphTemporalSignal`.

        The verb of PyG-Temporal's loaders, with the readings in their own units and with ``mask`` and ``x_mask``; see
        :func:`tsjt_pyg.data.signal.to_signal`. Attributes that ``pre_transform`` has added are not in it.

        Raises:
            ValueError: If windows are filtered or selected, or there is a ``transform``: a signal has neither.
        """
        if self._indices is not None or self._kept_windows is not None or self.transform is not None:
            raise ValueError(
                "get_dataset: a signal holds all windows as they are: call it on the whole data set, without transform "
                "and pre_filter, and split the signal (temporal_signal_split)"
            )
        return self.city.to_signal(num_timesteps_in, num_timesteps_out)

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if type(self) is CityDataset else ""
        return f"{type(self).__name__}({name}{len(self)}, history={self.history}, horizon={self.horizon})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_windows"}  # views: made again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._windows = WindowDataset(self.city, self.history, self.horizon)
