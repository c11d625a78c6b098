"""Runs inside Blender's Python: imports a motion file and prints, as JSON, where the bones' heads are in some frames.

Usage: python compare_in_blender.py FILE FPS FRAME [FRAME ...]. Positions are metres, right-handed, Y up.
"""

import json
import sys

import bpy


def main() -> None:
    path, fps, frames = sys.argv[1], float(sys.argv[2]), [int(f) for f in sys.argv[3:]]
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = round(fps)
    if path.endswith(".bvh"):
        bpy.ops.import_anim.bvh(filepath=path, global_scale=0.01, use_fps_scale=False, axis_forward="-Z", axis_up="Y")
        first = 1
    else:
        bpy.ops.import_scene.gltf(filepath=path)
        first = 0
    armature = next(o for o in bpy.data.objects if o.type == "ARMATURE")
    result = {"bones": [b.name for b in armature.pose.bones], "meshes": [], "frames": []}
    for frame in frames:
        bpy.context.scene.frame_set(frame + first)
        heads = [armature.matrix_world @ b.head for b in armature.pose.bones]
        result["frames"].append([[p.x, p.z, -p.y] for p in heads])
        graph = bpy.context.evaluated_depsgraph_get()
        skinned = [o for o in bpy.data.objects if o.type == "MESH" and any(m.type == "ARMATURE" for m in o.modifiers)]
        if skinned:
            mesh = skinned[0].evaluated_get(graph).to_mesh()
            points = [skinned[0].matrix_world @ v.co for v in mesh.vertices]
            result["meshes"].append([[p.x, p.z, -p.y] for p in points])
    print("RESULT" + json.dumps(result))


main()
