"""The diffusion side: rules, gates, denoisers, and the guard over a diffusers pipeline."""

from negindex.sampler.copies import CopyGate
from negindex.sampler.correction import Correction, Look
from negindex.sampler.denoiser import Corrected, Denoiser, PairedDenoiser, SafeDenoiser
from negindex.sampler.encode import Encoder, PixelEncoder, space_of
from negindex.sampler.gates import Constant, Gate, Ratio, Threshold
from negindex.sampler.guard import Guard, guard
from negindex.sampler.png import read_receipt, save_image
from negindex.sampler.reference import Away, make_reference
from negindex.sampler.rules import MeanDiscrepancy, Rule, SafeDenoising, Spell, View, paired
from negindex.sampler.triggers import TriggerShare
from negindex.sampler.unasked import Unasked
from negindex.sampler.vae import VaeEncoder, encoder_of
from negindex.sampler.windows import Between, Fraction, Moment, Timesteps, Window

__all__ = [
    "Away",
    "Between",
    "Constant",
    "CopyGate",
    "Corrected",
    "Correction",
    "Denoiser",
    "Encoder",
    "Fraction",
    "Gate",
    "Guard",
    "Look",
    "MeanDiscrepancy",
    "Moment",
    "PairedDenoiser",
    "PixelEncoder",
    "Ratio",
    "Rule",
    "SafeDenoiser",
    "SafeDenoising",
    "Spell",
    "Threshold",
    "Timesteps",
    "TriggerShare",
    "Unasked",
    "VaeEncoder",
    "View",
    "Window",
    "encoder_of",
    "guard",
    "make_reference",
    "paired",
    "read_receipt",
    "save_image",
    "space_of",
]
