"""Meta-train a model: the outer loop of Algorithm 1, with validation, resuming and early stopping by best weights."""

from collections.abc import Callable
from math import isfinite
from typing import Any

from torch import Tensor

from leokit.config import MetaTrainConfig, fixed_steps
from leokit.engine.scoring import Classifier, score
from leokit.engine.state import TERMS, State
from leokit.engine.steps import Diverged, make_steps
from leokit.episodes import EpisodeSampler, FeatureMatrix
from leokit.leo.learners import Learner, Tensors, make_learner
from leokit.metrics import mean_interval

REPORT_EVERY = 100  # steps between lines of training metrics


def classifier(learner: Learner, tensors: Tensors) -> Classifier:
    """A learner with its parameters as a method for `score`."""

    def classify(support: Tensor, numbers: range) -> Tensor:
        return learner.weights(tensors, support, numbers)

    return classify


def train(
    config: MetaTrainConfig,
    state: State,
    training: FeatureMatrix,
    validation: FeatureMatrix | None,
    *,
    uncentred: FeatureMatrix | None = None,
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
        keep: saves a state; called after each validation and before stopping early.
        report: takes a line of metrics.
        on_step: called with the number of steps taken and a line on how it goes.
        stop_requested: asked after each step.

    Returns:
        Whether it came to its end; False where a stop was requested.

    Raises:
        Diverged: a loss or gradient is not finite and `config.on_nan` is `stop`; the state before it was kept.
    """
    steps, wanted = make_steps(config, training), fixed_steps(config)
    text = ""
    if state.step == 0 and state.best_accuracy < 0:  # not yet validated
        _validate(config, state, validation, report, uncentred)
        keep(state)
    while not _is_over(config, state, wanted):
        try:
            steps.take(state)
            stop = stop_requested()
            if stop or _is_due(config, state, wanted, steps.check_every):
                steps.check(state)
                text = _loss_text(state)
        except Diverged:
            keep(state)
            raise
        if state.step % REPORT_EVERY == 0:
            means = dict(zip(TERMS, (state.sums / REPORT_EVERY).tolist(), strict=True))
            report(_finite({"step": state.step, **means, **steps.watch(state)}))
            state.sums.zero_()
        if state.step % config.val_every == 0:
            _validate(config, state, validation, report)
            keep(state)
        on_step(state.step, text if validation is None else f"{text} {_best_text(config, state)}")
        if stop and not _is_over(config, state, wanted):
            keep(state)
            return False
    if state.step % config.val_every:
        # One more candidate than a longer run would have here: the state that it would go on from is kept before.
        keep(state)
        _validate(config, state, validation, report)
    if validation is None:
        state.best_step = state.step
        state.best = {name: value.detach().clone() for name, value in state.parameters.items()}
    return True


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


def _is_over(config: MetaTrainConfig, state: State, steps: int) -> bool:
    return state.step >= steps or out_of_patience(config, state)


def _is_due(config: MetaTrainConfig, state: State, steps: int, every: int) -> bool:
    """Whether the state is looked at after this step: after each `every`, and for reports, validations and the end."""
    return state.step == steps or any(state.step % count == 0 for count in (every, REPORT_EVERY, config.val_every))


def _best_text(config: MetaTrainConfig, state: State) -> str:
    best = f"val {state.best_accuracy:.1%} at {state.best_step}"
    if config.patience is None:
        return best
    return f"{best}, ends at {state.best_step + config.patience * config.val_every} unless better"


def _loss_text(state: State) -> str:
    """Loss and accuracy of the steps since the last report, in few letters."""
    count = (state.step - 1) % REPORT_EVERY + 1
    means = dict(zip(TERMS, (state.sums / count).tolist(), strict=True))
    return f"loss {means['loss']:.2f} acc {means['accuracy']:.0%}"


def _validate(
    config: MetaTrainConfig,
    state: State,
    features: FeatureMatrix | None,
    report: Callable[[dict[str, Any]], None],
    uncentred: FeatureMatrix | None = None,
) -> None:
    """Measure accuracy on the fixed meta-val episodes, if any, and keep the parameters if they are the best so far."""
    if features is None:
        return
    learner = make_learner(config, features.dim)
    fallback = learner.fallback(state.parameters) if state.step == 0 else None
    candidates: list[tuple[str, Tensors, FeatureMatrix]] = []
    if fallback is not None:
        candidates.append(("fallback", fallback, features))
        if uncentred is not None:
            candidates.append(("uncentred_fallback", fallback, uncentred))
    candidates.append(("val", state.parameters, features))
    line: dict[str, Any] = {"step": state.step}
    for name, tensors, matrix in candidates:
        # The seed of these episodes is not that of the run: all runs are selected on the same episodes.
        scores = score(
            matrix,
            EpisodeSampler(matrix.offsets, ways=config.ways, seed=0, purpose="selection"),
            {name: classifier(learner, tensors)},
            shots=config.shots,
            queries=config.val_queries,
            episodes=config.val_episodes,
        )
        accuracy, half_width = mean_interval(scores[name])
        line |= {f"{name}_accuracy": accuracy, f"{name}_half_width": half_width}
        if accuracy > state.best_accuracy:
            state.best_step, state.best_accuracy, state.best_half_width = state.step, accuracy, half_width
            state.best_is_fallback, state.best_is_centred = name != "val", matrix is features
            state.best = {key: value.detach().clone() for key, value in tensors.items()}
    report(line)
