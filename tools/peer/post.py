"""Pre- and post-processing of the PyTorch peer (reference/NOTES.md sections 3 and 5).

Each post-processing exists twice with the same result: `*_plain` does what the official code does, step by step;
`*_lean` keeps PyTorch's operators but skips work that cannot change the result (a mask wanted for several classes is resized
once, a resize to the same size is dropped) and goes through the objects in small chunks so that full-resolution
floats stay in cache.
"""
import cv2
import numpy as np
import torch
import torch.nn.functional as F

VOID = 133
CHUNK = 8


def keep_ratio_size(h, w, short=800, long=1333):
    """mmdet's keep-ratio rule: (new h, new w)."""
    scale = min(long / max(h, w), short / min(h, w))
    return int(h * scale + 0.5), int(w * scale + 0.5)


def preprocess(cfg, image, size):
    """uint8 RGB [h, w, 3] -> resized to `size`, normalised, zero-padded to a multiple of the model's divisor: float32 [1, 3, H, W]."""
    h, w = size
    if image.shape[:2] != (h, w):
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    divisor = cfg.size_divisor
    x = np.zeros((-(-h // divisor) * divisor, -(-w // divisor) * divisor, 3), np.float32)
    # OpenCV subtracts and multiplies in place, with the two roundings that mmcv's imnormalize has.
    y = image.astype(np.float32)
    mean, std = (np.array([v], np.float32).astype(np.float64) for v in (cfg.mean, cfg.std))
    cv2.subtract(y, mean, y)
    cv2.multiply(y, 1 / std, y)
    x[:h, :w] = y
    return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))[None]


def _bilinear(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _rescale(prob, batch_size, img_size, ori_size, lean):
    """Stride-4 probabilities, or class logits, [1, n, h, w] -> [n, ori_h, ori_w]: to the padded size, crop, to the original size."""
    prob = _bilinear(prob, batch_size)[:, :, : img_size[0], : img_size[1]]
    return (prob if lean and img_size == ori_size else _bilinear(prob, ori_size))[0]


def _stride4(mask_logits):
    return F.interpolate(mask_logits, scale_factor=2, mode="bilinear", align_corners=False).sigmoid()


def mask_quality(masks):
    """Mean probability of each mask's own pixels [N, h, w] -> [N, 1]; 0 where it has none."""
    inside = masks > 0
    total = torch.where(inside, masks.sigmoid(), 0.0).sum((1, 2), dtype=torch.float64)
    return (total / inside.sum((1, 2)).clamp(min=1)).to(masks.dtype)[:, None]


def instance(cls, masks, batch_size, img_size, ori_size, max_per_img=100, mask_score=False, lean=False):
    """dict(scores, labels, mask_indices, masks bool [k, ori_h, ori_w])."""
    prob = cls[0].sigmoid()
    if mask_score:  # objects without a pixel score 0, all alike: they keep their order
        scores, index = (x[:max_per_img] for x in (prob * mask_quality(masks[0])).flatten().sort(descending=True, stable=True))
    else:
        scores, index = prob.flatten().topk(max_per_img, sorted=True)
    num_classes = cls.shape[2]
    mask_indices, labels = index // num_classes, index % num_classes
    if lean:
        unique, inverse = mask_indices.unique(return_inverse=True)
        prob = _stride4(masks[:, unique])
        out = torch.empty((len(unique), *ori_size), dtype=torch.bool)
        for i in range(0, len(unique), CHUNK):
            part = _rescale(prob[:, i : i + CHUNK], batch_size, img_size, ori_size, True)
            torch.gt(part, 0.5, out=out[i : i + CHUNK])
        out = out[inverse]
    else:
        out = _rescale(_stride4(masks)[:, mask_indices], batch_size, img_size, ori_size, False) > 0.5
    return {"scores": scores, "labels": labels, "mask_indices": mask_indices, "masks": out}


def panoptic(cls, masks, batch_size, img_size, ori_size, num_proposals=100, num_things=80, score_thr=0.3,
             overlap_thr=0.6, lean=False):
    """dict(pan, segments, argmax_ids, mask_area, original_area, sorted_inds, total_scores, total_labels)."""
    prob = cls[0].sigmoid()
    thing_scores, thing_labels = prob[:num_proposals, :num_things].max(1)
    stuff_scores = prob[num_proposals:, num_things:].diag()
    scores = torch.cat((thing_scores, stuff_scores))
    labels = torch.cat((thing_labels, torch.arange(num_things, num_things + len(stuff_scores))))
    stride4, n = _stride4(masks), len(scores)
    if lean:
        best = torch.full(ori_size, -1.0)
        ids = torch.zeros(ori_size, dtype=torch.int64)
        original_area = torch.empty(n, dtype=torch.int64)
        for i in range(0, n, CHUNK):
            part = _rescale(stride4[:, i : i + CHUNK], batch_size, img_size, ori_size, True)
            original_area[i : i + CHUNK] = (part >= 0.5).flatten(1).sum(1)
            value, arg = (part * scores[i : i + CHUNK, None, None]).max(0)
            won = value > best
            best, ids = torch.where(won, value, best), torch.where(won, arg + i, ids)
    else:
        part = _rescale(stride4, batch_size, img_size, ori_size, False)
        ids = (scores[:, None, None] * part).argmax(0)
        original_area = (part >= 0.5).flatten(1).sum(1)
    mask_area = torch.bincount(ids.flatten(), minlength=n)
    order = scores.argsort(descending=True)
    pan = torch.full(ori_size, VOID, dtype=torch.int32)
    segments, values = [], torch.full((n,), VOID, dtype=torch.int32)
    for k in order.tolist():
        label, score, a, b = int(labels[k]), float(scores[k]), int(mask_area[k]), int(original_area[k])
        thing = label < num_things
        if (thing and score < score_thr) or a == 0 or b == 0 or a / b < overlap_thr:
            continue
        value = label + 1000 * len(segments)
        if lean:
            values[k] = value
        else:
            pan[ids == k] = value
        segments.append({"segment_id": len(segments), "pan_value": value, "category": label, "isthing": thing, "query": k,
                         "score": score, "area": a, "original_area": b})
    if lean:
        pan = values[ids]
    return {"pan": pan, "segments": segments, "argmax_ids": ids, "mask_area": mask_area, "original_area": original_area,
            "sorted_inds": order, "total_scores": scores, "total_labels": labels}


def semantic(logits, batch_size, img_size, ori_size, lean=False):
    """dict(argmax_ori_size, areas): logits resized twice, softmax, argmax."""
    if lean:
        best = torch.full(ori_size, -torch.inf)
        classes = torch.zeros(ori_size, dtype=torch.int64)
        for i in range(0, logits.shape[1], CHUNK):
            value, arg = _rescale(logits[:, i : i + CHUNK], batch_size, img_size, ori_size, True).max(0)
            won = value > best
            best, classes = torch.where(won, value, best), torch.where(won, arg + i, classes)
    else:
        classes = _rescale(logits, batch_size, img_size, ori_size, False).softmax(0).argmax(0)
    return {"argmax_ori_size": classes, "areas": torch.bincount(classes.flatten(), minlength=logits.shape[1])}


def postprocess(cfg, outputs, batch_size, img_size, ori_size, lean=False):
    """Post-processing of what the network of a model returned."""
    if cfg.generator is not None:
        return semantic(outputs, tuple(batch_size), tuple(img_size), tuple(ori_size), lean)
    cls, masks = outputs
    sizes = (tuple(batch_size), tuple(img_size), tuple(ori_size))
    if cfg.panoptic:
        return panoptic(cls, masks, *sizes, cfg.num_proposals, cfg.num_things, lean=lean)
    return instance(cls, masks, *sizes, mask_score=cfg.mask_score, lean=lean)


def finals(cfg, result):
    """The post-processing result as arrays under the names of reference/*/meta.json (`final.*`)."""
    if cfg.panoptic or cfg.generator is not None:
        return {f"final.{k}": v.numpy() for k, v in result.items() if k != "segments"}
    masks = result["masks"].numpy()
    return {"final.scores": result["scores"].numpy(), "final.labels": result["labels"].numpy(),
            "final.mask_indices": result["mask_indices"].numpy(), "final.masks_packed": np.packbits(masks),
            "final.masks_shape": np.array(masks.shape), "final.mask_area": masks.sum((1, 2))}
