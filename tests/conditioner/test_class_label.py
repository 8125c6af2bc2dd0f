"""Labels become rows of a table; dropped ones become its last row."""

import pytest
import torch

from ldm_lightning.conditioner.class_label import ClassConditioner
from ldm_lightning.conditioner.none import NoConditioner
from ldm_lightning.nn.condition import Condition


def batch(*labels):
    return {"label": torch.tensor(labels)}


def test_a_vector_is_the_label_s_row():
    conditioner = ClassConditioner(num_classes=3, width=8)
    condition = conditioner(batch(2, 0), drop=None)
    assert condition.context is None
    assert condition.concat is None
    torch.testing.assert_close(condition.vector, conditioner.embedding.weight[[2, 0]])


def test_a_context_is_one_token():
    conditioner = ClassConditioner(num_classes=3, width=8, kind="context")
    condition = conditioner(batch(1, 1), drop=None)
    assert condition.vector is None
    assert condition.context.shape == (2, 1, 8)
    torch.testing.assert_close(condition.context[:, 0], conditioner.embedding.weight[[1, 1]])


@pytest.mark.parametrize("kind", ["vector", "context"])
def test_dropped_rows_equal_the_null_condition(kind):
    conditioner = ClassConditioner(num_classes=3, width=8, kind=kind)
    drop = torch.tensor([True, False])
    condition = getattr(conditioner(batch(0, 0), drop=drop), kind)
    null = getattr(conditioner.null(1, torch.device("cpu")), kind)
    torch.testing.assert_close(condition[0], null[0])
    torch.testing.assert_close(condition[0].flatten(), conditioner.embedding.weight[3])
    assert not torch.equal(condition[1], condition[0])


def test_both_kinds_of_rows_learn():
    conditioner = ClassConditioner(num_classes=2, width=4)
    condition = conditioner(batch(1, 0), drop=torch.tensor([False, True]))
    condition.vector.sum().backward()
    assert conditioner.embedding.weight.grad.sum(1).tolist() == [0.0, 4.0, 4.0]


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named(label):
    conditioner = ClassConditioner(num_classes=3, width=4)
    with pytest.raises(ValueError, match=rf"Label {label}\b.*\b0 to 2\b"):
        conditioner(batch(0, label), drop=None)


def test_where_labels_are_not_looked_at_one_too_many_is_still_no_null_label(monkeypatch):
    # as on a GPU, where the embedding then stops with an assertion instead of an IndexError
    conditioner = ClassConditioner(num_classes=3, width=4)
    monkeypatch.setattr(conditioner, "_check", lambda labels: None)
    with pytest.raises(IndexError):
        conditioner(batch(0, 3), drop=None)


def test_embeddings_start_with_the_given_deviation():
    for given in (1.0, 0.02):
        table = ClassConditioner(num_classes=99, width=64, initial_std=given).embedding.weight
        assert table.std().item() == pytest.approx(given, rel=0.1)


def test_images_without_labels_are_refused():
    with pytest.raises(ValueError, match="conditioner=class_label.*conditioner=none"):
        ClassConditioner(num_classes=3, width=4)({"image": torch.zeros(1)}, drop=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, r"num_classes.*\b0\b"),
        ({"width": 0}, r"width.*\b0\b"),
        ({"kind": "text"}, "kind.*vector.*'text'"),
        ({"dropout": 1.5}, r"dropout.*\[0, 1\].*\b1\.5\b"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ClassConditioner(**({"num_classes": 2, "width": 4} | changes))


def test_no_condition_is_empty_and_has_no_parameters():
    conditioner = NoConditioner()
    assert conditioner({}, drop=None) == Condition()
    assert conditioner.null(2, torch.device("cpu")) == Condition()
    assert not list(conditioner.parameters())
    assert conditioner.num_classes is None
