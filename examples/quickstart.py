"""The quickstart through the Python package: demo images → features → meta-train → test, for 1 and 5 shots.

python examples/quickstart.py [WORK]
"""

import sys
from pathlib import Path

from leokit import evaluate, extract, meta_train
from leokit.config import DemoConfig
from leokit.evaluations import seen_in_words
from leokit.stages import demo


def main(
    work: Path, *, per_class: int = 40, size: int = 84, steps: int = 1000, episodes: int = 2000
) -> dict[int, dict[str, float]]:
    """Accuracy by number of shots and method: exact LEO, the preset own-images, and the class means."""
    images = demo.run(DemoConfig(out=work / "images", per_class=per_class, size=size)).folder
    extract(images, image_size=size, work=work)
    accuracies = {}
    for shots in (1, 5):
        accuracies[shots] = {}
        for preset in (None, "own-images"):  # None: the published preset nearest to the shots
            run = meta_train(preset, shots=shots, steps=steps, val_every=250, val_episodes=500, work=work)
            tested = evaluate(run, episodes=episodes, work=work)
            accuracies[shots] |= {name: entry["mean"] for name, entry in tested.summary["accuracy"].items()}
        print(f"{shots}-shot:", ", ".join(f"{name} {mean:.1%}" for name, mean in accuracies[shots].items()))
        print(seen_in_words(tested.summary))
    return accuracies


if __name__ == "__main__":  # worker processes import this file
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "leokit-work/example"))
