"""Any human skeleton onto the 22 joints: names of many programs, other rest poses, and every clip of the shared data."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vadis import rotation
from vadis.data.glitches import MAX_SPEED, find_jumps, repair
from vadis.errors import SkeletonError
from vadis.io import load_motion
from vadis.io.archive import iter_motion_files
from vadis.kinematics import body_heading
from vadis.motion import Motion
from vadis.retargeting import TABLES, recognize_skeleton, retarget
from vadis.skeleton import SMPL22_NAMES, Skeleton, smpl22

J = {name: j for j, name in enumerate(SMPL22_NAMES)}
SIDES = ("left", "right")


def renamed(motion: Motion, table: dict[str, str], prefix: str = "") -> Motion:
    """The motion with the joint names of another program; joints that it lacks get names that mean nothing."""
    names = tuple(prefix + table.get(n, f"zz{j}") for j, n in enumerate(SMPL22_NAMES))
    return motion.replace(skeleton=Skeleton(names, motion.skeleton.parents, motion.skeleton.offsets))


def with_rest(motion: Motion, rest: torch.Tensor) -> Motion:
    """The same movement on a skeleton whose rest pose is turned by the world rotations `(J, 3, 3)`."""
    skeleton = motion.skeleton
    parents = [max(p, 0) for p in skeleton.parents]
    offsets = (rest[parents] @ skeleton.offsets[:, :, None])[..., 0]
    world = motion.global_rotations @ rest.transpose(-1, -2)
    turned = Skeleton(skeleton.names, skeleton.parents, offsets, skeleton.name)
    return motion.replace(skeleton=turned, rotations=turned.local_rotations(world))


def leg_length(at: dict[str, torch.Tensor]) -> float:
    """Mean length of the legs in metres, of joint positions `(T, 3)` by name."""
    parts = [
        (at[f"{s}_{a}"] - at[f"{s}_{b}"]).norm(dim=-1).mean()
        for s in SIDES
        for a, b in (("hip", "knee"), ("knee", "ankle"))
    ]
    return float(sum(parts)) / 2


def check_pose(source: Motion, result: Motion) -> None:
    """Limbs point where the source's limbs point; joints lie near the source's joints scaled by leg length."""
    mapping = recognize_skeleton(source.skeleton)
    assert mapping is not None
    mine = {n: result.positions[:, J[n]] for n in SMPL22_NAMES}
    theirs = {n: source.positions[:, source.skeleton.index(s)] for n, s in mapping.joints.items()}
    scale = leg_length(mine) / leg_length(theirs)
    centre = (mine["left_hip"] + mine["right_hip"]) / 2 - (theirs["left_hip"] + theirs["right_hip"]) / 2 * scale
    assert (centre - centre[0]).abs().max() < 2e-3  # hips on hips, up to one constant height
    theirs = {n: p * scale + centre for n, p in theirs.items()}
    for side in SIDES:
        for a, b in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"), ("elbow", "wrist")):
            one, two = mine[f"{side}_{b}"] - mine[f"{side}_{a}"], theirs[f"{side}_{b}"] - theirs[f"{side}_{a}"]
            assert torch.nn.functional.cosine_similarity(one, two, dim=-1).min() > 0.999, (side, a, b)  # 2.5 degrees
        error = {n: float((mine[f"{side}_{n}"] - theirs[f"{side}_{n}"]).norm(dim=-1).mean()) for n in
                 ("hip", "knee", "ankle", "elbow", "wrist")}  # fmt: skip
        # Thighs and shins are in another proportion: 5 cm at the knee of subject 12.
        assert max(error["hip"], error["knee"], error["ankle"]) <= 0.055, error
        # The Bandai body is narrow: its shoulders lie 9 cm further in and 8 cm lower than ours.
        assert max(error["elbow"], error["wrist"]) <= (0.20 if mapping.kind == "bandai22" else 0.15), error


def check_result(source: Motion, result: Motion, flat: bool = True) -> None:
    """Finite, true rotations, feet on the floor, the pelvis at a plausible height, facing as the source's hips do."""
    assert result.skeleton.names == SMPL22_NAMES and result.num_frames == source.num_frames
    assert torch.isfinite(result.positions).all()
    eye = torch.eye(3).expand_as(result.rotations)
    assert torch.allclose(result.rotations @ result.rotations.transpose(-1, -2), eye, atol=1e-3)
    lowest = result.positions[..., 1].min(dim=1).values
    assert abs(float(lowest.quantile(0.02))) < 1e-4
    assert float(lowest.min()) > -0.15
    if flat:
        assert float(lowest.median()) < 0.12
        assert 0.25 < float(result.root[:, 1].median()) < 1.25
    mapping = recognize_skeleton(source.skeleton)
    assert mapping is not None
    across = [source.positions[:, source.skeleton.index(mapping.joints[f"{s}_hip"])] for s in SIDES]
    theirs = torch.nn.functional.normalize(across[0] - across[1], dim=-1)
    mine = torch.nn.functional.normalize(
        result.positions[:, J["left_hip"]] - result.positions[:, J["right_hip"]], dim=-1
    )
    assert (theirs * mine).sum(-1).min() > 0.985  # 10 degrees


def travel(motion: Motion) -> tuple[float, float]:
    """(metres along the body's heading, angle in degrees between heading and travel, positive to the left)."""
    angle = body_heading(motion.positions)[:-1]
    step = torch.diff(motion.root[:, [0, 2]], dim=0)
    forward = (torch.sin(angle) * step[:, 0] + torch.cos(angle) * step[:, 1]).sum()
    left = (torch.cos(angle) * step[:, 0] - torch.sin(angle) * step[:, 1]).sum()
    return float(forward), float(torch.rad2deg(torch.atan2(left, forward)))


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


class TestNames:
    @pytest.mark.parametrize(
        ("kind", "prefix"),
        [("mixamo", "mixamorig:"), ("mixamo", "Armature|"), ("unreal", ""), ("rigify", ""), ("smpl", ""), ("smpl-short", ""),
         ("smpl-unity", ""), ("biped", "Bip01 "), ("biped", "Bip001 "), ("cmu31-max-names", ""), ("asf", ""), ("smpl22", "")],
    )  # fmt: skip
    def test_full_skeletons_give_the_same_motion(self, walk, kind, prefix):
        source = renamed(walk, TABLES[kind], prefix)
        mapping = recognize_skeleton(source.skeleton)
        assert mapping is not None and len(mapping.joints) == 22
        assert mapping.joints == {t: prefix + s for t, s in TABLES[kind].items()}
        result = retarget(source, floor=False)
        assert result.skeleton.name == "smpl22"
        assert (result.positions - walk.positions).abs().max() < 1e-4
        assert (result.rotations - walk.rotations).abs().max() < 1e-4

    @pytest.mark.parametrize("kind", ["cmu31", "cmu43", "deepmimic15", "unity"])
    def test_skeletons_that_lack_joints(self, walk, kind):
        source = renamed(walk, TABLES[kind])
        mapping = recognize_skeleton(source.skeleton)
        assert mapping is not None and mapping.joints == TABLES[kind]
        result = retarget(source, floor=False)
        assert (result.positions - walk.positions).norm(dim=-1).max() < 0.09  # feet and collars are made up
        legs = [J[f"{s}_{p}"] for s in SIDES for p in ("hip", "knee", "ankle")]
        assert (result.positions - walk.positions)[:, legs].norm(dim=-1).max() < 1e-3

    @pytest.mark.parametrize(
        ("sides", "names"),
        [
            (("Left", "Right"), "Hip Knee Ankle Toe Collar Shoulder Elbow Wrist"),
            (("l_", "r_"), "upper_leg lower_leg foot ball clavicle upper_arm lower_arm hand"),
            (("L_", "R_"), "Thigh Calf Foot Toe Clavicle UpperArm Forearm Hand"),
            (("left ", "right "), "thigh shin foot toes collar arm forearm hand"),
        ],
    )
    def test_other_names_are_matched_by_their_words(self, walk, sides, names):
        table = {
            "pelvis": "root",
            "spine1": "waist",
            "spine2": "torso",
            "spine3": "chest",
            "neck": "neck",
            "head": "skull",
        }
        for side, mark in zip(SIDES, sides, strict=True):
            parts = ("hip", "knee", "ankle", "foot", "collar", "shoulder", "elbow", "wrist")
            table |= {f"{side}_{part}": mark + word for part, word in zip(parts, names.split(), strict=True)}
        source = renamed(walk, table)
        mapping = recognize_skeleton(source.skeleton)
        assert mapping is not None
        for part in ("hip", "knee", "ankle", "foot", "collar", "shoulder", "elbow", "wrist"):
            assert mapping.joints[f"left_{part}"] == table[f"left_{part}"]
        assert (retarget(source, floor=False).positions - walk.positions).norm(dim=-1).max() < 0.05

    def test_unknown_skeletons_say_what_was_not_found(self, walk):
        names = dict.fromkeys(SMPL22_NAMES, "")
        table = {n: n for n in SMPL22_NAMES} | {"left_knee": "bone7", "right_wrist": "bone9"}
        with pytest.raises(
            SkeletonError,
            match=r"nothing found for left_knee, right_wrist; its joints are pelvis.*joints=\{'left_knee'",
        ):
            retarget(renamed(walk, table))
        assert recognize_skeleton(renamed(walk, table).skeleton) is None
        with pytest.raises(SkeletonError, match="nothing found for pelvis, left_hip"):
            retarget(renamed(walk, {n: f"bone{j}" for j, n in enumerate(names)}))

    def test_missing_joints_can_be_given(self, walk):
        table = {n: n for n in SMPL22_NAMES} | {"left_knee": "bone7", "right_wrist": "bone9"}
        source = renamed(walk, table)
        result = retarget(source, joints={"left_knee": "bone7", "right_wrist": "bone9"}, floor=False)
        assert (result.positions - walk.positions).abs().max() < 1e-4
        with pytest.raises(SkeletonError, match="nothing given or found for right_wrist"):
            retarget(source, joints={"left_knee": "bone7"})
        with pytest.raises(SkeletonError, match="no joint 'bone8'"):
            retarget(source, joints={"left_knee": "bone8"})
        with pytest.raises(SkeletonError, match="unknown target joints tail; use pelvis"):
            retarget(walk, joints={"tail": "pelvis"})

    def test_targets(self, walk):
        with pytest.raises(SkeletonError, match="can't retarget to 'smplx'"):
            retarget(walk, "smplx")
        with pytest.raises(SkeletonError, match="must have the 22 joints"):
            retarget(walk, Skeleton(("only",), (-1,), torch.zeros(1, 3)))


class TestRestPoses:
    def test_nothing_changes_on_our_own_skeleton(self, walk):
        assert (retarget(walk, floor=False).positions - walk.positions).abs().max() < 1e-5
        twice = retarget(retarget(walk))
        assert (twice.positions - retarget(walk).positions).abs().max() < 1e-5

    @pytest.mark.parametrize("vector", [(0.0, 1.57, 0.0), (0.0, 3.1, 0.0), (1.5708, 0.0, 0.0), (0.0, 0.6, 0.0)])
    def test_rest_poses_that_face_another_way_or_lie(self, walk, vector):
        turned = rotation.from_rotvec(torch.tensor(vector)).expand(22, 3, 3)
        source = with_rest(renamed(walk, TABLES["mixamo"]), turned)
        assert (source.positions - walk.positions).abs().max() < 1e-4
        assert (retarget(source, floor=False).positions - walk.positions).abs().max() < 2e-3

    @pytest.mark.parametrize("angle", [0.8, 1.5])
    def test_arms_that_hang_at_rest(self, walk, angle):
        rest = torch.eye(3).repeat(22, 1, 1)
        for side, sign in (("left", -1.0), ("right", 1.0)):
            for part in ("shoulder", "elbow", "wrist"):
                rest[J[f"{side}_{part}"]] = rotation.from_rotvec(torch.tensor([0.0, 0.0, sign * angle]))
        source = with_rest(renamed(walk, TABLES["mixamo"]), rest)
        result = retarget(source, floor=False)
        assert (result.positions - walk.positions).abs().max() < 1e-4
        assert (result.rotations - walk.rotations).abs().max() < 1e-4

    def test_sizes_are_scaled_by_leg_length(self, walk):
        child = walk.replace(
            skeleton=renamed(walk, TABLES["mixamo"]).skeleton.with_offsets(walk.skeleton.offsets * 0.6),
            root=walk.root * 0.6,
        )
        assert (retarget(child, floor=False).positions - walk.positions).abs().max() < 1e-4
        tall = smpl22().with_offsets(smpl22().offsets * 1.2)
        assert (retarget(child, tall, floor=False).positions - 1.2 * walk.positions).abs().max() < 1e-4

    def test_feet_are_put_on_the_floor(self, walk):
        raised = walk.transform(torch.eye(3), torch.tensor([0.0, 0.4, 0.0]))
        lowest = retarget(raised).positions[..., 1].min(dim=1).values
        assert float(lowest.quantile(0.02)) == pytest.approx(0, abs=1e-5)
        assert torch.allclose(retarget(raised, floor=False).root, raised.root, atol=1e-5)


class TestJumps:
    @staticmethod
    def with_pop(motion: Motion, frames: range, shift: float = 1.5) -> Motion:
        root = motion.root.clone()
        root[list(frames)] += torch.tensor([shift, 0.0, 0.0])
        return motion.replace(root=root)

    def test_clean_motion_has_none(self, walk):
        assert find_jumps(walk) == [] and find_jumps(walk.crop(0, 1)) == []
        parts, report = repair(walk)
        assert len(parts) == 1 and parts[0].meta["first_frame"] == 0 and report.jump_frames == ()

    @pytest.mark.parametrize("frames", [range(30, 31), range(40, 44)])
    def test_pops_are_filled_in(self, walk, frames):
        broken = self.with_pop(walk, frames)
        assert find_jumps(broken) == [frames.start - 1, frames.stop - 1]
        parts, report = repair(broken)
        assert len(parts) == 1 and report.repaired_pops == 1 and report.repaired_frames == len(frames)
        assert report.jump_frames == (frames.start - 1, frames.stop - 1)
        assert find_jumps(parts[0]) == [] and (parts[0].positions - walk.positions).norm(dim=-1).max() < 0.12

    def test_a_limb_that_pops_is_filled_in(self, walk):
        rotations = walk.rotations.clone()
        rotations[50, J["left_hip"]] = (
            rotation.from_rotvec(torch.tensor([-1.9, 0.0, 0.0])) @ rotations[50, J["left_hip"]]
        )
        parts, report = repair(walk.replace(rotations=rotations))
        assert report.jump_frames == (49, 50) and len(parts) == 1
        assert (parts[0].positions - walk.positions).norm(dim=-1).max() < 0.05

    def test_long_gaps_are_cut(self, walk):
        parts, report = repair(self.with_pop(walk, range(30, 60)))
        assert report.repaired_pops == 0 and report.jump_frames == (29, 59)
        assert [(p.meta["first_frame"], p.num_frames) for p in parts] == [(0, 30), (30, 30), (60, 30)]
        assert all(find_jumps(p) == [] for p in parts)

    def test_jumps_at_either_end(self, walk):
        for frames, cut in ((range(0, 1), [1, 89]), (range(89, 90), [89, 1])):
            parts, _ = repair(self.with_pop(walk, frames))
            assert [p.num_frames for p in parts] == cut

    def test_fingers_and_hair_don_t_count(self, walk):
        names = (*walk.skeleton.names, "hair")
        skeleton = Skeleton(names, (*walk.skeleton.parents, 15), torch.cat([walk.skeleton.offsets, torch.ones(1, 3)]))
        rotations = torch.cat([walk.rotations, torch.eye(3).expand(90, 1, 3, 3)], dim=1)
        rotations[40, 15] = rotation.yaw(torch.tensor(2.5)) @ rotations[40, 15]  # turns the head under the hair
        assert find_jumps(Motion(skeleton, walk.root, rotations, 30.0)) == []


def first_clips(archive: Path, wanted: dict[str, int], folder: Path) -> Iterator[Path]:
    """Unpack the first few members whose names start so, reading no further than needed."""
    left = dict(wanted)
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            name = Path(member.name).name
            start = next((w for w, n in left.items() if n and name.startswith(w) and name.endswith(".bvh")), None)
            if start is not None:
                left[start] -= 1
                (folder / name).write_bytes(tar.extractfile(member).read())  # pyright: ignore[reportOptionalMemberAccess]
                yield folder / name
            if not any(left.values()):
                return


class TestSharedData:
    def test_mini(self, mini_bvh):
        for path in mini_bvh:
            source = load_motion(path)
            result = retarget(source)
            check_result(source, result)
            check_pose(source, result)

    @pytest.mark.parametrize(
        ("archive", "kind", "wanted"),
        [("cmu15", "deepmimic15", {"": 3}), ("deepmimic", "deepmimic15", {"dm_walk": 1, "dm_run": 1}), ("bandai1", "bandai22", {"": 3}),
         ("cmu43", "cmu43", {"": 1})],
    )  # fmt: skip
    def test_every_kind(self, shared_data, tmp_path, archive, kind, wanted):
        count = 0
        for path in first_clips(shared_data / f"{archive}.tar.xz", wanted, tmp_path):
            source = load_motion(path)
            mapping = recognize_skeleton(source.skeleton)
            assert mapping is not None and mapping.kind == kind
            result = retarget(source)
            check_result(source, result, flat=archive != "cmu15")
            check_pose(source, result)
            count += 1
        assert count >= 1

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("archive", "count"), [("cmu31", 179), ("cmu43", 39), ("cmu15", 49), ("deepmimic", 24), ("bandai1", 156)]
    )
    def test_all_clips(self, shared_data, archive, count):
        facts = {r["clip"]: r for name in ("manifest", "bandai1_manifest") for r in rows(shared_data / f"{name}.jsonl")}
        phrases = {r["clip"]: r["text"] for r in rows(shared_data / "captions.jsonl") if r["source"] == "cmu-index"}
        seen, walks, jumps = 0, 0, 0
        for _, path in iter_motion_files(shared_data / f"{archive}.tar.xz"):
            name = path.stem
            source, fact = load_motion(path), facts[name]
            assert source.fps == pytest.approx(fact["fps"], abs=0.01) and source.num_frames == fact["frames"], name
            result = retarget(source)
            phrase = phrases.get(name, fact.get("content", ""))
            flat = not fact.get("props_or_obstacles") and archive != "cmu15" and "uneven" not in phrase
            try:
                check_result(source, result, flat)
                check_pose(source, result)
            except AssertionError as error:
                raise AssertionError(f"{name} ({phrase}): {error}") from error
            if "jump_frames" in fact:
                assert find_jumps(source) == fact["jump_frames"], name
                jumps += len(fact["jump_frames"])
            parts, report = repair(source)
            assert all(find_jumps(p) == [] for p in parts), name
            assert sum(p.num_frames for p in parts) == source.num_frames and list(report.jump_frames) == find_jumps(
                source
            )
            if phrase in ("walk", "slow walk", "brisk walk", "run", "run/jog"):
                forward, angle = travel(result)
                assert forward > 1 and abs(angle) < 25, (name, forward, angle)
                walks += 1
            if phrase == "walk-back":
                assert travel(result)[0] < -1, name
            seen += 1
        assert seen == count
        assert jumps == {"cmu31": 64, "cmu43": 23}.get(archive, 0)
        assert walks >= {"cmu31": 60, "bandai1": 35}.get(archive, 0)
        assert MAX_SPEED == 14
