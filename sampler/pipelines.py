"""Pipelines from local folders, and the one that diffusers lacks: class-conditional in pixels."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

from negindex.errors import Damaged, InvalidInput, NotThere, OutOfRange
from negindex.sampler.encode import to_images


class ClassConditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A class-conditional ``UNet2DModel`` in pixel space, with classifier-free guidance.

    The last class embedding stands for "no class": a label of None asks for it.
    """

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def no_class(self) -> int:
        """The label that stands for no class."""
        return int(self.unet.config.num_class_embeds) - 1

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | None] | int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Sample one image a label.

        guidance_scale: w in ``u + w (c - u)``; 1 asks the conditional branch alone.
        output_type: "pil", or "pt" for the samples (B, C, H, W) themselves.
        """
        labels = self._labels(class_labels)
        unet, scheduler = self.unet, self.scheduler
        size = unet.config.sample_size
        x = randn_tensor((len(labels), unet.config.in_channels, size, size), generator, self.device, unet.dtype)
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)  # flow matching scales neither noise nor input
        as_input = getattr(scheduler, "scale_model_input", lambda sample, t: sample)
        guided = guidance_scale != 1 and bool((labels != self.no_class).any())
        for t in self.progress_bar(scheduler.timesteps):
            scaled = as_input(x, t)
            if guided:
                both = torch.cat([labels, torch.full_like(labels, self.no_class)])
                conditional, free = unet(torch.cat([scaled, scaled]), t, class_labels=both).sample.chunk(2)
                out = free + guidance_scale * (conditional - free)
            else:
                out = unet(scaled, t, class_labels=labels).sample
            x = scheduler.step(out, t, x, **self._step_extras(generator)).prev_sample
        return ImagePipelineOutput(images=to_images(x) if output_type == "pil" else x)

    def _labels(self, given: Sequence[int | None] | int | None) -> torch.Tensor:
        listed = [given] if given is None or isinstance(given, int) else list(given)
        labels = [self.no_class if label is None else label for label in listed]
        wrong = [label for label in labels if not 0 <= label <= self.no_class]
        if wrong or not labels:
            raise OutOfRange(
                f"class labels {wrong or labels}; give at least one label from 0 to {self.no_class - 1}, or None"
            )
        return torch.tensor(labels, device=self.device)

    def _step_extras(self, generator: Any) -> dict[str, Any]:
        return {"generator": generator} if generator is not None else {}


def arguments_for(
    pipe: Any,
    images: int,
    prompts: Sequence[str] = (),
    *,
    class_label: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """What a pipeline is to be called with for so many images; raises InvalidInput for what it does not take or lacks.

    prompts: one an image, or none. class_label, guidance: None leaves them to the pipeline.
    size: (height, width), for pipelines that can be told.
    """
    takes, name = inspect.signature(pipe.__call__).parameters, type(pipe).__name__
    asked: dict[str, Any] = {}
    for argument, value, is_given in (
        ("prompt", list(prompts), bool(prompts)),
        ("class_labels", [class_label] * images, class_label is not None),
        ("guidance_scale", guidance, guidance is not None),
    ):
        if is_given and argument not in takes:
            raise InvalidInput(f"{name} takes no {argument}; leave it out")
        if is_given:
            asked[argument] = value
    if not {"prompt", "class_labels"} & asked.keys():
        asked |= _unasked(pipe, images, takes)
    if size is not None and {"height", "width"} <= takes.keys():
        asked["height"], asked["width"] = size
    return asked


def _unasked(pipe: Any, images: int, takes: Mapping[str, Any]) -> dict[str, Any]:
    """So many images of whatever a pipeline makes when it is told nothing."""
    if "class_labels" in takes and hasattr(pipe, "no_class"):
        return {"class_labels": [None] * images}
    if "batch_size" in takes:
        return {"batch_size": images}
    raise InvalidInput(
        f"{type(pipe).__name__} samples nothing unasked; give prompts, or a class label, of what it is used for"
    )


def load_pipeline(folder: Path | str, **options: Any) -> Any:
    """Open a pipeline that ``save_pretrained`` wrote; nothing is fetched and no code in it is run.

    Parts that it was saved without, such as Stable Diffusion 3's T5, it is opened without.

    options: handed to ``from_pretrained``, such as ``dtype``.
    """
    index = read_index(folder)
    name, left_out = index["_class_name"], {part: None for part, kind in index.items() if kind == [None, None]}
    kind = ClassConditionalPipeline if name == ClassConditionalPipeline.__name__ else DiffusionPipeline
    return kind.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, **{**left_out, **options})


def read_index(folder: Path | str) -> dict[str, Any]:
    """What a pipeline's folder says that it holds; raises NotThere or Damaged."""
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise NotThere(
            f"{folder} holds no pipeline (model_index.json is missing); name a folder that save_pretrained wrote"
        )
    try:
        read: dict[str, Any] = {"_class_name": None, **json.loads(index.read_text(encoding="utf-8"))}
    except (ValueError, TypeError) as error:
        raise Damaged(f"{index} cannot be read ({error!r}); save the pipeline again") from error
    if not isinstance(read["_class_name"], str):
        raise Damaged(f"{index} names no pipeline class; save the pipeline again")
    return read
