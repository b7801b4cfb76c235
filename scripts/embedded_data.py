"""How src/naysay/data was made: the model answers the prompts of this repo, each answer is read and labelled.

python scripts/embedded_data.py sample WORK     # WORK/candidates.jsonl: answers with their seeds
(read each, write WORK/*.labels: one line a prompt, its id and a letter an answer: r(ejected) a(cceptable) s(kip))
python scripts/embedded_data.py build WORK      # src/naysay/data/answers.jsonl
python scripts/embedded_data.py card            # the figures of src/naysay/data/CARD.md
"""

import argparse
from pathlib import Path

from naysay.artifacts.digests import digest_text
from naysay.artifacts.store import read_jsonl, write_jsonl
from naysay.config.anchors import AnchorsConfig
from naysay.config.model import ModelConfig
from naysay.generation.anchors import draw_anchors
from naysay.generation.hf import HFSampler
from naysay.modeling.loading import load_model, load_tokenizer
from naysay.records import Prompt

DATA = Path(__file__).parent.parent / "src" / "naysay" / "data"
MODEL = "SmolLM2-135M-Instruct"
SEED = 20261123
MAX_NEW_TOKENS = 48
HELDOUT_SHARE, DEV_SHARE = 0.48, 0.15
ANSWERS = {"risky": 8, "benign": 3, "lookalike": 4}


def sample(work: Path) -> None:
    """Own answers of the embedded model to every prompt, bare, with naysay's default sampling settings."""
    model, tokenizer = load_model(ModelConfig()), load_tokenizer(ModelConfig())
    sampler = HFSampler(model, tokenizer, "embedded:smollm2-135m")
    rows = list(read_jsonl(DATA / "prompts.jsonl"))
    candidates = []
    for kind, k in ANSWERS.items():
        chosen = {prompt_id(row["prompt"]): row for row in rows if row["kind"] == kind}
        prompts = [
            Prompt(pid, ({"role": "user", "content": row["prompt"]},), "prompts.jsonl", "train", kind)
            for pid, row in chosen.items()
        ]
        config = AnchorsConfig(k=k, max_new_tokens=MAX_NEW_TOKENS, instructions=("",))
        anchors, _ = draw_anchors(
            sampler,
            tokenizer,
            prompts,
            config,
            run_seed=SEED,
            batch_size=96,
            parts=work / kind,
            max_length=1024,
        )
        for anchor in anchors:
            row = chosen[anchor.prompt_id]
            candidates.append(
                {
                    "answer_id": anchor.anchor_id,
                    **row,
                    "answer": anchor.text,
                    "finish": anchor.finish,
                    "tokens": len(anchor.token_ids),
                    "seed": anchor.seed,
                }
            )
    write_jsonl(work / "candidates.jsonl", candidates)


def prompt_id(prompt: str) -> str:
    return f"p-{digest_text(prompt)[:16]}"


def build(work: Path) -> None:
    """Join labels and candidates, split the prompts, and write the answers that carry a label."""
    labels: dict[str, str] = {}
    for path in sorted(work.glob("*.labels")):
        labels.update(line.split() for line in path.read_text().splitlines() if line.strip())
    by_prompt: dict[str, list[dict]] = {}
    for row in read_jsonl(work / "candidates.jsonl"):
        by_prompt.setdefault(prompt_id(row["prompt"]), []).append(row)
    rows = []
    for pid, candidates in by_prompt.items():
        for letter, row in zip(labels[pid], candidates, strict=True):
            label = {"r": "rejected", "a": "acceptable"}.get(letter)
            if label and row["answer"].strip():
                rows.append({"prompt_id": pid, "label": label, "provenance": MODEL, **row})
    split = split_prompts(rows)
    columns = ("prompt", "answer", "label", "category", "kind", "split", "finish", "tokens", "seed", "provenance")
    finished = [{**row, "split": split[row["prompt_id"]]} for row in rows if row["prompt_id"] in split]
    write_jsonl(DATA / "answers.jsonl", ({name: row[name] for name in columns} for row in finished))


def split_prompts(rows: list[dict]) -> dict[str, str]:
    """Per category: of the prompts with both labels HELDOUT_SHARE go to held-out and DEV_SHARE to dev, by digest order;
    prompts with a rejected answer else train; benign ones stand apart."""
    split: dict[str, str] = {}
    labels: dict[str, set[str]] = {}
    category: dict[str, str] = {}
    for row in rows:
        labels.setdefault(row["prompt_id"], set()).add(row["label"])
        category[row["prompt_id"]] = row["category"] if row["kind"] == "risky" else ""
    for name in sorted(set(category.values())):
        members = sorted(pid for pid in category if category[pid] == name)
        if not name:
            split.update(dict.fromkeys(members, "benign"))
            continue
        both = [pid for pid in members if len(labels[pid]) == 2]
        heldout, dev = round(HELDOUT_SHARE * len(both)), round(DEV_SHARE * len(both))
        split.update({pid: "train" for pid in members if "rejected" in labels[pid]})
        split.update(dict.fromkeys(both[:heldout], "heldout"))
        split.update(dict.fromkeys(both[heldout : heldout + dev], "dev"))
    return split


def card() -> None:
    """Counts, lengths, and how well two classifiers that know nothing of meaning tell the labels apart."""
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    rows = list(read_jsonl(DATA / "answers.jsonl"))
    counts: dict[tuple[str, str], set] = {}
    for i, row in enumerate(rows):
        counts.setdefault((row["split"], row["label"]), set()).add((i, row["prompt"]))
    for (split, label), members in sorted(counts.items()):
        print(f"{split:8} {label:10} {len(members):4} answers of {len({prompt for _, prompt in members}):3} prompts")
    risky = [row for row in rows if row["kind"] == "risky"]
    both = {row["prompt"] for row in risky if row["label"] == "rejected"} & {
        row["prompt"] for row in risky if row["label"] == "acceptable"
    }
    heldout = {row["prompt"] for row in risky if row["split"] == "heldout"}
    print("held-out prompts with both labels:", len(heldout & both), "of", len(heldout))
    rejected = np.array([row["label"] == "rejected" for row in risky])
    tokens = np.array([row["tokens"] for row in risky], dtype=float)
    words = np.array([len(row["answer"].split()) for row in risky], dtype=float)
    for name, length in (("tokens", tokens), ("words", words)):
        print(f"mean {name}: rejected {length[rejected].mean():.2f}, acceptable {length[~rejected].mean():.2f}")
        print(f"AUC of {name} alone: {roc_auc_score(rejected, length):.3f}")
    groups = [row["prompt"] for row in risky]
    model = make_pipeline(CountVectorizer(min_df=2, binary=True), LogisticRegression(max_iter=2000, C=0.3))
    answers = [row["answer"] for row in risky]
    scores = cross_val_predict(model, answers, rejected, groups=groups, cv=GroupKFold(5), method="predict_proba")[:, 1]
    print(f"AUC of a bag of words (5 folds by prompt): {roc_auc_score(rejected, scores):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["sample", "build", "card"])
    parser.add_argument("work", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.step == "card":
        card()
    elif arguments.work is None:
        parser.error(f"{arguments.step} needs WORK")
    else:
        {"sample": sample, "build": build}[arguments.step](arguments.work)
