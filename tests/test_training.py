import pytest
import torch
from accelerate import Accelerator
from torch import nn

from sdkit.tiny.fitting import Recipe, fit

RECIPE = Recipe(steps=12, batch=4, learning_rate=0.05, warmup=2)


def learn(out, recipe=RECIPE, stop_at=None):
    """Fit y = 2x with a noisy loss; `stop_at` breaks the run as a power cut would."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)

    def loss_of(step):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(recipe.batch, 1)
        return (model(x) - 2 * x + 0.1 * torch.randn_like(x)).square().mean()

    fit("line", model, loss_of, recipe, out, Accelerator(cpu=True), lambda: {"slope": model.weight.item()}, every=4)
    return model


def test_a_run_that_was_interrupted_ends_where_an_unbroken_one_does(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    unbroken = learn(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "b", stop_at=10)
    resumed = learn(tmp_path / "b")
    assert torch.equal(resumed.weight, unbroken.weight)
    assert torch.equal(resumed.bias, unbroken.bias)
    assert (tmp_path / "a" / "line.csv").read_text() == (tmp_path / "b" / "line.csv").read_text()


def test_it_learns_and_logs(tmp_path):
    model = learn(tmp_path, Recipe(steps=400, batch=16, learning_rate=0.05, warmup=2, ema=0.9))
    assert abs(model.weight.item() - 2) < 0.05
    header, *rows = (tmp_path / "line.csv").read_text().splitlines()
    assert header == "step,loss,slope"
    assert len(rows) == 100


def test_the_learning_rate_rises_stays_and_falls():
    recipe = Recipe(steps=100, batch=1, learning_rate=1.0, warmup=10, decay=0.3)
    assert [round(recipe.rate(step), 3) for step in (0, 4, 9, 50, 70, 85, 99)] == [0.1, 0.5, 1, 1, 1, 0.5, 0.033]
