"""transformers' SAM2 of the sizes of our configurations, for comparisons."""

import transformers
from ml_collections import ConfigDict


def video_config(model: ConfigDict, side: int) -> transformers.Sam2VideoConfig:
    """Of Sam2VideoModel, for squares of `side` px; `model` is our config.model."""
    return transformers.Sam2VideoConfig(
        vision_config=vision_config(model, side),
        prompt_encoder_config=transformers.Sam2VideoPromptEncoderConfig(image_size=side),
        image_size=side,
        memory_attention_rope_feat_sizes=[side // 16] * 2,
        enable_occlusion_spatial_embedding=model.codes_occlusion,
        enable_temporal_pos_encoding_for_object_pointers=model.codes_pointer_times,
    )


def vision_config(model: ConfigDict, side: int) -> transformers.Sam2VisionConfig:
    """Of the image encoder, likewise."""
    section = model.backbone
    widths = [section.embed_dim * 2**i for i in range(4)]
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=section.embed_dim,
        num_attention_heads=section.num_heads,
        image_size=[side, side],
        window_positional_embedding_background_size=[section.pos_grid] * 2,
        blocks_per_stage=list(section.depths),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[section.num_heads * 2**i for i in range(4)],
        window_size_per_stage=list(section.windows),
        global_attention_blocks=list(section.global_blocks),
    )
    return transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[side // stride] * 2 for stride in (4, 8, 16)],
    )
