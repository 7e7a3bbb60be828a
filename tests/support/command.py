"""The `matu` command as a person calls it, in this process."""

from typer.testing import CliRunner

from matu_flwr.cli import app


def matu(*arguments: str, status: int = 0) -> str:
    """Call it, expect an exit status, and return what it printed."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == status, result.output
    return result.output
