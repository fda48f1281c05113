"""OpenCV's DIS optical flow with a guard: the estimator of `motion_proxy`.

Planes are float32 H W, u and v apart: OpenCV and NumPy are several times as fast on them as on H W 2. All but the products of
one refining step is computed on the halved pictures, where DIS's finest scale lies.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np

Planes = tuple[np.ndarray, np.ndarray]
"""u and v, or derivatives in x and y."""


class DisFlow:
    """OpenCV's DIS optical flow with a guard for places where there is nothing to see. Answers at half the pictures' size.

    Raw DIS drifts on flat walls under compression noise: a static shot reads 2 px. So flow is believed where the
    picture has texture in two directions (smaller eigenvalue of the structure tensor) that stands out of what the flow
    leaves unexplained (noise has texture too), and filled in from there elsewhere, nearest scales first: a pan over
    a sky keeps its speed, a static wall stands, a picture of nothing but noise reads 0. Where little moves, a
    Lucas-Kanade step takes out DIS's bias of some percent at half a pixel. Where the camera zooms or turns fast, the
    second picture is first drawn back by the camera's affine part, and DIS looks for the rest: else it reads a zoom of
    40 px 9 % low, and what leaves the picture has no speed of its own.
    """

    wants_color = False
    TEXTURE = 2.0
    """Luma^2/px^2: eigenvalue at which a place is believed half. Measured on the reel."""
    NOISE = 4.0
    """The eigenvalue must be this often the mean squared difference that remains after the flow; white noise has 0.1-0.3."""
    FLOOR = 0.1
    """Less belief than this is none, so that a wall full of noise does not outweigh the things on it."""
    ENOUGH = 0.01
    """Mean belief that the finer picture must earn to replace the coarser one's answer; noise is less there."""
    SATURATION = 2.0
    """A coarser place counts fully once half of it is believed."""
    EXPLAINED = 40.0
    """Luma^2: squared difference that 99 % of the halved picture's places (5 px wide) must stay below for the search at a quarter of the
    size to be good enough. The finer one is for what is small and fast, and costs twice as much again."""
    SMALL_PX = 2.0
    DEFORMING_PX = 8.0
    """Difference between the camera's motion at the picture's edge and at its centre from which it is taken out first."""
    ROUNDS = 2

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        self._coarse_search = _search(finest=1, refinements=2, descents=16)
        self._fine_search = _search(finest=0, refinements=1, descents=8)
        self._fine_search.setCoarsestScale(0)
        self._thorough_search = _search(finest=0, refinements=5, descents=16)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        halves = _halved(first), _halved(second)
        gradients = _gradients(halves[0])
        raw, rest = self._found(*halves)
        filled = self._fill(raw, self._belief(_squares(gradients), rest))
        if 2 * cv2.mean(cv2.magnitude(*filled))[0] < self.SMALL_PX:
            return _merged(self._refined(first, second, raw) or filled)
        flow = _merged(filled)
        if not self._deforms(fit_affine(coarse(flow))):
            return flow
        # What deforms is torn by cheaper searches: fast wings read a third more.
        raw, rest = self._found_thoroughly(*halves)
        flow = _merged(self._fill(raw, self._belief(_squares(gradients), rest)))
        for _ in range(self.ROUNDS):
            affine = fit_affine(coarse(flow))
            if not self._deforms(affine):
                break
            around = self._around_camera(halves[0], second, gradients, affine)
            if _unexplained(halves, around) >= _unexplained(halves, flow):
                break
            flow = around
        return flow

    def _deforms(self, affine: np.ndarray) -> bool:
        return bool(max(abs(affine[[1, 2, 4, 5]])) >= self.DEFORMING_PX)

    def _found_thoroughly(self, first: np.ndarray, second: np.ndarray) -> tuple[Planes, np.ndarray]:
        """The same by a search that costs up to four times as much."""
        flow = _planes(self._thorough_search.calc(first, second, None))
        return flow, _rest(first, second, flow)

    def _found(self, first: np.ndarray, second: np.ndarray) -> tuple[Planes, np.ndarray]:
        """DIS's flow, and the squared difference that it leaves."""
        flow = self._coarse_search.calc(first, second, None)
        rest = _rest(first, second, _planes(flow))
        if np.quantile(_box(rest, 5)[::2, ::2], 0.99, method="lower") >= self.EXPLAINED:
            flow = self._fine_search.calc(first, second, flow)
            rest = _rest(first, second, _planes(flow))
        return _planes(flow), rest

    def _refined(self, first: np.ndarray, second: np.ndarray, flow: Planes) -> Planes | None:
        """One Gauss-Newton step of at most a pixel on windows of 10 px of the whole pictures, and filled; None: too little is believed."""
        xx, yy, xy, xt, yt, tt = _products(first, second, flow)
        determinant = (xx + 0.5) * (yy + 0.5) - xy * xy
        across = np.clip((xy * yt - (yy + 0.5) * xt) / determinant, -1, 1)
        down = np.clip((xy * xt - (xx + 0.5) * yt) / determinant, -1, 1)
        # What the step leaves, to first order: no second picture has to be drawn back.
        rest = tt + across * (2 * xt + across * xx + 2 * down * xy) + down * (2 * yt + down * yy)
        belief = self._belief((xx, yy, xy), rest, window_px=1)
        if cv2.mean(belief)[0] < self.ENOUGH:
            return None
        return self._fill((flow[0] + across / 2, flow[1] + down / 2), np.minimum(self.SATURATION * belief, 1))

    def _around_camera(self, first: np.ndarray, second: np.ndarray, gradients: Planes, affine: np.ndarray) -> np.ndarray:
        """Flow as the camera's affine part plus what DIS finds once that is taken out. first: halved; second: whole."""
        camera = affine_field(affine, *first.shape)
        u, v = _planes(camera / 2)
        raw, rest = self._found_thoroughly(first, _halved(_warped(second, _doubled((u, v), second))))
        filled = _merged(self._fill(raw, self._belief(_squares(gradients), rest) * _seen((u, v))))
        # The rest is measured in the drawn-back picture: the camera's part is that of the place it leads to.
        linear = np.array([[affine[1], affine[2]], [affine[4], affine[5]]], np.float32) / max(first.shape)
        return filled + camera + cv2.transform(filled, linear)

    def _belief(self, squares: tuple[np.ndarray, ...], rest: np.ndarray, window_px: int = 5) -> np.ndarray:
        """0-1 per pixel: texture in two directions (squares: xx, yy, xy of the gradients), more of it than the flow leaves unexplained."""
        xx, yy, xy = (_box(square, window_px) for square in squares)
        smaller = (xx + yy) / 2
        smaller -= cv2.magnitude((xx - yy) / 2, xy)
        smaller = np.maximum(smaller, 0)
        smaller *= smaller
        wanted = np.maximum(self.TEXTURE, self.NOISE * _box(rest, window_px))
        wanted *= wanted
        belief = smaller / (smaller + wanted)
        return np.maximum(belief - self.FLOOR, 0) / (1 - self.FLOOR)

    def _fill(self, flow: Planes, belief: np.ndarray) -> Planes:
        """Believed flow, spread over the rest (pull-push pyramid)."""
        levels = [(*flow, belief)]
        while min(belief.shape) > 2:
            total = cv2.pyrDown(belief)
            flow = tuple(cv2.pyrDown(plane * belief) / (total + 1e-4) for plane in flow)
            belief = np.minimum(total * self.SATURATION, 1)
            levels.append((*flow, belief))
        for u, v, here in levels[-2::-1]:
            flow = _spread(flow[0], u, here), _spread(flow[1], v, here)
        return flow


def _search(finest: int, refinements: int, descents: int) -> Any:
    """DIS from the coarsest scale to `finest` (0: the size of what it is given)."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    search.setFinestScale(finest)
    search.setVariationalRefinementIterations(refinements)
    search.setGradientDescentIterations(descents)
    return search


def _spread(coarser: np.ndarray, plane: np.ndarray, belief: np.ndarray) -> np.ndarray:
    """The plane where it is believed, the coarser one elsewhere."""
    around = cv2.resize(coarser, (plane.shape[1], plane.shape[0]), interpolation=cv2.INTER_LINEAR)
    change = plane - around
    change *= belief
    around += change
    return around


def _products(first: np.ndarray, second: np.ndarray, flow: Planes) -> tuple[np.ndarray, ...]:
    """Means over windows of 10 px of xx, yy, xy, xt, yt, tt: gradients (mean of both pictures) and change t after the flow.

    Made on the whole pictures, on the grid of the flow, half as fine. One buffer holds every product: such planes are
    larger than the cache.
    """
    whole = _doubled(flow, first)
    change = _warped(second.astype(np.float32), whole)
    x, y = (a + b for a, b in zip(_gradients(change), _gradients(first), strict=True))
    x *= 0.5
    y *= 0.5
    cv2.subtract(change, first, dst=change, dtype=cv2.CV_32F)
    pairs = ((x, x), (y, y), (x, y), (x, change), (y, change), (change, change))
    return tuple(_box(_halved(cv2.multiply(a, b, dst=whole[0])), 5) for a, b in pairs)


def fit_affine(flow: np.ndarray) -> np.ndarray:
    """(u0, ux, uy, v0, vx, vy): robust least squares, so that a moving object smaller than the picture does not bend it."""
    basis = _affine_basis(*flow.shape[:2])
    target = flow.reshape(-1, 2).T.astype(np.float64)
    weighted = basis
    solution = np.zeros((2, 3))
    for _ in range(6):
        solution = np.linalg.solve(weighted @ basis.T + 1e-9 * np.eye(3), weighted @ target.T).T
        across, down = target - solution @ basis
        error = across * across + down * down
        spread = max(0.05, 1.5 * float(np.sqrt(_median(error))))
        weighted = basis / (1 + error / spread**2) ** 2
    return solution.reshape(-1)


def _median(values: np.ndarray) -> float:
    """Of 1-D values; the upper one of two in the middle."""
    return float(np.partition(values, len(values) // 2)[len(values) // 2])


def affine_field(affine: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 H W 2 of the six numbers."""
    field = affine.reshape(2, 3) @ _affine_basis(height, width)
    return np.ascontiguousarray(field.T, np.float32).reshape(height, width, 2)


@lru_cache(maxsize=8)
def _affine_basis(height: int, width: int) -> np.ndarray:
    """3 x pixels: 1, x, y of each pixel, the picture's larger half being 1."""
    half = max(height, width) / 2
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([np.ones(x.size), (x.reshape(-1) + 0.5 - width / 2) / half, (y.reshape(-1) + 0.5 - height / 2) / half])


def coarse(flow: np.ndarray) -> np.ndarray:
    """At most 64 x 36."""
    return cv2.resize(flow, (min(64, flow.shape[1]), min(36, flow.shape[0])), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> Planes:
    """x and y of each pixel."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def _planes(flow: np.ndarray) -> Planes:
    return np.ascontiguousarray(flow[..., 0]), np.ascontiguousarray(flow[..., 1])


def _doubled(flow: Planes, picture: np.ndarray) -> Planes:
    """The halved pictures' flow on the grid of the whole one, in its px."""
    size = picture.shape[1], picture.shape[0]
    u, v = (cv2.resize(plane * 2, size, interpolation=cv2.INTER_LINEAR) for plane in flow)
    return u, v


def _merged(flow: Planes) -> np.ndarray:
    """H W 2 in px of the whole pictures, of the halved ones' planes."""
    merged: np.ndarray = cv2.merge([plane * 2 for plane in flow])
    return merged


def _seen(flow: Planes) -> np.ndarray:
    """1 where the flow leads to a place inside the picture, else 0."""
    height, width = flow[0].shape
    x, y = (place + plane for place, plane in zip(_grid(height, width), flow, strict=True))
    return ((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)).astype(np.float32)


def _unexplained(halves: Planes, flow: np.ndarray) -> float:
    """Mean luma difference after the flow (px of the whole pictures, on the halved ones' grid), over places that stay in view."""
    planes = _planes(flow / 2)
    seen = _seen(planes)
    rest = cv2.absdiff(_warped(halves[1], planes), halves[0])
    return float((rest * seen).sum()) / max(1.0, float(seen.sum()))


def _halved(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (picture.shape[1] // 2, picture.shape[0] // 2), interpolation=cv2.INTER_AREA)


def _gradients(picture: np.ndarray) -> Planes:
    """Luma per px in x and y."""
    return cv2.Scharr(picture, cv2.CV_32F, 1, 0, scale=1 / 32), cv2.Scharr(picture, cv2.CV_32F, 0, 1, scale=1 / 32)


def _squares(gradients: Planes) -> tuple[np.ndarray, ...]:
    x, y = gradients
    return x * x, y * y, x * y


def _box(values: np.ndarray, window_px: int) -> np.ndarray:
    """Mean over a window; as two passes, which is quicker than OpenCV's box of floats while the window is small."""
    kernel = np.full(window_px, 1 / window_px, np.float32)
    return values if window_px == 1 else cv2.sepFilter2D(values, -1, kernel, kernel)


def _warped(picture: np.ndarray, flow: Planes) -> np.ndarray:
    """The second picture drawn back onto the first."""
    x, y = _grid(*picture.shape)
    return cv2.remap(picture, x + flow[0], y + flow[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _rest(first: np.ndarray, second: np.ndarray, flow: Planes) -> np.ndarray:
    rest = cv2.subtract(_warped(second, flow), first, dtype=cv2.CV_32F)
    rest *= rest
    return rest
