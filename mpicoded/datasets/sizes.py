"""Sizes of images: bilinear resizing."""

from __future__ import annotations

import numpy as np

from mpicoded.datasets.data import Images

CHUNK = 1024  # images resized at once


def resize(images: Images, size: tuple[int, int] | None) -> Images:
    """Return (N, C, *size): bilinear, antialiased, and rounded if the images are uint8."""
    import torch
    from torch.nn.functional import interpolate

    if size is None or images.shape[2:] == tuple(size):
        return images
    done = []
    for start in range(0, len(images), CHUNK):
        x = torch.from_numpy(np.array(images[start : start + CHUNK], np.float32))  # (b, C, H, W)
        x = interpolate(x, tuple(size), mode="bilinear", antialias=True)  # (b, C, *size)
        if images.dtype == np.uint8:
            x = x.round().clamp(0, 255).to(torch.uint8)
        done.append(x.numpy())
    return np.concatenate(done)
