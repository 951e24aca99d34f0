"""Architectures of transformers: random models from tiny configurations.

A configuration gets the small sizes of `_TINY` for the names it has, and what the architecture needs besides; `...`
leaves a default. One that lists the sizes of its stages gets nothing but those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import transformers
from benchmarks.zoo.entries import Entry, Example

_TINY: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "d_embed", "emb_dim"), 64),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "d_inner", "encoder_ffn_dim"), 128),
    **dict.fromkeys(("decoder_ffn_dim", "ffn_hidden_size", "moe_intermediate_size", "word_embed_proj_dim"), 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"), 8),
    **dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 8),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_size"), 8),
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "image_size": 32,
    "patch_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rotary_dim": 4,
    "word_embed_proj_dim": 64,
    "use_cache": False,
    "projection_dim": 32,
}

_DECODERS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "GPTNeoXForCausalLM": {},
    "GPTNeoXJapaneseForCausalLM": {},
    "GPTJForCausalLM": {},
    "GPTBigCodeForCausalLM": {},
    "OpenAIGPTLMHeadModel": {},
    "CodeGenForCausalLM": {},
    "ImageGPTModel": {},
    "CTRLLMHeadModel": {"dff": 128},
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "MinistralForCausalLM": {},
    "MixtralForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "Qwen2MoeForCausalLM": {"shared_expert_intermediate_size": 128},
    "Qwen3ForCausalLM": {},
    "Qwen3MoeForCausalLM": {},
    "Qwen3NextForCausalLM": {
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "GemmaForCausalLM": {},
    "Gemma2ForCausalLM": {},
    "Gemma3ForCausalLM": {},
    "PhiForCausalLM": {"num_key_value_heads": 8},
    "Phi3ForCausalLM": {},
    "PhimoeForCausalLM": {},
    "OPTForCausalLM": {},
    "BloomForCausalLM": {},
    "FalconForCausalLM": {"head_dim": ...},
    "MptForCausalLM": {},
    "OlmoForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "Olmo3ForCausalLM": {},
    "OlmoeForCausalLM": {},
    "Starcoder2ForCausalLM": {},
    "StableLmForCausalLM": {},
    "CohereForCausalLM": {},
    "Cohere2ForCausalLM": {},
    "GraniteForCausalLM": {},
    "GraniteMoeForCausalLM": {},
    "DeepseekV2ForCausalLM": {
        "num_key_value_heads": 8,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "DeepseekV3ForCausalLM": {
        "num_key_value_heads": 8,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "GptOssForCausalLM": {},
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
    },
    "MambaForCausalLM": {"state_size": 8},
    "Mamba2ForCausalLM": {"state_size": 8, "num_heads": 16, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "FalconMambaForCausalLM": {"state_size": 8},
    "JambaForCausalLM": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "BambaForCausalLM": {"mamba_n_heads": 16, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "RecurrentGemmaForCausalLM": {
        "num_hidden_layers": 3,
        "lru_width": 64,
        "block_types": ["recurrent", "attention"],
    },
    "RwkvForCausalLM": {"attention_hidden_size": 64},
    "HeliumForCausalLM": {},
    "GlmForCausalLM": {},
    "Glm4ForCausalLM": {},
    "NemotronForCausalLM": {},
    "PersimmonForCausalLM": {},
    "SmolLM3ForCausalLM": {},
    "Exaone4ForCausalLM": {},
    "Ernie4_5ForCausalLM": {},
    "BioGptForCausalLM": {},
    "XGLMForCausalLM": {"attention_heads": 8},
    "Lfm2ForCausalLM": {"full_attn_idxs": [1], "block_ff_dim": 128, "block_multiple_of": 8},
}

_ENCODERS: dict[str, dict[str, Any]] = {
    "BertModel": {},
    "BertForMaskedLM": {},
    "RobertaModel": {},
    "RobertaForSequenceClassification": {},
    "DistilBertModel": {},
    "DebertaModel": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "DebertaV2Model": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "AlbertModel": {"embedding_size": 32},
    "ElectraModel": {"embedding_size": 32},
    "MPNetModel": {},
    "XLMRobertaModel": {},
    "CamembertModel": {},
    "ModernBertModel": {},
    "LongformerModel": {"attention_window": [4, 4]},
    "BigBirdModel": {"attention_type": "original_full"},
    "FunnelModel": {"block_sizes": [1, 1], "d_head": 8, "num_hidden_layers": ...},
    "FNetModel": {},
    "SqueezeBertModel": {},
    "MobileBertModel": {"intra_bottleneck_size": 32, "num_attention_heads": 4, "embedding_size": 32},
    "XLNetModel": {"max_position_embeddings": ...},
    "XLMModel": {},
    "FlaubertModel": {},
    "ConvBertModel": {"head_ratio": 2},
    "NystromformerModel": {"segment_means_seq_len": 12, "num_landmarks": 4},
    "RoFormerModel": {},
    "RemBertModel": {"input_embedding_size": 32, "output_embedding_size": 32},
    "IBertModel": {},
    "MraModel": {"block_per_row": 1},
    "YosoModel": {},
    "EsmModel": {"position_embedding_type": "rotary"},
    "LayoutLMModel": {},
    "LiltModel": {"hidden_size": 96},
    "SplinterModel": {},
    "ErnieModel": {},
    "MegatronBertModel": {},
    "NomicBertModel": {},
    "DPRQuestionEncoder": {},
    "CanineModel": {"num_hash_buckets": 32, "local_transformer_stride": 4, "upsampling_kernel_size": 2},
    "ReformerModel": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [4, 4],
        "axial_pos_embds_dim": [32, 32],
        "feed_forward_size": 128,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
        "hash_seed": 0,
        "is_decoder": False,
    },
}

_SEQUENCES: dict[str, dict[str, Any]] = {
    "T5ForConditionalGeneration": {},
    "MT5ForConditionalGeneration": {},
    "UMT5ForConditionalGeneration": {},
    "LongT5ForConditionalGeneration": {"local_radius": 3},
    "SwitchTransformersForConditionalGeneration": {"expert_capacity": 64, "num_sparse_encoder_layers": 1},
    "BartForConditionalGeneration": {},
    "MBartForConditionalGeneration": {},
    "PLBartForConditionalGeneration": {},
    "MvpForConditionalGeneration": {},
    "PegasusForConditionalGeneration": {},
    "PegasusXForConditionalGeneration": {"block_size": 4},
    "BigBirdPegasusForConditionalGeneration": {"attention_type": "original_full"},
    "MarianMTModel": {},
    "M2M100ForConditionalGeneration": {},
    "LEDForConditionalGeneration": {"attention_window": [4, 4], "max_encoder_position_embeddings": 64},
    "BlenderbotForConditionalGeneration": {},
    "BlenderbotSmallForConditionalGeneration": {},
    "ProphetNetForConditionalGeneration": {"ngram": 2, "num_hidden_layers": ...},
    "FSMTForConditionalGeneration": {"langs": ["en", "de"], "src_vocab_size": 100, "tgt_vocab_size": 100},
}

_STAGES = {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}
_VISION: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": {},
    "ViTModel": {},
    "DeiTModel": {},
    "BeitModel": {},
    "Data2VecVisionModel": {},
    "SwinModel": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "patch_size": 2, "window_size": 4},
    "Swinv2Model": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "patch_size": 2, "window_size": 4},
    "Swin2SRForImageSuperResolution": {
        "embed_dim": 32,
        "depths": [2, 2],
        "num_heads": [4, 4],
        "patch_size": 1,
        "window_size": 4,
    },
    "ConvNextModel": _STAGES,
    "ConvNextV2Model": _STAGES,
    "ResNetForImageClassification": {"embedding_size": 16, **_STAGES},
    "RegNetForImageClassification": {"embedding_size": 16, **_STAGES, "groups_width": 8},
    "BitModel": {"embedding_size": 16, **_STAGES, "num_groups": 8},
    "EfficientNetModel": {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
    "MobileNetV1Model": {"image_size": 64},
    "MobileNetV2Model": {"image_size": 64},
    "SegformerForImageClassification": {
        "hidden_sizes": [16, 32, 64, 64],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [2, 2, 4, 8],
        "image_size": 64,
    },
    "SegformerForSemanticSegmentation": {
        "hidden_sizes": [16, 32, 64, 64],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [2, 2, 4, 8],
        "decoder_hidden_size": 32,
        "image_size": 64,
    },
    "GLPNModel": {
        "hidden_sizes": [16, 32, 64, 64],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [2, 2, 4, 8],
        "image_size": 64,
    },
    "MobileViTModel": {
        "hidden_sizes": [32, 48, 64],
        "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 64],
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 2,
    },
    "MobileViTV2Model": {"image_size": 64, "patch_size": 2, "width_multiplier": 0.25},
    "Dinov2Model": {},
    "Dinov2WithRegistersModel": {},
    "DINOv3ViTModel": {},
    "IJepaModel": {},
    "PvtModel": {
        "hidden_sizes": [16, 32, 64, 64],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [2, 2, 4, 8],
        "image_size": 64,
        "patch_sizes": [4, 2, 2, 2],
    },
    "PvtV2Model": {
        "hidden_sizes": [16, 32, 64, 64],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [2, 2, 4, 8],
        "image_size": 64,
    },
    "LevitModel": {
        "hidden_sizes": [32, 48, 64],
        "num_attention_heads": [2, 3, 4],
        "depths": [2, 2, 2],
        "key_dim": [8, 8, 8],
        "image_size": 64,
    },
    "CvtModel": {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3], "image_size": 64},
    "PoolFormerModel": {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1], "image_size": 64, "patch_size": 7},
    "SwiftFormerModel": {"image_size": 64, "embed_dims": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
    "FocalNetModel": {"embed_dim": 16, "depths": [1, 1, 1, 1], "image_size": 64, "patch_size": 4},
    "HieraModel": {
        "embed_dim": 16,
        "image_size": [64, 64],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8],
        "patch_size": [7, 7],
    },
    "YolosModel": {"image_size": [32, 32], "num_detection_tokens": 4},
    "ViTMAEModel": {},
    "ViTMSNModel": {},
    "VitDetModel": {"window_block_indices": [0], "window_size": 2, "pretrain_image_size": 32},
    "DPTForDepthEstimation": {
        "neck_hidden_sizes": [8, 16, 32, 32],
        "fusion_hidden_size": 16,
        "backbone_out_indices": [0, 1, 2, 3],
        "num_hidden_layers": 4,
    },
    "DetrModel": {
        "use_timm_backbone": False,
        "backbone": None,
        "backbone_config": {"model_type": "resnet", "embedding_size": 16, **_STAGES, "out_features": ["stage4"]},
        "image_size": 64,
        "num_queries": 5,
    },
    "DetrForObjectDetection": {
        "use_timm_backbone": False,
        "backbone": None,
        "backbone_config": {"model_type": "resnet", "embedding_size": 16, **_STAGES, "out_features": ["stage4"]},
        "image_size": 64,
        "num_queries": 5,
    },
    "Owlv2VisionModel": {},
    "SiglipVisionModel": {},
    "CLIPVisionModel": {},
}

_VIDEO: dict[str, dict[str, Any]] = {
    "VideoMAEModel": {"num_frames": 4},
    "TimesformerModel": {"num_frames": 4},
    "VivitModel": {"num_frames": 4, "tubelet_size": [2, 8, 8]},
}

_SPEECH_SIZES = {
    "conv_dim": (32, 32, 32),
    "conv_kernel": (8, 4, 4),
    "conv_stride": (8, 4, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 3,
}
_AUDIO: dict[str, dict[str, Any]] = {
    "Wav2Vec2Model": _SPEECH_SIZES,
    "Wav2Vec2ForCTC": _SPEECH_SIZES,
    "Wav2Vec2ConformerModel": _SPEECH_SIZES,
    "HubertModel": _SPEECH_SIZES,
    "WavLMModel": _SPEECH_SIZES,
    "UniSpeechModel": _SPEECH_SIZES,
    "UniSpeechSatModel": _SPEECH_SIZES,
    "SEWModel": {**_SPEECH_SIZES, "squeeze_factor": 2},
    "SEWDModel": {**_SPEECH_SIZES, "squeeze_factor": 2},
    "Data2VecAudioModel": _SPEECH_SIZES,
}
_OTHERS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "ASTModel": ({"max_length": 48, "num_mel_bins": 16, "patch_size": 8}, {"input_values": (2, 48, 16)}),
    "WhisperForConditionalGeneration": (
        {"num_mel_bins": 16, "max_source_positions": 24, "max_target_positions": 32},
        {"input_features": (2, 16, 48), "decoder_input_ids": (2, 7)},
    ),
    "Speech2TextForConditionalGeneration": (
        {"input_feat_per_channel": 16, "conv_channels": 32, "max_source_positions": 64, "max_target_positions": 32},
        {"input_features": (2, 48, 16), "decoder_input_ids": (2, 7)},
    ),
    "Wav2Vec2BertModel": ({"feature_projection_input_dim": 16}, {"input_features": (2, 24, 16)}),
    "LxmertModel": (
        {"visual_feat_dim": 16},
        {"input_ids": (2, 12), "visual_feats": (2, 5, 16), "visual_pos": (2, 5, 4)},
    ),
    "PatchTSTModel": (
        {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8},
        {"past_values": (2, 32, 3)},
    ),
    "TimeSeriesTransformerModel": (
        {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 2},
        {
            "past_values": (2, 10),
            "past_time_features": (2, 10, 2),
            "past_observed_mask": (2, 10),
            "future_values": (2, 4),
            "future_time_features": (2, 4, 2),
        },
    ),
}

_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8}
_TEXT = {**_TOWER, "vocab_size": 100, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
_SIGHT = {**_TOWER, "image_size": 32, "patch_size": 8}
_PAIR = {"text_config": _TEXT, "vision_config": _SIGHT}
_PAIRS: dict[str, dict[str, Any]] = {
    "CLIPModel": _PAIR,
    "SiglipModel": _PAIR,
    "ChineseCLIPModel": _PAIR,
    "AltCLIPModel": {"text_config": {**_TEXT, "project_dim": 32, "pad_token_id": 0}, "vision_config": _SIGHT},
    "BlipModel": {"text_config": {**_TEXT, "encoder_hidden_size": 64}, "vision_config": _SIGHT},
    "CLIPSegModel": _PAIR,
    "OwlViTModel": _PAIR,
    "FlavaModel": {"text_config": _TEXT, "image_config": _SIGHT, "multimodal_config": _TOWER},
    "GroupViTModel": {
        "text_config": _TEXT,
        "vision_config": {
            **_SIGHT,
            "depths": [1, 2, 1],
            "num_group_tokens": [8, 4, 0],
            "num_output_groups": [8, 4, 4],
        },
        "projection_intermediate_dim": 64,
    },
    "AlignModel": {
        "text_config": _TEXT,
        "vision_config": {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 64},
        "projection_dim": 80,
    },
    "ViltModel": {},
    "BridgeTowerModel": {"text_config": _TEXT, "vision_config": _SIGHT},
}


def entries() -> Iterator[Entry]:
    """All of them."""
    text = {"input_ids": (2, 12)}
    for table, inputs in (
        (_DECODERS, text),
        (_ENCODERS, text),
        (_SEQUENCES, {**text, "decoder_input_ids": (2, 7)}),
        (_VISION, {"pixel_values": (2, 3, 32, 32)}),
        (_VIDEO, {"pixel_values": (2, 4, 3, 32, 32)}),
        (_AUDIO, {"input_values": (2, 4000)}),
        (_PAIRS, {**text, "pixel_values": (2, 3, 32, 32)}),
    ):
        for name, options in table.items():
            yield _entry(name, options, inputs)
    for name, (options, inputs) in _OTHERS.items():
        yield _entry(name, options, inputs)


def _entry(name: str, options: Mapping[str, Any], inputs: Mapping[str, tuple[int, ...]]) -> Entry:
    size = options.get("image_size", 32)
    if ("pixel_values" in inputs and size in (64, [64, 64])) or name == "AlignModel":
        inputs = {**inputs, "pixel_values": (2, 3, 64, 64)}
    given = ", ".join(f"{key} {'×'.join(map(str, shape))}" for key, shape in inputs.items())
    return Entry("transformers", name, partial(_build, name, options, inputs), _family(name), given)


def _family(name: str) -> str:
    return str(getattr(transformers, name).__module__.split(".")[2])


def _build(name: str, options: Mapping[str, Any], inputs: Mapping[str, tuple[int, ...]]) -> Example:
    architecture = getattr(transformers, name)
    default = architecture.config_class()
    staged = "depths" in options or "depth" in options
    sizes = {**{key: value for key, value in _TINY.items() if hasattr(default, key) and not staged}, **options}
    model = architecture(architecture.config_class(**{key: value for key, value in sizes.items() if value is not ...}))
    return Example(model, (), {key: _values(key, shape) for key, shape in inputs.items()})


def _values(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    if key.endswith("_ids"):
        return torch.randint(3, 100, shape)
    return torch.ones(shape) if key.endswith("_mask") else torch.randn(shape)
