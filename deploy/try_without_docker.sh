#!/usr/bin/env bash
# Try deploy/Dockerfile and deploy/compose.yaml on a Debian machine without Docker and without its registry.
#
#   sudo deploy/try_without_docker.sh [FOLDER]
#
# FOLDER keeps the base and the image for the next run; without one, a temporary folder is used and removed.
# It takes about 2 GB of disk and, the first time, about ten minutes. It installs buildah, podman and
# debootstrap by apt-get where they are missing.
#
# The base image is a root of Debian packages under the name python:3.12-slim, in a storage of its own. Its
# Python is Debian's: 3.13, or with PYTHON=python3.11 that of bookworm, for which you may have wheels. buildah then
# runs the unchanged Dockerfile, and podman runs the image with the options of the Dockerfile's comment and, by
# podman-compose, with compose.yaml, of which only the port on the host is another one. pip uses the settings of
# this machine, and the files that they name.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
suite=trixie
python=${PYTHON:-python3}
failures=0

if [ "$(id -u)" != 0 ]; then
  echo "deploy/try_without_docker.sh must run as root, got uid $(id -u); say sudo." >&2
  exit 2
fi

say() { printf '\n== %s\n' "$*"; }

check() { # check WHAT COMMAND...: run a command, and note whether it succeeded
  local what=$1
  shift
  if "$@" >"$work/check.log" 2>&1; then
    printf 'ok      %s\n' "$what"
  else
    printf 'FAILED  %s\n' "$what"
    tail -n 6 "$work/check.log" | sed 's/^/        /'
    failures=$((failures + 1))
  fi
}

# --- what it needs -----------------------------------------------------------------------------------------

packages=(buildah podman podman-compose runc netavark aardvark-dns nftables debootstrap curl)
missing=()
for package in "${packages[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [ ${#missing[@]} != 0 ]; then
  say "Installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ $# -ge 1 ]; then
  mkdir -p "$1"
  work=$(cd "$1" && pwd)
else
  work=$(mktemp -d)
fi

# A storage of its own: an image that is called python:3.12-slim and is not should be found by nobody else.
cat >"$work/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$work/storage"
runroot = "$work/run"
END
# The limits are those of this shell: inside another container they cannot be raised.
cat >"$work/containers.conf" <<END
[containers]
default_ulimits = ["nofile=$(ulimit -Sn):$(ulimit -Hn)", "nproc=$(ulimit -Su):$(ulimit -Hu)"]
[engine]
runtime = "runc"
END
export CONTAINERS_STORAGE_CONF="$work/storage.conf" CONTAINERS_CONF_OVERRIDE="$work/containers.conf"
export PODMAN_IGNORE_CGROUPSV1_WARNING=1

compose() { (cd "$work/project/deploy" && podman-compose -p twotower-try "$@"); }

finish() {
  compose down -v >/dev/null 2>&1 || true
  podman rm -af >/dev/null 2>&1 || true
  if [ "${keep:-}" != yes ]; then
    podman rmi -af >/dev/null 2>&1 || true
    rm -rf "$work"
  fi
}
[ $# -ge 1 ] && keep=yes
trap finish EXIT

# --- the base, and the Dockerfile --------------------------------------------------------------------------

base=localhost/python:3.12-slim # the name that FROM finds before any registry is asked
if ! podman image exists "$base"; then
  say "Making a root of Debian $suite in place of $base"
  if [ ! -e "$work/root/usr/local/bin/pip" ]; then
    rm -rf "$work/root"
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
      "$suite" "$work/root" ${MIRROR:+"$MIRROR"} >"$work/debootstrap.log"
    if [ "$python" = python3.11 ]; then
      # The same mirror, which debootstrap has written down.
      sed -n "s/^\(deb [^ ]*\) $suite .*/\1 bookworm main/p" "$work/root/etc/apt/sources.list" \
        >"$work/root/etc/apt/sources.list.d/bookworm.list"
      chroot "$work/root" sh -c 'apt-get update -qq && apt-get install -qq -y --no-install-recommends python3.11' \
        >>"$work/debootstrap.log" 2>&1
    fi
    # As in the image that it stands for, pip installs into the system's Python, and both have short names.
    rm -f "$work/root"/usr/lib/python3*/EXTERNALLY-MANAGED
    ln -sf "/usr/bin/$python" "$work/root/usr/local/bin/python"
    printf '#!/bin/sh\nexec %s -m pip "$@"\n' "$python" >"$work/root/usr/local/bin/pip"
    chmod +x "$work/root/usr/local/bin/pip"
  fi
  container=$(buildah from scratch)
  buildah add -q "$container" "$work/root" / >/dev/null
  buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  buildah commit -q "$container" "$base" >/dev/null
  buildah rm "$container" >/dev/null
fi

say "Building deploy/Dockerfile"
# pip asks where this machine asks: by the same settings, and the files that they name.
settings=$(python3 -m pip config list 2>/dev/null || true)
printf '%s\n' "$settings" | sed -n "s/^[a-z:]*\.\([a-z-]*\)='\(.*\)'$/\1 = \2/p" | sort -u |
  sed '1i [global]' >"$work/pip.conf"
mounts=(--volume "$work/pip.conf:/etc/pip.conf:ro")
while read -r path; do
  if [ -e "$path" ]; then mounts+=(--volume "$path:$path:ro"); fi
done < <(sed -n 's/^[a-z-]* = \(\/.*\)$/\1/p' "$work/pip.conf" | sort -u)
if ! buildah build --pull=never --layers --format docker --network host "${mounts[@]}" \
  --file "$here/deploy/Dockerfile" --tag twotower "$here" >"$work/build.log" 2>&1; then
  tail -n 20 "$work/build.log" >&2
  echo "deploy/Dockerfile must build, and it did not; the end of its log is above." >&2
  exit 1
fi
check "the image's user is not root" test "$(podman run --rm --entrypoint id twotower -u)" != 0
podman run --rm --entrypoint python twotower --version

# --- a bundle, written by root -----------------------------------------------------------------------------

say "Training a small bundle as root"
rm -rf "$work/project"
mkdir -p "$work/project/deploy" "$work/project/models"
cat >"$work/project/tables.py" <<'END'
with open("/made/events.csv", "w") as file:
    file.write("user_id,item_id,timestamp\n")
    for query in range(200):
        for step in range(8):
            file.write(f"{query},{(7 * query + 3 * step) % 50},{1_600_000_000 + 60 * step + query}\n")
with open("/made/items.csv", "w") as file:
    file.write("item_id,title,kind\n")
    for item in range(50):
        file.write(f"{item},Item number {item},{'ab'[item % 2]}\n")
END
podman run --rm --user 0 -v "$work/project:/made" --entrypoint python twotower /made/tables.py
podman run --rm --user 0 -v "$work/project:/made" --entrypoint twotower twotower train \
  --interactions /made/events.csv --items /made/items.csv --out /made/models/current \
  --set training.epochs=1 --set towers.dim=8 >"$work/train.log" 2>&1
ls -ln "$work/project/models/current"

# --- asking a server ---------------------------------------------------------------------------------------

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
address=http://127.0.0.1:$port
token=try-$RANDOM$RANDOM

code() { : >"$work/answer.json"; curl -s -m 20 -o "$work/answer.json" -w '%{http_code}' "$@"; }
answers() { # answers CODE CURL-ARGUMENTS...
  local wanted=$1 found
  shift
  found=$(code "$@") || true
  [ "$found" = "$wanted" ] || { echo "wanted $wanted, got $found: $(cat "$work/answer.json" 2>&1)"; return 1; }
}
ready() { # ready CONTAINER: wait until it answers, unless it has ended or was started again and again
  local count=0
  until answers 200 "$address/ready" >/dev/null 2>&1; do
    count=$((count + 1))
    if [ $count = 240 ] || [[ $(podman inspect -f '{{.State.Status}} {{.RestartCount}}' "$1") =~ ^exited|\ [3-9] ]]; then
      echo "not ready; it is $(podman inspect -f '{{.State.Status}}' "$1"), and says:"
      podman logs --tail 5 "$1" 2>&1
      return 1
    fi
    sleep 0.5
  done
}
recommends() {
  answers 200 -X POST "$address/recommend" -H 'content-type: application/json' -d '{"query_id": 5, "k": 3}' &&
    grep -q '"basis":"model"' "$work/answer.json"
}
puts_an_item() {
  answers "$1" -X PUT "$address/items" -H "authorization: Bearer $token" -H 'content-type: application/json' \
    -d '{"items": [{"item_id": 999, "title": "Written while it ran", "kind": "a"}]}'
}
knows_the_item() { answers 200 "$address/similar?item_id=999&k=3"; }
read_only() { # read_only CONTAINER FOLDER
  podman exec "$1" python -c '
import sys, tempfile
try:
    tempfile.TemporaryFile(dir=sys.argv[1])
except OSError:
    sys.exit(0)
sys.exit("it can be written")' "$2"
}

say "docker run -v ./model:/model:ro (no token, no place to write)"
podman run -d --name read-only -p "127.0.0.1:$port:8000" -v "$work/project/models/current:/model:ro" \
  twotower >/dev/null
check "another uid opens a bundle that root wrote, on a read-only mount" ready read-only
check "it answers by the model" recommends
check "the mount cannot be written" read_only read-only /model
check "writes are refused without a token" puts_an_item 403
check "the health check of the Dockerfile passes" podman healthcheck run read-only
podman rm -f read-only >/dev/null

say "compose.yaml (a token, a read-only root, two workers)"
sed "s/127\.0\.0\.1:8000:8000/127.0.0.1:$port:8000/" "$here/deploy/compose.yaml" \
  >"$work/project/deploy/compose.yaml"
podman tag twotower localhost/twotower-try_twotower
name=twotower-try_twotower_1
export TWOTOWER_TOKEN=$token
compose up -d --no-build >"$work/compose.log" 2>&1 || cat "$work/compose.log"
check "it starts" ready $name
check "it answers by the model" recommends
check "its root cannot be written" read_only $name /app
check "its models cannot be written" read_only $name /models/current
check "an item is written" puts_an_item 200
check "it is in the catalogue" knows_the_item
check "it stops with code 0 in the time that compose.yaml gives" \
  bash -c "podman stop -t 15 $name && test \$(podman inspect -f '{{.State.ExitCode}}' $name) = 0"
podman start $name >/dev/null 2>&1 || true
check "it starts again" ready $name
check "the written item is still there" knows_the_item
podman kill -s KILL $name >/dev/null 2>&1 || true
podman start $name >/dev/null 2>&1 || true
check "it starts after kill -9" ready $name
check "the written item is still there" knows_the_item
compose down >/dev/null 2>&1 || true
compose up -d --no-build >"$work/compose.log" 2>&1 || cat "$work/compose.log"
check "a new container starts in its place" ready $name
check "the written item is still there" knows_the_item

say "Not tried: Docker itself, the image python:3.12-slim, Docker's own volumes, and Kubernetes."
if [ $failures != 0 ]; then
  echo "$failures checks failed." >&2
  exit 1
fi
echo "All checks passed."
