"""Fill in one of the nginx configurations in this folder, and start nginx with it.

Usage: start.py server|operator. The values come from the environment:

FLEET         port for the sites
CONTROL       port for the operators; for the role operator, host:port of the server
SUPERLINK     host:port of the SuperLink
LOCAL         loopback port of the operator
SERVER_NAME   name in the server's certificate
KEYS          folder of the credentials
RESOLVER      DNS server; Docker's own if not given
"""

import os
import re
import sys
import tempfile
from pathlib import Path

DEFAULTS = {"RESOLVER": "127.0.0.11", "KEYS": "/keys", "FLEET": "8443", "LOCAL": "8000"}
# Values have no space, quote, semicolon or brace, so that none of them can add a directive to the configuration.
SAFE = re.compile(r"[A-Za-z0-9._:/\[\]-]+")


def configuration(text: str, values: dict[str, str]) -> str:
    """Replace each @NAME@ in a configuration by its value; ValueError if it is missing or has forbidden characters."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            raise ValueError(f"{name} is not set in the environment, and the proxy's configuration needs it")
        if not SAFE.fullmatch(values[name]):
            raise ValueError(f"{name}={values[name]!r} is not a port, address, name or path")
        return values[name]

    return re.sub(r"@([A-Z_]+)@", value, text)


def main(role: str) -> None:
    """Write the configuration into a new temporary folder, and replace this process by nginx."""
    temporary = tempfile.mkdtemp(prefix="proxy-")
    values = {**DEFAULTS, **os.environ, "TEMP": temporary}
    source = Path(__file__).with_name(f"{role}.conf")
    target = Path(temporary) / "nginx.conf"
    try:
        target.write_text(configuration(source.read_text(encoding="utf-8"), values), encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    nginx = os.environ.get("NGINX", "nginx")
    os.execvp(nginx, [nginx, "-e", "stderr", "-p", temporary, "-c", str(target)])


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("server", "operator"):
        sys.exit("usage: start.py server|operator")
    main(sys.argv[1])
