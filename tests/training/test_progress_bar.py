"""The bar on a terminal and where there is none; in notebooks: tests/end_to_end/test_notebooks.py."""

import os
import pty
import subprocess
import sys
import termios

import pytest

from tsjt_pyg.training import progress_bar

SCRIPT = """
import logging, sys
from tsjt_pyg.console import LogHandler
from tsjt_pyg.training import progress_bar
logging.basicConfig(handlers=[LogHandler()])
with progress_bar("training", unit=sys.argv[1], hidden=sys.argv[2] == "hidden") as progress:
    progress(1024, 4096)
    logging.warning("a warning")
    progress(4096, 4096)
"""


def test_it_is_silent_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar("training") as progress:
        progress(1, 3)
        progress(3, 3)
    assert capfd.readouterr() == ("", "")


def on_a_terminal(*arguments: str) -> str:
    """What the script writes to a terminal that is its error stream; its other one stays empty."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    ran = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    assert ran.stdout == b""
    text = b""
    while True:
        try:
            more = os.read(ours, 4096)
        except OSError:  # Linux' end of file of a terminal
            break
        if not more:
            break
        text += more
    os.close(ours)
    return text.decode()


def test_it_is_a_line_on_a_terminal_and_the_log_is_above_it() -> None:
    text = on_a_terminal("step", "shown")
    assert "training: 100%" in text
    assert "4096/4096" in text
    lines = [line.split("\r")[-1].replace("\x1b[A", "") for line in text.splitlines()]
    assert [line for line in lines if "a warning" in line and "training" in line] == []
    assert any("a warning" in line for line in lines)


def test_bytes_are_shown_as_such() -> None:
    assert "4.00k/4.00k" in on_a_terminal("B", "shown")


def test_a_hidden_one_shows_nothing() -> None:
    assert "training" not in on_a_terminal("step", "hidden")
