"""Meta-train models: the outer loop of Algorithm 1, with validation, resuming and early stopping by best weights.

Runs that differ in seeds or in numbers that a step can take for each of them (`leo.sets.OWN`) may take their steps
together, along one more dimension of each tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from leokit.baselines import class_mean
from leokit.config import MetaTrainConfig, fixed_steps
from leokit.engine.averaging import ALONE, Ranks
from leokit.engine.scoring import Classifier, score
from leokit.engine.state import TERMS, State, stack, unstack
from leokit.engine.steps import Diverged, Steps, make_steps
from leokit.episodes import EpisodeSampler, FeatureMatrix
from leokit.leo.learners import Learner, Tensors, make_learner
from leokit.metrics import Interval, mean_interval, paired_difference

REPORT_EVERY = 100  # steps between lines of training metrics


def classifier(learner: Learner, tensors: Tensors) -> Classifier:
    """A learner with its parameters as a method for `score`."""

    def classify(support: Tensor, numbers: range) -> Tensor:
        return learner.weights(tensors, support, numbers)

    return classify


@dataclass(eq=False)  # two may have the same numbers
class Course:
    """A run on its way to its last step.

    Attributes:
        config: of the run.
        state: where it is; training moves it.
        keep: saves a state; called after each validation and before stopping early.
        report: takes a line of metrics.
        finished: called as soon as it has come to its end.
        failed: called with a sentence why, where it has diverged and its state was kept.
    """

    config: MetaTrainConfig
    state: State
    keep: Callable[[State], None]
    report: Callable[[dict[str, Any]], None]
    finished: Callable[[], None] = lambda: None
    failed: Callable[[str], None] = lambda why: None

    @property
    def is_over(self) -> bool:
        """Whether it has taken all its steps, or is out of patience."""
        return self.state.step >= fixed_steps(self.config) or out_of_patience(self.config, self.state)


def train(
    config: MetaTrainConfig,
    state: State,
    training: FeatureMatrix,
    validation: FeatureMatrix | None,
    *,
    uncentred: FeatureMatrix | None = None,
    ranks: Ranks = ALONE,
    keep: Callable[[State], None],
    report: Callable[[dict[str, Any]], None],
    on_step: Callable[[int, str], None] = lambda step, text: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """Take the steps from `state.step` to the last, in place: there are `fixed_steps(config)`, or patience ends it.

    Args:
        config: of the run.
        state: where to go on from.
        training: features of the meta-train classes.
        validation: features of the meta-val classes; with None nothing is selected and the last weights are the best.
        uncentred: the same as they were before centring, on which the fallback is a candidate too.
        ranks: that train the run together; each takes the same steps and keeps the same state.
        keep: saves a state; called after each validation and before stopping early.
        report: takes a line of metrics.
        on_step: called with the number of steps taken and a line on how it goes.
        stop_requested: asked after each step.

    Returns:
        Whether it came to its end; False where a stop was requested.

    Raises:
        Diverged: a loss or gradient is not finite and `config.on_nan` is `stop`; the state before it was kept.
        UsageError: more ranks than a step has episodes.
        LeokitError: another rank has ended.
    """
    return train_together(
        [Course(config, state, keep, report)],
        training,
        validation,
        uncentred=uncentred,
        ranks=ranks,
        on_step=on_step,
        stop_requested=stop_requested,
    )


def train_together(
    courses: Sequence[Course],
    training: FeatureMatrix,
    validation: FeatureMatrix | None,
    *,
    uncentred: FeatureMatrix | None = None,
    ranks: Ranks = ALONE,
    on_step: Callable[[int, str], None] = lambda step, text: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """As `train`, for runs of one `leo.sets.structure`: those at the same step take it as one.

    Each run's draws are those that it has alone, and so is everything else but for the order in which sums are made:
    weights agree with those of the run alone to rounding. Each is validated, kept and ended for itself. One that
    diverges ends, with its state kept, and the others go on.

    Args:
        courses: the runs.
        training, validation, uncentred, ranks: as for `train`.
        on_step: called with the number of steps taken by all runs and a line on how it goes.
        stop_requested: as for `train`.

    Returns:
        Whether all came to their ends; False where a stop was requested.

    Raises:
        Diverged: one of the runs has; raised after the others have come to their ends.
        UsageError, LeokitError: as `train`.
    """
    together = _Together(courses, training, validation, uncentred, ranks, on_step, stop_requested)
    going, errors = list(courses), list[Diverged]()
    new = [course for course in courses if course.state.step == 0 and course.state.best_accuracy < 0]
    together.validate(new, first=True)
    for course in new:
        course.keep(course.state)
    while True:
        for course in [course for course in going if course.is_over]:
            together.end(course)
            going.remove(course)
        if not going:
            break
        least = min(course.state.step for course in going)
        group = [course for course in going if course.state.step == least]
        others = [course.state.step for course in going if course.state.step > least]
        try:
            if not together.advance(group, min(others, default=None)):
                return False
        except Diverged as error:
            errors.append(error)
            for number, why in error.failures.items():
                course = group[number]
                course.keep(course.state)
                course.failed(why)
                going.remove(course)
    if errors:
        raise errors[0]
    return True


class _Together:
    """What `train_together` does with some of its runs at a time."""

    def __init__(
        self,
        courses: Sequence[Course],
        training: FeatureMatrix,
        validation: FeatureMatrix | None,
        uncentred: FeatureMatrix | None,
        ranks: Ranks,
        on_step: Callable[[int, str], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        self.courses, self.training, self.validation, self.uncentred = courses, training, validation, uncentred
        self.ranks, self.on_step, self.stop_requested = ranks, on_step, stop_requested

    def advance(self, group: Sequence[Course], until: int | None) -> bool:
        """Take steps of runs at the same one until one of them is over, or to a step; False where asked to stop.

        Raises:
            Diverged: some of them have; all are at the step before.
        """
        configs, states = [course.config for course in group], [course.state for course in group]
        if len(group) == 1:
            return self._steps(group, states[0], make_steps(configs[0], self.training, ranks=self.ranks), until)
        steps = make_steps(configs[0], self.training, runs=configs, ranks=self.ranks)
        whole = stack(configs, states)
        try:
            return self._steps(group, whole, steps, until)
        finally:
            for state in states:
                state.step = whole.step
            unstack(configs, states)

    def _steps(self, group: Sequence[Course], whole: State, steps: Steps, until: int | None) -> bool:
        config, wanted = group[0].config, fixed_steps(group[0].config)
        alone, text = len(group) == 1, ""
        while True:
            steps.take(whole)
            stop = self.ranks.agreed(self.stop_requested(), whole.step)
            if stop or _is_due(config, whole, wanted, steps.check_every):
                steps.check(whole)
                text = _loss_text(whole)
            for course in group:
                course.state.step = whole.step
            if whole.step % REPORT_EVERY == 0:
                for number, course in enumerate(group):
                    means = dict(zip(TERMS, (course.state.sums / REPORT_EVERY).tolist(), strict=True))
                    watched = steps.watch(whole, None if alone else number)
                    course.report(_finite({"step": whole.step, **means, **watched}))
                    course.state.sums.zero_()
            if whole.step % config.val_every == 0:
                self.validate(group)
                for course in group:
                    course.keep(course.state)
            best = "" if self.validation is None else _best_text(self.courses)
            self.on_step(sum(course.state.step for course in self.courses), f"{best} {text}".strip())
            going = [course for course in group if not course.is_over]
            if stop and going:
                for course in group:
                    course.keep(course.state)
                return False
            if len(going) < len(group) or whole.step == until:
                return True

    def end(self, course: Course) -> None:
        """Do what comes after a run's last step."""
        config, state = course.config, course.state
        if state.step % config.val_every:
            # One more candidate than a longer run would have here: the state that it would go on from is kept before.
            course.keep(state)
            self.validate([course])
        if self.validation is None:
            state.best_step = state.step
            state.best = {name: value.detach().clone() for name, value in state.parameters.items()}
        course.finished()

    def validate(self, courses: Sequence[Course], *, first: bool = False) -> None:
        """Measure accuracy on the fixed meta-val episodes, if any; each run keeps its parameters if they are its best.

        Args:
            courses: the runs.
            first: whether they have taken no step yet, so that a plain method is a candidate too.
        """
        features = self.validation
        if features is None or not courses:
            return
        learners = [make_learner(course.config, features.dim) for course in courses]
        parameters = [course.state.parameters for course in courses]
        fallbacks = [
            learner.fallback(own) if first else None for learner, own in zip(learners, parameters, strict=True)
        ]
        found: list[tuple[str, Sequence[Tensors | None], dict[int, NDArray[np.float64]], bool]] = [
            ("fallback", fallbacks, self._accuracies(learners, fallbacks, features), True),
            ("uncentred_fallback", fallbacks, self._accuracies(learners, fallbacks, self.uncentred), False),
            ("val", parameters, self._accuracies(learners, parameters, features), True),
        ]
        for number, course in enumerate(courses):
            state, line = course.state, dict[str, Any](step=course.state.step)
            for name, tensors, accuracies, centred in found:
                if number not in accuracies:
                    continue
                accuracy, half_width = mean_interval(accuracies[number])
                line |= {f"{name}_accuracy": accuracy, f"{name}_half_width": half_width}
                if accuracy > state.best_accuracy:
                    state.best_step, state.best_accuracy, state.best_half_width = state.step, accuracy, half_width
                    state.best_is_fallback, state.best_is_centred = name != "val", centred
                    state.best = {key: value.detach().clone() for key, value in (tensors[number] or {}).items()}
            course.report(line)

    def _accuracies(
        self, learners: Sequence[Learner], tensors: Sequence[Tensors | None], features: FeatureMatrix | None
    ) -> dict[int, NDArray[np.float64]]:
        """The accuracy in each episode, by the numbers of the runs; none of those that have no tensors."""
        methods = {
            str(number): classifier(learner, own)
            for number, (learner, own) in enumerate(zip(learners, tensors, strict=True))
            if own is not None
        }
        if features is None or not methods:
            return {}
        scores = _on_selection_episodes(self.courses[0].config, features, methods, self.ranks)
        return {int(name): accuracies for name, accuracies in scores.items()}


def _on_selection_episodes(
    config: MetaTrainConfig, features: FeatureMatrix, methods: Mapping[str, Classifier], ranks: Ranks
) -> dict[str, NDArray[np.float64]]:
    """The accuracy of methods in each of the meta-val episodes that select the weights of runs."""
    # The seed of these episodes is not that of the run: all runs are selected on the same episodes.
    return score(
        features,
        EpisodeSampler(features.offsets, ways=config.ways, seed=0, purpose="selection"),
        methods,
        shots=config.shots,
        queries=config.val_queries,
        episodes=config.val_episodes,
        ranks=ranks,
    )


class Gain(NamedTuple):
    """What training gained over class means, on the meta-val episodes that selected the weights.

    Attributes:
        method: class-mean or centred-class-mean, by the names of `leokit eval`.
        class_means: accuracy of these.
        gain: the paired difference of the run's best weights to them.
    """

    method: str
    class_means: Interval
    gain: Interval


def measure_gain(
    config: MetaTrainConfig,
    state: State,
    validation: FeatureMatrix | None,
    uncentred: FeatureMatrix | None,
    ranks: Ranks = ALONE,
) -> Gain | None:
    """Compare a run's best weights with class means on the meta-val episodes that selected them.

    Of a run that centres features, with the better of class means with and without centring: its own two candidates.

    Args:
        config: of the run.
        state: of the run, after its last step.
        validation, uncentred, ranks: as for `train`.

    Returns:
        None where nothing was selected.

    Raises:
        LeokitError: another rank has ended.
    """
    if validation is None:
        return None
    plain, centred = "class-mean", "centred-class-mean"
    if state.best_is_fallback:  # the best weights are class means
        name = centred if config.centring and state.best_is_centred else plain
        return Gain(name, Interval(state.best_accuracy, state.best_half_width), Interval(0.0, 0.0))

    def class_means(support: Tensor, numbers: range) -> Tensor:
        return class_mean(support)

    best = classifier(make_learner(config, validation.dim), state.best)
    own = plain if uncentred is None else centred
    found = _on_selection_episodes(config, validation, {"best": best, own: class_means}, ranks)
    if uncentred is not None:
        found |= _on_selection_episodes(config, uncentred, {plain: class_means}, ranks)
    trained = found.pop("best")
    name = max(found, key=lambda name: float(found[name].mean()))
    return Gain(name, mean_interval(found[name]), paired_difference(trained, found[name]))


def out_of_patience(config: MetaTrainConfig, state: State) -> bool:
    """Whether the last `config.patience` validations, one every `val_every` steps, were no better than the best.

    It follows from the step alone, so that a resumed run stops where an uninterrupted one does.
    """
    return config.patience is not None and (state.step - state.best_step) // config.val_every >= config.patience


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """A line with None for numbers that are none, as --on-nan decay may leave: JSON has no word for them."""
    return {
        key: _finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not isfinite(value)
        else value
        for key, value in line.items()
    }


def _is_due(config: MetaTrainConfig, state: State, steps: int, every: int) -> bool:
    """Whether the state is looked at after this step: after each `every`, and for reports, validations and the end."""
    return state.step == steps or any(state.step % count == 0 for count in (every, REPORT_EVERY, config.val_every))


def _best_text(courses: Sequence[Course]) -> str:
    if len(courses) == 1:
        config, state = courses[0].config, courses[0].state
        best = f"val {state.best_accuracy:.1%} at {state.best_step}"
        if config.patience is None:
            return best
        return f"{best}, ends at {state.best_step + config.patience * config.val_every}"
    accuracies = [course.state.best_accuracy for course in courses]
    return f"val {min(accuracies):.1%} to {max(accuracies):.1%}"


def _loss_text(state: State) -> str:
    """Loss and accuracy of the steps since the last report, in few letters; of several runs their means."""
    count = (state.step - 1) % REPORT_EVERY + 1
    sums = state.sums.reshape(-1, len(TERMS)).mean(0)
    means = dict(zip(TERMS, (sums / count).tolist(), strict=True))
    return f"loss {means['loss']:.2f} acc {means['accuracy']:.0%}"
