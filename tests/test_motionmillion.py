"""The generator by itself: caches, batches, guidance, groups, plans, lengths, sampling, training."""

import pytest
import torch
from torch import Tensor

from vadis.errors import ModelError, ShapeError, VadisError
from vadis.generators import MotionMillion, MotionMillionConfig
from vadis.generators.sampling import choose

TINY = dict(n_layer=2, n_head=2, n_embd=32, block_size=64, clip_dim=12, nb_code=25, init_std=0.3)
FULL = dict(groups=3, plan_dim=4, plan_tokens=2, length_conditioning=True, null_text=True)


def tiny(**changes: object) -> MotionMillion:
    torch.manual_seed(1)
    return MotionMillion(MotionMillionConfig(**(TINY | changes))).eval()


def conditions(rows: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    plan = torch.randn(rows, 2, 4, generator=g)
    return torch.randn(rows, 7, 12, generator=g), torch.tensor([7, 2, 4, 5, 1][:rows]), plan, plan > 0


@torch.no_grad()
def uncached(model: MotionMillion, text: Tensor, steps: int, scale: float = 1.0, plan=None, mask=None) -> Tensor:
    """Greedy rows of exactly `steps` steps, everything computed anew at each step: the plain reference."""
    c = model.config
    tokens = torch.zeros(1, 0, c.groups, dtype=torch.long)
    branches = [False] if scale == 1 else [False, True]
    for _ in range(steps):
        states = []
        for drop in branches:
            given = dict(plan=plan, plan_mask=mask) if c.plan_dim else {}
            hidden, _ = model.states(
                text,
                torch.tensor([text.shape[1]]),
                tokens if c.groups > 1 else tokens[..., 0],
                lengths=torch.tensor([steps]),
                drop_text=torch.tensor([drop]) if c.null_text else None,
                **given,
            )
            states.append(hidden[:, -1])
        ids: list[Tensor] = []
        for g in range(c.groups):
            logits = [model.head(s, torch.stack(ids, -1) if ids else None) for s in states]
            mixed = logits[0] if scale == 1 else logits[1] + scale * (logits[0] - logits[1])
            if g == 0:
                mixed[:, c.nb_code] = -torch.inf
            ids.append(mixed.argmax(-1))
        tokens = torch.cat([tokens, torch.stack(ids, -1)[:, None]], dim=1)
    return tokens[0] if c.groups > 1 else tokens[0, :, 0]


@pytest.mark.parametrize(
    "changes", [{}, FULL, {"groups": 2, "tie_weights": True}], ids=["published", "extended", "tied"]
)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_cached_and_batched_equal_uncached_and_single(changes: dict[str, object], scale: float) -> None:
    if scale != 1 and not changes.get("null_text"):
        changes = changes | {"null_text": True}
    model = tiny(**changes)
    text, counts, plan, mask = conditions()
    given = dict(plan=plan, plan_mask=mask) if model.config.plan_dim else {}
    steps = [14, 9, 20]
    rows, stopped = model.generate(text, counts, num_tokens=steps, guidance_scale=scale, **given)
    assert stopped == ["length"] * 3
    for i, row in enumerate(rows):
        one = {name: value[i : i + 1] for name, value in given.items()}
        plain = uncached(model, text[i : i + 1, : counts[i]], steps[i], scale, one.get("plan"), one.get("plan_mask"))
        assert torch.equal(row, plain)
    assert len({tuple(row.flatten()[:20].tolist()) for row in rows}) > 1


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.8}, {"guidance_scale": 2.0}])
def test_a_seed_gives_a_row_the_same_tokens_in_any_batch(settings: dict[str, float]) -> None:
    model = tiny(**FULL)
    text, counts, plan, mask = conditions()
    options = dict(temperature=1.0, num_tokens=12, **settings)
    rows, _ = model.generate(text, counts, plan=plan, plan_mask=mask, seed=[5, 6, 7], samples_per_row=2, **options)
    assert len(rows) == 6 and not torch.equal(rows[0], rows[1])
    for i in range(3):
        alone, _ = model.generate(
            text[i : i + 1, : counts[i]],
            plan=plan[i : i + 1],
            plan_mask=mask[i : i + 1],
            seed=5 + i,
            samples_per_row=2,
            **options,
        )
        assert torch.equal(alone[0], rows[2 * i]) and torch.equal(alone[1], rows[2 * i + 1])
    other, _ = model.generate(text, counts, plan=plan, plan_mask=mask, seed=[8, 9, 10], samples_per_row=2, **options)
    assert not torch.equal(other[0], rows[0])


def test_stream_yields_what_generate_returns_and_rows_stop_by_themselves() -> None:
    model = tiny()
    text, counts, _, _ = conditions(5)
    rows, stopped = model.generate(text, counts, temperature=1.5, seed=[1, 2, 3, 4, 5], max_tokens=40)
    assert len({len(row) for row in rows}) > 1 and "end" in stopped
    steps = list(model.stream(text, counts, temperature=1.5, seed=[1, 2, 3, 4, 5], max_tokens=40))
    for i, row in enumerate(rows):
        streamed = [int(step.tokens[i]) for step in steps if step.tokens[i] >= 0]
        assert streamed == row.tolist()
        assert (stopped[i] == "end") == (len(row) < 40)


def test_history_goes_on_where_a_motion_stopped() -> None:
    model = tiny(**FULL)
    text, counts, plan, mask = conditions()
    given = dict(plan=plan, plan_mask=mask)
    whole, _ = model.generate(text, counts, num_tokens=[16, 12, 14], **given)
    cut = [5, 9, 2]
    rest, _ = model.generate(
        text, counts, history=[row[:n] for row, n in zip(whole, cut, strict=True)], num_tokens=[11, 3, 12], **given
    )
    for row, n, tail in zip(whole, cut, rest, strict=True):
        assert torch.equal(row[n:], tail)


def test_conditions_change_the_motion() -> None:
    model = tiny(**FULL)
    text, counts, plan, mask = conditions()
    state, prefix = model.states(
        text, counts, torch.zeros(3, 4, 3, dtype=torch.long), torch.tensor([4, 4, 4]), plan, mask
    )
    rows = torch.arange(3)

    def last(**other: Tensor) -> Tensor:
        given = dict(lengths=torch.tensor([4, 4, 4]), plan=plan, plan_mask=mask) | other
        return model.states(text, counts, torch.zeros(3, 4, 3, dtype=torch.long), **given)[0][rows, prefix - 1]

    base = state[rows, prefix - 1]
    assert not torch.allclose(base, last(lengths=torch.tensor([9, 9, 9])))
    assert not torch.allclose(base, last(plan=plan + 1))
    torch.testing.assert_close(base, last(plan=torch.where(mask, plan, torch.nan)))  # unknown numbers are never read


def test_padding_and_companions_never_leak() -> None:
    model = tiny(**FULL)
    text, counts, plan, mask = conditions()
    tokens, lengths = torch.randint(0, 25, (3, 10, 3)), torch.tensor([10, 6, 8])
    batch = dict(text=text, text_lengths=counts, tokens=tokens, lengths=lengths, plan=plan, plan_mask=mask)
    noisy = batch | {"text": text.clone(), "tokens": tokens.clone()}
    for i in range(3):
        noisy["text"][i, counts[i] :] = 99.0
        noisy["tokens"][i, lengths[i] :] = -1
    torch.testing.assert_close(model.loss(noisy)["total"], model.loss(batch)["total"])
    losses = [model.loss({k: v[i : i + 1] for k, v in batch.items()})["group_0"] * (lengths[i] + 1) for i in range(3)]
    torch.testing.assert_close(sum(losses) / (lengths + 1).sum(), model.loss(batch)["group_0"])


def test_training_learns_and_gradients_reach_every_parameter() -> None:
    model = tiny(**FULL, dropout=0.05).train()
    text, counts, plan, mask = conditions()
    tokens, lengths = torch.randint(0, 25, (3, 10, 3)), torch.tensor([10, 6, 8])
    batch = dict(text=text, text_lengths=counts, tokens=tokens, lengths=lengths, plan=plan, plan_mask=mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    seen: set[str] = set()
    first = last = 0.0
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        terms = model.loss(batch, corrupt=0.2, text_dropout=0.3, length_dropout=0.2, generator=generator)
        optimizer.zero_grad()
        terms["total"].backward()
        seen |= {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
        optimizer.step()
        first, last = (terms["total"].item() if step == 0 else first), terms["total"].item()
    assert seen == {name for name, _ in model.named_parameters()}
    assert last < 0.7 * first


def test_choose_follows_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(4000, 4)
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    count = torch.bincount(choose(logits, uniform, 1.0), minlength=4)
    assert count.tolist() == [400, 800, 1200, 1600]
    assert set(choose(logits, uniform, 1.0, top_k=2).tolist()) == {2, 3}
    assert set(choose(logits, uniform, 1.0, top_p=0.65).tolist()) == {2, 3}
    assert set(choose(logits, uniform, 0.0).tolist()) == {3}
    cold = torch.bincount(choose(logits, uniform, 0.25), minlength=4)
    assert cold[3] > 2500


def test_bfloat16_is_close_and_generates() -> None:
    model = tiny(**FULL)
    text, counts, plan, mask = conditions()
    tokens = torch.randint(0, 25, (3, 10, 3))
    exact = model(text, counts, tokens, plan=plan, plan_mask=mask)
    model.to(torch.bfloat16)
    rough = model(text, counts, tokens, plan=plan, plan_mask=mask)
    assert (rough.float() - exact).abs().mean() < 0.1 * exact.std()
    rows, _ = model.generate(text, counts, plan=plan, plan_mask=mask, num_tokens=5)
    assert all(row.shape == (5, 3) for row in rows)


def test_errors_say_what_to_do() -> None:
    model = tiny()
    text, counts, plan, _ = conditions()
    with pytest.raises(ShapeError, match=r"\(B, L, 12\)"):
        model.generate(torch.zeros(1, 3, 11))
    with pytest.raises(ModelError, match="no null prompt"):
        model.generate(text, counts, guidance_scale=2.0)
    with pytest.raises(ModelError, match="no null prompt"):
        model.generate(None)
    with pytest.raises(ModelError, match="takes no plan"):
        model.generate(text, counts, plan=plan)
    with pytest.raises(VadisError, match="can make 1 … 58"):
        model.generate(text, counts, num_tokens=60)
    with pytest.raises(VadisError, match="not both"):
        model.generate(text, counts, num_tokens=6, max_tokens=6)
    with pytest.raises(VadisError, match="temperature"):
        model.generate(text, counts, temperature=-1.0)
    with pytest.raises(ShapeError, match="history"):
        model.generate(text, counts, history=[torch.zeros(3, 2)] * 3)
    with pytest.raises(ModelError, match="unknown size"):
        MotionMillionConfig.from_size("2B")
    with pytest.raises(VadisError, match="codes 0 … 24"):
        batch = dict(text=text, text_lengths=counts, tokens=torch.full((3, 4), 25), lengths=torch.tensor([4, 4, 4]))
        model.loss(batch)


def test_the_last_row_of_the_table_is_usable() -> None:
    model = tiny(block_size=20)
    text, counts, _, _ = conditions()
    rows, _ = model.generate(text, counts, num_tokens=[14, 19, 17])
    assert [len(row) for row in rows] == [14, 19, 17]
    assert len(model.generate(text[:1])[0][0]) <= 13
