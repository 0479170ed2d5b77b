"""Tiny networks of CLIP and SigLIP: transformers', and CLIP's ResNet in plain PyTorch."""

import json
import re

import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from tests.parity.torch_weights import randomize
from tests.support.clip_vocabulary import END, VOCABULARY, write_tokenizer

SIZE, LENGTH = 8, 24
_TEXT = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=len(VOCABULARY),
    max_position_embeddings=LENGTH,
    bos_token_id=END - 1,
    eos_token_id=END,
)
_IMAGE = dict(
    hidden_size=20,
    intermediate_size=28,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=SIZE,
    patch_size=4,
)
PREPROCESSOR = dict(
    image_processor_type="CLIPImageProcessor",
    size={"shortest_edge": SIZE},
    crop_size={"height": SIZE, "width": SIZE},
    do_center_crop=True,
    do_resize=True,
    do_rescale=True,
    do_normalize=True,
    rescale_factor=1 / 255,
    resample=3,
    image_mean=[0.48145466, 0.4578275, 0.40821073],
    image_std=[0.26862954, 0.26130258, 0.27577711],
)


def clip(activation="quick_gelu", num_heads=2):
    own = dict(hidden_act=activation, num_attention_heads=num_heads)
    config = CLIPConfig(text_config=_TEXT | own, vision_config=_IMAGE | own, projection_dim=10)
    return randomize(CLIPModel(config), seed=0)


def siglip():
    text = dict(_TEXT, hidden_size=20, projection_size=20)
    return randomize(SiglipModel(SiglipConfig(text_config=text, vision_config=_IMAGE)), seed=0)


def save(model, folder, tokenizer=True, size=SIZE):
    """Writes a repository as on the Hub."""
    model.save_pretrained(folder)
    siglip = type(model).__name__ == "SiglipModel"
    kind = dict(image_processor_type="SiglipImageProcessor") if siglip else {}
    sizes = dict(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    config = {**PREPROCESSOR, **sizes, **kind}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    if tokenizer:
        write_tokenizer(folder, LENGTH)
    return folder


class Bottleneck(torch.nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        conv = lambda i, o, k: torch.nn.Conv2d(i, o, k, padding=k // 2, bias=False)  # noqa: E731
        self.conv1, self.bn1 = conv(inputs, width, 1), torch.nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), torch.nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), torch.nn.BatchNorm2d(4 * width)
        self.pool = torch.nn.AvgPool2d(stride) if stride > 1 else torch.nn.Identity()
        if stride > 1 or inputs != 4 * width:
            self.downsample = torch.nn.Sequential(
                conv(inputs, 4 * width, 1), torch.nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        h = self.bn1(self.conv1(x)).relu()
        h = self.pool(self.bn2(self.conv2(h)).relu())
        h = self.bn3(self.conv3(h))
        return (h + (self.downsample(self.pool(x)) if hasattr(self, "downsample") else x)).relu()


class AttentionPool(torch.nn.Module):
    def __init__(self, tokens, width, out_width, num_heads):
        super().__init__()
        self.positional_embedding = torch.nn.Parameter(torch.zeros(tokens, width))
        self.q_proj, self.k_proj, self.v_proj = (torch.nn.Linear(width, width) for _ in range(3))
        self.c_proj = torch.nn.Linear(width, out_width)
        self.num_heads = num_heads

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)  # [b, pixels, d]
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        heads = lambda y: y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = heads(self.q_proj(x[:, :1])), heads(self.k_proj(x)), heads(self.v_proj(x))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.c_proj(out.transpose(1, 2).flatten(2)[:, 0])


class ClipResNet(torch.nn.Module):
    """Radford et al. 2021, section 2.4, with the published names."""

    def __init__(self, stages=(2, 1, 1, 1), width=8, size=64, out_width=10):
        super().__init__()
        conv = lambda i, o, s: torch.nn.Conv2d(i, o, 3, s, 1, bias=False)  # noqa: E731
        half = width // 2
        self.conv1, self.bn1 = conv(3, half, 2), torch.nn.BatchNorm2d(half)
        self.conv2, self.bn2 = conv(half, half, 1), torch.nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(half, width, 1), torch.nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(stages):
            blocks = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(Bottleneck(inputs, width * 2**stage, stride))
                inputs = 4 * width * 2**stage
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*blocks))
        tokens = (size // 32) ** 2 + 1
        self.attnpool = AttentionPool(tokens, inputs, out_width, max(1, inputs // 64))

    def forward(self, x):
        for index in (1, 2, 3):
            x = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x)).relu()
        x = torch.nn.functional.avg_pool2d(x, 2)
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
        return self.attnpool(x)


_RENAMES = (
    (r"^(text|vision)_model\.encoder\.layers\.(\d+)\.", r"\1.transformer.resblocks.\2."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^vision_model\.embeddings\.class_embedding", "vision.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "vision.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight", "vision.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "vision.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "vision.ln_post."),
    (r"^visual_projection\.weight", "vision.proj"),
    (r"^text_projection\.weight", "text_projection"),
    (r"^vision\.", "visual."),
    (r"^text\.", ""),
)


def openai_tensors(model, dtype=torch.float32):
    """CLIPModel's tensors with OpenAI's names: q, k and v joined, projections transposed."""
    tensors = {}
    for name, value in model.state_dict().items():
        if match := re.search(r"\.self_attn\.(q)_proj\.(\w+)$", name):
            others = [name.replace("q_proj", f"{x}_proj") for x in "qkv"]
            value = torch.cat([model.state_dict()[other] for other in others])
            name = name.replace(match[0], f".attn.in_proj_{match[2]}")
        elif re.search(r"\.self_attn\.[kv]_proj\.", name):
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        value = value.T if name in ("visual.proj", "text_projection") else value
        tensors[name] = value.contiguous().to(dtype)
    return tensors
