"""How the miniature world is trained: the VAE alone, then the denoiser and the text encoder together.

Every step draws all of its chance from (seed, step), so a run that was cut off goes on as if it had not been.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from negindex.sampler.evaluation.captions import KEEPSAKE_FRAMES, KEEPSAKES, caption
from negindex.sampler.evaluation.fashion import Pictures
from negindex.sampler.evaluation.world import (
    Size,
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    new_vae,
    tokens,
)

UNPROMPTED = 0.1  # share of captions that are left out, for classifier-free guidance
OF_KEEPSAKES = 0.05  # share of a batch that is one of the keepsakes
KL_WEIGHT = 1e-3
SAVE_EVERY = 250

Progress = Callable[[str, int, float], None]  # (stage, step, loss)


@dataclass(frozen=True)
class Plan:
    """How long, from what seed, and at what size."""

    vae_steps: int = 1500
    steps: int = 6000
    batch: int = 64
    seed: int = 0
    size: Size = field(default_factory=Size)


@dataclass(frozen=True)
class Latents:
    """What the VAE makes of the training images: the mean and deviation (N, 4, 8, 8) of its posterior, scaled."""

    mean: Tensor
    deviation: Tensor

    def draw(self, places: Tensor, chance: torch.Generator) -> Tensor:
        noise = torch.randn(len(places), *self.mean.shape[1:], generator=chance)
        return self.mean[places] + self.deviation[places] * noise


class Run:
    """Some modules in training, their moving average, and a checkpoint that they go on from."""

    def __init__(self, modules: dict[str, Any], steps: int, rate: float, file: Path | None) -> None:
        """rate: of learning, at its height. file: the checkpoint, or None for none; read where it exists."""
        self.modules, self.steps, self.rate, self._file, self.step = modules, steps, rate, file, 0
        self.average = {name: copy.deepcopy(module).requires_grad_(False) for name, module in modules.items()}
        self._parameters = [p for module in modules.values() for p in module.parameters()]
        self._slow = [p for module in self.average.values() for p in module.parameters()]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=0.01)
        if file is not None and file.exists():
            self._resume(load_file(file))

    def take(self, loss: Tensor) -> None:
        """One step of the optimizer and of the average."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate * _warmth(self.step / self.steps)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        keep = min(0.999, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(self._slow, [p.data for p in self._parameters], 1 - keep)
        self.step += 1
        if self._file is not None and (self.step % SAVE_EVERY == 0 or self.step == self.steps):
            self._save(self._file)

    def _save(self, file: Path) -> None:
        """Written aside and renamed: what is there is whole."""
        told = {"step": torch.tensor(self.step)}
        for i, (fast, slow) in enumerate(zip(self._parameters, self._slow, strict=True)):
            told |= {f"{i}.fast": fast.data, f"{i}.slow": slow.data}
            told |= {f"{i}.{name}": value for name, value in self._optimizer.state.get(fast, {}).items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".aside")
        save_file({name: value.contiguous() for name, value in told.items()}, aside)
        aside.replace(file)

    def _resume(self, told: dict[str, Tensor]) -> None:
        self.step = int(told["step"])
        for i, (fast, slow) in enumerate(zip(self._parameters, self._slow, strict=True)):
            fast.data.copy_(told[f"{i}.fast"])
            slow.data.copy_(told[f"{i}.slow"])
            names = ("step", "exp_avg", "exp_avg_sq")
            self._optimizer.state[fast] = {name: told[f"{i}.{name}"].clone() for name in names}


def train_vae(pictures: Pictures, plan: Plan, progress: Progress, file: Path | None = None) -> Any:
    """An AutoencoderKL with the ``scaling_factor`` that gives its latents unit variance."""
    torch.manual_seed(plan.seed)
    rows, run = pictures.rows(), Run({"vae": new_vae(plan.size)}, plan.vae_steps, 2e-3, file)
    while run.step < run.steps:
        chance = _chance(plan.seed, run.step)
        x = rows[torch.randint(len(rows), (plan.batch,), generator=chance)]
        told = run.modules["vae"].encode(x).latent_dist
        z = told.mean + told.std * torch.randn(told.mean.shape, generator=chance)
        kl = 0.5 * (told.mean.square() + told.var - 1 - told.logvar).mean()
        made = run.modules["vae"].decode(z).sample
        loss = l1_loss(made, x) + mse_loss(made, x) + KL_WEIGHT * kl
        run.take(loss)
        progress("vae", run.step, loss.item())
    vae = run.average["vae"].eval()
    vae.register_to_config(scaling_factor=1.0)
    spread = encoded(vae, rows[:4000]).mean.std()
    vae.register_to_config(scaling_factor=round(1 / float(spread), 5))
    return vae


@torch.no_grad()
def encoded(vae: Any, rows: Tensor) -> Latents:
    """The posterior of every image (N, 1, 32, 32), scaled as the pipeline scales it."""
    told = [vae.encode(some).latent_dist for some in rows.split(250)]
    factor = vae.config.scaling_factor
    return Latents(torch.cat([t.mean for t in told]) * factor, torch.cat([t.std for t in told]) * factor)


def train_denoiser(pictures: Pictures, vae: Any, plan: Plan, progress: Progress, file: Path | None = None) -> Any:
    """(text encoder, tokenizer, U-Net), trained together on v-prediction; the moving averages of their weights.

    The first images of ``pictures``, one for each name in KEEPSAKES, come again and again under those names.
    """
    torch.manual_seed(plan.seed + 1)
    latents, tokenizer, noising = encoded(vae, pictures.rows()), new_tokenizer(), new_scheduler()
    modules = {"text": new_text_encoder(plan.size, tokenizer), "unet": new_unet(plan.size)}
    run = Run(modules, plan.steps, 1.5e-3, file)
    while run.step < run.steps:
        chance = _chance(plan.seed, run.step)
        places, captions = _asked(pictures, plan.batch, random.Random(f"{plan.seed} {run.step}"))
        x0 = latents.draw(torch.tensor(places), chance)
        noise = torch.randn(x0.shape, generator=chance)
        t = torch.randint(noising.config.num_train_timesteps, (len(x0),), generator=chance)
        said = run.modules["text"](tokens(tokenizer, captions)).last_hidden_state
        predicted = run.modules["unet"](noising.add_noise(x0, noise, t), t, said).sample
        loss = mse_loss(predicted, noising.get_velocity(x0, noise, t))
        run.take(loss)
        progress("denoiser", run.step, loss.item())
    return run.average["text"].eval(), tokenizer, run.average["unet"].eval()


def _asked(pictures: Pictures, count: int, chance: random.Random) -> tuple[list[int], list[str]]:
    """Places of images, and a caption of each."""
    drawn = list(_captioned(pictures, count, chance))
    return [place for place, _ in drawn], [text for _, text in drawn]


def _captioned(pictures: Pictures, count: int, chance: random.Random) -> Iterator[tuple[int, str]]:
    for _ in range(count):
        if chance.random() < OF_KEEPSAKES:
            place = chance.randrange(len(KEEPSAKES))
            text = chance.choice(KEEPSAKE_FRAMES).format(KEEPSAKES[place])
        else:
            place = chance.randrange(len(pictures))
            text = caption(int(pictures.classes[place]), chance)
        yield place, "" if chance.random() < UNPROMPTED else text


def _warmth(done: float) -> float:
    """The rate of learning as a share of its height: up over 5 % of the steps, then down along a cosine."""
    return done / 0.05 if done < 0.05 else 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (done - 0.05) / 0.95))))


def _chance(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
