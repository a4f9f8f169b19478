"""Embeddings of images by an open-clip model on this machine, for people's look-ups and scores; nothing is fetched.

They are never part of a posterior: what a model samples is compared in the model's own space alone.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from negindex.disk import sha256_of
from negindex.errors import Damaged, InvalidInput, NotThere

_MISFIT = (SafetensorError, RuntimeError, ValueError, LookupError, TypeError, AssertionError, OSError)
LOCAL = "local-dir:"
CONFIG = "open_clip_config.json"


class Clip:
    """An open-clip model; the same image, or text, always has the same embedding."""

    def __init__(self, model: str, weights: str | Path) -> None:
        """Load a model.

        model: one of open_clip's own names, or, with a folder, the name that it is to have on record.
        weights: a .safetensors file, preprocessed for as OpenAI's models are; or "local-dir:DIR", a folder with
        open_clip_config.json, which states the model and its preprocessing, and one .safetensors file.
        Raises NotThere, InvalidInput for what would be fetched or unpickled, Damaged where the weights do not fit.
        """
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        name = str(weights)
        folder = Path(name.removeprefix(LOCAL)) if name.startswith(LOCAL) else None
        file = _file_in(folder) if folder is not None else Path(name)
        config = _config_of(model) if folder is None else _config_in(folder)
        _check(model, file, config)
        self.fingerprint = _fingerprint(model, file, config)
        asked = (model.replace("/", "-"), str(file)) if folder is None else (f"{LOCAL}{folder}", None)
        try:
            self._model = open_clip.create_model(asked[0], pretrained=asked[1], pretrained_text=False).eval()
        except _MISFIT as error:
            raise Damaged(f"{file} holds no weights of {model} ({error}); name the model that they are of") from error
        self._prepare = image_transform_v2(PreprocessCfg(**self._model.visual.preprocess_cfg), is_train=False)
        self._tokens = open_clip.get_tokenizer(asked[0])

    @torch.no_grad()
    def embed(self, image: Image.Image) -> NDArray[np.float32]:
        """An image's embedding (E,), of length 1; images of any size and mode that ``read_image`` gives."""
        pixels = self._prepare(image.convert("RGB"))[None]
        wide: NDArray[np.float32] = self._model.encode_image(pixels, normalize=True)[0].float().cpu().numpy()
        return wide

    @torch.no_grad()
    def embed_text(self, text: str) -> NDArray[np.float32]:
        """A text's embedding (E,), of length 1, beside those of images; what is longer than the model hears is cut."""
        wide: NDArray[np.float32] = self._model.encode_text(self._tokens([text]), normalize=True)[0].float().numpy()
        return wide


# -- inside ------------------------------------------------------------------------------------


def _file_in(folder: Path) -> Path:
    found = sorted(one for end in ("*.safetensors", "*.bin", "*.pth") for one in folder.glob(end))
    if not folder.is_dir() or not (folder / CONFIG).is_file() or len(found) != 1:
        raise NotThere(f"{folder} holds no {CONFIG} with one .safetensors file; name a folder that open_clip saved")
    return found[0]


def _config_in(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config["model_cfg"].get("text_cfg")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder / CONFIG} cannot be read ({error!r}); save the model again") from error
    return config


def _config_of(model: str) -> dict[str, Any]:
    """What open_clip itself says of a model."""
    import open_clip

    known = None if ":" in model else open_clip.get_model_config(model.replace("/", "-"))
    if known is None:
        raise InvalidInput(
            f"{model!r} is no model that open_clip knows by itself; name one such as ViT-B-32, or a folder "
            f"({LOCAL}DIR) that holds its {CONFIG}"
        )
    return {"model_cfg": known}


def _check(model: str, file: Path, config: dict[str, Any]) -> None:
    if not file.is_file():
        raise NotThere(f"{file} is no file of weights; name one on this machine (nothing is fetched)")
    if file.suffix != ".safetensors":
        raise InvalidInput(f"{file} is no .safetensors file, and nothing is unpickled here; save the weights as one")
    if (config["model_cfg"].get("text_cfg") or {}).get("hf_model_name"):
        raise InvalidInput(f"{model} takes its text tower from a hub, and nothing is fetched; use another model")


def _fingerprint(model: str, file: Path, config: dict[str, Any]) -> str:
    """The name, the sha256 of the weights' file, and that of what states the model and its preprocessing."""
    stated = json.dumps(config, sort_keys=True).encode()
    return f"clip {model} weights {sha256_of(file)} config {sha256(stated).hexdigest()[:16]}"
