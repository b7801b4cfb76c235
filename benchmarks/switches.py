"""Switch off one of the measures that make a step fast, so that its part can be measured (`python -m benchmarks.run
--sections parts`). Only in a process of its own: nothing is switched on again."""

from collections.abc import Callable

from naysay.core import products
from naysay.modeling import branch_attention, forward


def _dense_mask() -> None:
    forward._candidates = lambda attention, window: iter(("full",))


def _gathered_keys() -> None:
    branch_attention._flash_covers = branch_attention._varlen_covers = lambda *args: False
    _parts_by_themselves()  # whose attention calls the kernels itself


def _head_computed_twice() -> None:
    forward._frozen_linear = lambda head, config: None


def _layers_of_the_libraries() -> None:
    forward._BINDERS = ()
    _parts_by_themselves()


def _parts_by_themselves() -> None:
    forward.bind_decoder_layers = lambda lm: None


def _other_product() -> None:
    products._ONEDNN = products.onednn_product() if products._ONEDNN is None else None


SWITCHES: dict[str, Callable[[], None]] = {
    "attention over allowed pairs (a dense mask)": _dense_mask,
    "flash kernels joined (keys gathered, masked)": _gathered_keys,
    "the head's gradient in its forward (logits twice)": _head_computed_twice,
    "decoder layers as two functions (LoRA layers, MLPs, norms, rotary embeddings as one each)": _parts_by_themselves,
    "any of these as one function (peft's and transformers')": _layers_of_the_libraries,
    "the product that suits the processor (the other of oneDNN's and MKL's)": _other_product,
}
"""What is switched off (and what takes its place) -> how."""
