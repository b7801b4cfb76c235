"""Reused memory: the same again, whatever was asked for before."""

import threading

import torch

from naysay.modeling.scratch import Scratch


def test_the_same_memory_comes_again_and_grows():
    scratch = Scratch()
    small = scratch.like(torch.zeros(2, 3), 0)
    assert small.shape == (2, 3)
    assert scratch.like(torch.zeros(3, 2), 0).data_ptr() == small.data_ptr()
    large = scratch.like(torch.zeros(20, 30), 0)
    assert large.shape == (20, 30)
    assert scratch.like(torch.zeros(2, 3), 0).data_ptr() == large.data_ptr()


def test_numbers_types_and_threads_have_memory_of_their_own():
    scratch = Scratch()
    like = torch.zeros(4)
    places = {
        scratch.like(like, 0).data_ptr(),
        scratch.like(like, 1).data_ptr(),
        scratch.like(like.double(), 0).data_ptr(),
    }
    thread = threading.Thread(target=lambda: places.add(scratch.like(like, 0).data_ptr()))
    thread.start()
    thread.join()
    assert len(places) == 4


def test_it_may_be_asked_for_in_inference_mode_first():
    """As a probe of the policy before training does."""
    scratch = Scratch()
    with torch.inference_mode():
        first = scratch.like(torch.ones(8), 0).data_ptr()
    found = torch.exp(torch.ones(8), out=scratch.like(torch.ones(8), 0)).mul_(2)
    assert found.data_ptr() == first
    assert torch.equal(found, torch.ones(8).exp() * 2)
