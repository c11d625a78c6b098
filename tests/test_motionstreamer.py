"""The latent generator by itself: caches, rows, samplers, sliding history, loss, precision, errors."""

import math
import shutil

import pytest
import torch

import vadis
from vadis.errors import ModelError, ShapeError, VadisError
from vadis.generators import MotionStreamer, MotionStreamerConfig
from vadis.generators.diffusion import DiffusionHead


def tiny(**changes: object) -> MotionStreamer:
    """Random weights whose head is not zero, as a new one's last layers are."""
    torch.manual_seed(0)
    fields = dict(n_layer=2, n_head=2, n_embd=16, block_size=12, text_dim=5, latent_dim=4, head_layers=2, head_width=24)
    model = MotionStreamer(MotionStreamerConfig(**(fields | changes)))
    for name, parameter in model.named_parameters():
        if "adaLN" in name or "final_layer" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="module", params=[False, True], ids=["text first", "text everywhere"])
def model(request: pytest.FixtureRequest) -> MotionStreamer:
    return tiny(text_everywhere=request.param)


TEXT = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
NULL = torch.randn(5, generator=torch.Generator().manual_seed(2))
OPTIONS = {"null_text": NULL, "guidance_scale": 2.5, "sampler": "dpm", "steps": 8}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def uncached(
    model: MotionStreamer, text: torch.Tensor, history: torch.Tensor, noise: torch.Tensor, **o
) -> torch.Tensor:
    """One latent from whole rows, without a cache."""
    states = [model(vector[None], history[None])[:, -1] for vector in (text, NULL)]
    options = {k: o[k] for k in ("guidance_scale", "sampler", "steps") if k in o}
    return model.head.sample(torch.cat(states), noise[None], **options)[0]


def test_cached_equals_uncached(model: MotionStreamer) -> None:
    noise = torch.randn(11, 1, 1, 4)
    made, _ = model.generate(TEXT[:1], num_latents=11, noise=noise, **OPTIONS)
    for i in range(11):
        close(made[0][i], uncached(model, TEXT[0], made[0][:i], noise[i, 0], **OPTIONS))


def test_nothing_sees_what_comes_later(model: MotionStreamer) -> None:
    latents = torch.randn(2, 11, 4)
    other = latents.clone()
    other[:, 6:] += 1
    a, b = model(TEXT[:2], latents), model(TEXT[:2], other)
    assert torch.equal(a[:, :7], b[:, :7]) and not torch.equal(a[:, 7:], b[:, 7:])


def test_rows_of_a_batch_join_change_and_leave_without_a_trace(model: MotionStreamer) -> None:
    """Each row equals the same stream alone, wherever the others stand."""
    streams = model.streams(3, **OPTIONS)
    made: dict[str, list[torch.Tensor]] = {"a": [], "b": [], "c": [], "d": []}
    streams.start(0, TEXT[0], seed=10)
    made["a"] += [streams.step()[0] for _ in range(3)]
    streams.start(2, TEXT[1], history=torch.ones(4, 4), seed=11)
    for _ in range(2):
        a, b = streams.step()
        made["a"].append(a)
        made["b"].append(b)
    streams.set_text(0, TEXT[2])
    streams.start(1, TEXT[2], seed=12)
    for _ in range(9):  # row 0 and 2 slide on the way
        a, c, b = streams.step()
        for name, latent in zip("acb", (a, c, b), strict=True):
            made[name].append(latent)
    streams.leave(2)
    streams.start(2, TEXT[0], seed=13)
    made["d"] += [streams.step([2])[0] for _ in range(2)]
    assert streams.running == [0, 1, 2]

    def alone(
        count: int, text: torch.Tensor, seed: int, change: int | None = None, **start: object
    ) -> list[torch.Tensor]:
        single = model.streams(1, **OPTIONS)
        single.start(0, text, seed=seed, **start)
        result = []
        for i in range(count):
            if i == change:
                single.set_text(0, TEXT[2])
            result.append(single.step()[0])
        return result

    close(torch.stack(made["a"]), torch.stack(alone(14, TEXT[0], 10, change=5)))
    close(torch.stack(made["b"]), torch.stack(alone(11, TEXT[1], 11, history=torch.ones(4, 4))))
    close(torch.stack(made["c"]), torch.stack(alone(9, TEXT[2], 12)))
    close(torch.stack(made["d"]), torch.stack(alone(2, TEXT[0], 13)))


def test_a_full_row_goes_on_from_its_last_latents(model: MotionStreamer) -> None:
    noise = torch.randn(20, 1, 1, 4)
    made, stopped = model.generate(TEXT[:1], num_latents=20, noise=noise, keep=5, **OPTIONS)
    assert made[0].shape == (20, 4) and stopped == ["length"]
    start = 0
    for i in range(20):
        if i - start >= 12:  # 12 latents do not fit beside the text
            start = i - 5
        close(made[0][i], uncached(model, TEXT[0], made[0][start:i], noise[i, 0], **OPTIONS))


def test_a_change_of_text_makes_no_larger_step_than_allowed(model: MotionStreamer) -> None:
    free, held = (model.streams(2, **OPTIONS, max_step=step) for step in (None, 0.5))
    for streams in (free, held):
        for row in (0, 1):
            streams.start(row, TEXT[row], seed=row)
    for _ in range(3):
        close(free.step(), held.step())  # a beginning is free
    for streams in (free, held):
        streams.set_text(0, TEXT[2])
    for k in range(4):
        before, wanted, made = held.history[0][-1], free.step(), held.step()
        close(wanted[1], made[1])  # its companion has not changed
        assert float((made[0] - before).norm()) == pytest.approx(0.5, abs=1e-4)
        if k == 0:
            way = wanted[0] - before
            assert float(way.norm()) > 0.5
            close(made[0], before + 0.5 * way / way.norm())
    assert float((held.step()[0] - held.history[0][-2]).norm()) > 0.5
    held.undo(0)
    kept = held.saved([0, 1])
    expected = held.step()
    held.restore(kept)
    close(held.step(), expected)
    later = model.streams(1, **OPTIONS, max_step=0.5)
    later.start(0, TEXT[0], held.history[0], seed=0)
    assert float((later.step()[0] - held.history[0][-1]).norm()) <= 0.5001
    with pytest.raises(VadisError, match="max_step"):
        model.streams(1, **OPTIONS, max_step=0.0)


def test_a_seed_gives_the_same_latents_in_any_batch(model: MotionStreamer) -> None:
    for options in (OPTIONS, {"null_text": NULL}, {"guidance_scale": 1.0, "sampler": "ddim", "steps": 4}):
        many, _ = model.generate(TEXT, num_latents=[4, 6, 5], seed=[1, 2, 3], **options)
        assert [len(row) for row in many] == [4, 6, 5]
        alone, _ = model.generate(TEXT[1:2], num_latents=6, seed=2, **options)
        scale = max(1.0, alone[0].abs().max().item())  # an untrained head makes large numbers
        close(many[1] / scale, alone[0] / scale)
    again, _ = model.generate(TEXT[1:2], num_latents=6, seed=torch.Generator().manual_seed(5), **OPTIONS)
    same, _ = model.generate(TEXT[1:2], num_latents=6, seed=torch.Generator().manual_seed(5), **OPTIONS)
    assert torch.equal(again[0], same[0])


def test_the_end_latent_ends_a_motion_and_is_not_part_of_it(model: MotionStreamer) -> None:
    whole, stopped = model.generate(TEXT[:2], seed=[1, 2], **OPTIONS)
    assert [len(row) for row in whole] == [12, 12] and stopped == ["cap", "cap"]  # NaN as end latent: nothing ends
    ending = tiny(text_everywhere=model.config.text_everywhere)
    ending.set_end_latent(whole[0][3])
    rows, stopped = ending.generate(TEXT[:2], seed=[1, 2], stop_threshold=1e-3, **OPTIONS)
    assert [len(row) for row in rows] == [3, 12] and stopped == ["end", "cap"]
    ending.set_end_latent(whole[0][0])
    rows, _ = ending.generate(TEXT[:1], seed=1, stop_threshold=1e-3, **OPTIONS)
    assert rows[0].shape == (0, 4)
    rows, _ = ending.generate(TEXT[:1], seed=1, stop_threshold=1e9, min_latents=5, **OPTIONS)
    assert len(rows[0]) == 5
    rows, stopped = ending.generate(TEXT[:1], seed=1, max_latents=2, stop_threshold=0.0, **OPTIONS)
    assert len(rows[0]) == 2 and stopped == ["cap"]


class _Gaussian(DiffusionHead):
    """The exact noise prediction for latents drawn from N(mean, deviation²)."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__(latent_dim=1, state_dim=1, width=4, layers=1)
        self.mean, self.deviation, self.time = mean, deviation, 0

    def _modulations(self, state, times):
        for self.time in times:
            yield [state]

    def _denoise(self, x, modulations):
        kept = float(self.schedule.alphas_cumprod[self.time])
        return (x - math.sqrt(kept) * self.mean) * math.sqrt(1 - kept) / (kept * self.deviation**2 + 1 - kept)


@pytest.mark.parametrize(("sampler", "steps"), [("ancestral", None), ("ddim", 20), ("dpm", 10)])
def test_samplers_draw_from_the_distribution_that_the_head_knows(sampler: str, steps: int | None) -> None:
    head = _Gaussian(mean=1.5, deviation=0.4)
    noise = torch.randn(4000, 51, 1, generator=torch.Generator().manual_seed(0))
    drawn = head.sample(torch.zeros(4000, 1), noise, sampler=sampler, steps=steps)
    assert drawn.mean().item() == pytest.approx(1.5, abs=0.06)
    assert drawn.std().item() == pytest.approx(0.4, rel=0.15)


def test_the_ancestral_sampler_may_leave_out_the_first_steps() -> None:
    head, state, noise = tiny().head, torch.randn(2, 16), torch.randn(2, 51, 4)
    assert head.schedule.times("ancestral", 48) == list(range(48))[::-1]
    assert head.schedule.times("ancestral") == head.schedule.times("ancestral", 50) == list(range(50))[::-1]
    assert head.sample(state, noise, steps=48).isfinite().all()
    assert not torch.allclose(head.sample(state, noise, steps=48), head.sample(state, noise))


def test_more_steps_come_nearer_and_the_second_order_solver_sooner() -> None:
    head = _Gaussian(mean=-0.7, deviation=0.3)
    noise = torch.linspace(-2, 2, 41)[:, None, None]
    errors = {}
    for sampler in ("ddim", "dpm"):
        for steps in (5, 10, 20):
            times = head.schedule.times(sampler, steps)
            assert len(set(times)) == steps and times == sorted(times, reverse=True) and times[-1] == 0
            made = head.sample(torch.zeros(41, 1), noise, sampler=sampler, steps=steps)
            errors[sampler, steps] = (
                (made - (-0.7 + 0.3 * noise[:, 0])).abs().max().item()
            )  # where the exact path leads
    assert errors["ddim", 20] < errors["ddim", 10] < errors["ddim", 5] < 0.2
    assert all(errors["dpm", steps] < 0.5 * errors["ddim", steps] for steps in (5, 10, 20))


def test_guidance_of_one_is_the_conditional_branch_alone(model: MotionStreamer) -> None:
    state, noise = torch.randn(6, 16), torch.randn(3, 1, 4)
    plain = model.head.sample(state[:3], noise, sampler="dpm", steps=6)
    close(model.head.sample(state, noise, guidance_scale=1.0, sampler="dpm", steps=6), plain)
    close(
        model.head.sample(state, noise, guidance_scale=0.0, sampler="dpm", steps=6),
        model.head.sample(state[3:], noise, sampler="dpm", steps=6),
    )
    each = model.head.sample(state, noise, guidance_scale=torch.tensor([1.0, 0.0, 1.0]), sampler="dpm", steps=6)
    close(each[[0, 2]], plain[[0, 2]])


def test_gradients_reach_every_parameter_and_training_lowers_the_loss() -> None:
    model = tiny().train()
    generator = torch.Generator().manual_seed(0)
    batch = {
        "text": TEXT,
        "latents": torch.randn(3, 11, 4, generator=generator),
        "lengths": torch.tensor([11, 5, 8]),
        "history": torch.tensor([0, 3, 2]),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    totals = []
    for step in range(30):
        terms = model.loss(batch, progress=step / 30, generator=generator)
        optimizer.zero_grad()
        terms["total"].backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
        optimizer.step()
        totals.append(terms["total"].item())
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])
    assert model.loss(batch, progress=0.0)["replaced"] == 0 and model.loss(batch, progress=1.0)["replaced"] == 1
    draws = [model.loss(batch, progress=0.5, generator=torch.Generator().manual_seed(3))["total"] for _ in range(2)]
    assert draws[0] == draws[1]


def test_padding_and_history_do_not_count() -> None:
    model = tiny()
    latents = torch.randn(2, 9, 4)
    batch = {"text": TEXT[:2], "latents": latents, "lengths": torch.tensor([9, 4]), "history": torch.tensor([2, 0])}
    draws = model.draw(2, 9, 4 * 11, torch.Generator().manual_seed(0))
    before = model.loss(batch, progress=0.4, draws=draws)["total"]
    other = latents.clone()
    other[1, 4:] = 7.0
    torch.testing.assert_close(model.loss(batch | {"latents": other}, progress=0.4, draws=draws)["total"], before)
    with pytest.raises(VadisError, match="no position of this batch counts"):
        model.loss(batch | {"lengths": torch.tensor([2, 0])})


def test_saved_and_loaded_again_it_is_the_same(tmp_path) -> None:
    model = tiny()
    model.set_end_latent(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    model.save_pretrained(tmp_path / "ar")
    again = vadis.load(tmp_path / "ar")
    assert isinstance(again, MotionStreamer) and again.config == model.config
    assert torch.equal(again.end_latent, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    ours, theirs = (m.generate(TEXT, num_latents=3, seed=1, **OPTIONS)[0] for m in (model, again))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_steps_draw_the_same() -> None:
    plain, fast = tiny(), tiny()
    fast.head.compile_steps()
    state, noise = torch.randn(4, plain.config.n_embd), torch.randn(2, 51, plain.config.latent_dim)
    for options in ({"sampler": "dpm", "steps": 4}, {"sampler": "ancestral"}):
        a, b = (m.head.sample(state, noise, guidance_scale=3.0, **options) for m in (plain, fast))
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.1), ("int8", 0.1)])
def test_lower_precision_stays_close(precision: str, tolerance: float) -> None:
    exact, lower = tiny(), tiny()
    lower.head.lower_precision(precision)
    x, t, state = torch.randn(8, 4), torch.arange(8), torch.randn(8, 16)
    with torch.no_grad():
        a, b = exact.head(x, t, state), lower.head(x, t, state)
    assert b.dtype == torch.float32 and (a - b).norm() < tolerance * a.norm()
    assert lower.generate(TEXT, num_latents=3, seed=1, **OPTIONS)[0][0].isfinite().all()
    whole = tiny().to(torch.bfloat16)
    assert whole.generate(TEXT, num_latents=3, seed=1, **OPTIONS)[0][0].isfinite().all()


def test_errors_say_what_to_do(model: MotionStreamer) -> None:
    with pytest.raises(ModelError, match="guidance needs null_text"):
        model.generate(TEXT)
    with pytest.raises(ShapeError, match=r"text must be \(B, 5\)"):
        model.generate(TEXT[0], **OPTIONS)
    with pytest.raises(ShapeError, match="a text vector has 5 numbers"):
        model.generate(torch.zeros(1, 7), **OPTIONS)
    with pytest.raises(VadisError, match="text vector holds values that are not finite"):
        model.generate(torch.full((1, 5), math.nan), **OPTIONS)
    with pytest.raises(ShapeError, match=r"history must be \(S, 4\)"):
        model.generate(TEXT[:1], history=torch.zeros(1, 3, 6), **OPTIONS)
    with pytest.raises(VadisError, match="history holds values that are not finite"):
        model.generate(TEXT[:1], history=torch.full((1, 3, 4), math.nan), **OPTIONS)
    with pytest.raises(
        VadisError, match="ancestral sampler takes all 50 steps, or the last 48 and more; for 10 use dpm"
    ):
        model.generate(TEXT, null_text=NULL, sampler="ancestral", steps=10)
    with pytest.raises(VadisError, match="unknown sampler 'euler'"):
        model.generate(TEXT, null_text=NULL, sampler="euler")
    with pytest.raises(VadisError, match="dpm adds no noise"):
        model.generate(TEXT, temperature=0.9, **OPTIONS)
    with pytest.raises(VadisError, match="keep 11: between 0 and 10"):
        model.generate(TEXT, keep=11, **OPTIONS)
    with pytest.raises(VadisError, match="one number >= 1"):
        model.generate(TEXT, num_latents=[1, 2], **OPTIONS)
    with pytest.raises(ShapeError, match="the model has room for 11"):
        model(TEXT, torch.zeros(3, 12, 4))
    streams = model.streams(2, **OPTIONS)
    with pytest.raises(VadisError, match="no stream in row 1: start one"):
        streams.set_text(1, TEXT[0])
    with pytest.raises(VadisError, match=r"running are \[\]"):
        streams.step()
    with pytest.raises(VadisError, match="room for rows 0 … 1"):
        streams.start(2, TEXT[0])
    streams.start(0, TEXT[0])
    with pytest.raises(VadisError, match=r"rows \[0, 0\]: each must be named once"):
        streams.step([0, 0])
    with pytest.raises(VadisError, match="nothing to undo"):
        streams.undo(0)
    with pytest.raises(ModelError, match="even multiple"):
        vadis.config.build_config(MotionStreamerConfig, {"n_embd": 18, "n_head": 4})
    with pytest.raises(VadisError, match="unknown precision 'int4'"):
        model.head.lower_precision("int4")


def test_foreign_checkpoints_are_refused() -> None:
    with pytest.raises(ModelError, match="not a MotionStreamer AR checkpoint"):
        vadis.import_checkpoint("motionstreamer-ar", {"transformer.wte.weight": torch.zeros(4, 2)})
    state = {n: v for n, v in tiny().state_dict().items() if n != "end_latent"}
    with pytest.raises(ModelError, match="give n_head="):
        vadis.import_checkpoint("motionstreamer-ar", state)
    scales = {f"transformer.h.{i}.attn.scale": torch.tensor(math.log2(12**2 - 12)) for i in range(2)}
    again = vadis.import_checkpoint("motionstreamer-ar", state | scales, n_head=2)
    assert again.config == tiny().config and bool(again.end_latent.isnan().all())
    with pytest.raises(ModelError, match="do not belong to the block size 20"):
        vadis.import_checkpoint("motionstreamer-ar", state | scales, n_head=2, block_size=20)
    with pytest.raises(ModelError, match=r"missing out_proj\.bias"):
        vadis.import_checkpoint("motionstreamer-ar", {n: v for n, v in (state | scales).items() if n != "out_proj.bias"}, n_head=2)  # fmt: skip
