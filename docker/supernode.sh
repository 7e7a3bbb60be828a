#!/bin/sh
# Start the SuperNode of a site. The environment of the container gives SERVER (host:port), SITE (the site's name), TASKS,
# BACKOFF (seconds to wait after a failure, 75 by default), and further settings of the node in NODE_CONFIG.
set -eu
exec "$(dirname "$0")/backoff.sh" "${BACKOFF:-75}" flower-supernode \
    --superlink "$SERVER" \
    --root-certificates /keys/ca.crt \
    --auth-supernode-private-key /keys/node.key \
    --isolation process \
    --host 0.0.0.0 \
    --port 9094 \
    --ssl-ca-certfile /keys/local-ca.crt \
    --ssl-certfile /keys/runtime.crt \
    --ssl-keyfile /keys/runtime.key \
    --superexec-auth-secret-file /keys/superexec.secret \
    --node-config "site='$SITE' tasks='$TASKS' data-path='/data' state-dir='/state/clients' cache-dir='/state/cache' ${NODE_CONFIG:-}"
