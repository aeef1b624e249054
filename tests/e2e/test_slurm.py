"""The scripts for Slurm: on this machine without it, and as jobs of a stand-in for it that runs them at once."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.e2e.conftest import learnable_store
from tests.e2e.test_pipelines import run_script
from tests.processes import HAS_PROC, leokit_on_path

pytestmark = pytest.mark.skipif(not HAS_PROC, reason="needs /proc")

# sbatch runs a script at once, as each task of its array; what it was asked for goes to a log.
_SBATCH = """#!/usr/bin/env bash
set -eu
number=$(( $(cat "$SLURM_LOG.count" 2> /dev/null || echo 100) + 1 ))
echo $number > "$SLURM_LOG.count"
echo "$number $*" >> "$SLURM_LOG"
array=""
while [[ $1 == --* ]]; do
    [[ $1 != --array=* ]] || array=${1#--array=}
    shift
done
copy=$(mktemp -d)/slurm_script # Slurm too runs a copy
cp "$1" "$copy"
shift
export SLURM_JOB_ID=$number SLURM_CPUS_PER_TASK=1
if [[ -n $array ]]; then
    first=${array%-*} last=${array#*-}
    for task in $(seq "$first" "$last"); do
        SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=$(( last - first + 1 )) \\
            SLURM_ARRAY_TASK_MIN=$first SLURM_ARRAY_TASK_MAX=$last bash "$copy" "$@" >&2
    done
else
    bash "$copy" "$@" >&2
fi
echo "$number;cluster"
"""
_SRUN = '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
_SCONTROL = '#!/usr/bin/env bash\necho "scontrol $*" >> "$SLURM_LOG"\n'
SIZE = {
    "VARIANTS": "leo",
    "SHOTS": "1",
    "SEEDS": "0 1",
    "TRIALS": "2",
    "SEARCH_STEPS": "20",
    "TASKS": "2",
    "STEPS": "20",
    "VAL_EVERY": "10",
    "EPISODES": "20",
    "QUERIES": "all",
    "METHODS": "class-mean",
    "LEOKIT_VAL_EPISODES": "20",
    "LEOKIT_FRESH_EPISODES": "20",
    "LEOKIT_META_BATCH": "4",
    "LEOKIT_INNER_STEPS": "1",
    "LEOKIT_FINETUNING_STEPS": "1",
}


def tool(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with leokit_on_path(tmp_path_factory.mktemp("bin")) as folder:
        yield folder


def test_the_whole_of_table_1_as_a_chain_of_jobs_and_the_same_without_slurm(commands, tmp_path):
    learnable_store(tmp_path / "features")
    for name, text in (("sbatch", _SBATCH), ("srun", _SRUN), ("scontrol", _SCONTROL)):
        tool(tmp_path / "slurm", name, text)
    log = tmp_path / "log"
    path = f"{tmp_path / 'slurm'}{os.pathsep}{commands}"
    run_script(path, "slurm/table1.sh", "features", folder=tmp_path, SLURM_LOG=str(log), **SIZE)
    jobs = [line.split() for line in log.read_text().splitlines()]
    scripts = [next(Path(word).name for word in job if word.endswith(".sh")) for job in jobs]
    assert scripts == ["search.sh", "search.sh", "train.sh", "train.sh", "train.sh"]
    after = [next((word for word in job if word.startswith("--dependency")), "") for job in jobs]
    assert after == ["", *(f"--dependency=afterok:{of}" for of in ("101", "102", "102", "103:104"))]
    assert "--array=0-1" in jobs[0]
    work = tmp_path / "leokit-work/paper"
    assert (work / "tables/table1/table1.md").exists()
    search = json.loads((work / "search/leo-5way-1shot/summary.json").read_text())
    best = search["best_trials"][0]
    for end in ("", "-seed1"):
        config = json.loads((work / f"runs/leo-5way-1shot{end}/manifest.json").read_text())["config"]
        assert config["outer_lr"] == best["outer_lr"]
    # Without Slurm the same jobs run one after the other, and find that all is done.
    done = run_script(commands, "slurm/table1.sh", "features", folder=tmp_path, **SIZE)
    assert done.stderr.count("Already done: leokit-work/paper/runs") >= 2
    assert len(log.read_text().splitlines()) == 5


def test_a_search_by_shares_on_this_machine(commands, tmp_path):
    learnable_store(tmp_path / "features")
    options = ("--trials", 2, "--steps", 10, "--val-every", 10, "--val-episodes", 10, "--fresh-episodes", 10)
    done = run_script(commands, "slurm/search.sh", "features", *options, folder=tmp_path, TASKS="2", WORK="mine")
    text = " ".join(done.stdout.split())
    assert "Share 0/2 is trained. Of all shares 1 of 2 trials are." in text
    assert "Share 1/2 is trained. Of all shares 2 of 2 trials are." in text
    assert "The best of 2 trials" in text


@pytest.mark.parametrize(
    ("task", "more", "share"),
    [
        (3, {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_COUNT": "8"}, "3/8"),
        (8, {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8", "SLURM_ARRAY_TASK_COUNT": "8"}, "7/8"),
        (3, {"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "3", "TASKS": "8"}, "3/8"),
        (1, {"SLURM_ARRAY_TASK_COUNT": "2"}, "1/2"),
    ],
)
def test_a_task_of_an_array_takes_its_share(tmp_path, task, more, share):
    calls = tmp_path / "calls"
    tool(tmp_path / "bin", "leokit", f'#!/usr/bin/env bash\necho "$LEOKIT_JOBS $@" >> {calls}\n')
    options = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_CPUS_PER_TASK": "4", **more}
    for gpus, visible in (("", ""), ("1", ""), ("", "0")):
        device = {"SLURM_GPUS_ON_NODE": gpus, "CUDA_VISIBLE_DEVICES": visible}
        run_script(str(tmp_path / "bin"), "slurm/search.sh", "features", folder=tmp_path, **options, **device)
    assert calls.read_text() == "".join(f"{jobs} search --only {share}\n" for jobs in (4, 1, 1))


@pytest.mark.parametrize(
    ("array", "more", "shares"),
    [("1-2", {}, ["0/2", "1/2"]), ("0-1", {}, ["0/2", "1/2"]), ("3", {"TASKS": "8"}, ["3/8"])],
)
def test_an_array_that_begins_anywhere_has_all_its_shares(tmp_path, array, more, shares):
    calls = tmp_path / "calls"
    tool(tmp_path / "bin", "leokit", f'#!/usr/bin/env bash\necho "$@" >> {calls}\n')
    for name, text in (("sbatch", _SBATCH), ("srun", _SRUN), ("scontrol", _SCONTROL)):
        tool(tmp_path / "bin", name, text)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"SLURM_LOG": str(tmp_path / "log"), **more}
    script = str(REPOSITORY / "pipelines/slurm/search.sh")
    subprocess.run(["sbatch", f"--array={array}", script, "features"], cwd=tmp_path, env=environment, check=True)
    assert calls.read_text().splitlines() == [f"search --only {share}" for share in shares]


@pytest.mark.parametrize("finished", [False, True])
def test_a_signal_between_two_commands_ends_table_1(tmp_path, finished):
    work = tmp_path / "leokit-work/paper"
    (work / "search/leo-5way-1shot").mkdir(parents=True)
    (work / "search/leo-5way-1shot/best.toml").touch()
    if finished:
        (work / "search/leo-5way-1shot/manifest.json").touch()
    calls = tmp_path / "calls"
    tool(tmp_path / "bin", "leokit", f'#!/usr/bin/env bash\necho "$@" >> {calls}\nkill -TERM $PPID\n')
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(REPOSITORY / "pipelines/table1.sh"), "features"]
    assert subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True).returncode == 130
    asked = calls.read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["meta-train"]
    assert ("--config" in asked[0]) == finished  # the options of a search that has not ended may yet change


def test_extractions_as_an_array(tmp_path):
    calls = tmp_path / "calls"
    tool(tmp_path / "bin", "leokit", f'#!/usr/bin/env bash\necho "$@" >> {calls}\n')
    (tmp_path / "list").write_text("# two\nimages --out a\n\nimages --out b --image-size 84\n")
    path = str(tmp_path / "bin")
    run_script(path, "slurm/extract-array.sh", "list", folder=tmp_path)
    assert calls.read_text() == "extract images --out a\nextract images --out b --image-size 84\n"
    run_script(path, "slurm/extract-array.sh", "list", folder=tmp_path, SLURM_ARRAY_TASK_ID="2")
    assert calls.read_text().endswith("84\nextract images --out b --image-size 84\n")


@pytest.mark.parametrize("script", ["search.sh", "extract.sh", "extract-array.sh", "train.sh"])
def test_what_was_stopped_is_queued_again_and_what_failed_is_not(tmp_path, script):
    (tmp_path / "list").write_text("images\n")
    for code in (130, 1):
        log = tmp_path / f"log-{code}"
        tool(tmp_path / "bin", "leokit", f"#!/usr/bin/env bash\nexit {code}\n")
        for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL)):
            tool(tmp_path / "bin", name, text)
        done = subprocess.run(
            ["bash", str(REPOSITORY / "pipelines/slurm" / script), "list"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "SLURM_JOB_ID": "7",
                "SLURM_JOB_NODELIST": "here",
                "SLURM_LOG": str(log),
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        requeued = log.exists() and "scontrol requeue 7" in log.read_text()
        assert requeued == (code == 130)
        header = (REPOSITORY / "pipelines/slurm" / script).read_text()
        assert "#SBATCH --requeue" in header and "#SBATCH --signal=TERM@" in header
