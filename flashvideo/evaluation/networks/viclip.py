"""ViCLIP-L/14 (temporal style, overall consistency): CLIP's ViT over all patches of 8 frames, and CLIP's text encoder.

    vision   patches of every frame + position + time, one class token, 24 blocks, the class token projected
    text     32 tokens, 12 causal blocks, the end token projected

Names follow the published checkpoint, so that it loads strictly.
Source: InternVid (arXiv 2307.06942); OpenGVLab/InternVideo, ViCLIP.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import nn

from flashvideo.evaluation.networks.pretrained import Pretrained

TEXT_TOKENS = 32


class ViclipShape(NamedTuple):
    """Sizes; the defaults are ViCLIP-L/14's."""

    image: int = 224
    patch: int = 14
    frames: int = 8
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_tokens: int = TEXT_TOKENS
    vocabulary: int = 49408
    output: int = 768


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm attention and MLP; B L D."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGelu()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionEncoder(nn.Module):
    """float B T 3 H W -> B D."""

    def __init__(self, shape: ViclipShape) -> None:
        super().__init__()
        width, patch = shape.vision_width, (1, shape.patch, shape.patch)
        self.conv1 = nn.Conv3d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((shape.image // shape.patch) ** 2 + 1, width))
        self.temporal_positional_embedding = nn.Parameter(torch.zeros(1, shape.frames, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Blocks(width, shape.vision_layers, shape.vision_heads)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, shape.output))

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(clip.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)  # B T N D
        patches = patches + self.positional_embedding[1:] + self.temporal_positional_embedding[:, :, None]
        first = (self.class_embedding + self.positional_embedding[0]).expand(len(clip), 1, -1)
        tokens = self.ln_pre(torch.cat([first, patches.flatten(1, 2)], dim=1))
        return self.ln_post(self.transformer(tokens)[:, 0]) @ self.proj


class TextEncoder(nn.Module):
    """Token ids B L -> B D, at the first end token (the largest id)."""

    def __init__(self, shape: ViclipShape) -> None:
        super().__init__()
        width = shape.text_width
        self.token_embedding = nn.Embedding(shape.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(shape.text_tokens, width))
        self.transformer = Blocks(width, shape.text_layers, shape.text_heads)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, shape.output))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf"), device=tokens.device).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)] @ self.text_projection


class Viclip(nn.Module):
    """Both encoders and the unused temperature, as in the checkpoint."""

    def __init__(self, shape: ViclipShape | None = None) -> None:
        super().__init__()
        shape = shape or ViclipShape()
        self.vision_encoder = VisionEncoder(shape)
        self.text_encoder = TextEncoder(shape)
        self.temp = nn.Parameter(torch.ones([]) / 100)


class ViclipEncoder(Pretrained):
    """Viclip with CLIP's tokenizer."""

    def __init__(self, module: Viclip, identity: str, tokenizer: Any, device: torch.device | None = None) -> None:
        super().__init__("ViCLIP-L/14", module, identity, device)
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        model: Any = self.module
        features: torch.Tensor = model.vision_encoder(clip.to(self.device))
        return features.float().cpu()

    @torch.inference_mode()
    def text(self, texts: list[str]) -> torch.Tensor:
        model: Any = self.module
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt")
        features: torch.Tensor = model.text_encoder(tokens["input_ids"].to(self.device))
        return features.float().cpu()
