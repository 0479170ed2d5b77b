"""A U-Net of diffusers in the shape of ours."""

from diffusers import UNet2DConditionModel

TEXT_WIDTH, TOKENS = 32, 5


def diffusers_unet(config):
    """The same network, configured for diffusers (as in its scripts/convert_if.py)."""
    attention, noise_level = config["attention"], config.get("noise_level", False)
    skip_time_act, scale = config.get("skip_time_act", False), config.get("out_scale", 1.0)
    time_act = skip_time_act if config.get("time_act") is None else config["time_act"]
    down = ["SimpleCrossAttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attention]
    up = ["SimpleCrossAttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attention[::-1]]
    return UNet2DConditionModel(
        in_channels=6 if noise_level else 3,
        out_channels=config["out_channels"],
        down_block_types=tuple(down),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=tuple(up),
        block_out_channels=config["block_out_channels"],
        layers_per_block=config["layers_per_block"],
        mid_block_scale_factor=config.get("mid_out_scale") or scale,
        act_fn="gelu",
        norm_num_groups=config.get("num_groups", 32),
        cross_attention_dim=config["cross_attention_dim"],
        encoder_hid_dim=TEXT_WIDTH,
        encoder_hid_dim_type="text_proj",
        attention_head_dim=config["attention_head_dim"],
        class_embed_type="timestep" if noise_level else None,
        addition_embed_type="text",
        addition_embed_type_num_heads=config["pooling_heads"],
        resnet_time_scale_shift="scale_shift",
        resnet_skip_time_act=skip_time_act,
        resnet_out_scale_factor=scale,
        time_embedding_dim=config.get("time_embedding_dim") or None,
        time_embedding_act_fn="gelu" if time_act else None,
        cross_attention_norm="group_norm",
    )
