"""The training loop: every task, on a CPU, a GPU or many (through accelerate).

A batch, and every random number of its forward pass, is a pure function of (seed, process, step). So the position in
the data is the step, and a resumed run goes on bit for bit like one that was never stopped.

    RUN/config.json      the resolved recipe
    RUN/run.json         versions, command line, how the last session ended
    RUN/log.jsonl        a line each `log_every` steps and each validation
    RUN/checkpoint/      everything needed to continue, replaced as a whole
    RUN/model/           the trained model (average weights), ready for `vadis.load`; RUN/best/ with `best`
"""

import json
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vadis.config import as_dict
from vadis.errors import MissingExtra, ModelError, VadisError
from vadis.files import atomic_folder, atomic_write, free_folder, recover, writing
from vadis.locks import only_run
from vadis.training import sharding
from vadis.training.checkpoint_files import load_average, load_model, load_optimizer, read_state
from vadis.training.config import Recipe
from vadis.training.ema import EMA
from vadis.training.report import Report, duration, read_run_page
from vadis.training.schedule import parameter_groups, schedule_factor, step_generator
from vadis.training.tasks import TASKS, Task, load_phases


def train(recipe: str | Path | Recipe, overrides: Sequence[str] = ()) -> Path:
    """Run a recipe (a YAML file or a `Recipe`), all its phases, and return the folder of the (last) trained model.

    `overrides` are `key=value` settings with dotted keys, e.g. `optimizer.lr=1e-4`, also for a `Recipe`.
    Raises VadisError for wrong settings, FileError for missing data, MissingExtra without accelerate.
    """
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingExtra("training needs accelerate: pip install 'vadis[train]'") from error
    phases = load_phases(recipe, overrides)
    for phase in phases:
        if len(phases) == 1 or phase.resume == "no" or not _finished(phase):
            Trainer(phase).run()
        if not _finished(phase):
            break  # it was stopped: the next phase would start from half of this one
    return Path(phase.run) / "model"


def _finished(recipe: Recipe) -> bool:
    """The run's folder says that its steps are done or its budget is spent."""
    path = Path(recipe.run) / "run.json"
    if not path.is_file():
        return False
    page = read_run_page(path)
    spent = recipe.max_seconds is not None and page["seconds"] >= recipe.max_seconds
    return page["state"].startswith("finished") and (page["step"] >= recipe.steps or spent)


class _Objective(nn.Module):
    """The task's loss as a forward pass, which is where autocast and data-parallel hooks sit."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._loss, self._validate = task.loss, task.validate

    def forward(self, batch: dict[str, Tensor] | None) -> dict[str, Any]:
        """Terms of a batch; without one, the task's validation, since split weights are at hand in a forward pass only."""
        return self._validate() if batch is None else self._loss(batch)


class Trainer:
    """One session of one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        if (
            int(os.environ.get("WORLD_SIZE", "1")) == 1
        ):  # an earlier training in this process may have had other settings
            AcceleratorState._reset_state(reset_partial_state=True)
        self.recipe = recipe
        self.folder = Path(recipe.run)
        free_folder(self.folder, "run.json", "log.jsonl", "checkpoint", "error.txt")
        self.step = 0
        self.seconds_before = 0.0
        self.best = math.inf
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        mixed = "bf16" if recipe.precision == "bf16" else "no"
        self.accelerator = Accelerator(cpu=recipe.device == "cpu", mixed_precision=mixed)
        if (kind := str(self.accelerator.distributed_type)).split(".")[-1] in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise VadisError(
                f"accelerate is set up for {kind}: set it up for plain data-parallel training, and split the weights by shard=true."
            )
        self.main = self.accelerator.is_main_process
        torch.manual_seed(recipe.seed)  # the initial weights, equal on every process
        np.random.seed(recipe.seed % 2**32)
        self.task = TASKS[recipe.task](recipe)
        self.sharded = recipe.shard and self.accelerator.num_processes > 1
        if recipe.shard and not self.task.can_shard:
            raise VadisError(f"task {recipe.task} keeps its model whole: leave shard out.")
        self.objective: Any = _Objective(self.task)
        if self.sharded:
            sharding.shard(self.objective, self.accelerator.device)
        groups = parameter_groups(self.task.model, recipe.optimizer)
        o = recipe.optimizer
        self.optimizer: Any = torch.optim.AdamW(groups, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
        if not self.sharded:
            self.objective, self.optimizer = self.accelerator.prepare(self.objective, self.optimizer)
        self.ema = EMA(self.task.model, recipe.ema) if recipe.ema else None

    def run(self) -> Path:
        """Train until steps, `stop_at`, budget or a signal end it; leaves a checkpoint and the exported model."""
        with only_run(self.folder) if self.main else nullcontext():
            if self.main:
                for name in ("checkpoint", "model", "best"):
                    recover(self.folder / name)
            self.accelerator.wait_for_everyone()
            return self._run()

    def _run(self) -> Path:
        r = self.recipe
        self._resume_or_start()
        self.started = time.monotonic()
        self._write_run_page("running")
        report = Report(self.folder, self.folder.name, r.steps, self.step, r.logger, as_dict(r), self.main)
        try:
            with _signals() as stop, writing(self.folder):
                ending = self._loop(report, stop)
                report.close()
        except BaseException:
            with suppress(VadisError, OSError):  # a full disk, of which the error in hand speaks already
                report.close()
                self._write_run_page("failed")
            raise
        self._write_run_page(ending)
        return self.folder / "model"

    def _loop(self, report: Report, stop: threading.Event) -> str:
        r, device = self.recipe, self.accelerator.device
        last_step = min(r.steps, r.stop_at or r.steps)
        sums: dict[str, Tensor] = {}
        count, since, first = 0, time.monotonic(), self.step
        seconds, stopping = self._clock(stop)
        saved = seconds
        while self.step < last_step and not stopping and not (r.max_seconds and seconds >= r.max_seconds):
            progress = max(self.step / r.steps, seconds / r.max_seconds if r.max_seconds else 0.0)
            lr = r.optimizer.lr * schedule_factor(r.schedule, self.step, progress)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.objective.train()
            for micro in range(r.accumulate):
                generator = step_generator(r.seed, self.accelerator.process_index, self.step * r.accumulate + micro)
                torch.manual_seed(generator.initial_seed() ^ 0x5DEECE66D)  # dropout and the like, on every device
                batch = {k: v.to(device, non_blocking=True) for k, v in self.task.batch(self.step, generator).items()}
                last = micro == r.accumulate - 1
                with self._synced(last):
                    terms = self.objective(batch)
                    self.accelerator.backward(terms["total"] / r.accumulate)
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value.detach().float() / r.accumulate
            if r.optimizer.clip:
                norm = self._clip(r.optimizer.clip)
                sums["gradient_norm"] = sums.get("gradient_norm", 0.0) + norm.detach()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.ema:
                self.ema.update(self.step)
            self.step += 1
            count += 1
            report.advance(self.step)
            seconds, stopping = self._clock(stop)
            if self.step % r.log_every == 0 or self.step == last_step:
                means = {k: v.item() / count for k, v in sums.items()}
                if not math.isfinite(means["total"]):
                    raise VadisError(
                        f"the loss is not finite at step {self.step}. Lower optimizer.lr, set optimizer.clip or use "
                        f"precision=fp32; the last checkpoint in {self.folder} is sound."
                    )
                rate = count / max(time.monotonic() - since, 1e-9)
                done = max(self.step / r.steps, seconds / r.max_seconds if r.max_seconds else 0.0)
                left = (r.steps - self.step) * (seconds - self.seconds_before) / max(self.step - first, 1)
                left = min(left, r.max_seconds - seconds) if r.max_seconds else left
                values = {"loss": means.pop("total"), **means, "lr": lr, "steps_per_second": rate, "seconds": seconds}
                note = f"loss {values['loss']:.4f} · {rate:.3g} steps/s · {100 * done:.1f} % · {duration(left)} left"
                report.log(self.step, values, note)
                sums, count, since = {}, 0, time.monotonic()
            paused = time.monotonic()
            if self.step % r.validate_every == 0 or self.step == r.steps:
                self._validate(report)
            late = r.checkpoint_seconds is not None and seconds - saved >= r.checkpoint_seconds
            if (self.step % r.checkpoint_every == 0 or late) and self.step < last_step:
                self.save()
                saved, _ = self._clock(stop)
            since += time.monotonic() - paused  # steps/s speaks of training only
        if self.step % r.validate_every and self.step < r.steps:
            self._validate(report)
        self.save()
        if self.step >= r.steps:
            return "finished"
        ended = "stopped by a signal" if stopping else f"stopped at stop_at={r.stop_at}"
        ended = "finished: the budget is spent" if r.max_seconds and seconds >= r.max_seconds else ended
        report.say(f"{ended} at step {self.step}; resume=auto continues.")
        return ended

    @contextmanager
    def _synced(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a batch: gradients are exchanged at the last one of a step."""
        if self.sharded:
            self.objective.set_requires_gradient_sync(last)
            with self.accelerator.autocast():
                yield
        else:
            with nullcontext() if last else self.accelerator.no_sync(self.objective):
                yield

    def _clip(self, most: float) -> Tensor:
        if not self.sharded:
            return torch.as_tensor(self.accelerator.clip_grad_norm_(self.objective.parameters(), most))
        return sharding.whole(nn.utils.clip_grad_norm_(self.objective.parameters(), most))

    def _clock(self, stop: threading.Event) -> tuple[float, bool]:
        """Seconds of all sessions, and whether to stop; the same on every process, or they would wait forever."""
        seconds = self.seconds_before + time.monotonic() - self.started
        if self.accelerator.num_processes == 1:
            return seconds, stop.is_set()
        both = torch.tensor([[seconds, float(stop.is_set())]], dtype=torch.float64, device=self.accelerator.device)
        seconds, stopping = torch.as_tensor(self.accelerator.gather(both)).amax(dim=0).tolist()
        return seconds, bool(stopping)

    @torch.no_grad()
    def _validate(self, report: Report) -> None:
        self.accelerator.wait_for_everyone()
        if self.main or self.sharded:  # of split weights everyone has a share
            self.objective.eval()
            with self.ema.applied() if self.ema else nullcontext(), torch.random.fork_rng():
                metrics = self._split_validation() if self.sharded else self.task.validate()
                wanted = self.recipe.best
                if wanted and wanted not in metrics:
                    raise VadisError(f"best: no validation metric {wanted!r}; there are {', '.join(metrics)}.")
                if wanted and metrics[wanted] < self.best:
                    self.best = metrics[wanted]
                    self._export("best")
            values = {f"validation/{k}": v for k, v in metrics.items()}
            report.log(self.step, values, "validation " + " · ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
        self.accelerator.wait_for_everyone()

    def _split_validation(self) -> dict[str, float]:
        with self.accelerator.autocast():
            metrics = self.objective(None)
        self.objective.reshard()  # without a backward pass the outermost group would stay whole
        shared = [metrics]  # the same to the last bit, since decisions follow from it
        torch.distributed.broadcast_object_list(shared)
        return shared[0]

    def _export(self, name: str) -> None:
        """Write the model; of split weights every process must call."""
        with sharding.whole_model(self.task.model, keep=self.main):
            if self.main:
                with atomic_folder(self.folder / name) as temporary:
                    self.task.export(temporary)

    def save(self) -> None:
        """Replace the checkpoint and the exported model."""
        from safetensors.torch import save_file

        self.accelerator.wait_for_everyone()
        optimizer = sharding.whole_optimizer(self.optimizer, keep=self.main)
        average = self.ema.state_dict(keep=self.main) if self.ema else None
        with sharding.whole_model(self.task.model, keep=self.main):
            if self.main:
                with atomic_folder(self.folder / "checkpoint") as temporary:
                    model = {k: v.detach().contiguous().clone() for k, v in self.task.model.state_dict().items()}
                    save_file(model, temporary / "model.safetensors")
                    if average is not None:
                        save_file(average, temporary / "ema.safetensors")
                    with (temporary / "optimizer.pt").open("wb") as file:  # by its name torch hides a full disk
                        torch.save(optimizer, file)
                    seconds = self.seconds_before + time.monotonic() - self.started
                    best = self.best if math.isfinite(self.best) else None
                    state = {"step": self.step, "seconds": seconds, "best": best}
                    state["processes"] = self.accelerator.num_processes
                    state["recipe"] = as_dict(self.recipe)
                    (temporary / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        with self.ema.applied() if self.ema else nullcontext():
            self._export("model")
        self.accelerator.wait_for_everyone()

    def _resume_or_start(self) -> None:
        checkpoint = self.folder / "checkpoint"
        if not (checkpoint / "state.json").exists():
            return
        state = read_state(checkpoint)
        if self.recipe.resume == "no":
            raise VadisError(
                f"{self.folder} already holds a training at step {state.step}. Continue it with resume=auto, or "
                "choose another folder with run=…"
            )
        now = as_dict(self.recipe)
        if (now["task"], now["model"]) != (state.task, state.model):
            changed = [k for k in now["model"] if now["model"][k] != state.model.get(k)]
            raise ModelError(
                f"{self.folder} was trained with another model (differs in {', '.join(changed) or 'task'}). "
                "Choose another folder with run=…"
            )
        with sharding.whole_model(self.task.model, write_back=True):
            load_model(self.task.model, checkpoint / "model.safetensors")
        if self.ema:
            if not (checkpoint / "ema.safetensors").exists():
                raise ModelError(
                    f"{checkpoint} holds no average of the weights: it was trained with ema: null. Keep it so."
                )
            load_average(self.ema, checkpoint / "ema.safetensors")
        load_optimizer(self.optimizer, checkpoint / "optimizer.pt")
        self.step, self.seconds_before = state.step, state.seconds
        self.best = math.inf if state.best is None else state.best

    def _write_run_page(self, ending: str) -> None:
        if not self.main:
            return
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        for package in ("vadis", "accelerate", "numpy"):
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:  # run from a checkout
                versions[package] = "not installed"
        page = {
            "state": ending,
            "step": self.step,
            "seconds": round(self.seconds_before + time.monotonic() - self.started, 1),
            "seed": self.recipe.seed,
            "device": str(self.accelerator.device),
            "processes": self.accelerator.num_processes,
            "parameters": sum(p.numel() for p in self.task.model.parameters()),
            "versions": versions,
            "command": sys.argv,
        }
        for name, value in (("run.json", page), ("config.json", as_dict(self.recipe))):
            with atomic_write(self.folder / name) as temporary:
                temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM end the run after the step in hand; a second one ends it at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        stop.set()
        for s, handler in old.items():
            signal.signal(s, handler)

    for s in old:
        signal.signal(s, ask)
    try:
        yield stop
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
