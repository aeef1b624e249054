"""`leokit verify`."""

from dataclasses import asdict

from leokit.cli.render import Output, TableData
from leokit.config import VerifyConfig
from leokit.errors import ArtifactError


def command(config: VerifyConfig, output: Output) -> None:
    """Check artifacts: every file by its hash, what is in them, and whether what they were made from is unchanged.

    Of features every row is read: columns, order, counts, finite values, no image twice. Everything that is wrong is
    listed, a line each, and the exit code is 4.

    Example: leokit verify leokit-work/features leokit-work/runs/*
    """
    from leokit.stages import verify

    with output.progress("Verifying") as progress:
        verdicts = verify.run(config, on_progress=progress)
    rows = [
        [
            f"{len(verdict.faults)} wrong" if verdict.faults else "right",
            verdict.schema or "?",
            (verdict.id or "")[:12],
            str(verdict.files),
            str(verdict.folder),
        ]
        for verdict in verdicts
    ]
    table = TableData("Verified", ["is", "kind", "id", "files", "artifact"], rows, numeric=False)
    artifacts = [asdict(verdict) | {"folder": str(verdict.folder), "ok": not verdict.faults} for verdict in verdicts]
    output.result({"artifacts": artifacts}, [table])
    if not output.json:  # as they are: a line each, however narrow the terminal
        for verdict in verdicts:
            for text in (*verdict.faults, *(f"note: {note}" for note in verdict.notes)):
                output.line(text)
    wrong = [verdict for verdict in verdicts if verdict.faults]
    if wrong:
        faults = sum(len(verdict.faults) for verdict in wrong)
        raise ArtifactError(f"Faults found: {faults}, in {len(wrong)} of {len(verdicts)} artifacts.")
