#!/bin/sh
# backoff.sh SECONDS COMMAND...   run a command; if it fails, wait, then exit with its status.
#
# When a node has died, the SuperLink keeps its place for 60 s and refuses the node until then. A restart policy alone
# would start the node again at once, and it would be refused again and again.
wait_for=$1
shift
# The trap is set before the command starts, and passes a signal on to it. So a signal never ends this script and leaves
# the command running.
trap 'trap "" TERM INT; if [ -n "$!" ]; then kill -TERM $! 2>/dev/null; wait $!; fi; exit 143' TERM INT
"$@" &
wait $!
code=$?
if [ $code -ne 0 ]; then
    echo "backoff: $1 ended with $code; waiting $wait_for s, because the SuperLink keeps a lost node's place for 60 s" >&2
    # Sleep one second at a time, so that the shell looks for a signal every second. A single long sleep would have to be
    # killed as a process of its own, and a signal that came while it was still starting would be lost.
    while [ "$wait_for" -gt 0 ]; do
        sleep 1
        wait_for=$((wait_for - 1))
    done
fi
exit $code
