"""CLIP score: similarity of a video's frames to its prompt under a CLIP model (Hessel et al. 2021; CLIPSIM)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoProcessor, CLIPModel

from odvae.weights.pretrained import loading


class CLIPScorer:
    """Mean over frames of cosine(text, frame), in [-1, 1]. Scores of different CLIP models are not comparable."""

    def __init__(self, folder: str, device: torch.device) -> None:
        with loading(f"eval_ldm.clip_model={folder!r}", folder, "a CLIP model"):
            self.model = CLIPModel.from_pretrained(folder).eval().requires_grad_(False).to(device)
            self.processor = AutoProcessor.from_pretrained(folder)

    @torch.no_grad()
    def score(self, video: np.ndarray, prompt: str) -> float:
        """The score of a uint8 video (t, h, w, 3). Prompts longer than the model's text limit are truncated."""
        inputs = self.processor(
            text=[prompt], images=list(video), return_tensors="pt", padding=True, truncation=True
        ).to(self.model.device)
        output = self.model(**inputs)
        text, frames = (F.normalize(x, dim=-1) for x in (output.text_embeds, output.image_embeds))
        return float((frames @ text.T).mean())
