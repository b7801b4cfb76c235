"""The whole method as a flat loop: no trainer, no cache, no shared prompt. `D2OTrainer` gives the same loss curve.

python examples/flat_loop.py        # a random tiny model, a few seconds
"""

import torch
import torch.nn.functional as F


def log_prob(model, prompt_ids, response_ids):
    """log π(response | prompt): the sum over response tokens, in nats."""
    logits = model(input_ids=torch.tensor([prompt_ids + response_ids])).logits[0, len(prompt_ids) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response_ids)[:, None]).sum()


def train(model, groups, order, *, alpha=0.1, beta=0.1, learning_rate=1e-3):
    """groups: (prompt ids, list of anchors' ids, list of negatives' ids). order: the groups of each step."""
    with torch.no_grad():  # both references are the initial policy: constants
        ref_anchors = [[log_prob(model, prompt, y) for y in anchors] for prompt, anchors, _ in groups]
        ref_negatives = [[log_prob(model, prompt, y) for y in negatives] for prompt, _, negatives in groups]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    losses = []
    for step in order:
        total, pairs = 0.0, 0
        for g in step:
            prompt, anchors, negatives = groups[g]
            ratios = [log_prob(model, prompt, y) - ref for y, ref in zip(anchors, ref_anchors[g], strict=True)]
            anchor_side = beta * sum(ratios) / len(ratios)  # β/K Σ log-ratios: divided by K once
            for y_l, ref in zip(negatives, ref_negatives[g], strict=True):
                margin = anchor_side - alpha * (log_prob(model, prompt, y_l) - ref)
                total, pairs = total - F.logsigmoid(margin), pairs + 1
        loss = total / pairs
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    policy = LlamaForCausalLM(config).eval()
    data = [([1, 5, 6], [[7, 8, 2], [9, 2], [7, 2]], [[10, 11, 2]]), ([1, 12], [[13, 2], [14, 15, 2]], [[16, 2], [17]])]
    curve = train(policy, data, order=[[0, 1]] * 10)
    print("loss:", " ".join(f"{loss:.4f}" for loss in curve))
