#!/usr/bin/env bash
# The whole table of knet beside other programs on a CPU, on a machine that has nothing of it yet: one command.
#
#   tools/peer/race.sh [--quick] [OUT]
#
# OUT (default out/race-DATE) receives a result for each part, in the forms of benches/results/README.md, and a log; moved to benches/results and
# committed, tools/report draws them. What differs in its outputs is not timed: the command then ends with that part's words.
#
#   --quick      320x320 alone, one round: to see that all works; the numbers mean nothing
#   --official   also the official detectors with the versions of their time, torch 2.1.2 (setup_rcnn.sh --official; Python 3.8 to 3.11)
#
#   THREADS=2    threads of every program
#   PRECISIONS="f32 bf16"   knet's precisions beside the runtimes (default f32)
#   INT8_R50=FILE INT8_PERSON=FILE   knet's weights of these models in int8, to race them too
#   PHOTOS=FOLDER   photos that calibrate the runtimes' int8, which is left out without them
#   VENV=DIR     Python environment (default tools/peer/.venv), made if it is not there
#   KNET=FILE RIVALS=FILE OPS=FILE   a release build's knet and its benches `rivals` and `ops`, instead of building them here
#
# Needs cargo, git, g++ and Python 3.8 to 3.13 with venv. The machine should do nothing else: each result says its load.
set -euo pipefail
cd "$(dirname "$0")/../.."

quick='' official='' out=''
for argument in "$@"; do
    case $argument in
        --quick) quick=1 ;;
        --official) official=1 ;;
        -h | --help)
            sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
            exit
            ;;
        -*) echo "unknown option $argument; --help says what there is" >&2; exit 2 ;;
        *) out=$argument ;;
    esac
done
out=${out:-out/race-$(date +%F)}
venv=${VENV:-tools/peer/.venv}
threads=${THREADS:-2}

if [[ $quick ]]; then
    large=() small=(320x320) rounds=1 runs=1 forms=(eager) checked=(knet_s3_r50_fpn) seconds=2 minutes=5
else
    large=(800x1333) small=(512x512 320x320) rounds=5 runs=3 forms=(eager compile) checked=(knet_s3_r50_fpn knet_s3_r50_fpn_panoptic) seconds=60 minutes=60
fi

say() { printf '\n== %s  %s\n' "$(date +%H:%M:%S)" "$*"; }

cat <<TEXT
The race of knet on a CPU${quick:+, quick: one small size, one round}. Results: $out

Downloads, unless they are there: PyTorch with torchvision (about 3 GB packed, 5.6 GB on disk in $venv), OpenVINO, NNCF, ONNX Runtime and ONNX
(170 MB), mmdet 2.28.2 and mmcv 1.7.2 (10 MB), knet's crates${official:+; torch 2.1.2 (2.5 GB packed, 5 GB on disk)}. Weights: seeded, nothing to download.
Time on two cores: environments 3 minutes, release build 12 minutes, races $minutes minutes.
TEXT

mkdir -p "$out"
out=$(cd "$out" && pwd)
exec > >(tee -a "$out/log.txt") 2>&1

for program in git lscpu g++ "${PYTHON:-python3}"; do
    command -v "$program" > /dev/null || { echo "the race needs $program" >&2; exit 1; }
done
if [[ -z ${KNET:-} || -z ${RIVALS:-} || -z ${OPS:-} ]]; then command -v cargo > /dev/null || { echo "the race needs cargo" >&2; exit 1; }; fi

say "Python environment"
if ! "$venv/bin/python" -c 'import torch, openvino, nncf, onnxruntime, onnx, onnxscript' 2> /dev/null; then tools/peer/setup.sh "$venv"; fi
if ! "$venv/bin/python" -W ignore -c 'import mmcv, importlib.util; assert importlib.util.find_spec("mmdet")' 2> /dev/null; then tools/peer/setup_rcnn.sh "$venv"; fi
python() { "$venv/bin/python" -B "$@"; }
peers=("$venv/bin/python")
if [[ $official ]]; then
    [[ -x $venv-official/bin/python ]] || tools/peer/setup_rcnn.sh --official "$venv-official"
    peers+=("$venv-official/bin/python")
fi

say "Release build"
knet=${KNET:-target/release/knet}
if [[ -z ${KNET:-} ]]; then cargo build --locked --release --bin knet; fi
if [[ -z ${RIVALS:-} || -z ${OPS:-} ]]; then cargo bench --locked --bench rivals --bench ops --no-run; fi
rivals() { if [[ ${RIVALS:-} ]]; then "$RIVALS" --bench "$@"; else cargo bench --locked --bench rivals -- "$@"; fi; }
ops() { if [[ ${OPS:-} ]]; then "$OPS" --bench "$@"; else cargo bench --locked --bench ops -- "$@"; fi; }

say "The peer is the official code: its goldens"
python tools/peer/check.py --models "${checked[@]}"

shared=(--knet "$knet" --threads "$threads")
read -ra precisions <<< "${PRECISIONS:-f32}"
lower=(--precisions "${precisions[@]}" ${PHOTOS:+--photos "$PHOTOS"})

say "Detectors on knet: K-Net, Mask R-CNN, Cascade Mask R-CNN"
export KNET_THREADS=$threads
if [[ $quick ]]; then
    rivals race/320x320/knet_s3_r50_fpn --quick
else
    rivals table
    cp target/race.json "$out/detectors.json"
fi

if [[ ! $quick ]]; then
    say "Every kernel by layer, against this machine's ceilings"
    ops table
    cp target/kernels.json "$out/kernels.json"
fi

say "K-Net beside PyTorch"
python tools/peer/bench.py "${shared[@]}" --sizes "${large[@]}" "${small[@]}" --rounds "$rounds" --runs "$runs" --variants "${forms[@]}" --json "$out/pytorch.json"

say "Two-stage detectors beside their official code"
python tools/peer/rcnn.py "${shared[@]}" --peers "${peers[@]}" --forms "${forms[@]}" --sizes "${large[@]}" "${small[0]}" --rounds "$rounds" --json "$out/two-stage.json"

say "What the cores multiply at best"
python tools/peer/ceilings_cpu.py --threads "$threads"

say "K-Net beside OpenVINO, ONNX Runtime and PyTorch"
python tools/peer/runtimes.py "${shared[@]}" "${lower[@]}" ${INT8_R50:+--int8 "$INT8_R50"} --forms "${forms[@]}" --sizes "${large[@]}" "${small[@]}" --rounds "$rounds" --runs "$runs" --json "$out/runtimes-r50.json"
python tools/peer/runtimes.py "${shared[@]}" "${lower[@]}" ${INT8_PERSON:+--int8 "$INT8_PERSON"} --forms "${forms[@]}" --models knet_s3_lite0_person --sizes 384x512 --rounds "$rounds" --runs "$((10 * runs))" \
    --json "$out/runtimes-person.json"

say "How time grows, and how latencies spread"
python tools/peer/curves.py sizes "${shared[@]}" ${quick:+--sizes 320x320 384x512} --rounds "$((rounds < 3 ? rounds : 3))" --runs "$runs" --json "$out/time-by-size.json"
python tools/peer/curves.py kernels "${shared[@]}" ${quick:+--kernels 25 50} --rounds "$rounds" --runs "$((10 * runs))" --json "$out/time-by-kernels.json"
python tools/peer/curves.py stream "${shared[@]}" --seconds "$seconds" --json "$out/stream.json"

say "Done"
ls "$out"
echo "To show them: move the folder's JSON files to benches/results/$(date +%F)-NAME, commit, run tools/report."
