"""The environment of the processes that Flower starts: that of this process, less what would lead them astray.

Flower's processes talk to each other over 127.0.0.1. A proxy, a variable of another Flower or of a Ray cluster, or a
file of certificates that is not there can break that. Such variables are changed for our own children only, and
`handed_on` lists which. What a run needs to reach the world, such as a proxy for downloads, stays.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pwd
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

# Ours are set anew. `FLWR_DATABASE` of another SuperLink, say, would make it share that one's runs.
FOREIGN = ("FLWR_", "GRPC_")
HARMLESS = (
    *("FLWR_LOG_LEVEL", "GRPC_VERBOSITY", "GRPC_TRACE", "GRPC_ENABLE_FORK_SUPPORT"),
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
)
# The Ray cluster on which the clients are to run, instead of one of our own; see docs/several-machines.md.
CLUSTER = "RAY_ADDRESS"
# They lead Ray through a proxy, or make it do what was meant for a job on a cluster.
# PYTHONWARNINGS=error makes an exception of any warning of Flower or Ray, PYTHONINSPECT keeps processes from ending.
# SSLKEYLOGFILE, where it cannot be written, breaks every connection.
DROPPED = (
    *("RAY_grpc_enable_http_proxy", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_REDIS_ADDRESS", "RAY_RUNTIME_ENV_HOOK"),
    *("PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONWARNINGS", "SSLKEYLOGFILE"),
)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "grpc_proxy")
BYPASS = ("no_proxy", "no_grpc_proxy")
LOOPBACK = ("127.0.0.1", "localhost")
# Where nothing is there, the connection fails before it begins.
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# Flower runs in another folder, where a relative path would not mean the same.
FOLDERS = (
    *("MATU_DATA_DIR", "MATU_WEIGHTS_DIR", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"),
    *("TMPDIR", *CERTIFICATES),
)
# With them a command colours even what another program is to read.
COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS")


def handed_on(given: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return an environment that leaves the way to 127.0.0.1 open, and the names of what was changed or left out.

    Parameters
    ----------
    given : mapping of str to str
        The environment of this process.

    Returns
    -------
    tuple
        The environment for Flower's processes, and the sorted names of the variables that were left out or shortened.
        Paths that were only made absolute, and proxies that got an exception for 127.0.0.1, are not among them.
    """
    kept = {
        name: value
        for name, value in given.items()
        if name in HARMLESS or not (name in DROPPED or name.startswith(FOREIGN))
    }
    for name in FOLDERS:
        if kept.get(name):
            # Where `~` is nobody's home it stays, and is missed by name later.
            kept[name] = str(Path(os.path.expanduser(kept[name])).absolute())  # noqa: PTH111  # pathlib's raises
    for name in (*CERTIFICATES, "TMPDIR"):
        if kept.get(name) and not Path(kept[name]).exists():
            del kept[name]
    if kept.get("PYTHONPATH"):
        # An empty entry means the current folder, too.
        kept["PYTHONPATH"] = os.pathsep.join(
            str(Path(part).absolute()) for part in kept["PYTHONPATH"].split(os.pathsep)
        )
    for name in [name for name in kept if name.lower() in PROXIES and not can_be_read(kept[name])]:
        del kept[name]
    shortened = set()
    for low in BYPASS:
        entries = []
        for name in (low, low.upper()):
            for entry in filter(None, (part.strip() for part in kept.get(name, "").split(","))):
                if can_be_bypassed(entry):
                    entries.append(entry)
                else:
                    shortened.add(name)
        # In both spellings, because programs differ in which one they read.
        kept[low] = kept[low.upper()] = ",".join(dict.fromkeys([*LOOPBACK, *entries]))
    return kept, sorted((given.keys() - kept.keys() - set(COLOURS)) | shortened)


def can_be_read(proxy: str) -> bool:
    """Tell whether Flower can use this address of a proxy. With others it ends before it has sent a word."""
    # Flower's HTTP library. Imported here, because few people have a proxy.
    import httpx

    try:
        # Without certificates: the file that names them may be what is wrong.
        httpx.HTTPTransport(verify=False, proxy=proxy if "://" in proxy else f"http://{proxy}").close()
    # SOCKS without its package, an unknown scheme, a wrong port.
    except (ImportError, ValueError, httpx.InvalidURL):
        return False
    return True


def can_be_bypassed(entry: str) -> bool:
    """Tell whether Flower can read this entry of `no_proxy`. With others, such as ``[::1]``, it ends at once."""
    import httpx

    if entry == "*":
        return True
    pattern = f"all://*{entry}"
    with contextlib.suppress(ValueError):
        pattern = f"all://[{ipaddress.IPv6Address(entry)}]"
    try:
        httpx.Client(verify=False, mounts={pattern: None}, trust_env=False).close()
    except (ValueError, httpx.InvalidURL):
        return False
    return True


def plain(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which commands write text that a program can read: UTF-8, without colours."""
    kept = {name: value for name, value in environment.items() if name not in COLOURS}
    return kept | {"NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}


def flower_variables(given: Mapping[str, str], home: Path, temporary: Path, kernels: Path | None) -> dict[str, str]:
    """Return the whole environment for the processes of one run.

    Parameters
    ----------
    given : mapping
        The environment of this process.
    home : Path
        Flower's folder of this run. Its value in FLWR_HOME also marks the run's processes.
    temporary : Path
        Folder with a short path for the sockets of Ray.
    kernels : Path or None
        Folder where compiled functions are kept between runs, unless NUMBA_CACHE_DIR names one; None for none.
    """
    kept = plain(handed_on(given)[0])
    if kernels is not None:
        kept.setdefault("NUMBA_CACHE_DIR", str(kernels))
    # Libraries ask for the user's home and name, and a container's user may have neither.
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        kept.setdefault("HOME", str(home))
        kept.setdefault("LOGNAME", f"user-{os.getuid()}")
    return kept | {
        "FLWR_HOME": str(home),
        # The dependencies are installed. Installing them again needs the network, and could bring other versions than
        # those that were tested.
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A cluster has a folder of its own, which its address may only name by way of RAY_TMPDIR.
        **({} if kept.get(CLUSTER) else {"RAY_TMPDIR": str(temporary)}),
        # Without a buffer, the last words of a killed process reach the log.
        "PYTHONUNBUFFERED": "1",
        # Flower starts its own commands by name, and they must be those of this Python environment.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
    }


def unanswered(address: str, timeout: float = 5.0) -> str:
    """Say why nothing answers at the address of a Ray cluster; "" if something does, or if that cannot be known."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    # "auto" and "local" are words of Ray.
    if not (colon and port.isdecimal()):
        return ""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout):
            return ""
    except (OSError, OverflowError) as error:
        return str(error)
