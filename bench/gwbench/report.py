# SPDX-License-Identifier: Apache-2.0
"""Tables for people, the RESULT line for programs, and the HTML report."""

import html
import json
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "out"


def print_table(title, columns, rows):
    """Rows of cells under columns, numbers right-aligned."""
    cells = [[cell if isinstance(cell, str) else f"{cell:,.3g}" if isinstance(cell, float) else f"{cell:,}" for cell in row]
             for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    print(f"\n{title}")
    print("  ".join(column.ljust(width) if i == 0 else column.rjust(width)
                    for i, (column, width) in enumerate(zip(columns, widths))))
    for row in cells:
        print("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths))))


def print_result(name, result):
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(result, indent=1))
    print("RESULT " + json.dumps({"bench": name, **result}), flush=True)


def _bars(samples):
    """One horizontal bar a sample, as SVG, all on one scale."""
    top = max((value for _, value in samples), default=0) or 1
    lines = []
    for i, (label, value) in enumerate(samples):
        y = 4 + i * 18
        lines.append(f'<text x="0" y="{y + 11}" font-size="12">{html.escape(label)}</text>'
                     f'<rect x="220" y="{y}" width="{400 * value / top:.1f}" height="14" fill="#4a7"/>'
                     f'<text x="{226 + 400 * value / top:.1f}" y="{y + 11}" font-size="12">{value:,.4g}</text>')
    return f'<svg width="760" height="{8 + 18 * len(samples)}">{"".join(lines)}</svg>'


def _numbers(prefix, value):
    """All numbers of a result with their path: medians stand for summaries."""
    if isinstance(value, dict) and "median" in value:
        yield prefix, value["median"]
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(f"{prefix} {key}".strip(), inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield prefix, value


def write_html(results):
    """One page with a plot for each kind of figure of each bench."""
    parts = ["<!doctype html><meta charset=utf-8><title>Godwit benches</title><style>body{font:14px sans-serif;margin:2em}</style>",
             "<h1>Godwit benches</h1>"]
    for name, result in results.items():
        parts.append(f"<h2>{html.escape(name)}{'' if result['ok'] else ' (failed)'}</h2>")
        kinds = {}
        for path, value in _numbers("", result):
            words = path.split()
            kinds.setdefault(words[-1], []).append((" ".join(words[:-1]) or words[-1], value))
        for kind, samples in kinds.items():
            parts.append(f"<h3>{html.escape(kind)}</h3>{_bars(samples)}")
    OUT.mkdir(exist_ok=True)
    page = OUT / "report.html"
    page.write_text("\n".join(parts))
    return page
