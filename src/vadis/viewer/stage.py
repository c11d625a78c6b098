"""A viser scene with mannequins side by side, each playing its own motion."""

import contextlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vadis import rotation
from vadis.access import Access, free_port
from vadis.body.mannequin import build_mannequin
from vadis.errors import MissingExtra, VadisError
from vadis.motion import Motion
from vadis.viewer.gate import guarded
from vadis.viewer.sheet import floor_height, on_smpl22, titles_of

if TYPE_CHECKING:
    import viser


_CLAYS = ((208, 205, 200), (150, 186, 214), (233, 170, 132), (172, 200, 160), (196, 176, 214))
"""sRGB of the first, second, … body: a skinned mesh in viser has one colour."""
THEME = {"show_logo": False, "show_share_button": False, "brand_color": (86, 130, 163)}
"""Of the live pages: no button that would open them to the internet."""


def require_viser() -> Any:
    """The viser module; MissingExtra when it isn't installed."""
    try:
        import viser
    except ImportError as error:
        raise MissingExtra("the viewer needs viser: pip install 'vadis[viewer]'") from error
    return viser


def start_server(host: str, port: int, access: Access | None = None) -> "viser.ViserServer":
    """A viser server that keeps its banner to itself and lets in whom `access` does, by default `Access.at(host)`.

    `port`: the next free one is taken when it is busy; 0 takes any. Raises VadisError when it can't listen, or
    can't be kept from strangers.
    """
    viser = require_viser()
    port = free_port(host, port, tries=100 if port else 1)
    server = None
    try:
        with guarded(access or Access.at(host)), contextlib.redirect_stdout(io.StringIO()):
            server = viser.ViserServer(host=host, port=port, label="vadis", verbose=False)
    except VadisError:  # it listens, but without the gate
        if server is not None:
            stop_server(server)
        raise
    return server


def stop_server(server: "viser.ViserServer") -> None:
    """Close a server as quietly as it was opened."""
    with contextlib.redirect_stdout(io.StringIO()):
        server.stop()


class Stage:
    """Motions on one floor. `show(seconds)` poses all of them; a motion that has ended holds its last frame.

    Args:
        server: a viser server; its scene is filled here.
        motions: at least one; other skeletons than smpl22 are retargeted to it.
        titles: one per motion, or None for their captions.
        hidden_bones: keep the bone lines up to date even while they are hidden (for recordings).

    Every motion starts at its own place on a row along X, wide enough that they don't meet.
    """

    def __init__(self, server: "viser.ViserServer", motions: Sequence[Motion], titles: Sequence[str] | None = None,
                 hidden_bones: bool = False) -> None:  # fmt: skip
        if not motions:
            raise VadisError("nothing to view: give at least one motion.")
        self.server = server
        self.motions = [on_smpl22(m) for m in motions]
        self.titles = titles_of(self.motions, titles)
        self.seconds = max((m.num_frames - 1) / m.fps for m in self.motions)
        self.fps = max(m.fps for m in self.motions)
        self._hidden_bones = hidden_bones
        self._shown: list[int] = [-1] * len(self.motions)
        self._build()

    def _build(self) -> None:
        scene = self.server.scene
        scene.set_up_direction("+y")
        spans = [(m.positions[..., 0].min().item(), m.positions[..., 0].max().item()) for m in self.motions]
        depth = [(m.positions[..., 2].min().item(), m.positions[..., 2].max().item()) for m in self.motions]
        total = sum(b - a for a, b in spans) + 0.4 * (len(spans) - 1)
        edge, self.shifts = -total / 2, []
        for m, (low, high) in zip(self.motions, spans, strict=True):  # from the viewer's left, -X, to the right
            floor = floor_height(m, build_mannequin(m.skeleton))
            self.shifts.append(np.array([edge - low, -floor, 0.0]))
            edge += high - low + 0.4
        low, high = min(a for a, _ in depth), max(b for _, b in depth)
        extent = float(np.ceil(max(total, high - low) + 6))
        scene.add_grid("/floor", width=extent, height=extent, plane="xz", cell_size=0.5, section_size=1.0, cell_thickness=0.6,
                       section_thickness=0.8, cell_color=(222, 225, 229), section_color=(196, 201, 207), shadow_opacity=0.25,
                       position=(0.0, 0.0, float(round((low + high) / 2))))  # fmt: skip
        self.bodies, self.bones, self.labels = [], [], []
        self._quats = [rotation.to_quat_wxyz(m.global_rotations).numpy().astype(float) for m in self.motions]
        self._places = [m.positions.numpy().astype(float) for m in self.motions]
        for k, (m, shift) in enumerate(zip(self.motions, self.shifts, strict=True)):
            body = build_mannequin(m.skeleton)
            rest = m.skeleton.rest_positions.numpy()
            self.bodies.append(
                scene.add_mesh_skinned(
                    f"/clip{k}/body", body.vertices, body.faces, bone_wxyzs=np.tile([1.0, 0, 0, 0], (len(rest), 1)),
                    bone_positions=rest, skin_weights=body.dense_weights, color=_CLAYS[k % len(_CLAYS)], position=tuple(shift),
                )
            )  # fmt: skip
            self.bones.append(
                scene.add_line_segments(f"/clip{k}/skeleton", points=self._segments(k, 0), colors=(40, 44, 52), thickness=3.0,thickness_units="screen",
                                        position=tuple(shift), visible=False)
            )  # fmt: skip
            head = self._places[k][0, m.skeleton.index("head")]
            self.labels.append(
                scene.add_label(f"/clip{k}/title", self.titles[k], position=tuple(head + shift + (0, 0.45, 0)))
            )
        self.show(0.0)

    def _segments(self, clip: int, frame: int) -> np.ndarray:
        places, parents = self._places[clip][frame], self.motions[clip].skeleton.parents
        return np.stack([places[list(parents[1:])], places[1:]], 1).astype(np.float32)  # (J - 1, 2, 3)

    def aim(self, fov: float = 36.0, aspect: float = 1.5) -> None:
        """Point the camera of every new visitor so that all motions stay in the picture (`fov` is vertical, degrees)."""
        points = np.concatenate([p[::4].reshape(-1, 3) + s for p, s in zip(self._places, self.shifts, strict=True)])
        target = np.array([*(points.min(0) + points.max(0))]) / 2
        target[1] = max(target[1], 0.8)
        back = np.array([0.42, 0.30, 1.0]) / np.linalg.norm([0.42, 0.30, 1.0])
        right = np.cross([0.0, 1.0, 0.0], back) / np.linalg.norm(np.cross([0.0, 1.0, 0.0], back))
        local = (points - target) @ np.stack([right, np.cross(back, right), back], 1)
        half = np.tan(np.radians(fov) / 2) * 0.94
        reach = np.maximum((np.abs(local[:, 0]) + 0.25) / (half * aspect), (np.abs(local[:, 1]) + 0.45) / half)
        away = float((reach + local[:, 2]).max())
        camera = self.server.initial_camera
        camera.position, camera.look_at, camera.fov = (
            tuple(target + back * max(away, 3.0)),
            tuple(target),
            float(np.radians(fov)),
        )

    def show(self, seconds: float) -> None:
        """Pose every motion at a time in seconds; only what changed is sent."""
        for k, m in enumerate(self.motions):
            frame = int(np.clip(round(seconds * m.fps), 0, m.num_frames - 1))
            if frame == self._shown[k]:
                continue
            self._shown[k] = frame
            with self.server.atomic():
                for bone, quat, place in zip(
                    self.bodies[k].bones, self._quats[k][frame], self._places[k][frame], strict=True
                ):
                    bone.wxyz, bone.position = quat, place
                if self.bones[k].visible or self._hidden_bones:
                    self.bones[k].points = self._segments(k, frame)
                head = self._places[k][frame, m.skeleton.index("head")]
                self.labels[k].position = tuple(head + self.shifts[k] + (0, 0.45, 0))

    def toggle(self, body: bool, skeleton: bool) -> None:
        """Show or hide the mannequins and the bone lines."""
        for k in range(len(self.motions)):
            self.bodies[k].visible = body
            self.bones[k].points = self._segments(k, max(self._shown[k], 0))
            self.bones[k].visible = skeleton
