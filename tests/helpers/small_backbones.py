"""Small vision models that read the layers of a backbone, with what each is given."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

Given = tuple[Any, dict[str, torch.Tensor]]

_DINO: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def _image(size: int) -> torch.Tensor:
    return torch.rand(1, 3, size, size)


def llava() -> Given:
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
    )
    text = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=99)
    tokens = torch.full((1, 20), 5)
    tokens[:, 2:18] = 99  # 16 patches
    model = transformers.LlavaForConditionalGeneration(config)
    return model, {"input_ids": tokens, "pixel_values": _image(16)}


def dinov2_backbone() -> Given:
    config = transformers.Dinov2Config(**_DINO, out_features=["stage2", "stage4"])
    return transformers.Dinov2Backbone(config), {"pixel_values": _image(28)}


def depth_anything() -> Given:
    backbone = transformers.Dinov2Config(
        **_DINO, out_indices=[1, 2, 3, 4], reshape_hidden_states=False
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    model = transformers.DepthAnythingForDepthEstimation(config)
    return model, {"pixel_values": _image(28)}


def uvdoc() -> Given:
    backbone = transformers.UVDocBackboneConfig(
        resnet_head=((3, 4), (4, 4)),
        resnet_configs=(((4, 4, 1, False),), ((4, 8, 3, True),), ((8, 16, 3, True),)),
        stage_configs=(((16, 1),), ((16, 2),)),
        out_features=["stage1", "stage2"],
    )
    config = transformers.UVDocConfig(
        backbone_config=backbone, bridge_connector=(16, 16), out_point_positions2D=((16, 8), (8, 2))
    )
    return transformers.UVDocModel(config), {"pixel_values": _image(64)}


def rf_detr() -> Given:
    backbone = transformers.RfDetrDinov2Config(
        **{**_DINO, "image_size": 56}, num_windows=2, out_indices=[2, 4]
    )
    config = transformers.RfDetrConfig(
        backbone_config=backbone,
        d_model=32,
        decoder_layers=2,
        decoder_self_attention_heads=4,
        decoder_cross_attention_heads=4,
        decoder_ffn_dim=48,
        num_queries=10,
        c2f_num_blocks=1,
    )
    return transformers.RfDetrForObjectDetection(config), {"pixel_values": _image(56)}


# By a class that not every transformers has.
BACKBONES: dict[str, Callable[[], Given]] = {
    "LlavaForConditionalGeneration": llava,
    "Dinov2Backbone": dinov2_backbone,
    "DepthAnythingForDepthEstimation": depth_anything,
    "UVDocModel": uvdoc,
    "RfDetrForObjectDetection": rf_detr,
}
