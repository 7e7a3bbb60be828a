#!/bin/sh
# backoff.sh SECONDS COMMAND...   run a command; if it fails, wait before passing the failure on.
#
# The SuperLink refuses a node that comes back before the lease of its last life is over (60 s). A restart policy alone
# would knock again at once.
wait_for=$1
shift
# Set before the command starts, and $! is known as soon as it has started: no signal ends this script alone.
trap 'trap "" TERM INT; if [ -n "$!" ]; then kill -TERM $! 2>/dev/null; wait $!; fi; exit 143' TERM INT
"$@" &
wait $!
code=$?
if [ $code -ne 0 ]; then
    echo "backoff: $1 ended with $code; waiting $wait_for s, because the SuperLink keeps a lost node's place for 60 s" >&2
    # One second at a time: a signal to a sleep of its own process could come before that process is a sleep, and be lost.
    while [ "$wait_for" -gt 0 ]; do
        sleep 1
        wait_for=$((wait_for - 1))
    done
fi
exit $code
