"""The `matu` command. Each sub-command has a file of its own, which imports slow modules only when it runs."""

from __future__ import annotations

import typer

from matu_flwr.cli.compare import compare
from matu_flwr.cli.data import data_app
from matu_flwr.cli.export import export
from matu_flwr.cli.heads import heads
from matu_flwr.cli.keys import keys_app
from matu_flwr.cli.partition import partition
from matu_flwr.cli.pretrain import pretrain
from matu_flwr.cli.report import report
from matu_flwr.cli.run import run
from matu_flwr.cli.show import show
from matu_flwr.cli.status import status

app = typer.Typer(
    help="Many-task federated fine-tuning with unified task vectors (MaTU) on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        # Imported here, because the package may still be importing this module when the file is read.
        import matu_flwr

        typer.echo(f"matu-flwr {matu_flwr.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Take the options that belong to `matu` itself."""


app.command()(run)
app.command()(compare)
app.command()(report)
app.command()(show)
app.command()(status)
app.command()(export)
data_app.command()(partition)
app.add_typer(data_app, name="data")
app.add_typer(keys_app, name="keys")
app.command()(heads)
app.command()(pretrain)
