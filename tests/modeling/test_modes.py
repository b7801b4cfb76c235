from contextlib import suppress

from torch import nn

from naysay.modeling.modes import eval_mode, set_training


class Counting(nn.Sequential):
    """Counts how often its mode was set."""

    times = 0

    def train(self, mode=True):
        self.times += 1
        return super().train(mode)


def test_a_layer_in_eval_mode_is_set_whatever_the_model_says():
    model = Counting(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    model[0][0].eval()
    assert model.training
    set_training(model)
    assert all(module.training for module in model.modules())


def test_nothing_is_set_where_nothing_is_to_be_set():
    model = Counting(nn.Linear(2, 2))
    set_training(model)
    assert model.times == 0


def test_the_former_mode_comes_back_after_an_error():
    model = nn.Linear(2, 2)
    with suppress(ZeroDivisionError), eval_mode(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training
