"""Learning curves as one SVG picture, written by hand: a drawing library would be a dependency for three lines."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dwcp.allocation.learn.trainer import Point

WIDTH, HEIGHT, MARGIN = 640, 220, 56


def picture(points: Sequence[Point], *, title: str, rule_cost: float) -> str:
    """Validation cost against the base rule's with its interval, the critic's loss, and the reward per decision."""
    updates = [float(point.updates) for point in points]
    panels = [
        _panel(
            "validation cost, dollars per window (dashed: the base rule)",
            updates,
            [point.cost for point in points],
            band=[(rule_cost + point.low, rule_cost + point.high) for point in points],
            level=rule_cost,
        ),
        _panel("critic loss", updates, [point.critic_loss for point in points]),
        _panel("reward, dollars per decision in training", updates, [point.reward for point in points]),
    ]
    total = HEIGHT * len(panels) + 30
    moved = "".join(
        f'<g transform="translate(0 {30 + HEIGHT * at})">{panel}</g>' for at, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{total}" '
        f'viewBox="0 0 {WIDTH} {total}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="{MARGIN}" y="20" font-size="14">{escape(title)}</text>{moved}</svg>\n'
    )


def _panel(
    name: str,
    across: Sequence[float],
    values: Sequence[float],
    *,
    band: Sequence[tuple[float, float]] = (),
    level: float | None = None,
) -> str:
    known = [*values, *(edge for pair in band for edge in pair), *([] if level is None else [level])]
    low, high = min(known, default=0.0), max(known, default=1.0)
    high = high if high > low else low + 1.0
    left, right = min(across, default=0.0), max(across, default=1.0)
    right = right if right > left else left + 1.0

    def at(x: float, y: float) -> str:
        across_px = MARGIN + (x - left) / (right - left) * (WIDTH - 2 * MARGIN)
        down_px = HEIGHT - 30 - (y - low) / (high - low) * (HEIGHT - 60)
        return f"{across_px:.1f},{down_px:.1f}"

    parts = [
        f'<text x="{MARGIN}" y="18">{escape(name)}</text>',
        f'<rect x="{MARGIN}" y="30" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 60}" fill="none" stroke="#ccc"/>',
        f'<text x="4" y="36">{high:.4g}</text><text x="4" y="{HEIGHT - 30}">{low:.4g}</text>',
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 14}" text-anchor="end">{right:.0f} updates</text>',
    ]
    if band:
        upper = [at(x, pair[1]) for x, pair in zip(across, band, strict=True)]
        lower = [at(x, pair[0]) for x, pair in zip(across, band, strict=True)]
        parts.append(f'<polygon points="{" ".join(upper + lower[::-1])}" fill="#1f77b4" fill-opacity="0.2"/>')
    if level is not None:
        begin, end = at(left, level).split(","), at(right, level).split(",")
        parts.append(
            f'<line x1="{begin[0]}" y1="{begin[1]}" x2="{end[0]}" y2="{end[1]}" stroke="#888" stroke-dasharray="4"/>'
        )
    line = " ".join(at(x, y) for x, y in zip(across, values, strict=True))
    return "".join(parts) + f'<polyline points="{line}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>'
