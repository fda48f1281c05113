"""How much a clip moves, for choosing its attention window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT_SIDE_PX = 360


def clip_motion_px(video: Tensor, frame_rate_hz: float = 8.0) -> float:
    """95th percentile over pixels and pairs of neighbours of |optical flow|: px at 360 px short side per 1/8 s.

    video: C T H W in [-1, 1]. The percentile, not the mean of curation's motion score, because a window must hold what
    moves fastest. OpenCV's DIS flow, medium preset, on luma; 0 for an image. Imports cv2.
    """
    import cv2
    import numpy as np

    _, frames, height, width = video.shape
    scale = SHORT_SIDE_PX / min(height, width)
    size = (max(32, round(height * scale)), max(32, round(width * scale)))
    weights = torch.tensor([0.299, 0.587, 0.114], device=video.device)
    luma = torch.einsum("cthw,c->thw", (video.float() + 1) * 127.5, weights)
    luma = F.interpolate(luma[:, None], size=size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
    pictures = luma.round().clamp(0, 255).byte().cpu().numpy()
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [estimator.calc(pictures[i], pictures[i + 1], None) for i in range(frames - 1)]
    if not flows:
        return 0.0
    magnitudes = np.linalg.norm(np.stack(flows), axis=-1)
    return float(np.percentile(magnitudes, 95)) * frame_rate_hz / 8.0
