"""The planner: it learns what text determines, scores what fits, and comes back from disk."""

import pytest
import torch

import vadis
from vadis.errors import ModelError
from vadis.generators.planner import KinematicPlanner, KinematicPlannerConfig
from vadis.kinematics import ATTRIBUTES

CONFIG = KinematicPlannerConfig(text_dim=16, width=32, layers=1, heads=2, dropout=0.0, rows=5)
WORDS = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
TARGETS = 3 * torch.randn(4, 5, len(ATTRIBUTES), generator=torch.Generator().manual_seed(1))
FREE = list(range(20, len(ATTRIBUTES)))  # attributes that the toy sentences leave open


def toy(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sentences of one to three tokens whose first word decides most of the plan; the rest of the plan is noise."""
    draw = torch.Generator().manual_seed(seed)
    word = torch.randint(4, (count,), generator=draw)
    text = torch.randn(count, 3, 16, generator=draw)
    text[:, 0] = WORDS[word]
    plans = TARGETS[word] + 0.1 * torch.randn(count, 5, len(ATTRIBUTES), generator=draw)
    plans[..., FREE] = 3 * torch.randn(count, 5, len(FREE), generator=draw)
    lengths = torch.randint(1, 4, (count,), generator=draw)
    return text, lengths, 1 + 8 * torch.rand(count, generator=draw), plans


@pytest.fixture(scope="module")
def trained() -> tuple[KinematicPlanner, list[float]]:
    torch.manual_seed(0)
    planner = KinematicPlanner(CONFIG)
    planner.set_statistics(toy(512, 2)[3])
    optimizer = torch.optim.AdamW(planner.parameters(), 4e-3)
    losses = []
    for step in range(400):
        loss = planner.loss(*toy(64, 100 + step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return planner.eval(), losses


def test_the_loss_falls(trained):
    _, losses = trained
    assert sum(losses[-10:]) / 10 < losses[0] - 0.5


def test_the_plan_is_found_and_its_certainty(trained):
    planner, _ = trained
    text, lengths, seconds, plans = toy(64, 9)
    mean, mask = planner.plan(text, lengths, seconds, certain=0.5)
    assert mean.shape == plans.shape and mask.shape == plans.shape and mask.dtype == torch.bool
    error = (mean - planner.normalize(plans)).abs()
    assert error[..., :20].mean() < 0.2
    assert mask[..., :20].float().mean() > 0.85 and mask[..., FREE].float().mean() < 0.05


def test_the_true_plan_scores_best(trained):
    planner, _ = trained
    text, lengths, seconds, plans = toy(32, 10)
    others = torch.stack([plans.roll(k, dims=0) for k in range(8)], dim=1)  # (32, 8, 5, A): the true one comes first
    score = planner.score(text, lengths, seconds, others)
    assert score.shape == (32, 8) and (score <= 0).all()
    best = score.max(dim=1).values
    same_word = (others[:, :, 0, :20] - others[:, :1, 0, :20]).abs().mean(-1) < 1
    assert (score[:, 0] > best - 0.2).float().mean() > 0.95
    assert score[same_word].mean() > score[~same_word].mean() + 1


def test_padding_and_the_batch_do_not_matter(trained):
    planner, _ = trained
    text, lengths, seconds, _ = toy(8, 11)
    whole = planner(text, lengths, seconds)
    text = torch.cat([text, torch.full((8, 4, 16), 50.0)], dim=1)
    for i in range(8):
        text[i, lengths[i] :] = 50.0
        alone = planner(text[i : i + 1], lengths[i : i + 1], seconds[i : i + 1])
        assert torch.allclose(alone.mean[0], whole.mean[i], atol=1e-4)
        assert torch.allclose(alone.log_std[0], whole.log_std[i], atol=1e-4)


def test_odd_values_can_t_decide_alone(trained):
    planner, _ = trained
    text, lengths, seconds, plans = toy(4, 12)
    odd = plans.clone()
    odd[:, 0, 0] += 1e6
    wrong = plans.flip(-1)
    score = planner.score(text, lengths, seconds, torch.stack([plans, odd, wrong], dim=1))
    assert torch.isfinite(score).all()
    assert (score[:, 1] > score[:, 2]).all()
    assert torch.isfinite(planner.loss(text, lengths, seconds, odd))


def test_statistics_and_normalisation():
    planner = KinematicPlanner(CONFIG)
    plans = 5 + 2 * torch.randn(4000, 5, len(ATTRIBUTES), generator=torch.Generator().manual_seed(3))
    plans[..., 0] = 1.0  # never varies
    planner.set_statistics(plans)
    normal = planner.normalize(plans)
    assert normal[..., 1:].mean().abs() < 0.01 and normal[..., 1:].std() == pytest.approx(1, abs=0.01)
    assert torch.isfinite(normal).all() and normal.abs().max() <= 5
    assert float(planner.normalize(plans + 1e9).max()) == 5


def test_saved_and_loaded(trained, tmp_path):
    planner, _ = trained
    planner.save_pretrained(tmp_path / "planner")
    again = vadis.load(tmp_path / "planner").eval()
    assert isinstance(again, KinematicPlanner) and again.config == planner.config
    text, lengths, seconds, plans = toy(4, 13)
    assert torch.equal(again(text, lengths, seconds).mean, planner(text, lengths, seconds).mean)
    assert torch.equal(
        again.score(text, lengths, seconds, plans[:, None]), planner.score(text, lengths, seconds, plans[:, None])
    )


def test_what_matching_plans_have_in_common():
    """A bank of plans that agree on the first value only: it alone is told."""
    planner = KinematicPlanner(
        KinematicPlannerConfig(text_dim=4, width=8, layers=1, heads=2, match_width=4, bank_size=40)
    )
    bank = 3.0 * torch.randn(40, planner.config.rows, len(ATTRIBUTES), generator=torch.Generator().manual_seed(0))
    bank[..., 0] = 0.5
    planner.bank.copy_(bank)
    planner.log_temperature.data.fill_(-5.0)  # all of them match alike
    text, lengths = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([3])
    values, told = planner.eval().agree(text, lengths, 2.0, nearest=30, certain=0.5)
    assert values.shape == told.shape == (1, planner.config.rows, len(ATTRIBUTES))
    assert told[..., 0].all() and not told[..., 1:].any()
    torch.testing.assert_close(values[..., 0], torch.full_like(values[..., 0], 0.5))
    with pytest.raises(ModelError, match="no bank"):
        KinematicPlanner(KinematicPlannerConfig(text_dim=4, width=8, layers=1, heads=2)).agree(text, lengths, 2.0)
