#!/usr/bin/env bash
# The edge on aarch64, without such a machine: an arm64 Debian in FOLDER, run by qemu, into which the
# package is built (with its C codec) and installed from aarch64 wheels; then a device in there is
# compared with one here, both on the same cloud. As root on Debian; takes minutes. It shows that
# everything runs and answers alike; how long anything takes under qemu says nothing of a real device.
#   docker/aarch64.sh FOLDER
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
root=$folder/root
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

command -v qemu-aarch64-static >/dev/null && command -v debootstrap >/dev/null || {
	apt-get update
	apt-get install --yes --no-install-recommends qemu-user-static debootstrap
}

# Programs in there start others, the compiler its parts: the kernel must know whom to ask. The F
# keeps the interpreter open, so that it need not be in there.
formats=/proc/sys/fs/binfmt_misc
name=neucodex-aarch64
mounted=
[ -e $formats/register ] || { mount -t binfmt_misc binfmt_misc $formats && mounted=yes; }
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
[ -e $formats/$name ] || echo ":$name:M::$magic:$mask:$(command -v qemu-aarch64-static):F" >$formats/register
trap 'echo -1 >$formats/$name; [ -z "$mounted" ] || umount $formats' EXIT

inside() { chroot "$root" /usr/bin/env -i PATH=/venv/bin:/usr/bin:/bin HOME=/ "$@"; }

if [ ! -x "$root/usr/bin/python3" ]; then
	debootstrap --foreign --arch=arm64 --variant=minbase \
		--include=python3,python3-venv,python3-dev,gcc,libc6-dev,ca-certificates bookworm "$root"
	# Unpacked is enough: nothing of it has to be configured.
	for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb --extract "$package" "$root"; done
fi

# Wheels for there, and the sources.
rm -rf "$folder/build" && mkdir -p "$root/wheels"
wheel=$($python -c "import sys; from pathlib import Path; from benchmarks.installs import build_wheel
print(build_wheel(Path(sys.argv[1])))" "$folder/build")
cp "$(dirname "$wheel")"/*.tar.gz "$root/wheels/"
platforms=()
for each in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
	platforms+=(--platform "${each}_aarch64")
done
# Named from the package's own metadata: what its extra asks for.
wanted=$($python - <<'PROGRAM'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"]["edge"], sep="\n")
PROGRAM
)
mapfile -t wanted <<<"$wanted"
$python -m pip download --quiet --only-binary=:all: "${platforms[@]}" --python-version 311 \
	--implementation cp --constraint constraints.txt --dest "$root/wheels" \
	"${wanted[@]}" 'setuptools>=77' wheel

inside python3 -m venv /venv
inside pip install --quiet --no-index --find-links /wheels --force-reinstall 'neucodex[edge]'
inside python3 -Ic 'import platform, shared.codec.native as n; print(platform.machine(), "C codec:", n.AVAILABLE)'

NEUCODEX_AARCH64_ROOT=$root $python -m pytest -m slow tests/test_aarch64.py
