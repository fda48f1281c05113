"""The paper's numbers, typed once, to stand beside ours. Light.

Source of every number: FlashVideo, arXiv 2502.05179 (the later version). Percent for VBench dimensions; MUSIQ
and DOVER about 0-100, MANIQA and CLIPIQA 0-1, NIQE lower is better.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashvideo.evaluation.totals import QUALITY_DIMENSIONS, SEMANTIC_DIMENSIONS

SOURCE = "FlashVideo, arXiv 2502.05179"


@dataclass(frozen=True)
class VBenchRow:
    """One row of Table 1, percent as printed."""

    model: str
    total: float
    quality: float
    semantic: float
    dimensions: dict[str, float]


def _row(model: str, printed: tuple[float, float, float], quality: tuple[float, ...], semantic: tuple[float, ...]) -> VBenchRow:
    """`printed`: total, quality, semantic. The two tuples follow QUALITY_DIMENSIONS and SEMANTIC_DIMENSIONS."""
    names = QUALITY_DIMENSIONS + SEMANTIC_DIMENSIONS
    return VBenchRow(model, *printed, dict(zip(names, quality + semantic, strict=True)))


TABLE_1: tuple[VBenchRow, ...] = (
    _row(
        "HunyuanVideo",
        (83.24, 85.09, 75.82),
        (97.37, 97.76, 99.44, 98.99, 60.36, 67.56, 70.83),
        (86.1, 68.55, 94.4, 91.6, 68.68, 53.88, 19.8, 23.89, 26.44),
    ),
    _row(
        "Vchitect-2.0 (VEnhancer)",
        (82.24, 83.54, 77.06),
        (96.83, 96.66, 98.57, 98.98, 60.41, 65.35, 63.89),
        (86.61, 68.84, 97.2, 87.04, 57.55, 56.57, 23.73, 25.01, 27.57),
    ),
    _row(
        "CogVideoX-1.5",
        (82.17, 82.78, 79.76),
        (96.87, 97.35, 98.88, 98.31, 62.79, 65.02, 50.93),
        (87.47, 69.65, 97.2, 87.55, 80.25, 52.91, 24.89, 25.19, 27.3),
    ),
    _row(
        "CogVideoX-5B",
        (81.61, 82.75, 77.04),
        (96.23, 96.52, 98.66, 96.92, 61.98, 62.9, 70.97),
        (85.23, 62.11, 99.4, 82.81, 66.35, 53.2, 24.91, 25.38, 27.59),
    ),
    _row(
        "CogVideoX-2B",
        (80.91, 82.18, 75.83),
        (96.78, 96.63, 98.89, 99.02, 60.82, 61.68, 59.86),
        (83.37, 62.63, 98.0, 79.41, 69.9, 51.14, 24.8, 24.36, 26.66),
    ),
    _row(
        "Mochi-1",
        (80.13, 82.64, 70.08),
        (96.99, 97.28, 99.4, 99.02, 56.94, 60.64, 61.85),
        (86.51, 50.47, 94.6, 79.73, 69.24, 36.99, 20.33, 23.65, 25.15),
    ),
    _row(
        "LTX-Video",
        (80.0, 82.3, 70.79),
        (96.56, 97.2, 99.34, 98.96, 59.81, 60.28, 54.35),
        (83.45, 45.43, 92.8, 81.45, 65.43, 51.07, 21.47, 22.62, 25.19),
    ),
    _row(
        "OpenSora-1.2",
        (79.76, 81.35, 73.39),
        (96.75, 97.61, 99.53, 98.5, 56.85, 63.34, 42.39),
        (82.22, 51.83, 91.2, 90.08, 68.56, 42.44, 23.95, 24.54, 26.85),
    ),
    _row(
        "OpenSoraPlan-V1.1",
        (78.0, 80.91, 66.38),
        (95.73, 96.73, 99.03, 98.28, 56.85, 62.28, 47.72),
        (76.3, 40.35, 86.8, 89.19, 53.11, 27.17, 22.9, 23.87, 26.52),
    ),
    _row(
        "FlashVideo 8fps",
        (82.8, 82.99, 82.03),
        (96.91, 96.77, 98.56, 96.84, 62.55, 66.96, 63.47),
        (90.02, 81.47, 99.0, 85.71, 83.2, 55.34, 24.64, 25.23, 27.65),
    ),
    _row(
        "FlashVideo 24fps",
        (83.29, 83.72, 81.6),
        (97.14, 97.07, 98.57, 98.83, 62.41, 66.12, 59.86),
        (88.45, 80.27, 99.0, 84.14, 82.27, 56.71, 24.6, 25.23, 27.6),
    ),
)
"""Table 1, VBench-Long. CogVideoX-2B's motion smoothness, 99.02, does not fit its own printed scores: it is the
next row's value; 97.73 would (flashvideo.evaluation.totals.repairs)."""

FrameQualityTable = dict[str, dict[str, float]]

TABLE_2: FrameQualityTable = {
    "Stage I 270p (50 NFE, 30.1 s)": {
        "MUSIQ": 24.54,
        "MANIQA": 0.226,
        "CLIPIQA": 0.334,
        "NIQE": 11.77,
        "DOVER technical": 7.28,
        "DOVER aesthetic": 96.15,
    },
    "Stage II 1080p (4 NFE, 72.2 s)": {
        "MUSIQ": 53.46,
        "MANIQA": 0.302,
        "CLIPIQA": 0.436,
        "NIQE": 5.38,
        "DOVER technical": 11.68,
        "DOVER aesthetic": 97.87,
    },
}
"""Table 2: the two stages on VBench-Long prompts, frames of Stage I upsampled to 1080p."""

TABLE_3: FrameQualityTable = {
    "RealBasicVSR (1 NFE, 71.5 s)": {
        "MUSIQ": 54.26,
        "MANIQA": 0.272,
        "CLIPIQA": 0.418,
        "NIQE": 5.281,
        "DOVER technical": 10.71,
        "DOVER aesthetic": 99.42,
    },
    "Upscale-A-Video (30 NFE, 376.6 s)": {
        "MUSIQ": 23.67,
        "MANIQA": 0.201,
        "CLIPIQA": 0.285,
        "NIQE": 12.02,
        "DOVER technical": 7.69,
        "DOVER aesthetic": 97.61,
    },
    "VEnhancer (30 NFE, 549.2 s)": {
        "MUSIQ": 51.69,
        "MANIQA": 0.28,
        "CLIPIQA": 0.385,
        "NIQE": 5.33,
        "DOVER technical": 11.63,
        "DOVER aesthetic": 98.39,
    },
    "FlashVideo (4 NFE, 72.2 s)": {
        "MUSIQ": 58.69,
        "MANIQA": 0.296,
        "CLIPIQA": 0.439,
        "NIQE": 4.501,
        "DOVER technical": 11.86,
        "DOVER aesthetic": 98.92,
    },
}
"""Table 3: enhancers on the 100 prompts of Texture100 (not public)."""

TABLE_4: FrameQualityTable = {
    "Full fine-tuning": {
        "MUSIQ": 20.53,
        "CLIPIQA": 0.273,
        "DOVER technical": 8.531,
        "DOVER aesthetic": 97.64,
        "object class": 85.6,
        "overall consistency": 26.1,
    },
    "LoRA": {
        "MUSIQ": 23.93,
        "CLIPIQA": 0.286,
        "DOVER technical": 8.569,
        "DOVER aesthetic": 97.87,
        "object class": 90.3,
        "overall consistency": 27.9,
    },
}
"""Table 4: how Stage I is adapted; the two VBench dimensions in percent."""

TABLE_5: FrameQualityTable = {
    "1080p (72.2 s)": {
        "MUSIQ": 58.69,
        "MANIQA": 0.296,
        "CLIPIQA": 0.439,
        "NIQE": 4.501,
        "DOVER technical": 11.86,
        "DOVER aesthetic": 98.92,
    },
    "2K (209.8 s)": {"MUSIQ": 62.4, "MANIQA": 0.354, "CLIPIQA": 0.497, "NIQE": 4.463, "DOVER technical": 12.25, "DOVER aesthetic": 99.2},
}
"""Table 5: inference resolution of Stage II."""

TABLE_6: FrameQualityTable = {
    "none (Stage I)": {"MUSIQ": 23.61, "MANIQA": 0.2, "CLIPIQA": 0.286, "NIQE": 12.02, "DOVER technical": 6.43, "DOVER aesthetic": 97.32},
    "pixel": {"MUSIQ": 49.12, "MANIQA": 0.253, "CLIPIQA": 0.364, "NIQE": 4.95, "DOVER technical": 7.12, "DOVER aesthetic": 99.02},
    "pixel + latent": {"MUSIQ": 55.45, "MANIQA": 0.273, "CLIPIQA": 0.409, "NIQE": 4.69, "DOVER technical": 9.09, "DOVER aesthetic": 98.96},
}
"""Table 6: degradations in training, 5 frames."""

TABLE_7: FrameQualityTable = {
    "before": {"MUSIQ": 55.61, "MANIQA": 0.278, "CLIPIQA": 0.427, "NIQE": 4.667, "DOVER technical": 11.76, "DOVER aesthetic": 98.9},
    "after": {"MUSIQ": 58.69, "MANIQA": 0.296, "CLIPIQA": 0.439, "NIQE": 4.501, "DOVER technical": 11.86, "DOVER aesthetic": 98.92},
}
"""Table 7: before and after the human-preference phase."""

TABLE_8: FrameQualityTable = {
    "1": {"MUSIQ": 48.6, "MANIQA": 0.253, "CLIPIQA": 0.307, "NIQE": 5.148, "DOVER technical": 8.643, "DOVER aesthetic": 98.03},
    "2": {"MUSIQ": 55.1, "MANIQA": 0.287, "CLIPIQA": 0.39, "NIQE": 4.73, "DOVER technical": 10.57, "DOVER aesthetic": 98.38},
    "3": {"MUSIQ": 57.59, "MANIQA": 0.29, "CLIPIQA": 0.418, "NIQE": 4.543, "DOVER technical": 11.39, "DOVER aesthetic": 98.62},
    "4": {"MUSIQ": 58.69, "MANIQA": 0.296, "CLIPIQA": 0.439, "NIQE": 4.501, "DOVER technical": 11.86, "DOVER aesthetic": 98.92},
    "5": {"MUSIQ": 59.24, "MANIQA": 0.299, "CLIPIQA": 0.441, "NIQE": 4.492, "DOVER technical": 12.15, "DOVER aesthetic": 99.05},
    "6": {"MUSIQ": 59.17, "MANIQA": 0.295, "CLIPIQA": 0.44, "NIQE": 4.521, "DOVER technical": 12.48, "DOVER aesthetic": 99.05},
    "7": {"MUSIQ": 59.48, "MANIQA": 0.298, "CLIPIQA": 0.445, "NIQE": 4.578, "DOVER technical": 12.2, "DOVER aesthetic": 99.01},
    "8": {"MUSIQ": 59.64, "MANIQA": 0.298, "CLIPIQA": 0.451, "NIQE": 4.554, "DOVER technical": 12.05, "DOVER aesthetic": 99.16},
}
"""Table 8: function evaluations of Stage II."""

TABLE_9: FrameQualityTable = {
    "1": {"MUSIQ": 45.01, "MANIQA": 0.253, "CLIPIQA": 0.359, "NIQE": 5.395, "DOVER technical": 10.75, "DOVER aesthetic": 98.98},
    "4": {"MUSIQ": 50.92, "MANIQA": 0.278, "CLIPIQA": 0.397, "NIQE": 5.102, "DOVER technical": 11.71, "DOVER aesthetic": 99.16},
    "7": {"MUSIQ": 54.26, "MANIQA": 0.287, "CLIPIQA": 0.418, "NIQE": 4.905, "DOVER technical": 11.97, "DOVER aesthetic": 99.1},
    "10": {"MUSIQ": 57.37, "MANIQA": 0.298, "CLIPIQA": 0.441, "NIQE": 4.692, "DOVER technical": 12.15, "DOVER aesthetic": 99.12},
    "13": {"MUSIQ": 58.69, "MANIQA": 0.296, "CLIPIQA": 0.439, "NIQE": 4.501, "DOVER technical": 11.86, "DOVER aesthetic": 98.92},
    "16": {"MUSIQ": 58.42, "MANIQA": 0.285, "CLIPIQA": 0.416, "NIQE": 4.353, "DOVER technical": 11.54, "DOVER aesthetic": 98.57},
    "19": {"MUSIQ": 57.66, "MANIQA": 0.277, "CLIPIQA": 0.397, "NIQE": 4.143, "DOVER technical": 11.32, "DOVER aesthetic": 97.84},
    "22": {"MUSIQ": 57.48, "MANIQA": 0.27, "CLIPIQA": 0.379, "NIQE": 3.982, "DOVER technical": 10.94, "DOVER aesthetic": 97.76},
}
"""Table 9: guidance scale of Stage II."""

TABLE_10: dict[str, FrameQualityTable] = {
    "trained 600-900": {
        "600": {"MUSIQ": 53.62, "MANIQA": 0.269, "CLIPIQA": 0.403, "NIQE": 4.911, "DOVER technical": 11.85, "DOVER aesthetic": 99.03},
        "650": {"MUSIQ": 53.98, "MANIQA": 0.269, "CLIPIQA": 0.399, "NIQE": 4.832, "DOVER technical": 11.77, "DOVER aesthetic": 99.06},
        "700": {"MUSIQ": 53.82, "MANIQA": 0.274, "CLIPIQA": 0.399, "NIQE": 4.763, "DOVER technical": 11.93, "DOVER aesthetic": 99.02},
        "750": {"MUSIQ": 54.06, "MANIQA": 0.279, "CLIPIQA": 0.4, "NIQE": 4.785, "DOVER technical": 11.96, "DOVER aesthetic": 98.92},
        "800": {"MUSIQ": 53.5, "MANIQA": 0.276, "CLIPIQA": 0.403, "NIQE": 4.663, "DOVER technical": 11.72, "DOVER aesthetic": 98.91},
        "850": {"MUSIQ": 51.39, "MANIQA": 0.279, "CLIPIQA": 0.391, "NIQE": 4.787, "DOVER technical": 11.26, "DOVER aesthetic": 98.72},
    },
    "trained 650-750": {
        "650": {"MUSIQ": 58.49, "MANIQA": 0.294, "CLIPIQA": 0.431, "NIQE": 4.583, "DOVER technical": 11.96, "DOVER aesthetic": 98.84},
        "675": {"MUSIQ": 58.69, "MANIQA": 0.296, "CLIPIQA": 0.439, "NIQE": 4.501, "DOVER technical": 11.86, "DOVER aesthetic": 98.92},
        "700": {"MUSIQ": 57.8, "MANIQA": 0.29, "CLIPIQA": 0.418, "NIQE": 4.531, "DOVER technical": 12.01, "DOVER aesthetic": 98.78},
        "725": {"MUSIQ": 57.97, "MANIQA": 0.295, "CLIPIQA": 0.426, "NIQE": 4.462, "DOVER technical": 11.98, "DOVER aesthetic": 98.83},
        "750": {"MUSIQ": 57.62, "MANIQA": 0.294, "CLIPIQA": 0.422, "NIQE": 4.437, "DOVER technical": 12.1, "DOVER aesthetic": 98.72},
    },
}
"""Table 10: noise step of DEG_latent at inference, by the range trained with."""

INFERENCE_TIMES_S: dict[str, float] = {
    "5B at 1080p, single stage": 2150,
    "vanilla cascade at 1080p": 571.5,
    "FlashVideo 1080p total": 102.3,
    "Stage I 270p": 30.1,
    "Stage II 1080p": 72.2,
    "Stage II 2K": 209.8,
    "HunyuanVideo 720p": 1742,
}
"""Seconds a video, one GPU."""
