"""What a result says of the errors of its scores, as facts for a table."""

from __future__ import annotations

from typing import Any

from mmscale.search.noise import with_error


def fitness_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The fitness with its error, what is within that, and the final round.

    Args:
        result: A checked ``result.json``.

    Returns:
        Names and values; nothing of a front, which has no fitness.
    """
    if 'fitness' not in result:
        return []
    of = ' of the family' if len(result['scaling_stages']) > 1 else ''
    shown = with_error(result['fitness'], result.get('fitness_error'))
    facts = [(f'fitness{of}', shown)]
    alike, runners_up = result.get('within_error', {}), result.get('runners_up', [])
    if runners_up and 'runners_up' in alike:
        facts.append(
            ('within its error', f'{alike["runners_up"]} of {len(runners_up)} runners-up')
        )
    final = result.get('final')
    if final is not None:
        best = final['leaders'][0]
        shown = with_error(best['final_fitness'], best['final_error'])
        facts.append((f'fitness{of} on {final["images"]:,} images', shown))
        share = f'{final["within_error"]} of {len(final["leaders"]) - 1} other leaders'
        facts.append(('within the error of that', share))
    return facts
