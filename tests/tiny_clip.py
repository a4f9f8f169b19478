"""A real open_clip model of a few thousand random weights, saved as open_clip reads one from a folder."""

import json

import open_clip
import torch
from safetensors.torch import save_file

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


WORDS = 49408  # that open_clip's own tokenizer knows


def saved_clip(folder, seed=0, mean=(0.5, 0.5, 0.5), words=MODEL["text_cfg"]["vocab_size"]):
    """The folder, which "local-dir:" names; with WORDS for words it can be told texts."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    told = {**MODEL, "text_cfg": {**MODEL["text_cfg"], "vocab_size": words}}
    model = open_clip.CLIP(**told)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {"model_cfg": told, "preprocess_cfg": {"mean": list(mean), "std": [0.5, 0.5, 0.5], "size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
