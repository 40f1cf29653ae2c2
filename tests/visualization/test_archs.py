"""Drawn networks: boxes of the right height, length and colour, on one scale."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from mmscale.arch import SearchSpace, get_arch
from mmscale.visualization import plot_arch, plot_archs
from mmscale.visualization.style import PALETTE


def boxes(axes):
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def letters(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize('name', ['scalenet-s0', 'scalenet-s4-search'])
def test_a_box_per_block_as_high_as_it_is_wide(name):
    arch = get_arch(name)
    (axes,) = plot_arch(arch, name).axes
    stem, *blocks, head = boxes(axes)
    assert stem.get_height() == arch.stem.out_channels
    assert [box.get_height() for box in blocks] == [b.out_channels for b in arch.blocks]
    assert head.get_height() == max(arch.widths)  # 1280 would dwarf the rest
    assert f'{arch.head.channels}' in letters(axes)
    assert [box.get_y() for box in blocks] == [-b.out_channels / 2 for b in arch.blocks]
    places = [box.get_x() for box in boxes(axes)]
    assert places == sorted(places) and min(np.diff(places)) >= 1
    assert axes.get_xlim()[1] >= places[-1] + head.get_width()
    assert axes.get_ylim()[1] > max(arch.widths) / 2


def test_colours_are_kernels_and_the_legend_tells_them():
    arch = get_arch('scalenet-s0')
    figure = plot_arch(arch, 'S0')
    colours = [to_hex(box.get_facecolor()) for box in boxes(figure.axes[0])[1:-1]]
    by_kernel = {3: PALETTE[0], 5: PALETTE[1], 7: PALETTE[2]}
    assert colours == [by_kernel[block.kernel].lower() for block in arch.blocks]
    (legend,) = figure.legends
    shown = {
        text.get_text(): to_hex(patch.get_facecolor())
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    assert {f'kernel {k}': c.lower() for k, c in by_kernel.items()}.items() <= shown.items()


def test_lettering_says_width_blocks_and_size():
    arch = get_arch('scalenet-s0')
    texts = letters(plot_arch(arch, 'S0').axes[0])
    for i, stage in enumerate(arch.stages, start=1):
        size = arch.resolution // arch.strides[i - 1]
        assert f'{arch.widths[i - 1]} × {len(stage)}' in texts
        assert f'stage {i}\n{size} px' in texts


def test_blocks_that_differ_within_a_stage_are_told_apart():
    space = SearchSpace(
        stages=[
            dict(channels=16, depths=[2], kernels=[3], kind=['mbconv', 'basic'], expands=[2, 4]),
            dict(channels=24, depths=[2], kernels=[3], expands=[3], se=[False, True]),
        ],
        stem=dict(channels=8),
        head=dict(channels=32),
        num_classes=2,
        resolution=32,
    )
    block = dict(kernel=3, expand=3)
    genotype = space.genotype_of(
        dict(
            stages=[
                dict(
                    blocks=[
                        dict(block, kind='mbconv', expand=4),
                        dict(block, kind='basic', expand=2),
                    ]
                ),
                dict(blocks=[dict(block, se=False), dict(block, se=True)]),
            ]
        )
    )
    figure = plot_arch(space.decode(genotype), 'mine')
    texts = letters(figure.axes[0])
    assert 'stage 1\n16 px\nmb ba\n×4 2' in texts and 'stage 2\n16 px' in texts
    dotted = [box.get_hatch() for box in boxes(figure.axes[0])[1:-1]]
    assert dotted == [None, None, None, '...']
    assert 'SE' in [text.get_text() for text in figure.legends[0].get_texts()]


def test_sizes_of_odd_inputs_are_rounded_up():
    arch = get_arch('scalenet-s5')
    size = arch.resolution
    texts = letters(plot_arch(arch, 'S5').axes[0])
    size = (size - 1) // 2 + 1
    assert f'stem\n{size} px' in texts
    for i, stage in enumerate(arch.stages, start=1):
        for block in stage:
            size = (size - 1) // block.stride + 1
        assert f'stage {i}\n{size} px' in texts


def test_networks_together_share_one_scale():
    archs = {f'S{j}': get_arch(f'scalenet-s{j}') for j in range(3)}
    figure = plot_archs(archs, 'all')
    assert len(figure.axes) == 3
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    for axes, (name, arch) in zip(figure.axes, archs.items(), strict=True):
        assert axes.get_title(loc='left').startswith(f'{name}: {arch.resolution} px')
        assert len(boxes(axes)) == len(arch.blocks) + 2


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match='no network'):
        plot_archs({})
