"""Named cities and file formats."""

from .catalogue import CityEntry, default_sources, list_cities, load_city
from .named import PEMS04, PEMS08, JonasDC, JonasNYC, LosLoop
from .pyg import CityDataset
from .task import Task, load_task

__all__ = [
    "PEMS04",
    "PEMS08",
    "CityDataset",
    "CityEntry",
    "JonasDC",
    "JonasNYC",
    "LosLoop",
    "Task",
    "default_sources",
    "list_cities",
    "load_city",
    "load_task",
]
