"""A motion from a sentence, cut and mirrored, written for three kinds of program. Run: python examples/01_from_a_sentence.py"""

import sys
from pathlib import Path

import vadis

out = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
pipe = vadis.load("vadis-mini")

made = pipe("a person walks forward and waves with the right hand", seconds=5, seed=0)
motion = made.motion
print(motion)

motion.save(out / "wave.glb")  # a skinned body, for Blender, Unreal, Unity
motion.mirror().save(out / "wave_left.bvh")  # now the left hand waves
motion.crop(0, int(2 * motion.fps)).resample(60).save(out / "first_two_seconds.npz")

walked = (motion.root[-1] - motion.root[0]).norm()
print(f"walked {walked:.2f} m in {motion.seconds:.1f} s; files in {out}/")
