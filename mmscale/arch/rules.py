"""Closed-form scaling rules: from one factor to multipliers of depth, width and resolution.

"Fast and Accurate Model Scaling" (arXiv 2103.06877): flops grow with depth * width^2 *
resolution^2, activations only with depth * width * resolution^2, so that widening is the cheapest
way to spend flops.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from fractions import Fraction

from mmscale.arch.checks import number
from mmscale.arch.rounding import Scaling
from mmscale.errors import UsageError

FAST_ALPHA = 0.8


@dataclass(frozen=True)
class ScalingRule:
    """Exponents of the scaling factor: every multiplier is ``factor ** exponent``.

    Flops of a stage of dense convolutions, or of group convolutions whose group width grows with
    the width, are multiplied by ``factor ** (depth + 2 * width + 2 * resolution)``.

    Attributes:
        name: Name of the rule.
        depth: Exponent of the depth.
        width: Exponent of the width.
        resolution: Exponent of the resolution.
        group_width: Exponent of the width of groups; None scales it as the width.
    """

    name: str
    depth: float
    width: float
    resolution: float
    group_width: float | None = None

    def __post_init__(self) -> None:
        for key in ('depth', 'width', 'resolution', 'group_width'):
            value = getattr(self, key)
            if value is not None or key != 'group_width':
                number(f'scaling rule: {key}', value, -2, 2)

    def scaling(self, factor: float) -> Scaling:
        """Multipliers at a factor, before any rounding.

        Args:
            factor: Wanted multiple of the flops, above 0; below 1 it shrinks the network.

        Raises:
            ValueError: The factor is not a number above 0, or its multipliers are out of range.
        """
        number('factor', factor, above=0)
        exponents = self.depth, self.width, self.resolution, self.group_width
        try:
            return Scaling(*(None if e is None else float(factor) ** e for e in exponents))
        except (OverflowError, ValueError) as error:
            reason = 'too large' if isinstance(error, OverflowError) else error
            raise UsageError(f'factor={factor!r:.20} by strategy {self.name}: {reason}') from None


def fast_rule(alpha: float = FAST_ALPHA) -> ScalingRule:
    """Fast scaling: a share alpha of the factor goes into width.

    With e_w = alpha and e_d = e_r = (1 - alpha) / 2 the multipliers are factor^e_d,
    sqrt(factor)^e_w and sqrt(factor)^e_r, so that params grow as factor^((1 + alpha) / 2) and
    activations as factor^(1 - alpha / 2) (arXiv 2103.06877, Table 4). alpha 1 is ``w``, 1/3 is
    ``dwr``, 0 is ``dr``.

    Args:
        alpha: In 0..1.

    Raises:
        ValueError: Alpha is out of range.
    """
    # As a decimal: 1 - 0.8 is not 0.2 in binary.
    share = Fraction(repr(float(number('alpha', alpha, 0, 1))))
    rest = (1 - share) / 2
    name = 'dWr' if alpha == FAST_ALPHA else f'dWr_a{alpha:g}'
    return ScalingRule(name, float(rest), float(share / 2), float(rest / 2))


def fixed_groups(rule: ScalingRule) -> ScalingRule:
    """The rule that keeps group widths as they are."""
    return ScalingRule(f'{rule.name}_gfix', rule.depth, rule.width, rule.resolution, 0.0)


_PLAIN = (
    ScalingRule('d', 1, 0, 0),
    ScalingRule('w', 0, 1 / 2, 0),
    ScalingRule('r', 0, 0, 1 / 2),
    ScalingRule('dw', 1 / 2, 1 / 4, 0),
    ScalingRule('dr', 1 / 2, 0, 1 / 4),
    ScalingRule('wr', 0, 1 / 4, 1 / 4),
    ScalingRule('dwr', 1 / 3, 1 / 6, 1 / 6),
    fast_rule(),
)

SCALING_RULES: dict[str, ScalingRule] = {
    rule.name: rule
    for rule in (
        *_PLAIN,
        *(fixed_groups(rule) for rule in _PLAIN if rule.width),
        ScalingRule('g', 0, 0, 0, group_width=1),
    )
}

_SHARES = re.compile(r'[dwgr]\d+(\.\d+)?(_[dwgr]\d+(\.\d+)?)*')
_EXPONENTS = ('depth', 'width', 'resolution', 'group_width')
_ALPHA = re.compile(r'dWr_a(?P<alpha>\d*\.?\d+)(?P<gfix>_gfix)?')


def _shares_rule(name: str) -> ScalingRule:
    """A rule written as relative shares, ``d1_w8_g8_r1``, absent ones being 0 (pycls)."""
    parts = name.split('_')
    shares = {part[0]: float(part[1:]) for part in parts}
    total = sum(shares.get(key, 0) for key in 'dwr')
    if len(shares) < len(parts):
        twice = next(key for key in shares if sum(part[0] == key for part in parts) > 1)
        raise UsageError(f'strategy={name!r:.60}: {twice} is given twice')
    if total == 0:
        raise UsageError(f'strategy={name!r:.60}: d, w or r must have a share')

    def share(key: str) -> float:
        return shares.get(key, 0) / total

    return ScalingRule(name, share('d'), share('w') / 2, share('r') / 2, share('g') / 2)


def _exponents_rule(text: str) -> ScalingRule:
    """A rule written as exponents, ``depth=.2,width=.3,resolution=.1``, absent ones being 0."""
    exponents: dict[str, float] = {}
    for part in text.split(','):
        key, _, value = (word.strip() for word in part.partition('='))
        try:
            exponent = float(value)
        except ValueError:
            exponent = None
        if key in exponents:
            raise UsageError(f'strategy={text!r:.80}: {key} is given twice')
        if key not in _EXPONENTS or exponent is None:
            raise UsageError(
                f'strategy={text!r:.80}: {part.strip()!r:.40} is not one of '
                f'{", ".join(_EXPONENTS)} with an exponent, as depth=.2,width=.3,resolution=.1'
            )
        exponents[key] = exponent
    # Of letters that a file's name may have.
    name = '_'.join(f'{key}{exponents[key]:g}' for key in _EXPONENTS if key in exponents)
    return ScalingRule(name, *(exponents.get(key, 0.0) for key in _EXPONENTS[:3]),
                       exponents.get('group_width'))  # fmt: skip


def _hint(name: str) -> str:
    """What may have been meant by a rule that is not known."""
    if re.fullmatch(r'[dwgr]+', name) and 'g' in name and len(set(name)) == len(name):
        ours = ''.join(letter for letter in 'dwr' if letter in name)
        shares = '_'.join(f'{letter}1' for letter in 'dwgr' if letter in name)
        if 'w' in ours:
            return (
                f"pycls' {name} is {ours} here, where groups widen too, and its {ours} is "
                f'{ours}_gfix; '
            )
        return f"pycls' {name} is {shares} here; "
    # The order of near names: those that differ in case alone come first.
    same = [known for known in SCALING_RULES if known.lower() == name.lower()]
    near = same + difflib.get_close_matches(name, SCALING_RULES, n=3)
    return f'did you mean {" or ".join(dict.fromkeys(near))}? ' if near else ''


def scaling_rule(name: str | ScalingRule, alpha: float | None = None) -> ScalingRule:
    """Looks a rule up by name.

    Args:
        name: A key of :data:`SCALING_RULES`; ``dWr_a0.6`` (or ``dWr_a0.6_gfix``) for another
            share of fast scaling; relative shares as pycls writes them, such as
            ``d1_w8_g8_r1``, where an absent ``g`` keeps group widths; exponents of the factor,
            ``depth=.2,width=.3,resolution=.1``; or a rule. Upper and lower case differ: ``dwr``
            is uniform compound scaling, ``dWr`` is fast scaling.
        alpha: Share of the width in fast scaling, for ``dWr`` and ``dWr_gfix`` alone.

    Raises:
        ValueError: There is no such rule, or alpha is not allowed.
    """
    if isinstance(name, ScalingRule):
        name, rule = name.name, name
    else:
        rule = SCALING_RULES.get(name) if isinstance(name, str) else None
    if alpha is not None:
        if name not in ('dWr', 'dWr_gfix'):
            raise UsageError(f'alpha={alpha} is of dWr and dWr_gfix, not of strategy={name!r:.60}')
        member = fast_rule(alpha)
        return member if name == 'dWr' else fixed_groups(member)
    if rule is not None:
        return rule
    found = _ALPHA.fullmatch(str(name))
    if found:
        member = fast_rule(float(found['alpha']))
        return fixed_groups(member) if found['gfix'] else member
    if _SHARES.fullmatch(str(name)):
        return _shares_rule(name)
    if isinstance(name, str) and '=' in name:
        return _exponents_rule(name)
    raise UsageError(
        f'strategy={name!r:.60} is not known: {_hint(str(name))}upper and lower case differ; '
        f'rules are {", ".join(SCALING_RULES)}, shares such as d1_w8_g8_r1, and exponents such as '
        'depth=.2,width=.3,resolution=.1'
    )
