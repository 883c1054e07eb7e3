"""The bundled cities and the cards of all data sets; installed as package data ``tsjt_pyg.datasets.bundled``."""
