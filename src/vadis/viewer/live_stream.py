"""A body that moves live in the browser: `LiveBody` shows a player, `LiveApp` adds what tells it what to do."""

import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from vadis import rotation
from vadis.access import Access, page_url
from vadis.body.mannequin import build_mannequin
from vadis.errors import VadisError
from vadis.motion import Motion
from vadis.pipelines.base import MotionChunk
from vadis.pipelines.player import Player
from vadis.skeleton import smpl22
from vadis.viewer.stage import THEME, start_server, stop_server

PICTURES_A_SECOND = 30
CELL = 1.0
"""Metres between the bold lines of the floor."""


class LiveBody:
    """The mannequin on a floor that passes under it: `start()`, `url`, `stop()`. Also a context manager."""

    def __init__(self, player: Player, port: int = 8080, host: str = "127.0.0.1", access: Access | None = None) -> None:
        """`port`: the next free one is taken when it is busy; 0 takes any. `access`: None is `Access.at(host)`.

        Raises MissingExtra without viser, VadisError when it can't listen.
        """
        self.player, self.server = player, start_server(host, port, access)
        self.url = page_url(host, self.server.get_port(), access and access.token)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play, name="vadis-live", daemon=True)
        self._shown: tuple[int, int] | None = None
        self._build()

    def _build(self) -> None:
        scene, skeleton = self.server.scene, smpl22()
        self.server.gui.configure_theme(**THEME)
        body, rest = build_mannequin(skeleton), skeleton.rest_positions.numpy()
        scene.set_up_direction("+y")
        self.floor = scene.add_grid(
            "/floor", width=16.0, height=16.0, plane="xz", cell_size=CELL / 2, section_size=CELL, cell_thickness=0.6,
            section_thickness=0.8, cell_color=(222, 225, 229), section_color=(196, 201, 207), shadow_opacity=0.25,
        )  # fmt: skip
        self.lift = float(rest[:, 1].min()) - body.sole  # joints are at height 0, soles a little below
        stand = (0.0, self.lift - float(rest[:, 1].min()), 0.0)
        self.body = scene.add_mesh_skinned(
            "/body", body.vertices, body.faces, bone_wxyzs=np.tile([1.0, 0, 0, 0], (len(rest), 1)), bone_positions=rest,
            skin_weights=body.dense_weights, color=(208, 205, 200), position=stand,
        )  # fmt: skip
        camera = self.server.initial_camera
        camera.position, camera.look_at, camera.fov = (1.7, 1.7, 3.8), (0.0, 0.9, 0.0), 0.7

    def show(self, piece: MotionChunk, frame: int) -> None:
        """Pose the body by one frame of a piece, above the origin; the floor moves instead."""
        if self._shown == (piece.start, frame):
            return
        self._shown = piece.start, frame
        motion = piece.motion
        root = motion.root[frame].numpy().astype(float)
        quaternions = rotation.to_quat_wxyz(motion.global_rotations[frame]).numpy().astype(float)
        places = motion.positions[frame].numpy().astype(float)
        aside = np.array([root[0], 0.0, root[2]])
        with self.server.atomic():
            self.body.position = (0.0, self.lift, 0.0)
            self.floor.position = (-(root[0] % CELL), 0.0, -(root[2] % CELL))
            for bone, quaternion, place in zip(self.body.bones, quaternions, places - aside, strict=True):
                bone.wxyz, bone.position = quaternion, place

    def _play(self) -> None:
        while not self._stopping.wait(1 / PICTURES_A_SECOND):
            if (now := self.player.now()) is not None:
                self.show(*now)
            self.tell()

    def tell(self) -> None:
        """Called before every picture."""

    def start(self) -> "LiveBody":
        self._thread.start()
        return self

    def wait(self) -> None:
        """Return when it has been stopped; raises what ended the player."""
        while not self._stopping.wait(0.5):
            if self.player.error is not None:
                raise self.player.error

    def stop(self) -> None:
        """Close the server; harmless when it is closed. The player goes on."""
        if not self._stopping.is_set():
            self._stopping.set()
            if self._thread.is_alive():
                self._thread.join(timeout=5)
            stop_server(self.server)

    def __enter__(self) -> "LiveBody":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class LiveApp(LiveBody):
    """The page of `vadis live`: a text box, pause, a latency read-out, and recordings to download."""

    def __init__(
        self,
        player: Player,
        port: int = 8080,
        host: str = "127.0.0.1",
        text: str = "",
        access: Access | None = None,
    ) -> None:
        super().__init__(player, port, host, access)
        self.recorded: Motion | None = None
        self._told, self._note = 0.0, ""
        gui = self.server.gui
        with gui.add_form(None) as form:  # so that Enter does it too
            self.text = gui.add_text("Text", initial_value=text, hint="What the body does, in English")
            self.queue = gui.add_checkbox("After this", initial_value=False, hint="When the motion before has ended")
            self.go = gui.add_button("Do it")
        self.go.on_click(lambda _: form.submit())
        form.on_submit(lambda _: self.push(self.text.value))
        self.hold = gui.add_button("Pause")
        self.readout = gui.add_markdown("Say what the body does.")
        self.recorder = gui.add_button("Record")
        self.bvh = gui.add_button("Download BVH", disabled=True)
        self.glb = gui.add_button("Download GLB", disabled=True)
        self.hold.on_click(lambda _: self.pause())
        self.recorder.on_click(lambda _: self.record())
        self.bvh.on_click(lambda event: self.download(event.client, "bvh"))
        self.glb.on_click(lambda event: self.download(event.client, "glb"))

    def push(self, text: str) -> None:
        """Do what the text says; what is wrong with it appears on the page."""
        try:
            self.player.push(text, queue=self.queue.value)
            self._note = ""
        except VadisError as error:
            self._note = str(error)

    def pause(self) -> None:
        """Stand still, or go on."""
        self.player.pause(not self.player.stream.paused)
        self.hold.label = "Go on" if self.player.stream.paused else "Pause"

    def record(self) -> None:
        """Begin a recording, or end it and offer the files."""
        if self.player.recording is None:
            self.player.record(True)
            self.recorder.label = "Stop recording"
            return
        self.recorded = self.player.record(False)
        self.recorder.label = "Record"
        self.bvh.disabled = self.glb.disabled = self.recorded is None

    def file(self, suffix: str) -> bytes:
        """The recording as the bytes of a motion file. Raises VadisError when there is none."""
        if self.recorded is None:
            raise VadisError("nothing was recorded yet.")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"recording.{suffix}"
            self.recorded.save(path)
            return path.read_bytes()

    def download(self, client: Any, suffix: str) -> None:
        """Send the recording to the visitor who asked."""
        try:
            client.send_file_download(f"vadis.{suffix}", self.file(suffix), save_immediately=True)
        except VadisError as error:  # MissingExtra too
            self._note = str(error)

    def tell(self) -> None:
        """The read-out, twice a second."""
        if time.monotonic() - self._told < 0.5:
            return
        self._told = time.monotonic()
        player, lines = self.player, []
        if self._note:
            lines.append(f"**{_plain(self._note)}**")
        if (now := player.now()) is not None:
            piece, frame = now
            lines.append(f"{(piece.start + frame) / player.fps:.1f} s · {_plain(piece.text)}")
        if player.latents:
            latents = sorted(player.latents)
            real = player.stream.pipeline.tokenizer.frames_per_token / player.fps
            lines.append(
                f"a latent ({1000 * real:.0f} ms of motion): {1000 * latents[len(latents) // 2]:.0f} ms, "
                f"p95 {1000 * latents[int(0.95 * (len(latents) - 1))]:.0f} ms"
            )
        if player.answers:
            lines.append(f"from text to frames: {1000 * player.answers[-1]:.0f} ms")
        if player.recording is not None:
            count = sum(motion.num_frames for motion in player.recording)
            lines.append(f"recording: {count / player.fps:.1f} s")
        if lines:
            self.readout.content = "\n\n".join(lines)


def _plain(text: str) -> str:
    """Text without Markdown's signs."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)
