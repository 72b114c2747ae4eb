"""Instance masks of K-Net in NumPy and OpenCV: the post-processing of runtimes that bring none of their own.

The same steps as post.instance, in the leanest form that was found: a mask wanted for several classes is made once, sizes that are equal already are
not resized, exponentials and resizes are OpenCV's (vectorised, on its threads), and one map at full size stays in cache.
"""
import cv2
import numpy as np


def sigmoid(x):
    """Of float32, by OpenCV's exponential."""
    y = cv2.exp(-x)
    y += 1
    return np.divide(1, y, out=y)


def quality(masks):
    """Mean probability of each mask's own pixels [N, h, w] -> [N]; 0 where it has none."""
    inside = masks > 0
    counts = inside.sum((1, 2))
    total = np.where(inside, sigmoid(masks.reshape(len(masks), -1)).reshape(masks.shape), 0).sum((1, 2), dtype=np.float64)
    return np.divide(total, counts, out=np.zeros(len(masks)), where=counts > 0).astype(np.float32)


def instance(cls, masks, batch_size, img_size, ori_size, max_per_img=100, mask_score=False):
    """dict(scores, labels, mask_indices, masks bool [k, ori_h, ori_w]) of class logits [1, N, classes] and mask logits [1, N, h, w]."""
    (cls,), (masks,) = cls, masks
    prob = sigmoid(cls)
    if mask_score:
        prob = prob * quality(masks)[:, None]
    flat = prob.ravel()
    keep = min(max_per_img, len(flat))
    best = np.argpartition(-flat, keep - 1)[:keep]
    best = best[np.lexsort((best, -flat[best]))]
    mask_indices, labels = best // cls.shape[1], best % cls.shape[1]
    unique, inverse = np.unique(mask_indices, return_inverse=True)
    out = np.empty((len(unique), *ori_size), bool)
    (batch_h, batch_w), (h, w) = batch_size, img_size
    for i, index in enumerate(unique):
        stride8 = masks[index]
        prob = sigmoid(cv2.resize(stride8, (2 * stride8.shape[1], 2 * stride8.shape[0]), interpolation=cv2.INTER_LINEAR))
        prob = cv2.resize(prob, (batch_w, batch_h), interpolation=cv2.INTER_LINEAR)[:h, :w]
        if (h, w) != tuple(ori_size):
            prob = cv2.resize(prob, ori_size[::-1], interpolation=cv2.INTER_LINEAR)
        np.greater(prob, 0.5, out=out[i])
    return {"scores": flat[best], "labels": labels, "mask_indices": mask_indices, "masks": out[inverse]}


def finals(result):
    """The result under the names of `knet dump`."""
    masks = result["masks"]
    return {"final.scores": result["scores"], "final.labels": result["labels"].astype(np.int32), "final.mask_indices": result["mask_indices"].astype(np.int32),
            "final.masks_packed": np.packbits(masks), "final.masks_shape": np.array(masks.shape), "final.mask_area": masks.sum((1, 2))}
