"""A small software renderer in numpy: enough to shade a few hundred thousand triangles for a picture, without a GPU.

Triangles are grouped by the size of their bounding box on the screen, every pixel of every box is tested at once, and
the nearest hit per pixel wins. Shading: a key light, a fill light, sky, a rim, and dark creases from the depth buffer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vadis.body.surface import Array, unit, vec


@dataclass(frozen=True)
class Camera:
    """Where the picture is taken from: world positions in metres, Y up; `fov` is the vertical angle in degrees."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fov: float = 22.0

    def axes(self) -> Array:
        """Rows right, up, back in world coordinates `(3, 3)`."""
        back = unit(vec(self.position) - vec(self.target))
        right = unit(np.cross(vec([0, 1, 0]), back))
        return np.stack([right, np.cross(back, right), back]).astype(np.float32)

    def project(self, points: Array, width: int, height: int) -> Array:
        """World points `(N, 3)` to pixels and depth `(N, 3)`; y grows downwards, depth is metres in front."""
        local = (points - vec(self.position)) @ self.axes().T
        depth = np.maximum(-local[:, 2], 1e-3)
        focal = height / 2 / np.tan(np.radians(self.fov) / 2)
        return np.stack(
            [width / 2 + focal * local[:, 0] / depth, height / 2 - focal * local[:, 1] / depth, depth], 1
        ).astype(np.float32)


def rasterise(
    screen: Array, faces: NDArray[np.int64], width: int, height: int, cull: bool = True
) -> tuple[NDArray[np.int64], Array, Array]:
    """Nearest triangle per pixel of projected vertices `(N, 3)`: flat pixel numbers, face numbers... as three arrays.

    Returns pixel-face pairs `(P, 2)` int64, barycentric weights `(P, 3)` and depths `(P,)` of the covered pixels.
    """
    a, b, c = (screen[faces[:, k]] for k in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    low = np.floor(np.minimum(np.minimum(a, b), c)[:, :2])
    high = np.ceil(np.maximum(np.maximum(a, b), c)[:, :2])
    size = (high - low).max(1)
    seen = (area < -1e-9) if cull else (np.abs(area) > 1e-9)  # y points down, so outward faces turn clockwise
    seen &= (high[:, 0] > 0) & (low[:, 0] < width) & (high[:, 1] > 0) & (low[:, 1] < height) & (size < 4096)
    pixels, owners, weights, depths = [], [], [], []
    bound = 0
    while bound < (size[seen].max() if seen.any() else 0):
        bound, previous = max(2 * bound, 2), bound
        group = np.flatnonzero(seen & (size > previous) & (size <= bound))
        step = np.stack(np.meshgrid(np.arange(bound), np.arange(bound), indexing="ij"), -1).reshape(-1, 2)
        for some in np.array_split(group, max(1, len(group) * bound * bound // 2_000_000)):
            x = low[some, None, 0] + step[:, 0] + np.float32(0.5)
            y = low[some, None, 1] + step[:, 1] + np.float32(0.5)
            pa, pb, pc, whole = a[some, None], b[some, None], c[some, None], area[some, None]
            wa = ((pb[..., 0] - x) * (pc[..., 1] - y) - (pb[..., 1] - y) * (pc[..., 0] - x)) / whole
            wb = ((pc[..., 0] - x) * (pa[..., 1] - y) - (pc[..., 1] - y) * (pa[..., 0] - x)) / whole
            wc = 1 - wa - wb
            hit = (wa >= 0) & (wb >= 0) & (wc >= 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            rows, columns = np.nonzero(hit)
            w = np.stack([wa[hit], wb[hit], wc[hit]], 1)
            face = some[rows]
            pixels.append(y[rows, columns].astype(np.int64) * width + x[rows, columns].astype(np.int64))
            owners.append(face)
            weights.append(w)
            depths.append((w * np.stack([a[face, 2], b[face, 2], c[face, 2]], 1)).sum(1))
    if not pixels:
        return np.zeros((0, 2), np.int64), np.zeros((0, 3), np.float32), np.zeros(0, np.float32)
    pixel, owner, weight, depth = (
        np.concatenate(pixels),
        np.concatenate(owners),
        np.concatenate(weights),
        np.concatenate(depths),
    )
    order = np.argsort(depth, kind="stable")
    _, first = np.unique(pixel[order], return_index=True)
    pick = order[first]
    return np.stack([pixel[pick], owner[pick]], 1), weight[pick], depth[pick]


_KEY, _FILL = unit(vec([0.45, 0.75, 0.55])), unit(vec([-0.7, 0.25, 0.35]))


def render(vertices: Array, normals: Array, faces: NDArray[np.int64], colors: Array, camera: Camera, width: int, height: int,
           floor: float = 0.0, supersample: int = 2, background: tuple[float, float, float] | Array = (1.0, 1.0, 1.0)) -> NDArray[np.uint8]:  # fmt: skip
    """Shade a mesh standing on a floor with a soft shadow: an sRGB picture `(height, width, 3)`.

    Args:
        vertices: `(N, 3)` metres, with unit normals `(N, 3)` and linear colours `(N, 3)`.
        camera: the view; lights are fixed to it (key from the upper right).
        floor: height of the floor in metres.
        supersample: samples per pixel and axis.
        background: colour in [0, 1] (sRGB), or a picture of it `(height, width, 3)`.
    """
    from scipy.ndimage import gaussian_filter, zoom

    w, h = width * supersample, height * supersample
    axes = camera.axes()
    turn = np.stack([vec([axes[0, 0], 0, axes[0, 2]]), vec([0, 1, 0]), unit(vec([axes[2, 0], 0, axes[2, 2]]))])
    key, fill = _KEY @ turn, _FILL @ turn  # lights turn with the camera, about the vertical only
    if isinstance(background, np.ndarray):
        image = vec(background.repeat(supersample, 0).repeat(supersample, 1).reshape(-1, 3)) ** 2.2
    else:
        image = np.tile(vec(background) ** 2.2, (h * w, 1))

    # two shadows on the floor: a long soft one from the key light and a tight one straight below
    for direction, blur, strength in (
        (unit(key * vec([0.5, 1, 0.5])), 0.035, 0.30),
        (vec([0, 1, 0]), 0.020, 0.35),
    ):
        drop = vertices - direction * ((vertices[:, 1:2] - floor) / direction[1])
        pairs, _, _ = rasterise(camera.project(drop, w // 4, h // 4), faces, w // 4, h // 4, cull=False)
        mask = np.zeros((h // 4) * (w // 4), np.float32)
        mask[pairs[:, 0]] = 1
        focal = (h // 4) / 2 / np.tan(np.radians(camera.fov) / 2)
        distance = np.linalg.norm(vec(camera.position) - vec(camera.target))
        sigma = blur * focal / distance
        mask = gaussian_filter(mask.reshape(h // 4, w // 4), (sigma * max(abs(axes[2, 1]), 0.35), sigma))
        mask = vec(zoom(mask, (h / (h // 4), w / (w // 4)), order=1, grid_mode=True, mode="nearest")).reshape(-1)
        image *= (1 - strength * np.clip(mask, 0, 1))[:, None]

    pairs, weight, depth = rasterise(camera.project(vertices, w, h), faces, w, h)
    pixel, corners = pairs[:, 0], faces[pairs[:, 1]]
    normal = unit((normals[corners] * weight[..., None]).sum(1))
    albedo = (colors[corners] * weight[..., None]).sum(1)
    place = (vertices[corners] * weight[..., None]).sum(1)
    # creases: a pixel much deeper than its surroundings lies in one (depth unsharp masking)
    buffer = np.full(h * w, np.nan, np.float32)
    buffer[pixel] = depth
    covered = np.isfinite(buffer).astype(np.float32).reshape(h, w)
    filled = np.nan_to_num(buffer, nan=0.0).reshape(h, w)
    spread = max(h / 90, 1.0)
    near = gaussian_filter(filled, spread) / np.maximum(gaussian_filter(covered, spread), 1e-3)
    crease = np.clip(1 - np.maximum(depth - near.reshape(-1)[pixel] - 0.004, 0) * 2, 0.75, 1)
    view = unit(vec(camera.position) - place)
    diffuse = np.clip((normal @ key + 0.25) / 1.25, 0, 1) ** 1.2  # wrapped, so the far side doesn't go black
    light = 1.02 * diffuse[:, None] * vec([1.0, 0.97, 0.92])
    light = light + 0.22 * np.clip(normal @ fill, 0, 1)[:, None] * vec([0.85, 0.93, 1.0])
    sky = 0.5 + 0.5 * normal[:, 1:2]
    light = light + 0.26 * sky * vec([0.92, 0.96, 1.0]) + 0.07 * (1 - sky)
    half = unit(key + view)
    gloss = np.clip((normal * half).sum(1), 0, 1) ** 24 * 0.10
    rim = (1 - np.clip((normal * view).sum(1), 0, 1)) ** 4 * 0.18
    contact = np.clip((place[:, 1] - floor) / 0.10, 0, 1) * 0.25 + 0.75
    image[pixel] = albedo * light * (crease * contact)[:, None] + (gloss + rim * sky[:, 0])[:, None]
    image = image.reshape(height, supersample, width, supersample, 3).mean((1, 3))
    return (np.clip(image, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)
