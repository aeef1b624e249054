"""`leokit meta-train`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leokit import distributed
from leokit.cli.next_steps import suggest_eval, work_words
from leokit.cli.render import Output, TableData, percent
from leokit.config import MetaTrainConfig, run_name
from leokit.text import method_name, pasteable

if TYPE_CHECKING:
    from leokit.runs import Run


def command(config: MetaTrainConfig, output: Output) -> None:
    """Meta-train LEO on features; the best weights by meta-validation are kept.

    Ctrl-C or SIGTERM keeps the state: the same command goes on from there, and with more --steps it trains on.

    The last run of a published protocol trains on train and val, as long as an earlier one was best at:
    --train-on-val --steps-from RUN.

    With --seeds a run for each seed, several at a time. Under torchrun or srun the episodes of each step are divided
    among the ranks.

    Example: leokit meta-train --shots 1 --steps 6000 --seeds 5
    """
    from leokit.stages import meta_train

    if output.dry_run:
        plan = meta_train.dry_run(config)
        if not distributed.world().rank:
            output.plan(plan, "Would train")
        return
    with output.progress("Meta-training") as progress:
        runs = meta_train.run_seeds(config, on_progress=progress, on_message=output.note)
    if distributed.world().rank:
        return  # rank 0 says it
    if config.seeds > 1:
        _show_seeds(config, runs, output)
        return
    (run,) = runs
    facts, info = run.facts, run.manifest.info
    rows = [
        ["run", str(run.folder)],
        ["id", run.id[:12]],
        ["features", _features(facts)],
        ["steps", f"{facts['steps']} ({info['steps_taken']} of them now, in {info['seconds']:.0f} s)"],
        *_selection(facts),
    ]
    title = f"{method_name(config.variant)}, {config.ways}-way {config.shots}-shot"
    data = {"out": str(run.folder), "id": run.id, **facts}
    sentences = [*_ending(run.config.patience, facts), *_gains(runs)]
    output.result(data, [TableData(title, ["", ""], rows, numeric=False)], sentences)
    found_by_shots = not config.out and run_name(config) == run_name(MetaTrainConfig(shots=config.shots))
    where = f"--shots {config.shots}" if found_by_shots else f"--run {pasteable(run.folder)}"
    _suggest_eval(config, ["leokit eval", where], output)


def _show_seeds(config: MetaTrainConfig, runs: "Sequence[Run]", output: Output) -> None:
    """Print the runs of several seeds as one table, and how to test them together."""
    columns = ["seed", "id", "steps", "best step", "meta-val accuracy, %", "run"]
    rows = []
    for run in runs:
        facts = run.facts
        selected = ["", ""]
        if facts["val_accuracy"] is not None:
            selected = [str(facts["best_step"]), percent(facts["val_accuracy"], facts["val_half_width"])]
        rows.append([str(run.config.seed), run.id[:12], str(facts["steps"]), *selected, str(run.folder)])
    title = f"{method_name(config.variant)}, {config.ways}-way {config.shots}-shot, {_features(runs[0].facts)}"
    sentences = [] if config.train_on_val else ["Each run's best weights were chosen on these meta-val episodes."]
    sentences += _gains(runs)
    data = {"runs": [{"out": str(run.folder), "id": run.id, "seed": run.config.seed, **run.facts} for run in runs]}
    gains = [[str(run.config.seed), _class_means(run.facts), _gain(run.facts)] for run in runs]
    tables = [TableData(title, columns, rows)]
    if any(gain for *_, gain in gains):
        tables.append(TableData("On the same episodes", ["seed", "class means", "gain over them, points"], gains))
    output.result(data, tables, sentences)
    _suggest_eval(config, ["leokit eval", *(pasteable(run.folder) for run in runs)], output)


def _suggest_eval(config: MetaTrainConfig, words: list[str], output: Output) -> None:
    """Tell how to test the runs on the features that they were trained on."""
    from leokit import manifest

    features = manifest.read(config.features or config.work / "features")
    words += ["--features", pasteable(config.features)] if config.features else []
    suggest_eval([*words, *work_words(config)], features.facts["counts"].get("test", {}), config, output)


def _selection(facts: dict[str, Any]) -> list[list[str]]:
    """Which weights are kept, and how good they were on the episodes that chose them."""
    if facts["val_accuracy"] is None:
        classes = sum(facts["classes"].values())
        return [
            ["trained on", f"train and val, {classes} classes"],
            ["weights", "of the last step; none were selected"],
        ]
    accuracy = percent(facts["val_accuracy"], facts["val_half_width"])
    rows = [
        ["best step", str(facts["best_step"])],
        ["meta-val accuracy", f"{accuracy} % (chosen on these episodes)"],
    ]
    if means := _class_means(facts):
        rows += [["class means", f"{means} on the same episodes"], ["gain", f"{_gain(facts)} points over class means"]]
    return rows


def _class_means(facts: Mapping[str, Any]) -> str:
    """Accuracy of the class means that a run is compared with; empty where it was not measured."""
    if facts.get("class_mean_accuracy") is None:
        return ""
    centred = " (centred)" if facts["class_mean_method"] != "class-mean" else ""
    return f"{percent(facts['class_mean_accuracy'], facts['class_mean_half_width'])} %{centred}"


def _gain(facts: Mapping[str, Any]) -> str:
    """What training gained over them, in percentage points."""
    return "" if facts.get("gain") is None else percent(facts["gain"], facts["gain_half_width"], sign=True)


def _gains(runs: "Sequence[Run]") -> list[str]:
    """What must be said of runs that gained nothing, or nothing certain, over class means."""
    from leokit.evaluations import gain_in_words

    found = {run.config.seed: gain_in_words(run.facts) for run in runs}
    if len(runs) == 1:
        return [words for words in found.values() if words]
    return [
        f"Seed {', '.join(str(seed) for seed, other in found.items() if other == words)}: {words}"
        for words in dict.fromkeys(found.values())
        if words
    ]


def _ending(patience: int | None, facts: dict[str, Any]) -> list[str]:
    """What to say where patience ended the run."""
    if not facts["stopped_early"]:
        return []
    return [
        f"Patience ended it at step {facts['steps']}: {patience} validations in a row were no better than that of step "
        f"{facts['best_step']}. A higher --patience trains on, more --steps do not."
    ]


def _features(facts: dict[str, Any]) -> str:
    trained_on = facts["trained_on"]
    source = trained_on if isinstance(trained_on, str) else f"{len(trained_on)} classes"
    name = (facts["backbone"] or {}).get("name", "backbone not recorded")
    return f"{name}, {facts['dim']} wide; backbone trained on: {source}"
