"""Put values into one of the nginx configurations beside this file, and become nginx.

start.py server|operator, with the values in the environment: FLEET and CONTROL (ports to listen on; for the operator
CONTROL is the server's host:port), SUPERLINK (host:port), LOCAL (the operator's loopback port), SERVER_NAME (the name
in the server's certificate), KEYS (folder of the credentials), RESOLVER (DNS server; Docker's own if not given).
"""

import os
import re
import sys
import tempfile
from pathlib import Path

DEFAULTS = {"RESOLVER": "127.0.0.11", "KEYS": "/keys", "FLEET": "8443", "LOCAL": "8000"}
SAFE = re.compile(r"[A-Za-z0-9._:/\[\]-]+")  # no space, quote, semicolon or brace: a value stays a value


def configuration(text: str, values: dict[str, str]) -> str:
    """Put values for the words between at signs; ValueError if one is missing or could be more than a value."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            raise ValueError(f"{name} is not set in the environment, and the proxy's configuration needs it")
        if not SAFE.fullmatch(values[name]):
            raise ValueError(f"{name}={values[name]!r} is no port, address, name or path")
        return values[name]

    return re.sub(r"@([A-Z_]+)@", value, text)


def main(role: str) -> None:
    """Write the configuration into a new temporary folder and replace this process by nginx."""
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
