import pytest
import torch

from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.checkpoints.checkpoint import load_checkpoint, load_strict, trained_weights
from ldm_lightning.runs.run_folder import RunFolder
from tests.callbacks.tiny_module import TinyModule, fit, make_trainer


class Recorded(TinyModule):
    """Keeps one weight as it was before the first update and after every update."""

    def on_train_start(self):
        self.history = [self.autoencoder.encoder.weight.detach().clone()]

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        if (batch_idx + 1) % self.accumulate == 0:
            self.history.append(self.autoencoder.encoder.weight.detach().clone())


def saved_average(tmp_path, module, ema, **options):
    folder = RunFolder.create(tmp_path)
    trainer = make_trainer([ema, Checkpointing(folder, monitor=None)], max_steps=7, **options)
    fit(trainer, module)
    return load_checkpoint(folder.checkpoints / "last.ckpt")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_average_is_the_closed_form_over_updates(tmp_path, accumulate):
    module = Recorded(accumulate=accumulate)
    checkpoint = saved_average(tmp_path, module, Ema(decay=0.8, warm_up=False))
    start, *updates = [weight.double() for weight in module.history]
    assert len(updates) == 7
    weights = [0.2 * 0.8 ** (7 - t) for t in range(1, 8)]
    expected = 0.8**7 * start + sum(w * value for w, value in zip(weights, updates, strict=True))
    torch.testing.assert_close(
        checkpoint["ema"]["encoder.weight"].double(), expected, rtol=1e-5, atol=1e-6
    )


def test_the_average_of_a_continued_run_goes_on_where_it_was(tmp_path):
    folder, weights = RunFolder.create(tmp_path), []
    last = folder.checkpoints / "last.ckpt"
    for max_steps in (3, 7):
        module, ema = Recorded(), Ema(decay=0.8, warm_up=False)
        trainer = make_trainer([ema, Checkpointing(folder, monitor=None)], max_steps=max_steps)
        fit(trainer, module, last if last.exists() else None)
        weights += module.history if not weights else module.history[1:]
    average = weights[0].double()
    for weight in weights[1:]:
        average = 0.8 * average + 0.2 * weight.double()
    assert len(weights) == 8
    assert ema.num_updates == 7
    found = load_checkpoint(last)["ema"]["encoder.weight"].double()
    torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-6)


def test_assigned_rows_are_taken_over_and_buffers_are_none_of_it(tmp_path):
    module = Recorded()
    rows = torch.tensor([True, False])
    module.take_assigned = lambda: (
        {"encoder.weight": rows, "brightness": torch.tensor([True])}
        if module.global_step == 3
        else {}
    )
    checkpoint = saved_average(tmp_path, module, Ema(decay=0.8, warm_up=False))
    average = module.history[0].double()
    for t, weight in enumerate(module.history[1:], start=1):
        average = 0.8 * average + 0.2 * weight.double()
        if t == 3:
            average[0] = weight[0].double()
    found = checkpoint["ema"]["encoder.weight"].double()
    torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-6)


def test_warm_up_follows_its_formula(tmp_path):
    module = Recorded()
    checkpoint = saved_average(tmp_path, module, Ema(decay=0.5))
    average = module.history[0].double()
    for t, weight in enumerate(module.history[1:], start=1):
        decay = min(0.5, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * weight.double()
    torch.testing.assert_close(
        checkpoint["ema"]["encoder.weight"].double(), average, rtol=1e-5, atol=1e-6
    )


def test_without_decay_the_average_is_the_network(tmp_path):
    checkpoint = saved_average(tmp_path, TinyModule(), Ema(decay=0.0))
    for name, value in trained_weights(checkpoint, "raw", path="last.ckpt").tensors.items():
        assert torch.equal(checkpoint["ema"][name], value)


def test_validation_sees_the_average_and_training_the_raw_weights(tmp_path):
    averaged, plain = TinyModule(), TinyModule()
    checkpoint = saved_average(tmp_path, averaged, Ema(decay=0.9), val_check_interval=7)
    fit(make_trainer([], max_steps=7, enable_checkpointing=False), plain)
    assert torch.equal(averaged.validated_weights[0], checkpoint["ema"]["encoder.weight"])
    raw = plain.autoencoder.state_dict()
    for name, value in averaged.autoencoder.state_dict().items():
        assert torch.equal(value, raw[name]), name
    assert not torch.equal(checkpoint["ema"]["encoder.weight"], raw["encoder.weight"])


def test_raw_weights_are_given_back_inside_a_validation():
    ema, module = Ema(decay=0.9), TinyModule()
    seen = []

    def look(module, batch_idx):
        with ema.raw_weights():
            seen.append(module.autoencoder.encoder.weight.detach().clone())

    module.on_validation_batch = look
    fit(make_trainer([ema], max_steps=5, enable_checkpointing=False), module)
    assert torch.equal(seen[0], module.autoencoder.encoder.weight)
    assert torch.equal(module.validated_weights[0], module.validated_weights[1])
    assert not torch.equal(seen[0], module.validated_weights[0])


def test_an_exception_in_validation_restores_the_raw_weights():
    ema, module = Ema(decay=0.9), Recorded()

    def fail(module, batch_idx):
        raise RuntimeError("broken validation")

    module.on_validation_batch = fail
    trainer = make_trainer([ema], enable_checkpointing=False)
    with pytest.raises(RuntimeError, match="broken validation"):
        fit(trainer, module)
    assert not torch.equal(module.validated_weights[0], module.history[-1])
    assert torch.equal(module.autoencoder.encoder.weight, module.history[-1])


def test_stored_average_is_the_autoencoder_alone_and_loads_by_itself(tmp_path):
    module = TinyModule()
    checkpoint = saved_average(tmp_path, module, Ema(decay=0.9))
    weights = trained_weights(checkpoint, path="last.ckpt")
    assert weights.kind == "ema"
    fresh = TinyModule().autoencoder
    load_strict(fresh, weights.tensors, "last.ckpt")
    assert torch.equal(fresh.calls, module.autoencoder.calls)
    assert torch.equal(fresh.brightness, module.autoencoder.brightness)


def test_a_run_continued_without_a_stored_average_begins_one_and_says_so(tmp_path, caplog):
    folder = RunFolder.create(tmp_path)
    fit(make_trainer([Checkpointing(folder, monitor=None)], max_steps=3), TinyModule())
    ema = Ema(decay=0.9)
    last = folder.checkpoints / "last.ckpt"
    fit(make_trainer([ema, Checkpointing(folder, monitor=None)], max_steps=4), TinyModule(), last)
    assert "average" in caplog.text
    assert ema.num_updates == 1


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_refuses_a_decay_outside_its_range(decay):
    with pytest.raises(ValueError, match=rf"decay.*\[0, 1\).*{decay}"):
        Ema(decay=decay)
