"""Methods on the text side: their formulas, and that each stacks with a guard."""

import pytest
import torch
from tiny_world import pipeline

from negindex import Exact
from negindex.errors import InvalidInput, NotAllowed
from negindex.sampler import Unasked, guard, space_of
from negindex.sampler.evaluation.ablations import nothing
from negindex.sampler.evaluation.text_side import AsAsked, NegativePrompt, Safree, Sld, noise_per_output, pooled, span

NAMES = ("bag", "handbag", "purse")
PROMPTS = ["photo of bag", "a picture that shows coat", "purse for sale"]
STEPS = 9


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


def sample(pipe, method, guidance=3.0):
    seeds = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    told = method.arguments(pipe, PROMPTS, STEPS)
    with method.attached(pipe, guidance):
        return pipe(
            **told, num_inference_steps=STEPS, guidance_scale=guidance, generator=seeds, output_type="latent"
        ).images


@pytest.mark.parametrize(
    "silent", [Sld(NAMES, threshold=float("-inf")), Sld(NAMES, warmup=1.0), Safree(NAMES, alpha=1e9)], ids=str
)
def test_a_method_that_finds_nothing_leaves_the_images_as_they_were(pipe, silent):
    assert torch.equal(sample(pipe, silent), sample(pipe, AsAsked()))


@pytest.mark.parametrize(
    "method", [NegativePrompt(NAMES), Sld(NAMES, warmup=0.2), Safree(NAMES, alpha=-1.0)], ids=lambda m: type(m).__name__
)
def test_a_method_that_acts_changes_images_and_leaves_nothing_behind(pipe, method):
    before = sample(pipe, AsAsked())
    assert not torch.equal(sample(pipe, method), before)
    assert torch.equal(sample(pipe, method), sample(pipe, method)), "the second call begins anew"
    assert torch.equal(sample(pipe, AsAsked()), before)
    assert not pipe.unet._forward_hooks


@pytest.mark.parametrize("method", [NegativePrompt(NAMES), Sld(NAMES), Safree(NAMES)], ids=lambda m: type(m).__name__)
def test_a_guard_that_changes_nothing_stacks_bit_for_bit(pipe, method):
    rows = Exact(torch.randn(5, 4, 8, 8), space=space_of(pipe))
    with guard(pipe, rows, Exact(torch.randn(6, 4, 8, 8), space=space_of(pipe)), rule=nothing) as g:
        guarded = sample(pipe, method)
    assert len(g.receipts) == len(PROMPTS)
    assert torch.equal(guarded, sample(pipe, method))


def test_a_rule_that_hears_the_request_runs_on_sld(pipe):
    method, rows = Sld(NAMES, warmup=0), Exact(torch.randn(5, 4, 8, 8), space=space_of(pipe))
    reference = Exact(3 + torch.randn(6, 4, 8, 8), space=space_of(pipe))
    seen = []

    def heard(view):
        seen.append(view.branches())
        return Unasked()(view)

    heard.needs_branches = True
    with guard(pipe, rows, reference, rule=heard):
        guarded = sample(pipe, method)
    assert len(seen) == STEPS
    assert all(one is not None for one in seen), "c as SLD leaves it, and u"
    assert not torch.equal(guarded, sample(pipe, method))


def test_sld_subtracts_gamma_from_the_conditional_branch(pipe):
    method = Sld(NAMES, scale=3.0, threshold=0.1, momentum=0.5, beta=0.7, warmup=0)
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), 700
    both = torch.cat([x, x])
    said = pipe.encode_prompt(PROMPTS[:2], "cpu", 1, True)
    away, _ = pipe.encode_prompt([NAMES[0]] * 2, "cpu", 1, False)
    with torch.no_grad():
        u, c = pipe.unet(both, t, encoder_hidden_states=torch.cat([said[1], said[0]])).sample.chunk(2)
        s = pipe.unet(x, t, encoder_hidden_states=away).sample
        with method.attached(pipe, 3.0):
            told = [
                pipe.unet(both, at, encoder_hidden_states=torch.cat([said[1], said[0]])).sample for at in (700, 699)
            ]
    a = noise_per_output(pipe.scheduler, t)
    mu = torch.where(a * (c - s) < 0.1, (3.0 * a * (c - s)).abs().clamp(max=1), 0.0)
    gamma = mu * a * (s - u)
    torch.testing.assert_close(told[0], torch.cat([u, c - gamma / a]))
    assert not torch.equal(told[1], told[0]), "the momentum of the first step"


def test_a_difference_of_v_is_worth_alpha_noise(pipe):
    x0, n = torch.randn(2, 3, 4)
    t = torch.tensor([400])
    schedule = pipe.scheduler
    a, s = schedule.alphas_cumprod[400] ** 0.5, (1 - schedule.alphas_cumprod[400]) ** 0.5
    noisy = a * x0 + s * n
    other = n + 1.0  # another noise, seen in the same sample
    v, v_other = a * n - s * x0, a * other - s * (noisy - s * other) / a
    torch.testing.assert_close(
        noise_per_output(schedule, 400.0) * (v_other - v), torch.ones_like(n), rtol=1e-4, atol=1e-4
    )
    schedule = type(schedule).from_config({**schedule.config, "prediction_type": "sample"})
    with pytest.raises(NotAllowed, match="sample"):
        noise_per_output(schedule, float(t))


def test_sld_needs_both_branches(pipe):
    with pytest.raises(NotAllowed, match="both branches"):
        sample(pipe, Sld(NAMES), guidance=1.0)


def test_a_span_is_a_projection_that_keeps_its_vectors():
    vectors = torch.randn(3, 8)
    onto = span(vectors)
    torch.testing.assert_close(onto, onto.T)
    torch.testing.assert_close(onto @ onto, onto)
    torch.testing.assert_close(vectors @ onto, vectors)
    assert int(torch.linalg.matrix_rank(span(torch.cat([vectors, vectors])), rtol=1e-3)) == 3
    with pytest.raises(InvalidInput):
        span(torch.empty(0, 8))


def test_safree_lets_go_of_its_embedding_after_its_steps(pipe):
    method = Safree(NAMES, alpha=-1.0, gamma=4.0)
    told = method.arguments(pipe, PROMPTS, STEPS)
    plain = AsAsked().arguments(pipe, PROMPTS, STEPS)["prompt"]
    asked, _ = pipe.encode_prompt(plain, "cpu", 1, False)
    swap = told["callback_on_step_end"]
    at = [told["prompt_embeds"], *(swap(pipe, i, 0, {"prompt_embeds": asked})["prompt_embeds"] for i in range(STEPS))]
    changed = [not torch.equal(now, asked) for now in at]
    assert changed[0]
    assert changed == sorted(changed, reverse=True), "never again once it was let go"
    assert 2 <= sum(changed) <= 4, "gamma times the sigmoid of at least 0, rounded"


def test_safree_moves_a_trigger_out_of_the_span_of_the_names_as_far_as_the_prompt_allows(pipe):
    method = Safree(NAMES, alpha=-1.0)
    away = span(pooled(pipe, NAMES))
    plain, safe = method._safe(pipe, PROMPTS[0], away)
    moved = (safe != plain).any(1)
    assert moved.tolist() == [False, True, True, True, *[False] * (len(plain) - 4)], "the three words, not the marks"
    plain, safe = Safree(NAMES, alpha=-1.0, marks=True)._safe(pipe, PROMPTS[0], away)
    assert (safe != plain).any(1).tolist() == [False, *[True] * (len(plain) - 1)]
