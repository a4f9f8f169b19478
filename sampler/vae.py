"""From images to rows in a pipeline's latent space, as the pipeline itself scales them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from negindex.errors import Damaged, ImageRefused, InvalidInput, OutOfRange
from negindex.sampler.encode import Encoder, PixelEncoder, read_image, space_of

OF_IMAGES = ("AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
OF_FRAMES = ("AutoencoderKLQwenImage", "AutoencoderKLWan")  # rows keep their frame axis: (C, 1, H, W)
AROUND = 3  # times what the widest layer takes in and gives out; measured 2.7 of an SD VAE at 256 × 256
_PROBE = 1024  # pixels a side, on the meta device: nothing is computed


class VaeEncoder:
    """Images to latent rows: scaled to cover, centre cropped, encoded, scaled as the pipelines of diffusers do.

    ``z`` is the mode of the VAE's posterior, and the row is ``(z - shift) * scaling_factor / std``, with
    shift and std from the VAE's config: nothing for Stable Diffusion, ``shift_factor`` for SD3 and FLUX,
    ``latents_mean`` and ``latents_std`` for some of SDXL's relatives, Qwen-Image and Wan. A pipeline whose
    code ignores a number that its VAE's config states would scale otherwise.

    Computed in float32 whatever the pipeline's type, on the VAE's device, one image at a time unless ``rows`` is
    asked: then an image has the same row in whatever company it comes. A VAE of another type is copied, not changed.
    Half a precision is faster on a GPU and makes other rows, some of them Inf: name it for sets of its own.
    Cost, a VAE of Stable Diffusion's size on one core: 1.9 s an image of 256 x 256, 8.6 s of 512 x 512.
    """

    def __init__(
        self, vae: Any, height: int, width: int, *, device: str | None = None, precision: torch.dtype = torch.float32
    ) -> None:
        """Raises InvalidInput for a VAE class without a known scaling, OutOfRange for a size it does not divide."""
        self.size = (height, width)
        self.space = space_of(SimpleNamespace(vae=vae))
        _check_known(vae)
        self._vae = vae if all(p.dtype == precision for p in vae.parameters()) else copy.deepcopy(vae).to(precision)
        if device is not None and torch.device(device) != self._vae.device:
            self._vae = copy.deepcopy(self._vae).to(device)
        self._pixels = PixelEncoder(height, width, _channels_in(vae))
        factor = downsampling(vae)
        if height % factor or width % factor:
            raise OutOfRange(f"{height} × {width} pixels for a VAE of {factor} a side; give multiples of {factor}")
        self.shape: tuple[int, ...] = tuple(_latent_shape(vae, height, width))
        self._shift, self._scale = normalisation(vae, len(self.shape))

    def encode(self, path: Path) -> NDArray[np.float32]:
        """One file to one row; raises ImageRefused."""
        return self.row(read_image(path), path.name)

    @property
    def channels(self) -> int:
        """Channels of the images that it takes."""
        return self._pixels.channels

    @property
    def device(self) -> str:
        """The kind of device that it computes on."""
        return str(self._vae.device.type)

    def row(self, image: Image.Image, name: str) -> NDArray[np.float32]:
        """One image to one row; raises ImageRefused."""
        row: NDArray[np.float32] = self.rows(self.pixels(image, name)[None])[0]
        if not np.isfinite(row).all():
            raise ImageRefused(f"{name} becomes NaN or Inf in the VAE; leave it out")
        return row

    def pixels(self, image: Image.Image, name: str) -> NDArray[np.float32]:
        """One image as the VAE takes it, (C, H, W) in [-1, 1]; raises ImageRefused."""
        return self._pixels.row(image, name)

    @torch.no_grad()
    def rows(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) to rows (B, *S), all at once; NaN or Inf where an image has none."""
        z = _mode(self._vae, torch.from_numpy(pixels).to(self._vae.device, self._vae.dtype)).float().cpu()
        rows: NDArray[np.float32] = ((z - self._shift) * self._scale).numpy()
        return rows


def normalisation(vae: Any, dimensions: int = 3) -> tuple[Tensor, Tensor]:
    """(shift, scale) of ``row = (z - shift) * scale``, float32, ready for latents (C, ...) of so many dimensions."""
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    shift = config.get("shift_factor") or 0.0
    factor = config.get("scaling_factor")
    if (mean is None) != (std is None) or (mean is not None and shift):
        raise InvalidInput(
            "the VAE's config states a mean without a deviation, or a mean and a shift: how pipelines scale its "
            "latents is not known; correct the VAE's config.json"
        )
    deep = (-1, *[1] * (dimensions - 1))
    centre = torch.tensor(shift if mean is None else mean, dtype=torch.float32)
    spread = torch.tensor(1.0 if std is None else std, dtype=torch.float32)
    return centre.reshape(deep), torch.tensor(1.0 if factor is None else factor) / spread.reshape(deep)


def held_at_once(encoder: VaeEncoder) -> int:
    """Bytes of memory that the VAE and what it holds of one image take, by its layers' sizes: an estimate."""
    vae, most = encoder._vae, 0

    def note(_: Any, given: Any, made: Any) -> None:
        nonlocal most
        tensors = [one for one in (*given, made) if isinstance(one, Tensor)]
        most = max(most, sum(one.numel() for one in tensors))

    with torch.device("meta"), torch.no_grad():
        twin = type(vae).from_config(vae.config)
        for module in twin.modules():
            module.register_forward_hook(note)
        _mode(twin, torch.empty(1, _channels_in(vae), *encoder.size))
    weights = sum(p.numel() for p in vae.parameters())
    return int((weights + AROUND * most) * vae.dtype.itemsize)


def downsampling(vae: Any) -> int:
    """Pixels a side that become one latent."""
    return _PROBE // _latent_shape(vae, _PROBE, _PROBE)[-1]


def encoder_of(
    pipe: Any, height: int, width: int, *, device: str | None = None, precision: torch.dtype = torch.float32
) -> Encoder:
    """The encoder whose rows are what the pipeline samples, for images of this size.

    device, precision: that its VAE computes on and in; the VAE's own device when None.
    """
    if getattr(pipe, "vae", None) is not None:
        return VaeEncoder(pipe.vae, height, width, device=device, precision=precision)
    space_of(pipe)  # refuses latents of another kind
    return PixelEncoder(height, width, _channels_out(pipe))


def parts_in(folder: Path | str) -> Any:
    """As much of a pipeline's folder as says what its samples are: the VAE in float32, or the model's config.

    A VAE's own folder will do, too. It goes in wherever ``space_of`` and ``encoder_of`` take a pipeline. Nothing is
    fetched, and no code in the folder is run. Raises NotThere or Damaged.
    """
    from negindex.sampler.pipelines import read_index

    if (alone := _class_alone(Path(folder))) is not None:
        return SimpleNamespace(vae=_vae_in(Path(folder), alone, ""))
    index = read_index(folder)
    library, name = _named(index, "vae")
    if name is None:
        held = {part: True for part in ("vqvae", "movq", "vqgan") if _named(index, part)[1]}
        model = next((part for part in ("unet", "transformer") if _named(index, part)[1]), None)
        return SimpleNamespace(**held, unet=None if model is None else _config_in(Path(folder) / model))
    if library != "diffusers":
        raise InvalidInput(f"{folder} has a VAE of class {library}.{name}; {_KNOWN}")
    return SimpleNamespace(vae=_vae_in(Path(folder), name, "vae"))


# -- inside ----------------------------------------------------------------------------------------

_KNOWN = f"how pipelines scale latents is known of {', '.join((*OF_IMAGES, *OF_FRAMES))}"


def _check_known(vae: Any) -> None:
    if type(vae).__name__ not in (*OF_IMAGES, *OF_FRAMES):
        raise InvalidInput(f"a VAE of class {type(vae).__name__}; {_KNOWN}")


def _mode(vae: Any, pixels: Tensor) -> Tensor:
    """The most likely latents of pixels (B, C, H, W), unscaled: (B, *S)."""
    told = vae.encode(pixels[:, :, None] if type(vae).__name__ in OF_FRAMES else pixels)
    if hasattr(told, "latent_dist"):
        mode: Tensor = told.latent_dist.mode()
    else:
        mode = told.latent if hasattr(told, "latent") else told.latents
    return mode


def _latent_shape(vae: Any, height: int, width: int) -> torch.Size:
    """The shape of one image's latents, from a twin without weights."""
    with torch.device("meta"), torch.no_grad():
        twin = type(vae).from_config(vae.config)
        return _mode(twin, torch.empty(1, _channels_in(vae), height, width)).shape[1:]


def _channels_in(vae: Any) -> int:
    return int(vae.config.get("in_channels") or vae.config.get("input_channels") or 3)


def _channels_out(pipe: Any) -> int:
    """Channels of the samples of a pipeline in pixel space."""
    for model in (getattr(pipe, "unet", None), getattr(pipe, "transformer", None)):
        if model is not None:
            return int(model.config["in_channels"])
    raise InvalidInput(
        f"{type(pipe).__name__} has neither a unet nor a transformer, so its samples are unknown; "
        "make the encoder with PixelEncoder(height, width, channels)"
    )


def _class_alone(folder: Path) -> str | None:
    """The class of the VAE that a folder holds without a pipeline around it; None where it is no such folder."""
    if (folder / "model_index.json").is_file() or not (folder / "config.json").is_file():
        return None
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder}/config.json cannot be read ({error!r}); save the VAE again") from error


def _vae_in(folder: Path, name: str, part: str) -> Any:
    import diffusers

    if name not in (*OF_IMAGES, *OF_FRAMES):
        raise InvalidInput(f"{folder} has a VAE of class {name}; {_KNOWN}")
    try:
        return getattr(diffusers, name).from_pretrained(
            str(folder), subfolder=part or None, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise Damaged(f"{folder / part} cannot be read ({error}); save it again") from error


def _named(index: dict[str, Any], part: str) -> tuple[str | None, str | None]:
    """(library, class) of a component in model_index.json."""
    listed = index.get(part)
    return (listed[0], listed[1]) if isinstance(listed, list) and len(listed) == 2 else (None, None)


def _config_in(folder: Path) -> SimpleNamespace:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return SimpleNamespace(config={"in_channels": int(config["in_channels"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder}/config.json cannot be read ({error!r}); save the pipeline again") from error
