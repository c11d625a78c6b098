"""Pictures of rooms by MuJoCo, offscreen: one model whose shapes are moved about, so that nothing is compiled twice.

MuJoCo's axes are x forward, y left, z up; the body is drawn with capsules between its joints.
"""

import math
import os
import sys
from collections.abc import Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadis.data.scenes.layout import COLOURS, Thing
from vadis.errors import MissingExtra, VadisError
from vadis.motion import Motion

_SLOTS = {"box": 10, "cylinder": 8, "sphere": 4}
_GEOM = {"box": "box", "block": "box", "cylinder": "cylinder", "pillar": "cylinder", "ball": "sphere"}
_THICK = {"spine3": 0.13, "spine2": 0.13, "spine1": 0.13, "left_hip": 0.1, "right_hip": 0.1, "neck": 0.06}
_THICK |= {f"{side}_{part}": size for side in ("left", "right") for part, size in
           {"knee": 0.08, "ankle": 0.06, "foot": 0.045, "shoulder": 0.07, "elbow": 0.05, "wrist": 0.04, "collar": 0.07}.items()}  # fmt: skip


_CURE = "Install Mesa's EGL (libegl1 libegl-mesa0) or OSMesa (libosmesa6) and set MUJOCO_GL to egl or osmesa, in a new process."


@dataclass(frozen=True)
class Camera:
    """Where a picture is taken from, relative to the body's start: behind and above it by default, looking ahead."""

    distance: float = 3.0
    """Metres behind the body."""
    height: float = 3.6
    """Metres above the floor."""
    look_ahead: float = 1.5
    """Metres before the body of the point on the floor in the middle of the picture."""
    field: float = 62.0
    """Vertical field of view in degrees."""
    azimuth: float = 0.0
    """Radians that the camera is moved around the body, to its right when positive."""

    @property
    def pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Place `(3,)` and the camera's axes right, up, back as columns `(3, 3)`, in MuJoCo's axes."""
        c, s = math.cos(self.azimuth), math.sin(self.azimuth)
        place = np.array([-self.distance * c, -self.distance * s, self.height])
        back = place - np.array([self.look_ahead * c, self.look_ahead * s, 0.3])
        back /= np.linalg.norm(back)
        right = np.array([s, -c, 0.0])
        return place, np.stack([right, np.cross(back, right), back], axis=1)

    def project(self, points: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
        """Pixels `(N, 2)`, column and row, of points `(N, 3)` forward, left, up; NaN behind the camera."""
        place, axes = self.pose
        x, y, z = ((points - place) @ axes).T
        scale = height / 2 / math.tan(math.radians(self.field) / 2)
        depth = np.where(z < -0.05, -z, np.nan)
        return np.stack([width / 2 + scale * x / depth, height / 2 - scale * y / depth], axis=1)


@dataclass(frozen=True)
class Look:
    """What is not part of the task: walls, floor, light."""

    floor: tuple[float, float, float] = (0.72, 0.70, 0.66)
    wall: tuple[float, float, float] = (0.85, 0.84, 0.80)
    front: float = 6.0
    """Metres to the wall in front."""
    side: float = 4.5
    """Metres to the walls at either side."""
    light: float = 0.75


class SceneRenderer:
    """Draws rooms of one picture size. Raises MissingExtra without mujoco, VadisError without an offscreen OpenGL."""

    def __init__(self, width: int = 160, height: int = 128) -> None:
        if not (16 <= width <= 2048 and 16 <= height <= 2048):
            raise VadisError(f"pictures are 16 to 2048 pixels wide and high; asked for {width} × {height}.")
        self.width, self.height = width, height
        self._mujoco = _import_mujoco()
        self._model = self._mujoco.MjModel.from_xml_string(_world(2 * width, 2 * height))
        self._data = self._mujoco.MjData(self._model)
        try:
            self._renderer = self._mujoco.Renderer(self._model, 2 * height, 2 * width)
        except Exception as error:  # every backend has errors of its own
            raise VadisError(
                f"MuJoCo can't draw offscreen with MUJOCO_GL={os.environ.get('MUJOCO_GL')} ({error}). {_CURE}"
            ) from error
        self._slots = {kind: [self._geom(f"{kind}{i}") for i in range(count)] for kind, count in _SLOTS.items()}
        self._drawn: list[int] = []
        self._bones = [self._geom(f"bone{i}") for i in range(22)]

    def close(self) -> None:
        self._renderer.close()

    def __enter__(self) -> "SceneRenderer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def draw(
        self,
        things: Sequence[Thing],
        body: Motion | None = None,
        camera: Camera | None = None,
        look: Look | None = None,
    ) -> NDArray[np.uint8]:
        """A picture `(height, width, 3)` of things and of the first pose of a motion that starts at the origin facing +Z.

        Raises VadisError when there are more things of one kind than the model has room for.
        """
        self._furnish(things)
        self._pose(body)
        self._decorate(look or Look())
        self._aim(camera or Camera())
        self._mujoco.mj_forward(self._model, self._data)
        self._renderer.update_scene(self._data, "eye")
        large = self._renderer.render().astype(np.float32)
        small = large.reshape(self.height, 2, self.width, 2, 3).mean((1, 3))  # drawn at twice the size: smooth edges
        return np.rint(small).astype(np.uint8)

    def seen(self, count: int) -> list[int]:
        """Pixels of the last picture that show each of the first `count` things drawn in it."""
        self._renderer.enable_segmentation_rendering()
        try:
            self._renderer.update_scene(self._data, "eye")
            numbers = self._renderer.render()[..., 0]
        finally:
            self._renderer.disable_segmentation_rendering()
        return [int((numbers == geom).sum()) // 4 for geom in self._drawn[:count]]

    def _geom(self, name: str) -> int:
        return int(self._mujoco.mj_name2id(self._model, self._mujoco.mjtObj.mjOBJ_GEOM, name))

    def _set(
        self, geom: int, place: Sequence[float], size: Sequence[float], colour: Sequence[float], quat: Any
    ) -> None:
        m = self._model
        m.geom_pos[geom], m.geom_size[geom], m.geom_quat[geom] = place, size, quat
        m.geom_rgba[geom] = (*colour, 1.0)
        m.geom_rbound[geom] = float(np.linalg.norm(size)) + 0.1  # decides whether it is in view

    def _furnish(self, things: Sequence[Thing]) -> None:
        free = {kind: list(slots) for kind, slots in self._slots.items()}
        for slots in free.values():
            self._model.geom_rgba[slots, 3] = 0.0
        self._drawn = []
        for thing in things:
            kind = _GEOM[thing.shape]
            if not free[kind]:
                raise VadisError(f"a room has at most {_SLOTS[kind]} things of the kind {kind}.")
            r, h = thing.half_width, thing.half_height
            size = {"box": (r, r, h), "cylinder": (r, h, 0), "sphere": (r, r, r)}[kind]
            place = (thing.forward, thing.left, r if kind == "sphere" else h)
            quat = (math.cos(thing.turned / 2), 0, 0, math.sin(thing.turned / 2))
            self._drawn.append(free[kind].pop(0))
            self._set(self._drawn[-1], place, size, COLOURS[thing.colour], quat)

    def _pose(self, body: Motion | None) -> None:
        self._model.geom_rgba[self._bones, 3] = 0.0
        if body is None:
            return
        joints = body.positions[0, :, [2, 0, 1]].double().numpy()
        names, parents = body.skeleton.names, body.skeleton.parents
        for j, parent in enumerate(parents):
            if parent < 0:
                continue
            start, stop = joints[parent], joints[j]
            length = float(np.linalg.norm(stop - start))
            thick = _THICK.get(names[j], 0.06)
            colour = (0.86, 0.68, 0.56) if names[j].endswith(("wrist", "neck")) else (0.30, 0.32, 0.36)
            self._set(self._bones[j - 1], (start + stop) / 2, (thick, length / 2, 0), colour, _along(stop - start))
        head = joints[names.index("head")]
        self._set(self._bones[21], head + np.array([0, 0, 0.06]), (0.11, 0.03, 0), (0.86, 0.68, 0.56), (1, 0, 0, 0))

    def _decorate(self, look: Look) -> None:
        m = self._model
        m.mat_rgba[0] = (*look.floor, 1.0)
        for name, place in (
            ("front", (look.front, 0, 1.25)),
            ("left", (0, look.side, 1.25)),
            ("right", (0, -look.side, 1.25)),
        ):
            geom = self._geom(f"wall_{name}")
            m.geom_pos[geom], m.geom_rgba[geom] = place, (*look.wall, 1.0)
        m.light_diffuse[:] = look.light

    def _aim(self, camera: Camera) -> None:
        place, axes = camera.pose
        quat = np.zeros(4)
        self._mujoco.mju_mat2Quat(quat, axes.flatten())
        self._model.cam_pos[0], self._model.cam_quat[0], self._model.cam_fovy[0] = place, quat, camera.field


def _along(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quaternion (w, x, y, z) that turns the z axis to a direction."""
    d = direction / max(float(np.linalg.norm(direction)), 1e-9)
    if d[2] < -0.999999:
        return np.array([0.0, 1.0, 0.0, 0.0])
    quat = np.array([1 + d[2], -d[1], d[0], 0.0])
    return quat / np.linalg.norm(quat)


def _world(width: int, height: int) -> str:
    """The model: shapes somewhere under the floor until they are wanted."""
    geoms = [f'<geom name="{kind}{i}" type="{kind}" size=".1 .1 .1" pos="{i} 1 -9" euler="0 0 20"/>'
             for kind, count in _SLOTS.items() for i in range(count)]  # fmt: skip
    geoms += [f'<geom name="bone{i}" type="capsule" size=".1 .1" pos="{i} 2 -9" euler="0 20 0"/>' for i in range(22)]
    for name, size in (("front", ".05 12 1.25"), ("left", "12 .05 1.25"), ("right", "12 .05 1.25")):
        geoms.append(f'<geom name="wall_{name}" type="box" size="{size}" pos="9 9 1.25"/>')
    return f"""<mujoco><option><flag contact="disable"/></option>
    <visual><global offwidth="{width}" offheight="{height}"/><quality offsamples="0" shadowsize="1024"/>
    <headlight ambient=".38 .38 .38" diffuse=".2 .2 .2" specular="0 0 0"/></visual>
    <asset><texture name="tiles" type="2d" builtin="checker" rgb1="1 1 1" rgb2=".86 .86 .86" width="128" height="128"/>
    <material name="floor" texture="tiles" texrepeat="1 1" texuniform="true" specular="0" reflectance="0"/></asset>
    <worldbody><camera name="eye"/><light pos="-1 2 6" dir=".15 -.3 -1" directional="true" castshadow="true"/>
    <geom name="ground" type="plane" size="14 14 .1" material="floor"/>{"".join(geoms)}</worldbody></mujoco>"""


def _import_mujoco() -> Any:
    """MuJoCo with an offscreen OpenGL; which one is fixed on its first import in a process."""
    if sys.platform.startswith("linux") and "MUJOCO_GL" not in os.environ:
        found = [name for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")) if find_library(library)]
        if not found:
            raise VadisError(f"there is no offscreen OpenGL on this machine. {_CURE}")
        os.environ["MUJOCO_GL"] = found[0]
    try:
        import mujoco
    except Exception as error:  # PyOpenGL without the library behind it, an unknown backend: all kinds
        if isinstance(error, ModuleNotFoundError) and error.name == "mujoco":
            raise MissingExtra("drawing scenes needs mujoco: pip install 'vadis[scenes]'") from error
        raise VadisError(
            f"MuJoCo can't be loaded with MUJOCO_GL={os.environ.get('MUJOCO_GL')} ({error}). {_CURE}"
        ) from error
    return mujoco
