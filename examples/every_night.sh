#!/bin/sh
# Update the newest bundle of a folder with the events of a day, and tell a server to swap to it:
#
#   sh examples/every_night.sh MODELS EVENTS [SERVER]
#
# MODELS/current is a link to the bundle that is served, MODELS/journal the journal of the server. By cron, at a quarter past three:
#
#   15 3 * * *  sh every_night.sh /data/models /data/events/today.parquet http://127.0.0.1:8000
#
# Exit codes: 0 done; 2 the input is wrong, do not retry; 3 the check refused the day, and the bundle of
# yesterday goes on serving; others: retry. The server needs TWOTOWER_TOKEN, which must be set here, too.
set -eu
models=$1 events=$2 server=${3:-}
new=$(date -u +%Y-%m-%d)

set -- --interactions "$events" --out "$models/$new"
if [ -e "$models/journal" ]; then set -- "$@" --journal "$models/journal"; fi
twotower update "$models/current" "$@"

if [ -n "$server" ]; then
  # Through a pipe, since other users can see a command's arguments. curl has a 2 and a 3 of its own.
  printf 'authorization: Bearer %s\n' "$TWOTOWER_TOKEN" |
    curl --fail --silent --show-error -X PUT "$server/model" -H @- \
      -H 'content-type: application/json' -d "{\"path\": \"$models/$new\"}" || exit 1
fi
ln -sfn "$new" "$models/current"
