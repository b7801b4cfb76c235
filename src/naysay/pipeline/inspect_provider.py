"""The provider `naysay` of Inspect: `naysay/tuned` and `naysay/base` are the policies of a run.

Registered under the entry point `inspect_ai`, so that Inspect's own command knows it:
`inspect eval task.py --model naysay/tuned -M run=runs/mine`.
"""

from typing import Any

from inspect_ai.model import GenerateConfig, ModelAPI, modelapi  # pyright: ignore[reportMissingImports]

from naysay.errors import ConfigError
from naysay.pipeline.trained_run import load_policy, open_run

PROVIDER = "naysay"


@modelapi(PROVIDER)
def naysay() -> Any:
    """What makes the model; called by Inspect when one is asked for, so that nothing heavy is imported before."""
    return policy_model


def policy_model(
    model_name: str,
    base_url: str | None = None,
    api_key: str | None = None,
    config: GenerateConfig | None = None,
    *,
    run: str = "",
) -> ModelAPI:
    """Load a policy of a run.

    Args:
        model_name: `base` or `tuned`.
        base_url, api_key: not used; Inspect gives them to every provider.
        run: the run directory (`-M run=DIR`).

    Raises:
        ConfigError: another name, or no run.
        InputNotFoundError, RunDirectoryError, ModelError: there is no trained run, or the policy cannot be loaded.
    """
    if model_name not in ("base", "tuned"):
        raise ConfigError(f"model naysay/{model_name}: expected naysay/tuned or naysay/base")
    if not run:
        raise ConfigError(f"model naysay/{model_name}: expected the directory of a run; add -M run=DIR")
    found, directory = open_run(run, "train")
    from naysay.evaluation.inspect_model import InspectedPolicy, PolicyAPI
    from naysay.generation.hf import HFSampler
    from naysay.generation.sampler import SamplingSettings
    from naysay.modeling.digests import policy_digest

    model, tokenizer = load_policy(found, directory, model_name)
    drawn = found.evaluation
    policy = InspectedPolicy(
        sampler=HFSampler(model, tokenizer, policy_digest(model, tokenizer)),
        tokenizer=tokenizer,
        settings=SamplingSettings(drawn.temperature, drawn.top_k, drawn.top_p, drawn.max_new_tokens),
        seed=found.seed,
    )
    return PolicyAPI(policy, model_name, config or GenerateConfig(), base_url=base_url, api_key=api_key)
