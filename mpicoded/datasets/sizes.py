"""Sizes of images: bilinear resizing."""

from __future__ import annotations

import numpy as np

from mpicoded.datasets.data import Images

CHUNK = 1024  # images resized at once
LARGEST = 128 << 20  # bytes of them


def resize(images: Images, size: tuple[int, int] | None) -> Images:
    """Return (N, C, *size): bilinear, antialiased, and rounded if the images are uint8."""
    import torch
    from torch.nn.functional import interpolate

    if size is None or images.shape[2:] == tuple(size):
        return images
    channels, *old = images.shape[1:]
    each = 4 * channels * max(old[0] * old[1], size[0] * size[1])  # bytes of an image
    step = max(1, min(CHUNK, LARGEST // each))
    if each > LARGEST and channels > 1:  # one channel at a time
        return np.concatenate([resize(images[:, c : c + 1], size) for c in range(channels)], 1)
    done = np.empty((len(images), channels, *size), images.dtype)
    for start in range(0, len(images), step):
        x = torch.from_numpy(np.array(images[start : start + step], np.float32))  # (b, C, H, W)
        x = interpolate(x, tuple(size), mode="bilinear", antialias=True)  # (b, C, *size)
        if images.dtype == np.uint8:
            x = x.round().clamp(0, 255).to(torch.uint8)
        done[start : start + step] = x.numpy()
    return done
