"""What configs were called before they were named after their networks; to be deleted one day."""

from __future__ import annotations

import os
from pathlib import Path

# Below configs/: the old file and the new one.
RENAMED_CONFIGS = {
    '_base_/dms_in1k.py': '_base_/dms_runtime.py',
    'causal_lm/train_gpt2_stdlib.py': 'causal_lm/gpt2-mini_stdlib.py',
    'causal_lm/train_llama_stdlib.py': 'causal_lm/llama-mini_stdlib.py',
    'det/dms_retinanet_digits.py': 'det/dms-retinanet_r18-w16_fpn_digits.py',
    'det/dms_retinanet_digits_arch_net.py': 'det/dms-retinanet_digits-s2_fpn_digits.py',
    'det/dms_retinanet_digits_uniform.py': 'det/retinanet_r18-w11_fpn_digits.py',
    'det/dms_retinanet_digits_whole.py': 'det/retinanet_r18-w16_fpn_digits.py',
    'det/dms_retinanet_r50_fpn_1x_coco.py': 'det/dms-retinanet_r50_fpn_8xb2-3e_coco.py',
    'det/dms_rtmdet_s_8xb32-30e_coco.py': 'det/dms-rtmdet_s-8gf_8xb32-30e_coco.py',
    'det/retinanet_digits.py': 'det/retinanet_digits-s2_fpn_digits.py',
    'det/retinanet_digits_pretrained.py': 'det/retinanet_digits-s2-pre_fpn_digits.py',
    'det/search_retinanet_digits.py': 'det/search-mcea_retinanet_digits.py',
    'det/supernet_retinanet_digits.py': 'det/retinanet_supernet_fpn_digits.py',
    'dms/arch_net_digits.py': 'dms/dms-digits-s2.py',
    'dms/deit_digits.py': 'dms/dms-deit-mini_digits.py',
    'dms/deit_small_8xb128_in1k.py': 'dms/dms-deit-base-d16-4.6gf_8xb128-30e_in1k.py',
    'dms/deit_tiny_8xb128_in1k.py': 'dms/dms-deit-small-d16-1.3gf_8xb128-30e_in1k.py',
    'dms/efficientnet_b0_8xb96_in1k.py': 'dms/dms-efficientnet-b4-390mf_8xb96-30e_in1k-224px.py',
    'dms/efficientnet_b1_8xb96_in1k.py': 'dms/dms-efficientnet-b7-680mf_8xb96-30e_in1k-256px.py',
    'dms/efficientnet_b2_8xb96_in1k.py': 'dms/dms-efficientnet-b7-1.1gf_8xb96-30e_in1k-288px.py',
    'dms/gpt2_stdlib.py': 'dms/dms-gpt2-mini_stdlib.py',
    'dms/llama_7b.py': 'dms/dms-llama-7b-5.47b_alpaca.py',
    'dms/llama_stdlib.py': 'dms/dms-llama-mini_stdlib.py',
    'dms/mobilenet_v2_8xb32_in1k.py': 'dms/dms-mobilenet-v2-w1.5x-d2x-300mf_8xb32-30e_in1k.py',
    'dms/resnet_18_digits.py': 'dms/dms-resnet18-w16_digits.py',
    'dms/resnet_50_8xb32_in1k.py': 'dms/dms-resnet152-4gf_8xb32-10e_in1k.py',
    'dms/retrain_arch_net_digits.py': 'scalenet/arch-net_digits.py',
    'dms/retrain_deit_digits.py': 'dms/deit-mini_digits.py',
    'dms/retrain_dist_arch_net_digits.py': 'dms/arch-net-distilled_digits.py',
    'dms/retrain_gpt2_stdlib.py': 'dms/gpt2-mini-pruned_stdlib.py',
    'dms/retrain_llama_stdlib.py': 'dms/llama-mini-pruned_stdlib.py',
    'dms/retrain_resnet_18_digits.py': 'dms/resnet18-w16_digits.py',
    'scalenet/compound_digits.py': 'scalenet/search-compound_digits.py',
    'scalenet/evolution_digits.py': 'scalenet/search-evolution_digits.py',
    'scalenet/pareto_digits.py': 'scalenet/search-pareto_digits.py',
    'scalenet/pareto_in1k.py': 'scalenet/search-pareto_in1k.py',
    'scalenet/random_digits.py': 'scalenet/search-random_digits.py',
    'scalenet/retrain_digits.py': 'scalenet/arch-net_digits.py',
    'scalenet/scaling_digits.py': 'scalenet/search-scaling_digits.py',
    'scalenet/search_digits.py': 'scalenet/search-mcea_digits.py',
    'scalenet/search_in1k.py': 'scalenet/search-mcea_in1k.py',
    'scalenet/separate_digits.py': 'scalenet/search-separate_digits.py',
}


def now_called(path: str | Path) -> str:
    """What to add to the message that a config is missing: its name today, if it had another.

    Args:
        path: The file, as the user wrote it.

    Example:
        >>> now_called('configs/scalenet/random_digits.py')
        '; it is configs/scalenet/search-random_digits.py now'
    """
    file = Path(path).absolute()
    new = RENAMED_CONFIGS.get(f'{file.parent.name}/{file.name}')
    if new is None:
        return ''
    return f'; it is {os.path.normpath(Path(path).parent / ".." / new)} now'
