from contextlib import suppress

from torch import nn

from naysay.modeling.modes import TrainingMode, eval_mode


class Counting(nn.Sequential):
    """Counts how often its mode was set."""

    times = 0

    def train(self, mode=True):
        self.times += 1
        return super().train(mode)


def all_training(model):
    return all(module.training for module in model.modules())


def test_a_layer_in_eval_mode_is_set_whatever_the_model_says():
    model = Counting(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    mode = TrainingMode()
    model[0][0].eval()
    assert model.training
    mode.set(model)
    assert all_training(model)
    with eval_mode(model):
        pass
    model[1].eval()
    mode.set(model)
    assert all_training(model)


def test_nothing_is_set_where_nothing_is_to_be_set():
    model = Counting(nn.Linear(2, 2))
    mode = TrainingMode()
    for _ in range(3):
        mode.set(model)
    assert model.times == 0


def test_another_model_is_looked_at_anew():
    mode = TrainingMode()
    mode.set(nn.Linear(2, 2))
    other = nn.Sequential(nn.Linear(2, 2)).eval()
    mode.set(other)
    assert all_training(other)


def test_the_former_mode_comes_back_after_an_error():
    model = nn.Linear(2, 2)
    with suppress(ZeroDivisionError), eval_mode(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training
