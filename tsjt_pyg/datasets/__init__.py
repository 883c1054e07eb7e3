"""Named cities and file formats."""

from .catalogue import CityEntry, default_sources, list_cities, load_city

__all__ = ["CityEntry", "default_sources", "list_cities", "load_city"]
