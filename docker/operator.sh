#!/bin/sh
# operator.sh COMMAND...   run a command with a Flower configuration that names the federation.
#
# `flwr` talks to the operator's proxy on this machine without TLS. The proxy adds TLS and the operator's certificate.
set -eu
mkdir -p "$FLWR_HOME"
cat > "$FLWR_HOME/config.toml" <<TOML
[superlink]
default = "federation"

[superlink.federation]
address = "127.0.0.1:8000"
insecure = true
TOML
exec "$@"
