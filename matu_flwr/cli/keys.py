"""The commands `matu keys init`, `matu keys server`, `matu keys operator` and `matu keys site`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matu_flwr.cli.ui import fail
from matu_flwr.deployment import keys
from matu_flwr.deployment.certificates import CERTIFICATE_DAYS, KeysError

if TYPE_CHECKING:
    from collections.abc import Callable

keys_app = typer.Typer(
    help="Make the certificates and keys of a deployment. Nothing is ever overwritten.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Option("--folder", help="Folder of the credentials.")]
Days = Annotated[int, typer.Option(help="Days until the certificates expire.", min=1)]
Hosts = Annotated[
    list[str],
    typer.Option(
        "--host", help="DNS name or IP address under which sites reach the server; may be given several times."
    ),
]


@keys_app.command()
def init(host: Hosts, folder: Folder = Path("keys"), days: Days = CERTIFICATE_DAYS) -> None:
    """Run this at the server: make the two authorities, and the credentials of proxy, SuperLink and ServerApp."""
    _show(lambda: keys.init(folder, host, days=days))
    typer.echo(
        "give ca.crt to every site and operator; keep authority/ in a safe place: whoever has it can make credentials"
    )


@keys_app.command()
def server(host: Hosts, folder: Folder = Path("keys"), days: Days = CERTIFICATE_DAYS) -> None:
    """Run this at the server: make new credentials of proxy, SuperLink and ServerApp. Move the old ones away first."""
    _show(lambda: keys.server(folder, host, days=days))


@keys_app.command()
def operator(
    name: Annotated[str, typer.Argument(help="Name of the operator; it appears in the proxy's log.")],
    folder: Folder = Path("keys"),
    days: Days = CERTIFICATE_DAYS,
) -> None:
    """Run this at the server: make a client certificate for somebody who may register nodes and start runs."""
    _show(lambda: keys.operator(folder, name, days=days))
    typer.echo("whoever has this folder can start code on every node")


@keys_app.command()
def site(
    name: Annotated[str, typer.Argument(help="The site's name in the federation.")],
    ca: Annotated[Path, typer.Option(help="The server's ca.crt.")],
    folder: Folder = Path("keys"),
    days: Days = CERTIFICATE_DAYS,
) -> None:
    """Run this at a site: make its node key, and the credentials for the connection of its node and its ClientApp."""
    _show(lambda: keys.site(folder, name, ca, days=days))
    typer.echo(f"send {name}.pub, and nothing else, to the server's operator")


def _show(make: Callable[[], list[Path]]) -> None:
    """Print the paths that were made, or an error, which ends the command with status 1."""
    try:
        for path in make():
            typer.echo(str(path))
    except KeysError as error:
        fail(error)
