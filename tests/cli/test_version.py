import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

import matu_flwr
from matu_flwr.cli import app


def test_the_version_is_one_line_that_a_bug_report_can_quote():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0, result.output
    assert result.output == f"matu-flwr {matu_flwr.__version__}\n"


def test_the_version_is_told_before_a_command_is_missed():
    """`--version` in front of a command prints, and starts nothing."""
    result = CliRunner().invoke(app, ["--version", "run", "--no-such-option"])
    assert (result.exit_code, result.output) == (0, f"matu-flwr {matu_flwr.__version__}\n")


def test_the_installed_command_tells_it(tmp_path):
    command = Path(sys.executable).parent / "matu"
    done = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"matu-flwr {matu_flwr.__version__}\n", "")
