"""For tests of a layer that is computed as one function: a result to compare, and whether the function was used."""

import torch

IDS = torch.tensor([[5, 9, 11, 3, 8, 20], [31, 7, 6, 1, 4, 2]])


def outputs_and_gradients(model):
    """Logits of `IDS`, and the gradients by name of a function of them that no token leaves alone."""
    model.zero_grad()
    logits = model(input_ids=IDS).logits
    (logits.float().sin() * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def count_calls(monkeypatch, *functions):
    """A list that gets the autograd function at each of its calls."""
    seen = []

    def count(function, apply):
        def counted(*args):
            seen.append(function)
            return apply(*args)

        monkeypatch.setattr(function, "apply", counted)

    for function in functions:
        count(function, function.apply)
    return seen
