"""A figure of the page: charts, words, numbers and where they come from."""

from dataclasses import dataclass, field
from typing import Protocol

from .results import Source


class Chart(Protocol):
    alt: str

    def draw(self, width: int, style: str = "") -> str: ...


@dataclass
class Figure:
    id: str
    title: str
    #: One or two sentences: what is seen. HTML.
    text: str
    #: (title, chart); a single chart has no title of its own.
    charts: list[tuple[str, Chart]]
    source: Source
    head: list[str]
    rows: list[list[str]]
    #: What a reader must know to judge the numbers. HTML.
    note: str = ""


@dataclass
class Section:
    id: str
    title: str
    text: str
    figures: list[Figure] = field(default_factory=list)


#: Models as people call them.
NAMES = {
    "knet_s3_r50_fpn": "R50 instance",
    "knet_s3_r50_fpn_panoptic": "R50 panoptic",
    "knet_s3_r101_fpn_panoptic": "R101 panoptic",
    "knet_s3_r101_dcn_panoptic": "R101-DCN panoptic",
    "knet_s3_swin_l_panoptic": "Swin-L panoptic",
    "knet_s3_lite0_fpn": "EfficientNet-Lite0",
    "knet_s3_lite0_person": "the person model",
    "knet_s3_fcn_r50-d8": "FCN + K-Net",
    "knet_s3_pspnet_r50-d8": "PSPNet + K-Net",
    "knet_s3_deeplabv3_r50-d8": "DeepLabV3 + K-Net",
    "knet_s3_upernet_r50": "UPerNet + K-Net",
    "knet_s3_upernet_swin-t": "UPerNet Swin-T + K-Net",
    "knet_s3_upernet_swin-l": "UPerNet Swin-L + K-Net",
    "mmseg_knet_s3_upernet_r50": "UPerNet + K-Net (mmseg)",
    "mmseg_knet_s3_upernet_swin-t": "Swin-T + K-Net (mmseg)",
    "fcn_r50-d8": "FCN",
    "pspnet_r50-d8": "PSPNet",
    "deeplabv3_r50-d8": "DeepLabV3",
    "upernet_r50": "UPerNet",
    "mask_rcnn_r50_fpn": "Mask R-CNN",
    "cascade_mask_rcnn_r50_fpn": "Cascade Mask R-CNN",
}
#: Forms of PyTorch, as tools/peer/variants.py names them.
FORMS = {
    "eager": "eager",
    "eager-nhwc": "eager, channels last",
    "eager-folded": "eager, norms folded",
    "jit": "TorchScript",
    "compile": "compile",
    "compile-nhwc": "compile, channels last",
}


def model_name(model: str) -> str:
    return NAMES.get(model, model)


def size_name(size) -> str:
    return f"{size[0]}\u00d7{size[1]}"
