"""Self-intersection of a body mesh, as MBench counts it: intersecting pairs of triangles per hundred triangles.

A pair counts when the bounding boxes overlap, no separating axis is found among 17 (both normals, nine products of
edges, and the products of the first normal with the edges of either triangle), and the two share no vertex position.
Intervals that touch overlap. It is pairs per face, so the value grows with the fineness of the mesh: compare on one mesh.

Experimental: the rule is tested on small meshes; no published figure was at hand to compare with.

Shapes: T frames, V vertices, F triangles.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.errors import ShapeError, VadisError
from vadis.metrics.arrays import listed, to_numpy

_CHUNK = 200_000
"""Pairs tested at once; about 100 MB."""


def body_penetration(vertices: Any, faces: Any) -> NDArray[np.float64]:
    """Intersecting triangle pairs per hundred triangles of every frame: vertices `(T, V, 3)` or `(V, 3)` → `(T,)`.

    The published value of a clip is the mean over its frames. A body of 13,776 faces takes about a third of a second a frame.
    Raises ShapeError or VadisError for other shapes, NaN, or faces that name missing vertices.
    """
    places, triangles = _mesh(vertices, faces)
    counts = [len(_pairs(frame, triangles)) for frame in places]
    return 100.0 * np.asarray(counts, np.float64) / len(triangles)


def intersecting_pairs(vertices: Any, faces: Any) -> NDArray[np.int64]:
    """The pairs `(P, 2)` of triangles that intersect in one pose `(V, 3)`, lower number first, sorted."""
    places, triangles = _mesh(vertices, faces)
    if len(places) != 1:
        raise ShapeError(f"give one pose (V, 3); got {len(places)} frames.")
    return _pairs(places[0], triangles)


def _mesh(vertices: Any, faces: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    places, triangles = to_numpy(vertices).astype(np.float32), to_numpy(faces)
    places = places[None] if places.ndim == 2 else places
    if places.ndim != 3 or places.shape[-1] != 3 or triangles.ndim != 2 or triangles.shape[-1] != 3:
        raise ShapeError(
            f"a mesh has vertices (T, V, 3) or (V, 3) and faces (F, 3); got {places.shape} and {triangles.shape}."
        )
    if not len(triangles) or not len(places):
        raise ShapeError("the mesh is empty: give at least one frame and one triangle.")
    if not np.issubdtype(triangles.dtype, np.integer) or triangles.min() < 0 or triangles.max() >= places.shape[1]:
        raise VadisError(f"faces must be whole numbers from 0 to {places.shape[1] - 1}: they belong to another mesh.")
    bad = np.flatnonzero(~np.isfinite(places).all((1, 2)))
    if len(bad):
        raise VadisError(f"vertices hold NaN or infinite values in frames {listed(bad)}: repair or drop the clip.")
    return places, triangles.astype(np.int64)


def _pairs(places: NDArray[np.float32], faces: NDArray[np.int64]) -> NDArray[np.int64]:
    _, merged = np.unique(np.ascontiguousarray(places + np.float32(0)).view("V12").ravel(), return_inverse=True)
    names = merged[faces]  # vertices by position (-0 as 0), so that a seam is no gap
    corners = places[faces]
    found = [np.zeros((0, 2), np.int64)]
    for pairs in _candidates(corners):
        shared = (names[pairs[:, 0], :, None] == names[pairs[:, 1], None, :]).any((1, 2))
        pairs = pairs[~shared]
        found.append(pairs[_intersect(corners[pairs[:, 0]], corners[pairs[:, 1]])])
    result = np.concatenate(found)
    return result[np.lexsort((result[:, 1], result[:, 0]))]


def _candidates(corners: NDArray[np.float32]):
    """Pairs (i < j) whose bounding boxes overlap, in chunks: sorted along the longest axis and swept."""
    low, high = corners.min(1), corners.max(1)
    axis = int((high.max(0) - low.min(0)).argmax())
    order = np.argsort(low[:, axis], kind="stable")
    low, high = low[order], high[order]
    reach = np.searchsorted(low[:, axis], high[:, axis], side="right") - np.arange(len(low)) - 1
    ends = np.cumsum(reach)
    start = 0
    while start < len(low):
        base = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, base + 10 * _CHUNK, side="right")), start + 1)
        sizes = reach[start:stop]
        first = np.repeat(np.arange(start, stop), sizes)
        second = first + 1 + np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        for other in (a for a in range(3) if a != axis):
            near = (low[first, other] <= high[second, other]) & (low[second, other] <= high[first, other])
            first, second = first[near], second[near]
        pairs = np.sort(np.stack([order[first], order[second]], 1), 1)
        for piece in range(0, len(pairs), _CHUNK):
            yield pairs[piece : piece + _CHUNK]
        start = stop


def _intersect(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which triangles `(P, 3, 3)` no axis separates. A zero axis (parallel edges) separates nothing."""
    edges_a, edges_b = np.roll(a, -1, 1) - a, np.roll(b, -1, 1) - b
    normal_a, normal_b = np.cross(edges_a[:, 0], edges_a[:, 1]), np.cross(edges_b[:, 0], edges_b[:, 1])
    alive = np.arange(len(a))

    def keep(axis: NDArray[np.float32]) -> None:
        nonlocal alive
        on_a, on_b = ((t[alive] @ axis[alive, :, None])[..., 0] for t in (a, b))
        alive = alive[(on_a.max(1) >= on_b.min(1)) & (on_b.max(1) >= on_a.min(1))]

    keep(normal_a)
    keep(normal_b)
    for i in range(3):
        for j in range(3):
            keep(np.cross(edges_a[:, i], edges_b[:, j]))
    for edges in (edges_a, edges_b):
        for i in range(3):
            keep(np.cross(normal_a, edges[:, i]))
    result = np.zeros(len(a), bool)
    result[alive] = True
    return result
