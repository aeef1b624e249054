"""A search space: for each option of meta-training a range to draw from, and trials as draws from it.

The value of an option in trial i is a function of (seed, the option's name, i) and its range: other options in the
space, other trials and the order of anything change nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args, get_origin

from leokit.config import MetaTrainConfig, build, check_together, describe
from leokit.errors import UsageError

Value = bool | int | float | str
Kind = Literal["uniform", "log_uniform", "choice"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# The same in all trials, whose accuracies could not be compared otherwise, or settled by the search itself.
_COMPARED_BY = ("ways", "shots", "val_every", "val_episodes", "val_queries", "steps", "patience")
_LARGEST = 1e300
_NOT_HERE = ("preset", "steps_from", "train_on_val", "seed")


@dataclass(frozen=True)
class Range:
    """Where the values of an option come from.

    Attributes:
        kind: uniform over an interval, uniform in its logarithm, or each of some values alike.
        values: the two ends, of which the first is the lower; or the choices.
        whole: whether values are whole numbers, both ends among them.
    """

    kind: Kind
    values: tuple[Value, ...]
    whole: bool = False

    def at(self, share: float) -> Value:
        """The value below which a `share`, from 0 to below 1, of all draws lies; of choices, the one at this place."""
        if self.kind == "choice":
            return self.values[int(share * len(self.values))]
        low, high = (float(value) for value in self.values)
        if self.whole:
            high += 1
        if self.kind == "uniform":
            value = low + share * (high - low)
        else:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        low, high = (float(value) for value in self.values)
        value = min(max(math.floor(value) if self.whole else value, low), high)  # rounding must not leave the range
        return int(value) if self.whole else value


@dataclass(frozen=True)
class Space:
    """What is drawn, and what is the same in all trials.

    Attributes:
        ranges: by the name of the option.
        fixed: values by the name of the option.
    """

    ranges: Mapping[str, Range]
    fixed: Mapping[str, Any]

    @classmethod
    def read(cls, data: Mapping[str, Any], source: str) -> "Space":
        """A space from plain data, as `config.read_space` gives it.

        Args:
            data: by option: a value, or an object with one key of `KINDS`.
            source: where it comes from, for messages.

        Raises:
            UsageError: an unknown option or range, ends that are no interval, or a value that meta-train does not take.
        """
        searchable = {entry.name: entry for entry in describe(MetaTrainConfig) if not entry.outside}
        ranges, fixed = {}, {}
        for name, value in data.items():
            if name == "seed":
                raise UsageError(f"{source}: seed = {value!r}: the seed is that of the search; give --seed.")
            if name not in searchable or name in _NOT_HERE:
                known = ", ".join(name for name in searchable if name not in _NOT_HERE)
                raise UsageError(f"{source}: {name!r} is no option that a trial can have: there are {known}.")
            if not isinstance(value, Mapping):
                fixed[name] = value
            elif name in _COMPARED_BY:
                raise UsageError(
                    f"{source}: {name} cannot be drawn, as trials that differ in it cannot be compared: give one value."
                )
            else:
                ranges[name] = _range(f"{source}: {name}", value, _kinds(searchable[name].type))
        if not ranges:
            raise UsageError(f"{source} has no range: write OPTION = {{ uniform = [LOW, HIGH] }} for what to draw.")
        return cls(
            {
                name: replace(span, values=tuple(_taken(source, name, value) for value in span.values))
                for name, span in ranges.items()
            },
            {name: _taken(source, name, value) for name, value in fixed.items()},
        )

    def draw(self, seed: int, trial: int) -> dict[str, Value]:
        """The values of a trial, by option."""
        from leokit import randomness  # and with it torch, which checking a space does without

        return {
            name: span.at(randomness.generator(seed, f"search/{name}", trial).random())
            for name, span in self.ranges.items()
        }

    def plain(self) -> dict[str, Any]:
        """The space as the data that it can be read from."""
        return {**{name: {span.kind: list(span.values)} for name, span in self.ranges.items()}, **self.fixed}


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The plain types that an option takes; of a Literal none."""
    if get_origin(annotation) is Literal:
        return ()
    return get_args(annotation) or (annotation,)


def _range(what: str, data: Mapping[str, Any], types: tuple[Any, ...]) -> Range:
    whole = int in types
    kind = next(iter(data), None)
    if len(data) != 1 or kind not in KINDS:
        raise UsageError(f"{what} = {dict(data)}: a range is one of {', '.join(KINDS)} with a list of values.")
    values = data[kind]
    if not isinstance(values, list) or not values or any(isinstance(value, list | dict) for value in values):
        raise UsageError(f"{what} = {dict(data)}: {kind} needs a list of values.")
    if kind == "choice":
        if len({repr(value) for value in values}) < len(values):
            raise UsageError(f"{what} = {dict(data)}: a choice stands there twice.")
        return Range(kind, tuple(values))
    if not whole and float not in types:
        raise UsageError(f"{what} = {dict(data)}: it is no number; give a choice.")
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    least = 0 if kind == "log_uniform" else -math.inf
    small = all(abs(value) <= _LARGEST for value in numbers)  # beyond, neither is a whole number a float
    if len(values) != 2 or len(numbers) != 2 or not small or not least < numbers[0] < numbers[1]:
        above = " above 0" if kind == "log_uniform" else ""
        raise UsageError(f"{what} = {dict(data)}: {kind} needs two numbers{above}, the lower one first.")
    return Range(kind, tuple(values if whole else map(float, values)), whole)


def _taken(source: str, name: str, value: Any) -> Any:
    """A value as meta-train takes it.

    Raises:
        UsageError: it does not.
    """
    try:
        return getattr(build(MetaTrainConfig, {name: value}), name)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def trial_config(base: MetaTrainConfig, values: Mapping[str, Value]) -> MetaTrainConfig:
    """The options of a trial: those of all trials, with its own values.

    Raises:
        UsageError: two of them contradict each other.
    """
    made = replace(base, **cast(dict[str, Any], values))
    check_together(made)
    return made
