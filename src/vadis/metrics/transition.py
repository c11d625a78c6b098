"""Seams between two actions of a stream: how hard the body is thrown from one into the other.

As in FlowMDM (Barquero et al., CVPR 2024): at every frame the largest jerk of any joint; its peak around the seam, and
the area between this curve and the mean curve of real motion, which also punishes seams smoother than life. In metres and
seconds.

Shapes: T frames, J joints.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.errors import ShapeError, VadisError
from vadis.metrics.arrays import to_numpy


def jerk_curve(joints: Any, fps: float) -> NDArray[np.float64]:
    """Largest jerk of any joint `(T - 3,)` in m/s³ of positions `(T >= 4, J, 3)` in metres; entry t lies at frame t + 1.5.

    Raises ShapeError for other shapes, VadisError for values that aren't finite or a rate that isn't positive.
    """
    p = to_numpy(joints).astype(np.float64)
    if p.ndim != 3 or p.shape[2] != 3 or len(p) < 4:
        raise ShapeError(f"a jerk curve needs positions (T >= 4, J, 3); got {p.shape}.")
    if not np.isfinite(p).all() or not fps > 0:
        raise VadisError("positions must be finite and fps positive: repair or drop the clip.")
    return np.linalg.norm(np.diff(p, n=3, axis=0), axis=-1).max(axis=1) * fps**3


def seam_metrics(curve: NDArray[np.float64], seam: int, fps: float, usual: float, seconds: float = 1.0) -> dict[str, float]:  # fmt: skip
    """Peak jerk (m/s³) and area under jerk (m/s²) of a jerk curve around the frame `seam` where the second part begins.

    `usual` is the mean of the jerk curves of real motion; the window is `seconds` long. Raises VadisError when the seam
    lies outside the clip.
    """
    if not 0 < seam < len(curve) + 3:
        raise VadisError(f"the seam at frame {seam} lies outside a clip of {len(curve) + 3} frames.")
    half = seconds * fps / 2
    middle = seam - 1.5 - 0.5  # entry t of the curve belongs to frame t + 1.5; the seam lies half a frame before `seam`
    window = curve[min(max(0, round(middle - half)), len(curve) - 1) : max(1, round(middle + half))]
    return {"peak_jerk": float(window.max()), "area_jerk": float(np.abs(window - usual).sum() / fps)}
