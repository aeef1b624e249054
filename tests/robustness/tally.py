"""How often each fault was tried: what `--robustness-table` prints and docs/robustness.md shows."""

from collections import Counter

tried = Counter()  # (area, fault) → times


def count(area, fault, times=1):
    """Note that a fault was tried."""
    tried[area, fault] += times


def table():
    """Lines of Markdown."""
    yield "| area | fault | tried |"
    yield "| --- | --- | ---: |"
    for (area, fault), times in sorted(tried.items()):
        yield f"| {area} | {fault} | {times:,} |"
    yield f"| | in all | {sum(tried.values()):,} |"
