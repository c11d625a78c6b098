"""Any motion file to features and back. Run: python examples/02_your_own_motion.py take.bvh"""

import sys

import vadis

if len(sys.argv) < 2:
    sys.exit("usage: python examples/02_your_own_motion.py FILE (.bvh .amc .json .npz .npy)")
motion = vadis.load_motion(sys.argv[1])
print("read       ", motion)

motion = vadis.retarget(motion, "smpl22").resample(30).canonicalize()
print("retargeted ", motion)

rep = vadis.representation("ms272")
features = rep.encode(motion)
for name, columns in rep.slices.items():
    part = features[:, columns]
    print(f"  {name:<20} columns {columns.start:>3}–{columns.stop - 1:<3} {part.min():+8.3f} … {part.max():+8.3f}")

again = rep.decode(features)
error = (again.positions - motion.positions).norm(dim=-1).max()
print(f"decoded from rotations: largest difference {1000 * error:.3f} mm")
