"""Where a set's rows lie in the tensors that a pipeline hands to ``scheduler.step``.

Most pipelines hand over the rows as they are. FLUX and its kin pack each row into tokens, an exact
permutation of its elements; DiT hands over every row twice under guidance. A row is stored unpacked.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from negindex.errors import NotAllowed, ShapeMismatch, UnsupportedScheduler

Pack = Callable[..., Tensor]  # a pipeline's own _pack_latents


class Layout:
    """A step's sample holds the rows as they are."""

    @property
    def repeats(self) -> int:
        """How often a step holds each row."""
        return 1

    def called(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A call of the pipeline begins, with these arguments."""

    def packs(self, pack: Pack, latents: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The pipeline is about to pack ``latents``."""

    def unpack(self, x: Tensor) -> Tensor:
        """What a step was given as (B, *S), a row an image; exact."""
        return x

    def pack(self, delta: Tensor, like: Tensor) -> Tensor:
        """(B, *S) in the shape of ``like``, the step's own sample; undoes ``unpack``."""
        return delta


class Doubled(Layout):
    """DiT under guidance: (2B, *S), two equal halves; one is looked up, both are corrected."""

    def __init__(self) -> None:
        self._guided = False

    def called(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._guided = bool(by_name(call, args, kwargs)["guidance_scale"] > 1)

    @property
    def repeats(self) -> int:
        return 2 if self._guided else 1

    def unpack(self, x: Tensor) -> Tensor:
        if not self._guided:
            return x
        half = x[: len(x) // 2]
        if not torch.equal(half, x[len(x) // 2 :]):
            raise ShapeMismatch(
                f"{len(x)} rows under guidance whose two halves differ; guard a pipeline that steps both halves alike"
            )
        return half

    def pack(self, delta: Tensor, like: Tensor) -> Tensor:
        return delta if len(delta) == len(like) else torch.cat([delta, delta])


class Packed(Layout):
    """Tokens (B, T, P). Which element of a row goes where is learned by watching the pipeline pack.

    shape: a row's (C, H, W) or (C, F, H, W). Two sizes of one area have as many tokens, so the count alone
    would let a wrong size pass in silence; what the pipeline packed, or its call's height and width, decides.
    """

    def __init__(self, pipe: Any, shape: tuple[int, ...]) -> None:
        if len(shape) < 3:
            raise ShapeMismatch(
                f"rows of shape {shape} for {type(pipe).__name__}, which packs its latents; "
                "store rows unpacked, (C, H, W)"
            )
        self.shape = shape
        self._pipe = pipe
        self._given: dict[str, Any] | None = None  # the call's arguments by name
        self._seen: dict[tuple[int, ...], tuple[tuple[int, ...], Tensor]] = {}  # (T, P): a row's shape and its order

    def called(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._given = by_name(call, args, kwargs)

    def packs(self, pack: Pack, latents: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        elements = torch.arange(latents.numel(), device=latents.device).reshape(latents.shape)
        packed = pack(elements, *args, **kwargs)
        order = packed[0].flatten()
        if torch.equal(order.sort().values, elements[0].flatten()):
            self._seen[tuple(packed.shape[1:])] = (tuple(latents.shape[1:]), order)

    def unpack(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) == self.shape:
            return x
        return x.flatten(1)[:, self._order(x).argsort()].reshape(len(x), *self.shape)

    def pack(self, delta: Tensor, like: Tensor) -> Tensor:
        if delta.shape == like.shape:
            return delta
        return delta.flatten(1)[:, self._order(like)].reshape(like.shape)

    def _order(self, x: Tensor) -> Tensor:
        """(D,) the row's element that stands at each place of the packed row."""
        tokens = tuple(x.shape[1:])
        if prod(tokens) != prod(self.shape):
            raise ShapeMismatch(
                f"packed latents of {tokens} for rows of shape {self.shape}; "
                "give rows of the height and width that the pipeline makes"
            )
        if tokens not in self._seen or self._handed_in():
            self._pack_as_called(x)
        packed, order = self._seen[tokens]
        if _without_ones(packed) != _without_ones(self.shape):
            raise ShapeMismatch(
                f"the pipeline packed latents of shape {packed}, the rows have {self.shape}; "
                "give rows of the height and width that the pipeline makes"
            )
        return order.to(x.device)

    def _handed_in(self) -> bool:
        """Whether the call brings its latents packed, so that what was seen to be packed is something else."""
        return self._packs_by_size() and self._given is not None and self._given.get("latents") is not None

    def _packs_by_size(self) -> bool:
        return list(inspect.signature(self._pipe._pack_latents).parameters)[1:] == _FLUX_PACK

    def _pack_as_called(self, x: Tensor) -> None:
        """Latents that were handed in packed: pack a row of the call's own height and width instead."""
        pipe, channels = self._pipe, self.shape[0]
        if self._given is None or not {"height", "width"} <= self._given.keys() or not self._packs_by_size():
            raise NotAllowed(
                f"packed latents of {tuple(x.shape[1:])} whose height and width cannot be seen; "
                "call the guarded pipeline itself, without latents=..., or guard the pipeline that is called"
            )
        sizes = (self._given[name] or pipe.default_sample_size * pipe.vae_scale_factor for name in ("height", "width"))
        height, width = (2 * (int(size) // (2 * pipe.vae_scale_factor)) for size in sizes)
        latents = torch.empty(1, channels, height, width, device=x.device)
        self.packs(pipe._pack_latents, latents, (1, channels, height, width), {})
        if latents.numel() != prod(self.shape) or tuple(x.shape[1:]) not in self._seen:
            raise ShapeMismatch(
                f"packed latents of {tuple(x.shape[1:])}, and the call's height and width stand for latents of "
                f"{(channels, height, width)}; hand in latents of the height and width of the call"
            )


_FLUX_PACK = ["batch_size", "num_channels_latents", "height", "width"]


def layout_of(pipe: Any, shape: tuple[int, ...]) -> Layout:
    """How a pipeline lays out rows of ``shape``.

    Raises ShapeMismatch for packed rows, and UnsupportedScheduler where DiT would hand over scaled samples.
    """
    if any(kind.__name__ == "DiTPipeline" for kind in type(pipe).__mro__):
        if float(getattr(pipe.scheduler, "init_noise_sigma", 1.0)) != 1.0:
            raise UnsupportedScheduler(
                f"DiTPipeline hands {type(pipe.scheduler).__name__}.step its scaled sample for x_t, so the step "
                "cannot be read (and its images are wrong unguarded); use DDIM, DDPM or DPMSolverMultistep"
            )
        return Doubled()
    return Packed(pipe, shape) if hasattr(pipe, "_pack_latents") else Layout()


def watched_pack(base: type, packs: Callable[..., None]) -> dict[str, Any]:
    """``_pack_latents`` for a subclass of ``base`` that tells ``packs`` first; nothing where base packs nothing."""
    raw = inspect.getattr_static(base, "_pack_latents", None)
    if raw is None:
        return {}
    inner = raw.__func__ if isinstance(raw, staticmethod) else raw

    def told(pack: Pack, latents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        packs(pack, latents, args, kwargs)
        return pack(latents, *args, **kwargs)

    @functools.wraps(inner)
    def static(*args: Any, **kwargs: Any) -> Tensor:
        return told(inner, *args, **kwargs)

    @functools.wraps(inner)
    def method(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return told(inner.__get__(self), *args, **kwargs)

    return {"_pack_latents": staticmethod(static) if isinstance(raw, staticmethod) else method}


def by_name(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by name, those left out included."""
    bound = inspect.signature(call).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    """A shape without dimensions of one element, such as an image's single frame."""
    return [n for n in shape if n != 1]
