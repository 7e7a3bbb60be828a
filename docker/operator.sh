#!/bin/sh
# operator.sh COMMAND...   run a command for which `flwr` knows the federation: the operator's proxy beside it.
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
