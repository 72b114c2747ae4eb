#!/usr/bin/env bash
# Makes the Python environment in which tools/peer/rcnn.py runs the official code of Mask R-CNN and Cascade Mask R-CNN (mmdet 2.28.2).
#
#   tools/peer/setup_rcnn.sh VENV              adds mmdet to the environment of setup.sh at VENV (made if it is not there): the newest torch, and
#                                              RoIAlign and NMS of torchvision, which mmcv's equal. A minute, 40 MB
#   tools/peer/setup_rcnn.sh --official VENV   an environment of its own as the goldens were made in: torch 2.1.2 and mmcv-full 1.7.2 with its own
#                                              operators, compiled here. Needs g++; 5 GB on disk, half an hour on one core (MAX_JOBS for more)
#
# Python 3.8 to 3.11 (PYTHON=python3.11 names one): torch 2.1.2 has no wheels for later ones.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
official=
if [[ ${1:-} == --official ]]; then official=1; shift; fi
venv=${1:?usage: tools/peer/setup_rcnn.sh [--official] VENV}
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
# Their setup.py asks for pkg_resources, which later setuptools no longer have.
tools=("setuptools<70" wheel)
packages=(addict yapf pyyaml packaging pycocotools terminaltables six matplotlib scipy safetensors)

if [[ $official ]]; then
    "${PYTHON:-python3}" -m venv "$venv"
    pip install --quiet "${tools[@]}" ninja psutil
    pip install --quiet torch==2.1.2 torchvision==0.16.2 "numpy<2" "opencv-python-headless<4.12" pillow "${packages[@]}"
    # Without a GPU's compiler its operators are those for the CPU alone.
    CUDA_VISIBLE_DEVICES='' MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-1} \
        pip install --quiet --no-build-isolation --no-deps --no-binary mmcv-full mmcv-full==1.7.2
else
    [[ -x $venv/bin/python ]] || "$here/setup.sh" "$venv"
    pip install --quiet "${packages[@]}"
    sdist=$(mktemp -d)
    trap 'rm -rf "$sdist"' EXIT
    "$venv/bin/python" -m venv "$sdist/venv"
    "$sdist/venv/bin/python" -m pip --disable-pip-version-check install --quiet "${tools[@]}"
    MMCV_WITH_OPS=0 "$sdist/venv/bin/python" -m pip --disable-pip-version-check wheel --quiet --no-build-isolation --no-deps \
        --no-binary mmcv --wheel-dir "$sdist" mmcv==1.7.2
    pip install --quiet --no-deps "$sdist"/mmcv-*.whl
fi
pip install --quiet --no-deps mmdet==2.28.2
"$venv/bin/python" -W ignore - <<'PY'
import mmcv, numpy, torch
print(f"torch {torch.__version__}, mmcv {mmcv.__version__}, mmdet 2.28.2, numpy {numpy.__version__}")
PY
