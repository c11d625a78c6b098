"""Joint errors, accelerations and jitter: alignments, padding, units, refusals."""

import pytest
import torch

from vadis import rotation
from vadis.errors import ShapeError, VadisError
from vadis.metrics import acceleration_error, jitter, joint_errors, mpjpe
from vadis.metrics.reconstruction import procrustes


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(3, 20, 22, 3, generator=generator)
    return real, real + 0.05 * torch.randn(3, 20, 22, 3, generator=generator)


def turn(angle: float) -> torch.Tensor:
    return rotation.yaw(torch.tensor(angle)) @ rotation.from_rotvec(torch.tensor([0.3, -0.2, 0.5]))


def test_each_alignment_forgives_what_it_should(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    real, _ = pair
    shifted = real + torch.tensor([1.0, 0.0, 0.0])
    assert mpjpe(real, shifted, "global") == pytest.approx(1.0, abs=1e-6)
    assert mpjpe(real, shifted, "root") == pytest.approx(0.0, abs=1e-6)
    turned = real @ turn(0.4).T
    assert mpjpe(real, turned, "root") > 0.3
    assert mpjpe(real, 1.7 * turned + 3.0, "procrustes") == pytest.approx(0.0, abs=1e-5)


def test_alignments_are_ordered(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Procrustes minimises squared distances, so it is below the others on noise."""
    assert mpjpe(*pair, "procrustes") < mpjpe(*pair, "global") < mpjpe(*pair, "root")


def test_procrustes_never_mirrors(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    real, _ = pair
    assert mpjpe(real, real * torch.tensor([-1.0, 1.0, 1.0]), "procrustes") > 0.3
    flat = torch.zeros(1, 22, 3)
    assert torch.isfinite(procrustes(flat, real[0, :1])).all()


def test_errors_per_frame_and_over_frames(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    real, made = pair
    frames = joint_errors(real, made)
    assert frames.shape == (3, 20) and mpjpe(real, made) == pytest.approx(float(frames.mean()), rel=1e-6)
    assert joint_errors(real[0], made[0]).shape == (20,)


def test_padding_does_not_count(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    real, made = (x.clone() for x in pair)
    lengths = [20, 7, 12]
    expected = torch.cat([joint_errors(r[:n], m[:n]) for r, m, n in zip(real, made, lengths, strict=True)]).mean()
    for row, n in enumerate(lengths):
        real[row, n:], made[row, n:] = float("nan"), 1e9
    assert mpjpe(real, made, lengths=lengths) == pytest.approx(float(expected), rel=1e-6)
    single = [acceleration_error(pair[0][k, :n], pair[1][k, :n], 30) * (n - 2) for k, n in enumerate(lengths)]
    weighted = sum(single) / (sum(lengths) - 6)
    assert acceleration_error(real, made, 30, lengths=lengths) == pytest.approx(weighted, rel=1e-5)


def test_acceleration_and_jitter_are_in_seconds() -> None:
    t = torch.arange(40, dtype=torch.float64)[:, None, None] / 20
    axis = torch.tensor([0.0, 1.0, 0.0])
    still, fall, cubic = (f.expand(40, 5, 1) * axis for f in (0 * t, 4.9 * t**2, t**3))
    assert acceleration_error(still, fall, 20) == pytest.approx(9.8, rel=1e-9)
    assert jitter(cubic, 20) == pytest.approx(6.0, rel=1e-9)
    assert jitter(fall, 20) == pytest.approx(0.0, abs=1e-8)


def test_bad_positions_are_refused(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    real, made = pair
    broken = made.clone()
    broken[1, 5] = float("nan")
    with pytest.raises(VadisError, match=r"made positions hold NaN or infinite values in 1 frames, first at \[1, 5\]"):
        mpjpe(real, broken)
    with pytest.raises(ShapeError, match="one shape"):
        joint_errors(real, made[:, :-1])
    with pytest.raises(VadisError, match="root, global or procrustes"):
        joint_errors(real, made, "none")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="T >= 4"):
        jitter(real[:, :3], 30)
    with pytest.raises(ShapeError, match="between 1 and T"):
        mpjpe(real, made, lengths=[20, 21, 3])
    with pytest.raises(ShapeError, match=r"J, 3\)"):
        mpjpe(torch.zeros(4, 272), torch.zeros(4, 272))
