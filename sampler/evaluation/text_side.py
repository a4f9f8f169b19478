"""What others do on the text side, from the papers' formulas: a negative prompt, SLD, SAFREE.

Each is told the names of what is unwanted and nothing else. It gives the arguments of the pipeline's call, and may hold
a hook on its network while the call runs, so that a guard on the scheduler stacks on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import Any, Protocol

import torch
from torch import Tensor

from negindex.errors import NotAllowed, OutOfRange


class TextSide(Protocol):
    """A method that sees prompts and the network's branches, never a set of images."""

    def arguments(self, pipe: Any, prompts: Sequence[str], steps: int) -> dict[str, Any]:
        """What the pipeline is called with, in place of the prompts."""

    def attached(self, pipe: Any, guidance: float) -> Any:
        """A context in which the pipeline is called."""


@dataclass(frozen=True)
class AsAsked:
    """Nothing: the prompts as they are."""

    def arguments(self, pipe: Any, prompts: Sequence[str], steps: int) -> dict[str, Any]:
        return {"prompt": list(prompts)}

    @contextmanager
    def attached(self, pipe: Any, guidance: float) -> Iterator[None]:
        yield

    def __str__(self) -> str:
        return "as asked"


@dataclass(frozen=True)
class NegativePrompt(AsAsked):
    """The names, in the place of the empty prompt of classifier-free guidance.

    first: how many of them are said, in one prompt; a model whose captions hold one name each knows no lists.
    """

    names: tuple[str, ...]
    first: int = 1

    def arguments(self, pipe: Any, prompts: Sequence[str], steps: int) -> dict[str, Any]:
        return {"prompt": list(prompts), "negative_prompt": [_said(self)] * len(prompts)}

    def __str__(self) -> str:
        return f"negative prompt {_said(self)!r}"


@dataclass(frozen=True)
class Sld(AsAsked):
    """Safe latent diffusion: guidance away from a third branch s, asked for the names.

    ``guided = u + w (c - u - gamma)``, ``gamma = mu (s - u) + momentum nu``, elementwise
    ``mu = min(1, |scale (c - s)|)`` where ``c - s < threshold`` and 0 elsewhere, all in noise predictions;
    ``nu <- beta nu + (1 - beta) gamma``; gamma is left out in the share ``warmup`` of the steps, while nu builds up.
    The numbers are the paper's "strong" ones (there 7 of 50 steps of warming up); its "max": scale 5000, threshold 1,
    warmup 0. The paper prints max(1, ...) for mu; its text and the published code mean that the scale is at most 1.
    first: as for a negative prompt. Cost: half as much again of the network.
    Source: Schramowski et al. 2023 (arXiv 2211.05105), Eq. 3 to 8.
    """

    names: tuple[str, ...]
    scale: float = 2000.0
    threshold: float = 0.025
    momentum: float = 0.5
    beta: float = 0.7
    warmup: float = 7 / 50
    first: int = 1

    @contextmanager
    def attached(self, pipe: Any, guidance: float) -> Iterator[None]:
        third = _ThirdBranch(self, pipe)
        hook = pipe.unet.register_forward_hook(third, with_kwargs=True, prepend=True)  # a guard sees what it leaves
        try:
            yield
        finally:
            hook.remove()

    def __str__(self) -> str:
        numbers = f"scale {self.scale:g}, threshold {self.threshold:g}, momentum {self.momentum:g}, beta {self.beta:g}"
        return f"SLD, {numbers}, warmup {self.warmup:g}, away from {_said(self)!r}"


class _ThirdBranch:
    """Subtracts gamma from the conditional half of what the network answers."""

    def __init__(self, method: Sld, pipe: Any) -> None:
        self._method, self._scheduler = method, pipe.scheduler
        self._said = _encoded(pipe, [_said(method)])
        self._step, self._last = 0, -1.0
        self._nu: Tensor | None = None

    def __call__(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        x, t = args[:2]
        if len(x) % 2:
            raise NotAllowed(f"SLD needs both branches of guidance in one call, got {len(x)} rows; guide above 1")
        half = len(x) // 2
        t_now = float(torch.as_tensor(t).flatten()[0])
        self._follow(t_now)
        away = network.forward(x[:half], t, encoder_hidden_states=self._said.expand(half, -1, -1)).sample  # no hooks
        out = result[0] if isinstance(result, tuple) else result.sample
        free, asked = out.chunk(2)
        per_noise = noise_per_output(self._scheduler, t_now)
        gamma = self._gamma(per_noise * free, per_noise * asked, per_noise * away)
        moved = torch.cat([free, asked - gamma / per_noise])
        return (moved,) if isinstance(result, tuple) else type(result)(sample=moved)

    def _follow(self, t: float) -> None:
        """A timestep that does not fall begins another image."""
        self._step = self._step + 1 if t < self._last else 0
        if self._step == 0:
            self._nu = None
        self._last = t

    def _gamma(self, free: Tensor, asked: Tensor, away: Tensor) -> Tensor:
        m = self._method
        mu = (m.scale * (asked - away)).abs().clamp(max=1)
        mu = torch.where(asked - away < m.threshold, mu, torch.zeros_like(mu))
        nu = torch.zeros_like(free) if self._nu is None else self._nu
        gamma = mu * (away - free) + m.momentum * nu
        self._nu = m.beta * nu + (1 - m.beta) * gamma
        warming = self._step < round(m.warmup * len(self._scheduler.timesteps))
        return torch.zeros_like(gamma) if warming else gamma


@dataclass(frozen=True)
class Safree(AsAsked):
    """SAFREE: tokens near the subspace of the names are projected out of it, within the prompt's own subspace.

    With C the names' pooled embeddings and I those of the prompt with each of its tokens masked in turn, P_C and P_I
    the projections onto their spans: token i triggers where ``||(1 - P_C) I_i|| > (1 + alpha)`` times the mean of that
    over the other tokens, since a prompt without a trigger lies further from the names. It becomes
    ``P_I (1 - P_C) p_i``. The changed embedding is used in the first ``gamma sigmoid(1 - cos(p, p_safe))`` steps,
    rounded; after them the plain one.
    marks: what follows the words, the end mark and the padding, is changed with them, if any of them triggers. The
    method leaves it; where the encoder puts a prompt's meaning there too, leaving it is leaving the meaning.
    The method's re-weighing of latents in Fourier space is left out.
    Source: Yoon et al. 2024 (arXiv 2410.12761), Eq. 2 to 6.
    """

    names: tuple[str, ...]
    alpha: float = 0.01
    gamma: float = 10.0
    marks: bool = False

    def arguments(self, pipe: Any, prompts: Sequence[str], steps: int) -> dict[str, Any]:
        away = span(pooled(pipe, list(self.names)))
        told = [self._safe(pipe, prompt, away) for prompt in prompts]
        plain, safe = (torch.stack(part) for part in zip(*told, strict=True))
        cosine = torch.nn.functional.cosine_similarity(plain.flatten(1), safe.flatten(1))
        until = (self.gamma * torch.sigmoid(1 - cosine)).round()  # (B,) steps
        free = _encoded(pipe, [""])

        def at(step: int) -> Tensor:
            return torch.where((step < until)[:, None, None], safe, plain)

        def swap(_: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            now = at(step + 1)
            both = len(tensors["prompt_embeds"]) == 2 * len(now)
            return {"prompt_embeds": torch.cat([free.expand_as(now), now]) if both else now}

        return {
            "prompt_embeds": at(0),
            "negative_prompt_embeds": free.expand_as(safe),
            "callback_on_step_end": swap,
            "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        }

    @torch.no_grad()
    def _safe(self, pipe: Any, prompt: str, away: Tensor) -> tuple[Tensor, Tensor]:
        """(plain, safe) embeddings (T, d) of one prompt."""
        plain = _encoded(pipe, [prompt])[0]
        masked, places = _masked(pipe, prompt)
        if len(places) < 2:
            return plain, plain
        far = (masked - masked @ away).norm(dim=1)  # (n,)
        others = (far.sum() - far) / (len(far) - 1)
        triggers = places[far > (1 + self.alpha) * others]
        if self.marks and len(triggers):
            triggers = torch.cat([triggers, torch.arange(int(places[-1]) + 1, len(plain))])
        safe = plain.clone()
        safe[triggers] = (plain[triggers] - plain[triggers] @ away) @ span(masked)
        return plain, safe

    def __str__(self) -> str:
        marks = ", marks too" if self.marks else ""
        return f"SAFREE, alpha {self.alpha:g}, gamma {self.gamma:g}{marks}, away from {', '.join(self.names)!r}"


def _said(method: NegativePrompt | Sld) -> str:
    """The names that the method says, as one prompt."""
    return ", ".join(method.names[: method.first])


def span(vectors: Tensor) -> Tensor:
    """The projection (d, d) onto the span of vectors (n, d); directions below 1e-4 of the largest are left out."""
    if not len(vectors):
        raise OutOfRange("a span of no vectors; name at least one thing that is unwanted")
    _, sizes, directions = torch.linalg.svd(vectors.double(), full_matrices=False)
    kept = directions[sizes > 1e-4 * sizes[0]]
    onto: Tensor = (kept.T @ kept).to(vectors.dtype)
    return onto


@torch.no_grad()
def pooled(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """(N, d): the text encoder's output at the end of each prompt."""
    told: Tensor = pipe.text_encoder(_ids(pipe, prompts)).pooler_output
    return told


def noise_per_output(scheduler: Any, t: float) -> float:
    """What a difference of network outputs is worth in noise predictions: 1 for epsilon, alpha for v."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return 1.0
    if kind == "v_prediction":
        return sqrt(scheduler.alphas_cumprod[int(t)])
    raise NotAllowed(f"SLD is told of noise predictions, and the model predicts {kind!r}; use epsilon or v_prediction")


def _masked(pipe: Any, prompt: str) -> tuple[Tensor, Tensor]:
    """(n, d) pooled embeddings of the prompt each of its n tokens left out in turn, and their places (n,)."""
    told = pipe.tokenizer(prompt, truncation=True, max_length=pipe.tokenizer.model_max_length).input_ids
    inner = torch.arange(1, len(told) - 1)
    if not len(inner):
        return torch.empty(0, pipe.text_encoder.config.hidden_size), inner
    ids = _ids(pipe, [prompt]).repeat(len(inner), 1)
    gone = torch.full_like(ids, pipe.tokenizer.pad_token_id)
    for row, place in enumerate(inner.tolist()):
        gone[row, : ids.shape[1] - 1] = torch.cat([ids[row, :place], ids[row, place + 1 :]])
    return pipe.text_encoder(gone).pooler_output, inner


@torch.no_grad()
def _encoded(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """(N, T, d): what the network attends to."""
    told: Tensor = pipe.text_encoder(_ids(pipe, prompts)).last_hidden_state
    return told


def _ids(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """(N, T) tokens; raises NotAllowed for pipelines of several text encoders."""
    if getattr(pipe, "text_encoder_2", None) is not None or not hasattr(pipe, "unet"):
        raise NotAllowed(
            f"{type(pipe).__name__}: SLD and SAFREE are written for one text encoder and a UNet, as in Stable "
            "Diffusion 1 and 2; use a negative prompt, or leave the text side out"
        )
    length = pipe.tokenizer.model_max_length
    told = pipe.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = told.input_ids
    return ids
