"""Rotations: every 6D layout by hand and against scipy, the other forms, interpolation, and vectors turned onto vectors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from vadis import rotation
from vadis.errors import VadisError

LAYOUTS = ("rows", "columns", "columns_interleaved")


def random_rotations(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 3, 3) float64, uniform."""
    return torch.from_numpy(Rotation.random(count, random_state=seed).as_matrix())


def angle_between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Angle of a^T b in radians, accurate near 0 as well."""
    return 2 * torch.asin(((a - b).flatten(-2).norm(dim=-1) / (2 * 2**0.5)).clamp(max=1))


vectors = st.tuples(*[st.floats(-3.1, 3.1)] * 3).filter(lambda v: 1e-3 < math.hypot(*v) < 3.1)


class TestSixD:
    def test_layouts_by_hand(self):
        matrix = torch.arange(1.0, 10.0).reshape(3, 3)  # a b c / d e f / g h i
        expected = {
            "rows": [1, 2, 3, 4, 5, 6],
            "columns": [1, 4, 7, 2, 5, 8],
            "columns_interleaved": [1, 2, 4, 5, 7, 8],
        }
        for layout, numbers in expected.items():
            assert rotation.to_6d(matrix, layout).tolist() == numbers

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_round_trip_and_batch_shapes(self, layout):
        matrix = random_rotations(24).reshape(2, 3, 4, 3, 3)
        six = rotation.to_6d(matrix, layout)
        assert six.shape == (2, 3, 4, 6)
        assert (rotation.from_6d(six, layout) - matrix).abs().max() < 1e-12
        assert rotation.from_6d(six.float(), layout).dtype == torch.float32

    def test_reading_one_layout_as_another_gives_the_inverse(self):
        matrix = random_rotations(5)
        misread = rotation.from_6d(rotation.to_6d(matrix, "rows"), "columns")
        assert torch.allclose(misread, matrix.transpose(-1, -2))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_any_six_numbers_become_a_rotation(self, layout):
        six = torch.randn(50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        matrix = rotation.from_6d(six, layout)
        eye = torch.eye(3, dtype=torch.float64)
        assert torch.allclose(matrix @ matrix.transpose(-1, -2), eye.expand_as(matrix), atol=1e-10)
        assert torch.allclose(torch.linalg.det(matrix), torch.ones(50, dtype=torch.float64))
        first = {"rows": six[:, :3], "columns": six[:, :3], "columns_interleaved": six[:, 0::2]}[layout]
        kept = matrix[:, 0] if layout == "rows" else matrix[:, :, 0]
        assert torch.allclose(kept, first / first.norm(dim=-1, keepdim=True))

    def test_zeros_are_never_nan(self):
        for layout in LAYOUTS:
            assert torch.isfinite(rotation.from_6d(torch.zeros(2, 6), layout)).all()

    @pytest.mark.parametrize("call", [rotation.to_6d, rotation.from_6d])
    def test_unknown_layout_is_named_with_the_known_ones(self, call):
        with pytest.raises(VadisError, match="'cols'.*rows, columns, columns_interleaved"):
            call(torch.eye(3) if call is rotation.to_6d else torch.zeros(6), "cols")


class TestForms:
    @pytest.mark.parametrize("order", ["XYZ", "ZYX", "ZXY", "YXZ", "YZX", "XZY", "zxy"])
    def test_euler_is_intrinsic_as_in_scipy(self, order):
        angles = torch.rand(40, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2.8 - 1.4
        matrix = rotation.from_euler(angles, order)
        oracle = Rotation.from_euler(order.upper(), angles.numpy()).as_matrix()
        assert np.abs(matrix.numpy() - oracle).max() < 1e-12
        assert torch.allclose(rotation.to_euler(matrix, order), angles, atol=1e-9)

    def test_euler_at_the_pole_still_gives_the_same_rotation(self):
        matrix = rotation.from_euler(torch.tensor([[0.3, math.pi / 2, 0.4]], dtype=torch.float64), "ZYX")
        again = rotation.from_euler(rotation.to_euler(matrix, "ZYX"), "ZYX")
        assert torch.allclose(again, matrix, atol=1e-6)

    def test_rotvec_and_quaternion_agree_with_scipy(self):
        matrix = random_rotations(60, seed=3)
        oracle = Rotation.from_matrix(matrix.numpy())
        assert np.allclose(rotation.to_rotvec(matrix), oracle.as_rotvec(), atol=1e-9)
        quat = rotation.to_quat_wxyz(matrix)
        assert (quat[:, 0] >= 0).all()
        xyzw = oracle.as_quat(canonical=True)
        assert np.allclose(quat[:, [1, 2, 3, 0]], xyzw, atol=1e-9)

    def test_quaternions_are_normalised_and_sign_free(self):
        quat = torch.tensor([2.0, 0.0, 2.0, 0.0])  # a quarter turn about y, not of unit length
        expected = rotation.yaw(torch.tensor(math.pi / 2))
        assert torch.allclose(rotation.from_quat_wxyz(quat), expected, atol=1e-6)
        assert torch.allclose(rotation.from_quat_wxyz(-quat), expected, atol=1e-6)

    @given(vectors)
    @settings(max_examples=60, deadline=None)
    def test_rotvec_round_trip(self, vector):
        v = torch.tensor(vector, dtype=torch.float64)
        matrix = rotation.from_rotvec(v)
        assert torch.allclose(rotation.to_rotvec(matrix), v, atol=1e-7)
        assert torch.allclose(rotation.from_quat_wxyz(rotation.to_quat_wxyz(matrix)), matrix, atol=1e-9)
        for layout in LAYOUTS:
            assert torch.allclose(rotation.from_6d(rotation.to_6d(matrix, layout), layout), matrix, atol=1e-9)

    def test_no_turn_and_half_a_turn(self):
        assert rotation.to_rotvec(torch.eye(3)).norm() == 0
        half = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
        assert rotation.to_rotvec(half).norm().item() == pytest.approx(math.pi, abs=1e-5)
        assert torch.allclose(rotation.from_rotvec(rotation.to_rotvec(half)), half, atol=1e-5)


class TestSlerp:
    def test_ends_and_scipy_between(self):
        start, stop = random_rotations(20, 4), random_rotations(20, 5)
        for weight in (0.0, 0.25, 0.6, 1.0):
            mine = rotation.slerp(start, stop, torch.tensor(weight, dtype=torch.float64))
            for k in range(20):
                oracle = Slerp([0, 1], Rotation.from_matrix(np.stack([start[k], stop[k]])))(weight).as_matrix()
                assert np.abs(mine[k].numpy() - oracle).max() < 1e-8

    def test_takes_the_shortest_arc(self):
        start, stop = (rotation.yaw(torch.tensor(a, dtype=torch.float64)) for a in (3.0, -3.0))
        middle = rotation.slerp(start, stop, torch.tensor(0.5, dtype=torch.float64))
        assert abs(abs(float(rotation.heading(middle))) - math.pi) < 1e-6

    def test_weights_broadcast_over_joints(self):
        start, stop = random_rotations(12, 6).reshape(3, 4, 3, 3), random_rotations(12, 7).reshape(3, 4, 3, 3)
        weight = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)[:, None]
        mixed = rotation.slerp(start, stop, weight)
        assert mixed.shape == (3, 4, 3, 3)
        assert torch.allclose(mixed[0], start[0]) and torch.allclose(mixed[2], stop[2])
        assert torch.allclose(angle_between(start[1], mixed[1]), angle_between(mixed[1], stop[1]), atol=1e-7)


class TestHeading:
    def test_positive_is_from_z_towards_x(self):
        turned = rotation.yaw(torch.tensor(math.pi / 2)) @ torch.tensor([0.0, 0.0, 1.0])
        assert torch.allclose(turned, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)

    @given(st.floats(-3.1, 3.1))
    @settings(max_examples=40, deadline=None)
    def test_heading_undoes_yaw(self, angle):
        assert float(rotation.heading(rotation.yaw(torch.tensor(angle, dtype=torch.float64)))) == pytest.approx(angle)

    def test_heading_survives_leaning(self):
        lean = rotation.from_rotvec(torch.tensor([0.4, 0.0, 0.0]))
        assert float(rotation.heading(rotation.yaw(torch.tensor(1.1)) @ lean)) == pytest.approx(1.1, abs=1e-5)

    def test_unwrap_agrees_with_numpy_and_keeps_batches(self):
        smooth = torch.cumsum(torch.randn(3, 200, generator=torch.Generator().manual_seed(8), dtype=torch.float64), -1)
        wrapped = torch.atan2(torch.sin(smooth), torch.cos(smooth))
        assert np.allclose(rotation.unwrap(wrapped), np.unwrap(wrapped.numpy(), axis=-1))
        assert rotation.unwrap(torch.tensor([0.5])).tolist() == [0.5]


class TestBetween:
    @given(vectors, vectors)
    @settings(max_examples=60, deadline=None)
    def test_turns_one_onto_the_other_by_the_smallest_angle(self, a, b):
        source, target = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        turn = rotation.between(source, target)
        got = turn @ source / source.norm()
        assert torch.allclose(got, target / target.norm(), atol=1e-7)
        angle = math.atan2(float(torch.linalg.cross(source, target).norm()), float(source @ target))
        assert float(rotation.to_rotvec(turn).norm()) == pytest.approx(angle, abs=1e-6)

    @pytest.mark.parametrize("vector", [[1.0, 0, 0], [0, -2.0, 0], [0.3, 0.4, -0.5]])
    def test_opposite_vectors_turn_half_around(self, vector):
        source = torch.tensor(vector)
        turn = rotation.between(source, -source)
        assert torch.allclose(turn @ source, -source, atol=1e-5)
        assert torch.linalg.det(turn).item() == pytest.approx(1, abs=1e-5)

    def test_same_vectors_don_t_turn_and_batches_mix_cases(self):
        source = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0]])
        target = torch.tensor([[2.0, 0, 0], [-1.0, 0, 0], [0, 0, 3.0]])
        turn = rotation.between(source, target)
        assert torch.allclose(turn[0], torch.eye(3), atol=1e-6)
        assert torch.allclose(
            (turn @ source[..., None])[..., 0], torch.nn.functional.normalize(target, dim=-1), atol=1e-5
        )
