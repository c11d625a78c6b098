"""From an implicit surface to triangles: naive surface nets (Gibson, 1998) on a sparse grid, pulled onto the true surface.

A field is a function of points `(N, 3)` to values `(N,)` that is negative inside and behaves like a distance near zero.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating[Any]]
Field = Callable[[Array], Array]


def vec(values: ArrayLike) -> Array:
    """A float32 array."""
    return np.asarray(values, np.float32)


_BLOCK = 4  # grid points per side of the blocks that are evaluated or skipped together


def sample(field: Field, low: Array, high: Array, cell: float) -> tuple[Array, Array]:
    """Field values on a grid over the box, exact near the surface and only right in sign elsewhere.

    Returns values `(X, Y, Z)` and the grid's origin `(3,)`. The grid has a plane of points at x = 0, so that a
    mirror-symmetric field yields a mirror-symmetric mesh.
    """
    start, stop = np.floor(low / cell) - 2, np.ceil(high / cell) + 2
    stop[0] = max(stop[0], -start[0])
    start[0] = -stop[0]
    blocks = np.ceil((stop - start + 1) / _BLOCK).astype(int)
    blocks[0] += blocks[0] % 2
    start[0] = -(blocks[0] * _BLOCK // 2)
    origin = (start * cell).astype(np.float32)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in blocks), indexing="ij"), -1).reshape(-1, 3)
    centres = origin + (index * _BLOCK + (_BLOCK - 1) / 2).astype(np.float32) * cell
    coarse = field(centres.astype(np.float32))
    near = np.abs(coarse) < 1.3 * np.sqrt(3) * cell * (_BLOCK + 1) / 2
    inner = np.stack(np.meshgrid(*(np.arange(_BLOCK),) * 3, indexing="ij"), -1).reshape(-1, 3)
    values = np.repeat(coarse[:, None], _BLOCK**3, 1)
    points = origin + (index[near][:, None] * _BLOCK + inner).astype(np.float32) * cell
    values[near] = field(points.reshape(-1, 3).astype(np.float32)).reshape(-1, _BLOCK**3)
    grid = values.reshape(*blocks, _BLOCK, _BLOCK, _BLOCK).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(grid.reshape(blocks * _BLOCK)), origin


def _unambiguous(grid: Array) -> Array:
    """Fill the few cells where inside and outside touch only across a diagonal: there the surface would meet itself."""
    grid = grid.copy()
    pairs = [((0, 0, 0), (1, 1, 0)), ((0, 1, 0), (1, 0, 0)), ((0, 0, 0), (1, 0, 1)), ((0, 0, 1), (1, 0, 0)),
             ((0, 0, 0), (0, 1, 1)), ((0, 0, 1), (0, 1, 0))]  # fmt: skip
    for _ in range(20):
        inside = grid < 0
        fill = np.zeros_like(inside)
        for k in range(0, 6, 2):
            (a, b), (c, d) = pairs[k], pairs[k + 1]
            views = [_corner(inside, x, a, b) for x in (a, b, c, d)]
            checker = (views[0] == views[1]) & (views[2] == views[3]) & (views[0] != views[2])
            for x in (a, b, c, d):
                _corner(fill, x, a, b)[...] |= checker
        fill &= ~inside
        if not fill.any():
            break
        grid[fill] = -1e-4
    return grid


def _corner(
    grid: NDArray[Any], corner: tuple[int, ...], first: tuple[int, ...], second: tuple[int, ...]
) -> NDArray[Any]:
    """The grid shifted to one corner of every square that `first` and `second` span (a view)."""
    span = [abs(a - b) for a, b in zip(first, second, strict=True)]
    return grid[tuple(slice(c, n - s + c) for c, s, n in zip(corner, span, grid.shape, strict=True))]


def surface_nets(grid: Array, origin: Array, cell: float) -> tuple[Array, NDArray[np.int64]]:
    """Zero surface of grid values `(X, Y, Z)` as vertices `(V, 3)` and outward faces `(F, 3)`.

    One vertex in every cell that the surface crosses, at the mean of its edge crossings; one quad around every grid edge
    that the surface crosses, cut along its shorter diagonal.
    """
    grid = _unambiguous(grid)
    inside = grid < 0
    cells = tuple(n - 1 for n in grid.shape)
    total, count = np.zeros((*cells, 3), np.float32), np.zeros(cells, np.int32)
    crossings = []
    for axis in range(3):
        first = [slice(None)] * 3
        second = [slice(None)] * 3
        first[axis], second[axis] = slice(0, -1), slice(1, None)
        a, b = grid[tuple(first)], grid[tuple(second)]
        at = np.argwhere(inside[tuple(first)] != inside[tuple(second)])
        va, vb = a[tuple(at.T)], b[tuple(at.T)]
        place = at.astype(np.float32)
        place[:, axis] += va / (va - vb)
        u, v = (axis + 1) % 3, (axis + 2) % 3
        around = np.repeat(at[:, None], 4, 1)  # the four cells that share the edge, in turning order about the axis
        around[:, [1, 2], u] -= 1
        around[:, [2, 3], v] -= 1
        for k in range(4):
            c = tuple(around[:, k].T)
            np.add.at(total, c, place)
            np.add.at(count, c, 1)
        crossings.append((around, va < 0))
    number = np.full(cells, -1, np.int64)
    used = count > 0
    number[used] = np.arange(int(used.sum()))
    vertices = total[used] / count[used][:, None]
    centred = vertices + origin / cell
    quads = []
    for around, outward in crossings:
        quad = number[tuple(np.moveaxis(around, -1, 0))]  # (N, 4)
        quads.append(np.where(outward[:, None], quad, quad[:, ::-1]))
    quad = np.concatenate(quads)
    corner = centred[quad]
    # of two equally long diagonals one is chosen by a rule that mirroring x does not change
    rank = np.abs(corner[..., 0]) * 0.577 + corner[..., 1] * 0.731 + corner[..., 2] * 0.363
    cost = [
        ((corner[:, a] - corner[:, b]) ** 2).sum(-1) + 0.01 * np.maximum(rank[:, a], rank[:, b])
        for a, b in ((0, 2), (1, 3))
    ]
    short = cost[0] <= cost[1]
    quad = np.where(short[:, None], quad, np.roll(quad, -1, 1))
    faces = np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]])
    return (origin + vertices * cell).astype(np.float32), faces


def subdivide(vertices: Array, faces: NDArray[np.int64], fine: NDArray[np.bool_]) -> tuple[Array, NDArray[np.int64]]:
    """Halve every edge between two vertices marked `fine` (V,); neighbours are cut so that the mesh stays closed."""
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]], -1)  # (F, 3, 2)
    split = fine[edges].all(-1)
    unique, back = np.unique(edges[split], axis=0, return_inverse=True)
    middle = np.full(split.shape, -1, np.int64)
    middle[split] = len(vertices) + back.reshape(-1)
    vertices = np.concatenate([vertices, vertices[unique].mean(1)]).astype(np.float32)
    count = split.sum(1)
    result = [faces[count == 0]]
    # turn one- and two-cut triangles until the odd edge is the first
    a, m = faces.copy(), middle.copy()
    for _ in range(2):
        off = ((count == 1) & (m[:, 0] < 0)) | ((count == 2) & (m[:, 0] >= 0))
        a[off], m[off] = np.roll(a[off], -1, 1), np.roll(m[off], -1, 1)
    (x, y, z), (p, q, r) = a[count == 1].T, m[count == 1].T
    result += [np.stack([x, p, z], 1), np.stack([p, y, z], 1)]
    (x, y, z), (p, q, r) = a[count == 2].T, m[count == 2].T
    result += [np.stack([q, z, r], 1), np.stack([x, y, q], 1), np.stack([x, q, r], 1)]
    (x, y, z), (p, q, r) = a[count == 3].T, m[count == 3].T
    result += [np.stack(t, 1) for t in ((x, p, r), (p, y, q), (r, q, z), (p, q, r))]
    return vertices, np.concatenate(result)


def gradient(field: Field, points: Array, step: float) -> Array:
    """Central differences of a field at `(N, 3)` points."""
    shift = np.eye(3, dtype=np.float32) * step
    both = field(np.concatenate([points + s for s in shift] + [points - s for s in shift]).astype(np.float32))
    return ((both[: 3 * len(points)] - both[3 * len(points) :]).reshape(3, -1).T / (2 * step)).astype(np.float32)


def unit(vectors: Array) -> Array:
    """Vectors of length one along the last axis (zero stays zero)."""
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


def relax(field: Field, vertices: Array, faces: NDArray[np.int64], cell: float, rounds: int = 3) -> tuple[Array, Array]:
    """Even out the triangles and pull every vertex onto the surface; returns vertices and unit normals."""
    edges = np.concatenate(
        [faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]
    )  # a closed mesh holds both directions
    degree = np.bincount(edges[:, 0], minlength=len(vertices))[:, None]
    for _ in range(rounds):
        mean = (
            np.stack([np.bincount(edges[:, 0], vertices[edges[:, 1], k], len(vertices)) for k in range(3)], -1) / degree
        )
        slope = gradient(field, vertices, cell * 0.1)
        normal = unit(slope)
        move = (mean - vertices) * 0.5
        move -= (move * normal).sum(-1, keepdims=True) * normal
        steep = np.maximum(np.linalg.norm(slope, axis=-1), 0.3)
        pull = np.clip(field(vertices) / steep, -cell, cell)[:, None] * normal
        vertices = (vertices + move - pull).astype(np.float32)
    slope = gradient(field, vertices, cell * 0.1)
    pull = np.clip(field(vertices) / np.maximum(np.linalg.norm(slope, axis=-1), 0.3), -cell, cell)
    vertices = (vertices - pull[:, None] * unit(slope)).astype(np.float32)
    return vertices, unit(gradient(field, vertices, cell * 0.25))
