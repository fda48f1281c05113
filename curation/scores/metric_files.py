"""Weights files of the quality metrics, for a folder that the user fills. Light: `flashvideo doctor` reads it."""

from __future__ import annotations

METRIC_FILES = {
    "musiq": "musiq_koniq_ckpt-e95806b9.pth",
    "musiq-spaq": "musiq_spaq_ckpt-358bb6af.pth",
    "maniqa": "ckpt_koniq10k.pt",
    "clipiqa": "RN50.pt",
    "niqe": "niqe_modelparameters.mat",
}
"""Metric -> file. piqe needs none. From github.com/chaofengc/IQA-PyTorch, release v0.1-weights; RN50.pt: OpenAI's CLIP."""
