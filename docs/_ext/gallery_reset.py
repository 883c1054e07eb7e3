"""What one script of the galleries must not leave to the next."""

import logging
import warnings
from typing import Any

import torch

THREADS = torch.get_num_threads()


def as_at_the_start(gallery_conf: dict[str, Any], fname: str) -> None:
    """One seed, the process's own number of threads, no handlers and filters of another script's."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    logging.getLogger("tsjt_pyg").handlers.clear()
    warnings.resetwarnings()
    warnings.simplefilter("ignore", DeprecationWarning)  # as Python has it, but for __main__
