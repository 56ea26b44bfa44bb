#!/usr/bin/env bash
# Builds the images and runs the containers' tests on a Debian machine without Docker and without a
# registry of images, as root: a Docker daemon of its own, stopped at the end, and a base image made
# of Debian's packages. Takes minutes. The daemon that builds has the machine's network; the one that
# runs the containers has a network namespace to itself.
#   docker/rehearse.sh FOLDER      # what is made stays in FOLDER for the next time
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
export DOCKER_HOST=unix://$folder/docker.sock DOCKER_BUILDKIT=0
space=neucodex-rehearsal
base=neucodex-rehearsal/base build=neucodex-rehearsal/build

stop() {
	if [ -f "$folder/docker.pid" ]; then
		pid=$(cat "$folder/docker.pid")
		kill "$pid" && tail --pid="$pid" -f /dev/null
	fi
	umount "$folder/exec/netns/default" 2>/dev/null || true
}

start() { # [command to run it with] [flags]
	"$@" --data-root "$folder/data" --exec-root "$folder/exec" --host "$DOCKER_HOST" \
		--pidfile "$folder/docker.pid" --storage-driver overlay2 >>"$folder/docker.log" 2>&1 &
	for _ in $(seq 120); do docker version >/dev/null 2>&1 && return; sleep 0.5; done
	echo "the Docker daemon did not start: see $folder/docker.log" >&2
	exit 1
}

for tool in dockerd docker-compose debootstrap; do
	command -v "$tool" >/dev/null || {
		apt-get update
		apt-get install --yes --no-install-recommends docker.io runc docker-compose debootstrap
		break
	}
done

trap stop EXIT
start dockerd --bridge=none --iptables=false --ip6tables=false --ip-forward=false
if ! docker image inspect "$base" >/dev/null 2>&1; then
	root=$folder/root
	[ -d "$root" ] || debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
		bookworm "$root"
	umount "$root/proc" 2>/dev/null || true
	# As slim images do.
	rm -rf "$root"/usr/share/{doc,man,info,locale} "$root"/var/lib/apt/lists/* \
		"$root"/var/cache/apt/archives/*.deb
	cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
	tar --directory "$root" --create . | docker import --change 'CMD ["python3"]' - "$base"
fi
if ! docker image inspect "$build" >/dev/null 2>&1; then
	printf 'FROM %s\nRUN apt-get update && apt-get install --yes --no-install-recommends %s\n' \
		"$base" "python3-dev gcc libc6-dev" | docker build --network host --tag "$build" -
fi
for side in cloud edge; do
	docker build --network host --build-arg BASE="$base" --build-arg BUILD_BASE="$build" \
		--file "docker/$side.Dockerfile" --tag "neucodex-$side:0.1.0" .
done
stop

ip netns add "$space"
trap 'stop; ip netns del "$space"' EXIT
ip -n "$space" link set lo up
# Not `ip netns exec`, which mounts another /sys, without the control groups.
start nsenter --net="/run/netns/$space" dockerd
NEUCODEX_CONTAINERS=1 "${PYTHON:-python3}" -m pytest -m slow tests/docker/test_containers.py
