#!/usr/bin/env bash
# Makes the Python environment in which tools/peer/rcnn.py runs the official code of Mask R-CNN and Cascade Mask R-CNN (mmdet 2.28.2).
#
#   tools/peer/setup_rcnn.sh VENV              adds mmdet to the environment of setup.sh at VENV (made if it is not there), with the newest torch: a minute
#   tools/peer/setup_rcnn.sh --official VENV   an environment of its own with the versions that the goldens were made with: torch 2.1.2,
#                                              torchvision 0.16.2 (2.5 GB to download, 5 GB on disk; Python 3.8 to 3.11, PYTHON=python3.11 names one)
#
# mmcv 1.7.2 comes without its compiled operators, which take an hour of a core to build and do not build for today's torch. Of them an R-CNN calls two,
# RoIAlign and NMS, and gets torchvision's, which are the same (rcnn_worker.py; `rcnn.py --goldens` compares them with results of mmcv's own).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
official=
if [[ ${1:-} == --official ]]; then official=1; shift; fi
venv=${1:?usage: tools/peer/setup_rcnn.sh [--official] VENV}
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
packages=(addict yapf pyyaml packaging pycocotools terminaltables six matplotlib scipy safetensors)

if [[ $official ]]; then
    "${PYTHON:-python3}" -m venv "$venv"
    pip install --quiet torch==2.1.2 torchvision==0.16.2 "numpy<2" "opencv-python-headless<4.12" pillow "${packages[@]}"
else
    [[ -x $venv/bin/python ]] || "$here/setup.sh" "$venv"
    pip install --quiet "${packages[@]}"
fi

# mmcv's setup.py asks for pkg_resources, which later setuptools no longer have: its wheel is made in an environment that is thrown away.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$venv/bin/python" -m venv "$scratch/venv"
build() { "$scratch/venv/bin/python" -m pip --disable-pip-version-check "$@"; }
build install --quiet "setuptools<70" wheel
MMCV_WITH_OPS=0 build wheel --quiet --no-build-isolation --no-deps --no-binary mmcv --wheel-dir "$scratch" mmcv==1.7.2
pip install --quiet --no-deps "$scratch"/mmcv-*.whl mmdet==2.28.2
"$venv/bin/python" -W ignore - <<'PY'
import mmcv, numpy, torch
print(f"torch {torch.__version__}, mmcv {mmcv.__version__}, mmdet 2.28.2, numpy {numpy.__version__}")
PY
