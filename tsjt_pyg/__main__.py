"""``python -m tsjt_pyg``."""

from .cli import app

app()
