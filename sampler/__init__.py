"""The diffusion side: rules, gates, denoisers, and the guard over a diffusers pipeline."""

from negindex.sampler.correction import Between, Correction, Look, Window
from negindex.sampler.denoiser import Corrected, Denoiser, PairedDenoiser, SafeDenoiser
from negindex.sampler.encode import PixelEncoder, space_of
from negindex.sampler.gates import Constant, Gate, Ratio, Threshold
from negindex.sampler.guard import Guard, guard
from negindex.sampler.rules import Rule, SafeDenoising, View, paired

__all__ = [
    "Between",
    "Constant",
    "Corrected",
    "Correction",
    "Denoiser",
    "Gate",
    "Guard",
    "Look",
    "PairedDenoiser",
    "PixelEncoder",
    "Ratio",
    "Rule",
    "SafeDenoiser",
    "SafeDenoising",
    "Threshold",
    "View",
    "Window",
    "guard",
    "paired",
    "space_of",
]
