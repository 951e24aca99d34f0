"""Models of timm: the small ones of every module, and the odd ones.

Images have the size that a model demands, or the one in `_SIZES` where it takes few, and 128 where it takes any.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import timm
import torch
from benchmarks.zoo.entries import Entry, Example

_NAMES = """
beit_base_patch16_224 beitv2_base_patch16_224 botnet26t_256 eca_halonext26ts halonet26t lambda_resnet26rpt_256
lamhalobotnet50ts_256 sebotnet33ts_256 sehalonet33ts bat_resnext26ts gcresnet33ts gcresnext26ts mobileone_s0 regnetz_b16
regnetz_b16_evos repvgg_a0 repvgg_d2se resnet50_clip cait_xxs24_224 coat_lite_tiny coat_tiny convit_tiny
convmixer_768_32 convnext_atto convnext_atto_rms convnextv2_atto cpubone_nano crossvit_9_240 crossvit_9_dagger_240
csatv2 cs3darknet_focus_s cs3se_edgenet_x cspdarknet53 cspresnet50 darknet17 cspnext_tiny davit_tiny deepseek_vit_412m
deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 densenet121 dla34 dla46_c dla60_res2net
dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_b0_gn
efficientnet_b0_g16_evos efficientnet_cc_b0_4e efficientnetv2_rw_t fbnetc_100 gc_efficientnetv2_rw_t mixnet_s
mnasnet_small mobilenetv2_050 mobilenet_edgetpu_v2_xs spnasnet_100 tinynet_e efficientvim_m1 efficientvit_b0
efficientvit_m0 eva02_tiny_patch14_224 vit_small_patch16_dinov3 vit_small_patch16_rope_224
vit_small_patch16_rope_mixed_224 vit_pe_core_tiny_patch16_384 fasternet_t0 fastvit_t8 fastvit_sa12 focalnet_tiny_srf
gcvit_xxtiny gemma4_vit_167m ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnet_tiny hgnetv2_b0
hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3
inception_v4 lcnetv2_small levit_128s levit_conv_128s lowformer_b0 mambaout_femto mambaout_small_rw coatnet_nano_rw_224
coatnet_rmlp_nano_rw_224 maxvit_pico_rw_256 maxvit_tiny_tf_224 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256
caformer_s18 convformer_s18 poolformer_s12 poolformerv2_s12 gmixer_12_224 gmlp_ti16_224 mixer_s32_224 resmlp_12_224
fbnetv3_b lcnet_035 mobilenetv3_small_050 mobilenetv4_conv_small_035 mobilenetv4_conv_blur_medium
mobilenetv4_hybrid_medium_075 tf_mobilenetv3_small_minimal_100 mobilenetv5_base mobilevit_xxs mobilevitv2_050
mvitv2_tiny naflexvit_so150m2_patch16_reg1_gap nasnetalarge nest_tiny nextvit_small dm_nfnet_f0 eca_nfnet_l0
nf_regnet_b0 nf_resnet26 nfnet_f0 pit_ti_224 pnasnet5large pvt_v2_b0 pvt_v2_b2_li qwen3_vit_88m rdnet_tiny regnetv_040
regnety_002 regnetz_005 repghostnet_050 repvit_m0_9 res2net50_14w_8s res2next50 resnest14d resnet10t resnet18
resnet50_gn resnetaa34d resnetblur18 resnext50_32x4d seresnet18 resnetv2_18 resnetv2_50d_evos resnetv2_50d_frn
resnetv2_50x1_bit rexnet_100 rexnetr_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050
swiftformer_xs swin_tiny_patch4_window7_224 swin_s3_tiny_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224
tnt_s_patch16_224 tresnet_m twins_pcpvt_small twins_svt_small vgg11 vgg11_bn visformer_tiny flexivit_small
vit_tiny_patch16_224 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 vit_base_patch16_rpn_224
vit_base_patch16_siglip_224 vit_small_patch16_18x2_224 vit_wee_patch16_reg1_gap_256 vit_xsmall_patch16_clip_224
vit_tiny_r_s16_p8_224 vit_small_resnet26d_224 vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224
samvit_base_patch16_224 vitamin_small_224 volo_d1_224 eca_vovnet39b ese_vovnet19b_dw vovnet39a legacy_xception
xception41 xcit_nano_12_p16_224 xcit_tiny_12_p8_224
""".split()

_SIZES = {"halo": 256, "sehalo": 256, "eca_halo": 256, "lamhalo": 256, "bat_": 256, "deepseek_vit": 112}


def entries() -> Iterator[Entry]:
    """All of them; raises where a module of timm is missing in the list."""
    modules = {name: _module(name) for name in _NAMES}
    missing = set(timm.list_modules()) - set(modules.values())
    if missing:
        raise LookupError(f"No model of timm's {', '.join(sorted(missing))} in the zoo: add one to {__file__}.")
    for name, module in modules.items():
        shape = _shape(name, timm.get_pretrained_cfg(name))
        yield Entry("timm", name, partial(_build, name, shape), module, "×".join(map(str, shape)))


def _module(name: str) -> str:
    return str(timm.model_entrypoint(name).__module__.rpartition(".")[2])


def _shape(name: str, configuration: Any) -> tuple[int, ...]:
    default = configuration.input_size[1:]
    size = next((size for start, size in _SIZES.items() if name.startswith(start)), 128)
    sizes = default if configuration.fixed_input_size or max(default) <= 128 else (size, size)
    return (1 if max(sizes) > 200 else 2, 3, *sizes)


def _build(name: str, shape: tuple[int, ...]) -> Example:
    return Example(timm.create_model(name, num_classes=10), (torch.randn(shape),))
