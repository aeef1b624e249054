"""The fast core and the obvious twin give the numbers of DeepMind's code when fed its draws."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from leokit.leo import Draws, Method, Parameters, Penalties, adapt, clip_gradients, meta_loss, predict, reference

VECTORS = Path(__file__).parent / "vectors"
NAMES = {
    "encoder": "encoder/linear/w",
    "relation_1": "relation_network/linear_0/w",
    "relation_2": "relation_network/linear_1/w",
    "relation_3": "relation_network/linear_2/w",
    "decoder": "decoder/linear/w",
    "inner_lr": "leo_inner/lr",
    "finetuning_lr": "finetuning/lr",
}
VALUE_TOLERANCE = 1e-7
GRADIENT_TOLERANCE = 1e-6  # of the largest entry of that gradient


def pytest_generate_tests(metafunc):
    if "vector" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--reference-dir")
        paths = sorted(VECTORS.glob("*.npz")) + (sorted(folder.glob("*.npz")) if folder else [])
        if folder and not any(path.parent == folder for path in paths):
            raise pytest.UsageError(f"--reference-dir {folder} holds no *.npz")
        metafunc.parametrize("vector", paths, ids=lambda path: path.stem)


class Vector:
    """One file: the inputs as leokit takes them, the outputs as DeepMind's code gave them."""

    def __init__(self, path):
        with np.load(path) as data:
            self.data = {key: data[key] for key in data.files}
        self.config = json.loads(str(self.data["config"]))
        self.support, self.query = self.tensor("support"), self.tensor("query")
        self.parameters = Parameters(
            **{
                field: self.tensor(f"param/{name}").reshape(self.shape(field, name)).requires_grad_()
                for field, name in NAMES.items()
            }
        )
        self.penalties = Penalties(
            kl=self.config["kl_weight"],
            encoder=self.config["encoder_penalty_weight"],
            l2=self.config["l2_penalty_weight"],
            orthogonality=self.config["orthogonality_penalty_weight"],
        )
        self.steps = {
            "inner_steps": self.config["inner_unroll_length"],
            "finetuning_steps": self.config["finetuning_unroll_length"],
        }

    def tensor(self, key):
        return torch.from_numpy(self.data[key].astype(np.float64))

    def shape(self, field, name):
        shape = self.data[f"param/{name}"].shape
        return (-1,) if field.endswith("_lr") else shape

    def numbered(self, prefix):
        return [self.tensor(key) for key in sorted(self.data) if key.startswith(f"{prefix}/")]

    def draws(self):
        noise, masks = self.numbered("noise"), self.numbered("mask")
        if not noise:
            return None
        codes, *weights = noise
        encoder, *support, query = masks if masks else (None, None)
        # The last support mask belongs to a loss that is only reported: no gradient is taken there.
        stacked = torch.stack(support[:-1]) if masks and len(support) > 1 else None
        return Draws(codes, torch.stack(weights), encoder, stacked, query)


def assert_gradients(vector, gradients, prefix):
    for (field, name), gradient in zip(NAMES.items(), gradients, strict=True):
        expected = vector.tensor(f"{prefix}/{name}").reshape(gradient.shape)
        scale = expected.abs().max().item()
        error = (gradient - expected).abs().max().item()
        assert error <= GRADIENT_TOLERANCE * max(scale, 1e-12), f"{field}: {error} of {scale}"


def test_fast_core_agrees_with_deepmind(vector):
    vector = Vector(vector)
    method = Method(**vector.steps)
    loss = meta_loss(vector.parameters, vector.support, vector.query, vector.penalties, method, vector.draws())
    assert loss.total.item() == pytest.approx(float(vector.data["loss"]), abs=VALUE_TOLERANCE)
    assert loss.accuracy.item() == pytest.approx(float(vector.data["accuracy"]), abs=VALUE_TOLERANCE)
    gradients = torch.autograd.grad(loss.total, vector.parameters)
    assert_gradients(vector, gradients, "grad")
    assert_gradients(vector, clip_gradients(gradients, value=0.1, norm=0.1), "clipped")


def test_intermediate_values_agree_with_deepmind(vector):
    vector = Vector(vector)
    if "latents" not in vector.data:
        pytest.skip("intermediate values are recorded for evaluation only")
    adapted = adapt(vector.parameters, vector.support, Method(**vector.steps))
    shots = vector.config["shots"]

    def per_shot(value):
        return value.unsqueeze(-2).expand(-1, shots, -1)

    logits = predict(adapted.weights, vector.support)
    labels = torch.arange(len(vector.support))[:, None].expand(-1, shots)
    support_loss = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
    values = {
        "latents": per_shot(adapted.codes.squeeze(-2)),
        "adapted_weights": per_shot(adapted.adapted_weights),
        "finetuned_weights": per_shot(adapted.weights),
        "support_loss": support_loss,
        "query_logits": predict(adapted.weights, vector.query),
    }
    for key, value in values.items():
        torch.testing.assert_close(value, vector.tensor(key), atol=VALUE_TOLERANCE, rtol=0, msg=key)


def test_obvious_twin_agrees_with_deepmind(vector):
    vector = Vector(vector)
    episode = reference.episode(
        vector.parameters, vector.support, vector.query, vector.penalties, **vector.steps, draws=vector.draws()
    )
    assert episode.loss.item() == pytest.approx(float(vector.data["loss"]), abs=VALUE_TOLERANCE)
    assert episode.accuracy.item() == pytest.approx(float(vector.data["accuracy"]), abs=VALUE_TOLERANCE)
    assert_gradients(vector, torch.autograd.grad(episode.loss, vector.parameters), "grad")
