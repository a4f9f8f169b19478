"""The laws of the contract ``Negatives``: every engine inherits them as its tests.

    class TestMyEngine(NegativesTests):
        def make(self, rows):
            return MyEngine(rows)

Truth is summed here in float64 by other code than the engines', over the rows as they are stored.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from negindex.errors import EmptySet, InvalidInput, NotFinite, OutOfRange, ShapeMismatch
from negindex.kernel import LITERAL, Kernel
from negindex.near import Near
from negindex.negatives import HEAVIEST, Negatives
from negindex.noise import NoiseLevel
from negindex.partial import Origin, Partial

SHAPE, D = (2, 3), 6
TEMPERATURES = [(0.1, 9.0), (0.5, 2.0), (2.0, 1.0)]
LEVELS = NoiseLevel(torch.tensor([1.0, 0.98, 0.8, 0.3, 0.05]), torch.tensor([0.05, 0.2, 0.6, 0.95, 1.0]))
BATCH = len(LEVELS.alpha)


class Truth(NamedTuple):
    """The posterior over some rows (Kim et al. 2025, Eq. 6)."""

    log_weight: Tensor  # (B, N)
    log_norm: Tensor  # (B,)
    mean: Tensor  # (B, *S)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernels() -> list[Kernel]:
    """Each way of weighing rows: literal, tempered, projected, both."""
    projection = normal(4, D, seed=5) / 2
    return [LITERAL, Kernel(TEMPERATURES), Kernel(projection=projection), Kernel(TEMPERATURES, projection)]


def truth(rows: Tensor, x_t: Tensor, level: NoiseLevel, kernel: Kernel = LITERAL) -> Truth:
    """The oracle, one sample and one row at a time: log_weight = -||P (x_t / alpha - z)||² / (2 h²)."""
    level, flat, seen = level.expand(len(x_t)), rows.to(torch.float64).flatten(1), x_t.to(torch.float64).flatten(1)
    projection = torch.eye(D, dtype=torch.float64) if kernel.projection is None else kernel.projection
    log_weight = torch.zeros(len(x_t), len(rows), dtype=torch.float64)
    for b, (alpha, variance) in enumerate(zip(level.alpha, kernel.variance(level), strict=True)):
        for n, row in enumerate(flat):
            if alpha > 0:
                log_weight[b, n] = -(projection @ (seen[b] / alpha - row)).square().sum() / (2 * variance)
    largest = log_weight.amax(1, keepdim=True)
    weight = (log_weight - largest).exp()
    total = weight.sum(1, keepdim=True)
    return Truth(log_weight, (largest + total.log())[:, 0], (weight / total @ flat).reshape(-1, *SHAPE))


class NegativesTests:
    """Inherit, implement ``make``; set ``stored`` and ``tolerance`` where they differ."""

    stored: ClassVar[torch.dtype] = torch.float64  # what rows are rounded to when they are kept
    tolerance: ClassVar[float] = 1e-11  # of log_norm relative to max(1, |log_norm|); of the mean, to the rms radius

    def make(self, rows: Tensor) -> Negatives:
        """The set that holds these rows (N, 2, 3) float64; N may be 0."""
        raise NotImplementedError

    def row_of(self, negatives: Negatives, origin: Origin, row_id: int) -> int:
        """Which of the rows given to ``make`` an answer names; here: ids ascend as the rows were given."""
        return sorted(negatives.digests()).index(row_id)

    # -- what it says ----------------------------------------------------------------------

    @pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name.split("-")[0])
    @pytest.mark.parametrize("rows", [1, 2, 3, 40])
    def test_the_posterior_is_the_oracles(self, rows: int, kernel: Kernel) -> None:
        x_t = normal(BATCH, *SHAPE, seed=1)
        self.check(self.make(normal(rows, *SHAPE)), normal(rows, *SHAPE), x_t, LEVELS, kernel)

    @pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name.split("-")[0])
    def test_pure_noise_gives_the_plain_mean_and_log_n(self, kernel: Kernel) -> None:
        rows = normal(12, *SHAPE)
        told = self.make(rows).posterior(100 * normal(3, *SHAPE, seed=1), NoiseLevel(0.0, 1.0), kernel=kernel)
        assert torch.allclose(told.log_norm, torch.full_like(told.log_norm, 12).log(), atol=self.tolerance)
        plain = self.rounded(rows).mean(0).expand_as(told.mean)
        assert torch.allclose(told.mean, plain, rtol=0, atol=self.tolerance + float(told.error.max()))

    @pytest.mark.parametrize("rows", [1, 2, 3, 40])
    def test_each_row_finds_itself(self, rows: int) -> None:
        negatives, kept = self.make(normal(rows, *SHAPE)), self.rounded(normal(rows, *SHAPE))
        told = negatives.posterior(kept, NoiseLevel(1.0, 1e-3))
        assert self.named(negatives, told)[:, 0].tolist() == list(range(rows))
        assert torch.allclose(told.mean, kept, rtol=0, atol=self.tolerance)
        assert torch.allclose(told.log_norm, torch.zeros(rows, dtype=torch.float64), atol=self.tolerance)

    @pytest.mark.parametrize("k", [None, 1, 3, 40])
    def test_the_heaviest_rows_are_named_heaviest_first(self, k: int | None) -> None:
        rows, x_t = normal(40, *SHAPE), normal(BATCH, *SHAPE, seed=1)
        negatives = self.make(rows)
        told = negatives.posterior(x_t, LEVELS, k=k)
        expected = truth(self.rounded(rows), x_t, LEVELS).log_weight.topk(k or HEAVIEST, dim=1)
        assert self.named(negatives, told).tolist() == expected.indices.tolist()
        assert torch.allclose(told.heaviest.log_weight, expected.values, rtol=self.tolerance, atol=self.tolerance)

    def test_fewer_rows_than_an_answer_has_places_for_are_all_named(self) -> None:
        negatives = self.make(normal(3, *SHAPE))
        told = negatives.posterior(normal(1, *SHAPE, seed=1), NoiseLevel(0.7, 0.7))
        assert sorted(self.named(negatives, told)[0].tolist()) == [0, 1, 2]

    def test_a_row_far_away_is_still_the_nearest(self) -> None:
        rows = normal(3, *SHAPE)
        self.check(self.make(rows), rows, 1e6 * normal(2, *SHAPE, seed=1), NoiseLevel(1.0, 0.01))

    def test_rows_of_a_batch_are_independent(self) -> None:
        negatives, x_t = self.make(normal(12, *SHAPE)), normal(BATCH, *SHAPE, seed=1)
        together = negatives.posterior(x_t, LEVELS)
        for i in range(BATCH):
            alone = negatives.posterior(x_t[i : i + 1], NoiseLevel(LEVELS.alpha[i], LEVELS.sigma[i]))
            assert torch.allclose(alone.log_norm[0], together.log_norm[i], rtol=self.tolerance)
            assert torch.allclose(alone.mean[0], together.mean[i], rtol=0, atol=self.tolerance)

    def test_no_samples_get_no_answers(self) -> None:
        told = self.make(normal(3, *SHAPE)).posterior(normal(0, *SHAPE), NoiseLevel(0.7, 0.7))
        assert told.mean.shape == (0, *SHAPE)
        assert told.log_norm.shape == (0,)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_answers_are_float64_whatever_asks(self, dtype: torch.dtype) -> None:
        rows, x_t = normal(12, *SHAPE), normal(BATCH, *SHAPE, seed=1).to(dtype)
        told = self.check(self.make(rows), rows, x_t, LEVELS)
        numbers = (told.log_norm, told.mean, told.log_tail, told.log_unread, told.error, told.heaviest.log_weight)
        assert {number.dtype for number in numbers} == {torch.float64}

    def test_asking_changes_nothing_and_needs_no_gradient(self) -> None:
        negatives, x_t = self.make(normal(12, *SHAPE)), normal(2, *SHAPE, seed=1).requires_grad_()
        before = x_t.detach().clone()
        first, second = (negatives.posterior(x_t, NoiseLevel(0.7, 0.7)) for _ in range(2))
        assert not first.mean.requires_grad
        assert torch.equal(x_t.detach(), before)
        assert torch.equal(first.mean, second.mean)
        assert torch.equal(first.log_norm, second.log_norm)

    def test_an_answer_names_rows_kernel_and_origins(self) -> None:
        negatives, kernel = self.make(normal(12, *SHAPE)), kernels()[1]
        told = negatives.posterior(normal(2, *SHAPE, seed=1), NoiseLevel(0.7, 0.7), kernel=kernel)
        assert len(negatives) == told.count == 12
        assert told.kernel == kernel
        assert told.origins == negatives.origins
        assert told.origins
        assert ((told.captured >= 0) & (told.captured <= 1)).all()

    # -- what is near ----------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("radius", "k"), [(None, 1), (None, 7), (2.5, None), (3.0, 3), (0.0, None), ([0.5, 2.0, 3.0, 4.0, 9.0], None)]
    )
    @pytest.mark.parametrize("rows", [1, 3, 40])
    def test_near_is_what_brute_force_finds(self, rows: int, radius: float | list[float] | None, k: int | None) -> None:
        given, x = normal(rows, *SHAPE), normal(BATCH, *SHAPE, seed=1)
        negatives = self.make(given)
        limit = torch.tensor(radius) if isinstance(radius, list) else radius
        self.check_near(negatives, negatives.near(x, limit, k), given, x, radius, k)

    @pytest.mark.parametrize("rows", [1, 2, 40])
    def test_each_row_finds_itself_at_distance_nought(self, rows: int) -> None:
        negatives, kept = self.make(normal(rows, *SHAPE)), self.rounded(normal(rows, *SHAPE))
        for near in (negatives.near(kept, k=1), negatives.near(kept, radius=0.0)):
            assert near.distances.tolist() == [[0.0]] * rows
            assert self.named_near(negatives, near) == [[row] for row in range(rows)]
            assert torch.equal(near.rows[:, 0], kept)

    def test_rows_that_are_left_out_are_not_near(self) -> None:
        rows = normal(12, *SHAPE)
        negatives, digests = self.make(rows), self.stored_digests(rows)
        rest, kept = negatives.without(digests[:5]), self.rounded(rows)
        assert rest.near(kept, radius=0.0).found.sum(1).tolist() == [0] * 5 + [1] * 7
        near = rest.near(kept, k=40)
        assert near.found.sum(1).tolist() == [7] * 12
        assert torch.equal(near.distances[:, 0] == 0, torch.arange(12) >= 5)

    def test_places_left_over_hold_nothing(self) -> None:
        negatives, x = self.make(normal(12, *SHAPE)), normal(3, *SHAPE, seed=1)
        near = negatives.near(x, torch.tensor([0.0, 100.0, 2.5]))
        assert near.ids.shape == (3, 12)
        assert near.found[0].sum() == 0
        assert near.found[1].all()
        assert torch.equal(near.distances.isinf(), ~near.found)
        assert not near.rows[~near.found].any()
        assert (near.distances.diff(dim=1)[1] >= 0).all()
        assert negatives.near(x, radius=0.0).ids.shape == (3, 0)

    def test_no_samples_are_near_nothing(self) -> None:
        for limits in ({"k": 2}, {"radius": 1.0}):
            near = self.make(normal(3, *SHAPE)).near(normal(0, *SHAPE), **limits)
            assert near.rows.shape == (0, 0, *SHAPE)
            assert near.distances.shape == (0, 0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_distances_are_float64_whatever_asks(self, dtype: torch.dtype) -> None:
        rows, x = normal(12, *SHAPE), normal(2, *SHAPE, seed=1).to(dtype).requires_grad_()
        negatives = self.make(rows)
        near = negatives.near(x, k=2)
        self.check_near(negatives, near, rows, x.detach(), None, 2)
        assert (near.distances.dtype, near.rows.dtype, near.rows.requires_grad) == (torch.float64, torch.float64, False)
        assert near.origins == negatives.origins

    @pytest.mark.parametrize("radius", [0.0, 1.0, 2.5])
    def test_noise_that_is_named_adds_no_row_and_hides_none_of_few_dimensions(self, radius: float) -> None:
        given, noise = normal(40, *SHAPE), torch.tensor([0.0, 1e-3, 0.3, 1.0, 1e9])
        negatives, x = self.make(given), self.rounded(given)[:BATCH] + 0.3 * normal(BATCH, *SHAPE, seed=2)
        for k in (1, None):
            self.check_near(negatives, negatives.near(x, radius, k, noise=noise), given, x, radius, k)
        self.check_near(negatives, negatives.near(x, k=3, noise=0.3), given, x, None, 3)

    @pytest.mark.parametrize("image_radius", [0.0, 1.0, [0.0, 0.5, 2.0, 9.0, float("inf")]])
    def test_rows_near_the_image_itself_are_found_and_none_beyond_the_radius(
        self, image_radius: float | list[float]
    ) -> None:
        given = normal(40, *SHAPE)
        negatives, rows = self.make(given), self.rounded(given).flatten(1)
        images = self.rounded(given)[:BATCH] + 0.2 * normal(BATCH, *SHAPE, seed=2)
        x = images + 0.3 * normal(BATCH, *SHAPE, seed=3)
        limit = torch.as_tensor(image_radius, dtype=torch.float64).expand(BATCH)
        near = negatives.near(x, 2.5, noise=0.3, image_radius=limit if isinstance(image_radius, list) else image_radius)
        within = torch.cdist(x.flatten(1), rows) <= 2.5
        wanted = within & (torch.cdist(images.flatten(1), rows) <= limit[:, None])
        for found, certain, possible in zip(self.named_near(negatives, near), wanted, within, strict=True):
            assert set(certain.nonzero()[:, 0].tolist()) <= set(found) <= set(possible.nonzero()[:, 0].tolist())

    def test_rows_equally_far_come_set_by_set_the_lowest_id_first(self) -> None:
        rows = torch.cat([torch.eye(D), -torch.eye(D)]).reshape(-1, *SHAPE).double()
        negatives, centre = self.make(rows), torch.zeros(1, *SHAPE, dtype=torch.float64)
        near = negatives.near(centre, radius=1.0)
        places = list(zip(near.origin[0].tolist(), near.ids[0].tolist(), strict=True))
        assert len(places) == 2 * D
        assert places == sorted(places)
        assert torch.equal(negatives.near(centre, k=5).ids, near.ids[:, :5])

    def test_moments_are_those_of_the_rows(self) -> None:
        for rows in (normal(40, *SHAPE), 1e4 + normal(3, *SHAPE), normal(1, *SHAPE)):
            told, flat = self.make(rows).moments(), self.rounded(rows).flatten(1)
            assert told.count == len(rows)
            assert torch.allclose(told.mean, flat.mean(0), rtol=1e-12, atol=1e-12)
            assert told.rms == pytest.approx(float(flat.sub(flat.mean(0)).square().sum(1).mean().sqrt()), rel=1e-9)
        none = self.make(normal(0, *SHAPE)).moments()
        assert (none.count, none.rms, none.mean.tolist()) == (0, 0.0, [0.0] * D)

    # -- what it refuses -------------------------------------------------------------------

    def test_an_empty_set_says_so(self) -> None:
        empty = self.make(normal(0, *SHAPE))
        assert len(empty) == 0
        assert empty.digests() == {}
        with pytest.raises(EmptySet, match=r"no row in force.*add rows"):
            empty.posterior(normal(1, *SHAPE), NoiseLevel(0.7, 0.7))

        for limits in ({"k": 1}, {"radius": 1.0}):
            with pytest.raises(EmptySet, match="no row in force"):
                empty.near(normal(1, *SHAPE), **limits)

    def test_near_without_a_limit_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match=r"give radius=.*or k="):
            self.make(normal(3, *SHAPE)).near(normal(1, *SHAPE))

    @pytest.mark.parametrize("k", [-1, 0])
    def test_near_with_no_row_to_find_is_refused(self, k: int) -> None:
        with pytest.raises(OutOfRange, match=rf"k = {k}; give k >= 1"):
            self.make(normal(3, *SHAPE)).near(normal(1, *SHAPE), radius=1.0, k=k)

    @pytest.mark.parametrize("radius", [-0.1, float("nan"), torch.tensor([1.0, -1.0])])
    def test_a_radius_that_is_no_distance_is_named(self, radius: float | Tensor) -> None:
        with pytest.raises(OutOfRange, match=r"radius = .*give a distance >= 0"):
            self.make(normal(3, *SHAPE)).near(normal(2, *SHAPE), radius)
        with pytest.raises(OutOfRange, match=r"image_radius = .*give a distance >= 0"):
            self.make(normal(3, *SHAPE)).near(normal(2, *SHAPE), 1.0, noise=0.1, image_radius=radius)

    @pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf"), torch.tensor([1.0, -1.0])])
    def test_noise_that_is_no_level_is_named(self, noise: float | Tensor) -> None:
        with pytest.raises(OutOfRange, match=r"noise = .*finite and >= 0"):
            self.make(normal(3, *SHAPE)).near(normal(2, *SHAPE), 1.0, noise=noise)

    def test_radii_must_fit_the_batch(self) -> None:
        with pytest.raises(ShapeMismatch, match=r"radius of shape \(2,\) for 3 samples"):
            self.make(normal(3, *SHAPE)).near(normal(3, *SHAPE), torch.ones(2))
        with pytest.raises(ShapeMismatch, match=r"noise of shape \(2,\) for 3 samples"):
            self.make(normal(3, *SHAPE)).near(normal(3, *SHAPE), 1.0, noise=torch.ones(2))
        with pytest.raises(ShapeMismatch, match=r"image_radius of shape \(2,\) for 3 samples"):
            self.make(normal(3, *SHAPE)).near(normal(3, *SHAPE), 1.0, image_radius=torch.ones(2))

    def test_near_refuses_what_is_no_sample(self) -> None:
        negatives, x = self.make(normal(3, *SHAPE)), normal(2, *SHAPE)
        with pytest.raises(ShapeMismatch, match=r"query of shape .* give \(B, 2, 3\)"):
            negatives.near(x[0], k=1)
        with pytest.raises(OutOfRange, match="distances beyond float64"):
            negatives.near(1e200 * x, k=1)
        for value in (float("nan"), float("inf")):
            x[1, 0, 0] = value
            with pytest.raises(NotFinite, match="NaN or Inf"):
                negatives.near(x, k=1)

    @pytest.mark.parametrize("k", [-1, 0, 4])
    def test_k_out_of_range_is_named(self, k: int) -> None:
        with pytest.raises(OutOfRange, match=rf"k = {k}.*1 <= k <= 3"):
            self.make(normal(3, *SHAPE)).posterior(normal(1, *SHAPE), NoiseLevel(0.7, 0.7), k=k)

    @pytest.mark.parametrize("error", [-0.1, 0.0, float("inf"), float("nan")])
    def test_an_error_that_is_no_positive_number_is_named(self, error: float) -> None:
        with pytest.raises(OutOfRange, match=rf"error = {error}; give a positive"):
            self.make(normal(3, *SHAPE)).posterior(normal(1, *SHAPE), NoiseLevel(0.7, 0.7), error=error)

    @pytest.mark.parametrize("shape", [(), (1,), (1, 6), (1, 3, 2), (2, 3), (1, 2, 3, 1)])
    def test_another_shape_is_named(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ShapeMismatch, match=r"query of shape .* give \(B, 2, 3\)"):
            self.make(normal(3, *SHAPE)).posterior(normal(*shape), NoiseLevel(0.7, 0.7))

    def test_levels_must_fit_the_batch(self) -> None:
        with pytest.raises(ShapeMismatch, match="2 noise levels for a batch of 3"):
            self.make(normal(3, *SHAPE)).posterior(normal(3, *SHAPE), NoiseLevel(torch.tensor([0.7, 0.8]), 0.7))

    def test_a_kernel_of_other_dimensions_is_named(self) -> None:
        with pytest.raises(ShapeMismatch, match=r"projection of 5 dimensions for rows of 6"):
            self.make(normal(3, *SHAPE)).posterior(
                normal(1, *SHAPE), NoiseLevel(0.7, 0.7), kernel=Kernel(projection=normal(2, 5))
            )

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_nan_and_inf_are_refused(self, value: float) -> None:
        x_t = normal(2, *SHAPE)
        x_t[1, 0, 0] = value
        with pytest.raises(NotFinite, match="NaN or Inf"):
            self.make(normal(3, *SHAPE)).posterior(x_t, NoiseLevel(0.7, 0.7))

    @pytest.mark.parametrize(
        ("scale", "alpha", "sigma"), [(1, 1, 1e-200), (1, 1e-320, 1), (1e200, 1, 1), (1, 1e-150, 1e-200)]
    )
    def test_what_leaves_float64_is_refused_not_answered_with_nan(
        self, scale: float, alpha: float, sigma: float
    ) -> None:
        rows = normal(3, *SHAPE)
        with pytest.raises(OutOfRange, match="beyond float64"):
            self.make(rows).posterior(scale * self.rounded(rows), NoiseLevel(alpha, sigma))

    # -- views of it -----------------------------------------------------------------------

    def test_a_pin_is_a_view_that_stays(self) -> None:
        rows, x_t = normal(12, *SHAPE), normal(BATCH, *SHAPE, seed=1)
        negatives = self.make(rows)
        pinned = negatives.pin()
        told = self.check(pinned, rows, x_t, LEVELS)
        again = pinned.pin().posterior(x_t, LEVELS)
        assert torch.equal(told.mean, again.mean)
        assert (len(pinned), pinned.origins, pinned.shape) == (len(negatives), negatives.origins, negatives.shape)
        assert pinned.pin().origins == pinned.origins
        assert pinned.space == negatives.space

    def test_digests_are_of_the_stored_bytes(self) -> None:
        rows = normal(5, *SHAPE)
        assert sorted(self.make(rows).digests().values()) == sorted(self.stored_digests(rows))

    def test_it_holds_its_own_digests_and_no_others(self) -> None:
        negatives, digests = self.make(normal(5, *SHAPE)), self.stored_digests(normal(5, *SHAPE))
        assert negatives.holds([*digests[:2], "0" * 64]) == set(digests[:2])
        assert negatives.holds([]) == set()

    def test_without_leaves_out_and_keeps_the_rest(self) -> None:
        rows, x_t = normal(12, *SHAPE), normal(BATCH, *SHAPE, seed=1)
        negatives, digests = self.make(rows), self.stored_digests(rows)
        rest = negatives.without([*digests[:5], "0" * 64])
        self.check(rest, rows[5:], x_t, LEVELS)
        assert rest.holds(digests) == set(digests[5:])
        assert len(negatives) == 12
        self.check(negatives.without([]), rows, x_t, LEVELS)
        assert len(rest.without(digests)) == 0

    def test_it_is_a_context_manager(self) -> None:
        with self.make(normal(3, *SHAPE)) as negatives:
            assert len(negatives) == 3

    # -- the means -------------------------------------------------------------------------

    def rounded(self, rows: Tensor) -> Tensor:
        """The rows as they are stored, in float64."""
        return rows.to(self.stored).to(torch.float64)

    def stored_digests(self, rows: Tensor) -> list[str]:
        return [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in rows.to(self.stored)]

    def named(self, negatives: Negatives, told: Partial) -> Tensor:
        """(B, H) which of the rows given to ``make`` the answer names."""
        by_id = [
            [self.row_of(negatives, told.origins[origin], row_id) for origin, row_id in zip(*pair, strict=True)]
            for pair in zip(told.heaviest.origin.tolist(), told.heaviest.ids.tolist(), strict=True)
        ]
        return torch.tensor(by_id)

    def named_near(self, negatives: Negatives, near: Near) -> list[list[int]]:
        """Which of the rows given to ``make`` are near, a list a sample."""
        return [
            [self.row_of(negatives, near.origins[o], i) for o, i in zip(*pair, strict=True) if i >= 0]
            for pair in zip(near.origin.tolist(), near.ids.tolist(), strict=True)
        ]

    def check_near(
        self,
        negatives: Negatives,
        near: Near,
        rows: Tensor,
        x: Tensor,
        radius: float | list[float] | None,
        k: int | None,
    ) -> None:
        """The answer is that of a search of one sample and one row at a time."""
        kept, named = self.rounded(rows), self.named_near(negatives, near)
        for b, sample in enumerate(x.to(torch.float64)):
            far = float("inf") if radius is None else radius[b] if isinstance(radius, list) else radius
            by_distance = sorted((float((sample - row).norm()), n) for n, row in enumerate(kept))
            expected = [(d, n) for d, n in by_distance if d <= far][:k]
            assert named[b] == [n for _, n in expected]
            assert near.distances[b, : len(expected)].tolist() == pytest.approx([d for d, _ in expected], rel=1e-12)
            assert torch.equal(near.rows[b, : len(expected)], kept[named[b]])
        assert near.ids.shape[1] == max(map(len, named), default=0)

    def check(
        self, negatives: Negatives, rows: Tensor, x_t: Tensor, level: NoiseLevel, kernel: Kernel = LITERAL
    ) -> Partial:
        """The answer lies within its own stated error of the truth."""
        told, true = negatives.posterior(x_t, level, kernel=kernel), truth(self.rounded(rows), x_t, level, kernel)
        assert told.log_norm.shape == (len(x_t),)
        assert told.mean.shape == x_t.shape
        assert torch.allclose(told.log_norm, true.log_norm, rtol=self.tolerance, atol=self.tolerance)
        flat = self.rounded(rows).flatten(1)
        radius = (flat - flat.mean(0)).square().sum(1).mean().sqrt()
        off = (told.mean - true.mean).flatten(1).norm(dim=1)
        limit = told.error * radius + self.tolerance * flat.norm(dim=1).max()
        assert (off <= limit).all(), (off, limit)
        return told
