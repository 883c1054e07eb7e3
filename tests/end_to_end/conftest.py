"""What tests of the commands share."""

import re

import pytest
import torch
from typer.testing import CliRunner

from tsjt_pyg.cli import app


@pytest.fixture
def tsjt():
    def run(*arguments, code=0):
        threads = torch.get_num_threads()
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
        torch.set_num_threads(threads)
        assert result.exit_code == code, result.output
        return re.sub(r"\s+", " ", result.output)

    return run
