#!/usr/bin/env bash
# torch's FSDP2 (fully_shard) on two CPU processes: what is the gradient of a parameter after backward()?
#
# Expected by most: the mean over the processes, as with DistributedDataParallel and as with FSDP2 on GPUs.
# Seen: torch 2.8.0 with the gloo backend leaves the sum, twice the mean for two processes; torch 2.9.0 gives the mean.
# Adam hides it (it divides by the gradient's size), gradient clipping and SGD do not.
#
# Needs Python 3.11 or newer and a network for pip. Fails when either version behaves otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/probe.py" <<'PY'
import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    layer = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    layer(torch.full((1, 4), 3.0)).sum().backward()  # the same input on both processes: every gradient is 3
    grad = layer.weight.grad.full_tensor()
    if rank == 0:
        print(f"torch {torch.__version__.split('+')[0]}: gradient {grad[0, 0].item():g}, the mean is 3, the sum 6", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), 2)
PY
for pair in "2.8.0 6" "2.9.0 3"; do
  read -r version expected <<< "$pair"
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install -q "torch==$version" numpy
  mkdir "$work/meet-$version"
  said=$("$work/$version/bin/python" "$work/probe.py" "$work/meet-$version" 2>/dev/null)
  echo "$said"
  grep -q "gradient $expected," <<< "$said" || { echo "torch $version does otherwise now" >&2; exit 1; }
done
