"""Named cities and file formats."""

from .catalogue import CityEntry, default_sources, list_cities, load_city
from .task import Task, load_task

__all__ = ["CityEntry", "Task", "default_sources", "list_cities", "load_city", "load_task"]
