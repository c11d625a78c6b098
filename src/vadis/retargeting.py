"""Motion from any human skeleton onto the 22 joints that every model here uses, by rotations (twist included).

Every source joint gets a *calibration*: its world rotation when the source body stands in the target's rest pose (T-pose
facing +Z). A target joint then turns as its source joint has turned away from that pose. Calibrations come from the
source's rest skeleton: the whole body is turned to face +Z, limbs by the smallest rotation from their rest direction to
the target's. Joints that the source lacks are interpolated between their neighbours; toes and wrists follow their
parents. The root path is scaled by the ratio of leg lengths and the feet are put on the floor.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from vadis import rotation
from vadis.errors import SkeletonError
from vadis.motion import Motion
from vadis.skeleton import SMPL22_NAMES, SMPL22_PARENTS, Skeleton, smpl22

_SIDED = ("hip", "knee", "ankle", "foot", "collar", "shoulder", "elbow", "wrist")
_MIDDLE = ("pelvis", "spine1", "spine2", "spine3", "neck", "head")
_REQUIRED = ("pelvis", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
             "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist")  # fmt: skip


def _table(middle: str, left: str, right: str) -> dict[str, str]:
    """Target joint -> source name; `-` stands for a joint that the skeleton lacks."""
    names = dict(zip(_MIDDLE, middle.split(), strict=True))
    for side, row in (("left", left), ("right", right)):
        names |= {f"{side}_{part}": n for part, n in zip(_SIDED, row.split(), strict=True)}
    return {target: source for target, source in names.items() if source != "-"}


TABLES: dict[str, dict[str, str]] = {
    "smpl22": {name: name for name in SMPL22_NAMES},
    "cmu31": _table(
        "Hips LowerBack Spine Spine1 Neck1 Head",
        "LeftUpLeg LeftLeg LeftFoot LeftToeBase LeftShoulder LeftArm LeftForeArm LeftHand",
        "RightUpLeg RightLeg RightFoot RightToeBase RightShoulder RightArm RightForeArm RightHand",
    ),
    "cmu31-max-names": _table(
        "Hips lowerback Chest Chest2 Neck Head",
        "LeftHip LeftKnee LeftAnkle LeftToe LeftCollar LeftShoulder LeftElbow LeftWrist",
        "RightHip RightKnee RightAnkle RightToe RightCollar RightShoulder RightElbow RightWrist",
    ),
    "cmu43": _table(
        "hip - abdomen chest neck head",
        "lThigh lShin lFoot - lCollar lShldr lForeArm lHand",
        "rThigh rShin rFoot - rCollar rShldr rForeArm rHand",
    ),
    "deepmimic15": _table(
        "root - - chest - neck",
        "left_hip left_knee left_ankle - - left_shoulder left_elbow left_wrist",
        "right_hip right_knee right_ankle - - right_shoulder right_elbow right_wrist",
    ),
    "bandai22": _table(
        "Hips - Spine Chest Neck Head",
        "UpperLeg_L LowerLeg_L Foot_L Toes_L Shoulder_L UpperArm_L LowerArm_L Hand_L",
        "UpperLeg_R LowerLeg_R Foot_R Toes_R Shoulder_R UpperArm_R LowerArm_R Hand_R",
    ),
    "asf": _table(
        "root lowerback upperback thorax upperneck head",
        "lfemur ltibia lfoot ltoes lclavicle lhumerus lradius lwrist",
        "rfemur rtibia rfoot rtoes rclavicle rhumerus rradius rwrist",
    ),
    "mixamo": _table(
        "Hips Spine Spine1 Spine2 Neck Head",
        "LeftUpLeg LeftLeg LeftFoot LeftToeBase LeftShoulder LeftArm LeftForeArm LeftHand",
        "RightUpLeg RightLeg RightFoot RightToeBase RightShoulder RightArm RightForeArm RightHand",
    ),
    "unreal": _table(
        "pelvis spine_01 spine_02 spine_03 neck_01 head",
        "thigh_l calf_l foot_l ball_l clavicle_l upperarm_l lowerarm_l hand_l",
        "thigh_r calf_r foot_r ball_r clavicle_r upperarm_r lowerarm_r hand_r",
    ),
    "unity": _table(
        "Hips - Spine Chest Neck Head",
        "LeftUpperLeg LeftLowerLeg LeftFoot LeftToes LeftShoulder LeftUpperArm LeftLowerArm LeftHand",
        "RightUpperLeg RightLowerLeg RightFoot RightToes RightShoulder RightUpperArm RightLowerArm RightHand",
    ),
    "rigify": _table(
        "spine spine.001 spine.002 spine.003 spine.004 spine.006",
        "thigh.L shin.L foot.L toe.L shoulder.L upper_arm.L forearm.L hand.L",
        "thigh.R shin.R foot.R toe.R shoulder.R upper_arm.R forearm.R hand.R",
    ),
    "biped": _table(
        "Pelvis Spine Spine1 Spine2 Neck Head",
        "LThigh LCalf LFoot LToe0 LClavicle LUpperArm LForearm LHand",
        "RThigh RCalf RFoot RToe0 RClavicle RUpperArm RForearm RHand",
    ),
    "smpl": _table(
        "Pelvis Spine1 Spine2 Spine3 Neck Head",
        "Left_hip Left_knee Left_ankle Left_foot Left_collar Left_shoulder Left_elbow Left_wrist",
        "Right_hip Right_knee Right_ankle Right_foot Right_collar Right_shoulder Right_elbow Right_wrist",
    ),
    "smpl-short": _table(
        "Pelvis Spine1 Spine2 Spine3 Neck Head",
        "L_Hip L_Knee L_Ankle L_Foot L_Collar L_Shoulder L_Elbow L_Wrist",
        "R_Hip R_Knee R_Ankle R_Foot R_Collar R_Shoulder R_Elbow R_Wrist",
    ),
    "smpl-unity": _table(
        "Pelvis Spine1 Spine2 Spine3 Neck Head",
        "L_Hip L_Knee L_Ankle L_Toe L_Collar L_Shoulder L_Elbow L_Wrist",
        "R_Hip R_Knee R_Ankle R_Toe R_Collar R_Shoulder R_Elbow R_Wrist",
    ),
}
"""Known skeletons: which of their joints drives which of the 22."""

_SYNONYMS: dict[str, str] = {  # for skeletons that no table names; matched on lower-case letters and digits only
    "pelvis": "pelvis hips hip root hipcenter centerhip cog bippelvis",
    "spine1": "spine1 spine spinelower lowerback abdomen abdomenlower bipspine waist torso",
    "spine2": "spine2 spinemid upperback abdomenupper bipspine1 midspine",
    "spine3": "spine3 chest spine2 spineupper thorax upperchest torso bipspine2 chestupper ribs",
    "neck": "neck neck1 necklower neck01 bipneck lowerneck",
    "head": "head biphead skull",
    "hip": "hip upleg upperleg thigh femur hipjoint legupper",
    "knee": "knee leg lowerleg shin calf tibia leglower",
    "ankle": "ankle foot",
    "foot": "toe toebase toes ball foottip tobase toe0 toe1",
    "collar": "collar clavicle shoulder scapula",
    "shoulder": "shoulder arm upperarm humerus shldr armupper",
    "elbow": "elbow forearm lowerarm radius armlower",
    "wrist": "wrist hand",
}

# Bandai-Namco joints have their bones along X and no human rest pose: world axes of each joint in the T-pose.
_UP, _LEFT, _FRONT = torch.eye(3)[1], torch.eye(3)[0], torch.eye(3)[2]


def _axes(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)


def _bandai_calibration(target: Skeleton) -> dict[str, Tensor]:
    toe = target.offsets[target.index("left_foot")] * torch.tensor([0.0, 1.0, 1.0])
    toe = toe / toe.norm()
    result = {"pelvis": _axes(_UP, -_LEFT)}
    result |= {name: _axes(_UP, _FRONT) for name in ("spine1", "spine2", "spine3", "neck", "head")}
    for part in _SIDED:
        if part in ("hip", "knee"):
            left, right = _axes(-_UP, _LEFT), _axes(_UP, _LEFT)
        elif part in ("ankle", "foot"):
            left, right = _axes(toe, _LEFT), _axes(-toe, _LEFT)
        else:
            left, right = _axes(_LEFT, _UP), _axes(_LEFT, -_UP)
        result |= {f"left_{part}": left, f"right_{part}": right}
    return result


@dataclass(frozen=True)
class Mapping:
    """Which source joint drives which target joint: `kind` names the table, `joints` maps target to source names."""

    kind: str
    joints: dict[str, str]


def _plain(name: str) -> str:
    name = re.sub(r"^.*[:|]", "", name)  # namespaces: mixamorig:Hips, Armature|Hips
    name = re.sub(r"^[Bb]ip0*\d*(?=[ _])", "", name)  # 3ds Max: Bip01 L Thigh
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _side(name: str) -> tuple[str, str]:
    """("left" | "right" | "", the rest of the name in plain letters)."""
    bare = re.sub(r"^.*[:|]", "", name)
    for side, letter in (("left", "l"), ("right", "r")):
        if side in bare.lower():
            return side, _plain(bare.lower().replace(side, "", 1))
        if re.search(rf"(^|[_.\s-]){letter}([_.\s-]|$)", bare.lower()):
            return side, _plain(re.sub(rf"(^|[_.\s-]){letter}([_.\s-]|$)", " ", bare.lower(), count=1))
        if re.match(rf"{letter}[A-Z]", bare) or re.match(rf"{letter.upper()}[A-Z][a-z]", bare):
            return side, _plain(bare[1:])
    return "", _plain(bare)


def _by_synonyms(skeleton: Skeleton) -> dict[str, str]:
    sided = [(n, *_side(n)) for n in skeleton.names]
    found: dict[str, str] = {}
    for target in SMPL22_NAMES:
        side, part = target.split("_", 1) if "_" in target else ("", target)
        for word in _SYNONYMS[part].split():
            hits = [n for n, s, plain in sided if s == side and plain == word and n not in found.values()]
            if hits:
                found[target] = hits[0]
                break
    for side in ("left", "right"):  # "shoulder" alone is the upper arm, beside an "arm" it is the collar
        if f"{side}_shoulder" not in found and f"{side}_collar" in found:
            found[f"{side}_shoulder"] = found.pop(f"{side}_collar")
    return found


def recognize_skeleton(skeleton: Skeleton) -> Mapping | None:
    """The known skeleton (or "automatic" name matching) that covers this one, or None when essential joints are missing."""
    plain = {_plain(n): n for n in reversed(skeleton.names)}
    best: Mapping | None = None
    for kind, table in TABLES.items():
        joints = {t: plain[_plain(s)] for t, s in table.items() if _plain(s) in plain}
        complete = all(t in joints for t in table)
        if complete and (best is None or len(joints) > len(best.joints)):
            best = Mapping(kind, joints)
    if best is None or len(best.joints) < len(SMPL22_NAMES):  # a small table may fit a larger skeleton by chance
        joints = _by_synonyms(skeleton)
        if all(t in joints for t in _REQUIRED) and len(joints) > (len(best.joints) if best else 0):
            best = Mapping("automatic", joints)
    return best


def _mapping_or_error(skeleton: Skeleton) -> Mapping:
    mapping = recognize_skeleton(skeleton)
    if mapping is None:
        found = _by_synonyms(skeleton)
        missing = [t for t in _REQUIRED if t not in found]
        raise SkeletonError(
            f"can't map this skeleton to the 22 joints: nothing found for {', '.join(missing)}; its joints are "
            f"{', '.join(skeleton.names[:60])}. Name the joint yourself: joints={{'{missing[0]}': 'name in the file', …}}."
        )
    return mapping


def _facing(skeleton: Skeleton, joints: dict[str, str]) -> Tensor:
    """World rotation `(3, 3)` that makes the rest skeleton stand upright and face +Z."""
    rest = skeleton.rest_positions
    at = {t: rest[skeleton.index(s)] for t, s in joints.items()}
    left = at["left_hip"] - at["right_hip"]
    hips = (at["left_hip"] + at["right_hip"]) / 2
    top = at.get("neck", at.get("head", (at["left_shoulder"] + at["right_shoulder"]) / 2))
    up = top - hips
    if left.norm() < 1e-6 or up.norm() < 1e-6:
        raise SkeletonError("the rest pose has no width or no height, so its facing direction is unknown.")
    # Most files are Y or Z up exactly: a spine that leans a little must not tilt the whole body.
    axis = torch.eye(3)[up.abs().argmax()] * up[up.abs().argmax()].sign()
    up = axis if torch.dot(axis, up) > 0.9 * up.norm() else up / up.norm()
    left = left - torch.dot(left, up) * up
    left = left / left.norm()
    return torch.stack([left, up, torch.linalg.cross(left, up)])


_BONE_END = {"hip": "knee", "knee": "ankle", "ankle": "foot", "shoulder": "elbow", "elbow": "wrist"}


def _calibration(skeleton: Skeleton, mapping: Mapping, target: Skeleton) -> dict[str, Tensor]:
    """Target joint -> world rotation `(3, 3)` of its source joint when the source stands in the target's rest pose."""
    if mapping.kind == "bandai22":
        return _bandai_calibration(target)
    facing = _facing(skeleton, mapping.joints)
    rest = skeleton.rest_positions
    result = dict.fromkeys(mapping.joints, facing)
    for side in ("left", "right"):
        for part, end in _BONE_END.items():
            joint, tip = f"{side}_{part}", f"{side}_{end}"
            if joint not in mapping.joints:
                continue
            source = skeleton.index(mapping.joints[joint])
            if tip in mapping.joints:
                bone = rest[skeleton.index(mapping.joints[tip])] - rest[source]
            elif part == "ankle" and source in skeleton.end_sites:
                bone = skeleton.end_sites[source]
            else:
                continue
            if bone.norm() > 1e-6:
                goal = target.offsets[target.index(tip)]
                result[joint] = rotation.between(facing @ bone, goal) @ facing
        for part, up in (("foot", "ankle"), ("wrist", "elbow")):
            if f"{side}_{part}" in result:
                result[f"{side}_{part}"] = result[f"{side}_{up}"]
    return result


def _leg_length(skeleton: Skeleton, joints: dict[str, str]) -> float:
    total = 0.0
    for side in ("left", "right"):
        for joint in (f"{side}_knee", f"{side}_ankle"):
            top = {"knee": "hip", "ankle": "knee"}[joint.split("_")[1]]
            start, stop = skeleton.index(joints[f"{side}_{top}"]), skeleton.index(joints[joint])
            total += float((skeleton.rest_positions[stop] - skeleton.rest_positions[start]).norm())
    return total / 2


def _chains() -> list[list[int]]:
    """Root-to-leaf paths of the 22-joint tree."""
    leaves = [j for j in range(22) if j not in SMPL22_PARENTS]
    paths = []
    for leaf in leaves:
        path = [leaf]
        while path[-1] > 0:
            path.append(SMPL22_PARENTS[path[-1]])
        paths.append(path[::-1])
    return paths


def _fill_missing(world: dict[int, Tensor]) -> Tensor:
    """World rotations of all 22 joints `(T, 22, 3, 3)`: missing ones between neighbours, missing leaves as their parent."""
    for path in _chains():
        for k, joint in enumerate(path):
            if joint in world:
                continue
            after = next((m for m in range(k + 1, len(path)) if path[m] in world), None)
            name = SMPL22_NAMES[joint]
            if after is None or name.endswith("collar"):  # a collar that isn't there moves with the chest
                world[joint] = world[path[k - 1]]
            else:
                weight = torch.full((1,), 1.0 / (after - k + 1))
                world[joint] = rotation.slerp(world[path[k - 1]], world[path[after]], weight)
    return torch.stack([world[j] for j in range(22)], dim=1)


def retarget(
    motion: Motion, to: str | Skeleton = "smpl22", joints: dict[str, str] | None = None, floor: bool = True
) -> Motion:
    """A motion of any human skeleton on the 22 joints.

    Args:
        motion: the source; its skeleton is recognised by its joint names.
        to: "smpl22", or a skeleton with the same 22 joints and other bone lengths.
        joints: target joint -> source joint names, overriding or completing what was recognised.
        floor: put the feet on height 0 (2 % quantile of the lowest joint over time).

    Raises SkeletonError that lists the joints for which nothing was found.
    """
    if isinstance(to, str) and to != "smpl22":
        raise SkeletonError(f"can't retarget to {to!r}: known targets are smpl22 or a Skeleton with its 22 joints.")
    target = smpl22() if isinstance(to, str) else to
    if target.names != SMPL22_NAMES:
        raise SkeletonError("the target skeleton must have the 22 joints of smpl22, in that order.")
    source = motion.skeleton
    for name in (joints or {}).values():
        source.index(name)
    if joints and not set(joints) <= set(SMPL22_NAMES):
        unknown = ", ".join(sorted(set(joints) - set(SMPL22_NAMES)))
        raise SkeletonError(f"unknown target joints {unknown}; use {', '.join(SMPL22_NAMES)}.")
    if joints and (recognize_skeleton(source) is None):
        mapping = Mapping("given", _by_synonyms(source) | joints)
        missing = [t for t in _REQUIRED if t not in mapping.joints]
        if missing:
            raise SkeletonError(f"nothing given or found for {', '.join(missing)}.")
    else:
        mapping = _mapping_or_error(source)
        mapping = Mapping(mapping.kind, mapping.joints | (joints or {}))
    if mapping.kind == "smpl22":
        order = [
            source.index(mapping.joints[name]) for name in SMPL22_NAMES
        ]  # files go branch by branch, may have hands
        moved = motion.replace(skeleton=target, rotations=motion.rotations[:, order])
        scale = _leg_length(target, TABLES["smpl22"]) / _leg_length(source, mapping.joints)
        moved = moved.replace(root=moved.root * scale) if abs(scale - 1) > 1e-6 else moved
        return _put_on_floor(moved) if floor else moved
    calibration = _calibration(source, mapping, target)
    turned: dict[int, Tensor] = {}
    for name, from_name in mapping.joints.items():
        world = motion.global_rotations[:, source.index(from_name)]
        turned[target.index(name)] = world @ calibration[name].T
    rotations = target.local_rotations(_fill_missing(turned))
    scale = _leg_length(target, TABLES["smpl22"]) / _leg_length(source, mapping.joints)
    hips = [source.index(mapping.joints[f"{s}_hip"]) for s in ("left", "right")]
    centre = motion.positions[:, hips].mean(1) * scale
    mine = (target.offsets[target.index("left_hip")] + target.offsets[target.index("right_hip")]) / 2
    root = centre - (turned[0] @ mine[:, None])[..., 0]  # hips meet hips, wherever either skeleton puts its root
    meta = motion.meta | {"retargeted_from": mapping.kind}
    result = Motion(target, root, rotations, motion.fps, meta)
    return _put_on_floor(result) if floor else result


def _put_on_floor(motion: Motion) -> Motion:
    lowest = motion.positions[..., 1].min(dim=1).values
    return motion.replace(root=motion.root - torch.tensor([0.0, float(lowest.quantile(0.02)), 0.0]))
