"""Padding on the left is refused where it would be attended to, and exact with a mask."""

import pytest
import torch
from models import hosts
from torch import Tensor

import tl_bilinear as tlb

TEXT = "Tom had a dog."
BOS, EOS = 1, 2


@pytest.fixture(scope="module", params=hosts())
def story(request):
    return tlb.load("stories-5l", host=request.param)


@pytest.fixture
def pad(story, monkeypatch):
    """Set the tokenizer's pad token."""

    def choose(token: int) -> int:
        monkeypatch.setattr(type(story.tokenizer), "pad_token_id", token, raising=False)
        assert story.tokenizer.pad_token_id == token
        return token

    return choose


def padded(story, pad: int, count: int = 3) -> tuple[Tensor, Tensor]:
    """A batch of the text, padded on the left, and of a longer one; and its mask."""
    text = story.to_tokens(TEXT)[0]
    longer = torch.cat([text, text[1 : 1 + count]])
    row = torch.cat([torch.full((count,), pad), text])
    mask = torch.ones(2, len(row), dtype=torch.long)
    mask[0, :count] = 0
    return torch.stack([row, longer]), mask


@pytest.mark.parametrize("token", [0, BOS, EOS])
@pytest.mark.parametrize("count", [1, 3])
def test_every_entry_refuses_it(story, pad, token, count):
    tokens, _ = padded(story, pad(token), count)
    host = tlb.get_host(story)
    calls = {
        "read": lambda: host.read(tokens, ()),
        "read_streams": lambda: host.read_streams(tokens, [0]),
        "attribute_modes": lambda: tlb.attribute_modes(story, tokens, " his"),
        "one row": lambda: tlb.attribute_modes(story, tokens[0], " his"),
        "attribute_components": lambda: tlb.attribute_components(story, tokens, " his"),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"rows \[0\] begin with padding"):
            call()


@pytest.mark.parametrize("token", [0, BOS, EOS])
def test_what_is_no_padding_is_let_through(story, pad, token):
    """A leading BOS is the text's own, even where BOS is the pad token; so is one EOS."""
    pad(token)
    host = tlb.get_host(story)
    tokens = story.to_tokens(TEXT)
    host.read(tokens, ())
    host.read_streams(tokens, [0])
    tlb.attribute_modes(story, tokens, " his")
    tlb.attribute_modes(story, TEXT, " his")
    right = torch.cat([tokens, torch.full((1, 2), token)], 1)
    host.read(right, ())
    if token == EOS:
        host.read(torch.cat([torch.tensor([[EOS]]), tokens[:, 1:]], 1), ())


@pytest.mark.parametrize("token", [0, EOS])
def test_with_a_mask_it_is_exact(story, pad, token):
    tokens, mask = padded(story, pad(token))
    host = tlb.get_host(story)
    site = host.mlp_input_site(3)
    logits, cache = host.read(tokens, [site], attention_mask=mask)
    alone, expected = host.read(story.to_tokens(TEXT), [site])
    torch.testing.assert_close(logits[0, 3:], alone[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(cache[site][0, 3:], expected[site][0], rtol=0, atol=1e-4)
    with torch.no_grad():
        wrong = story(tokens)
    assert (wrong[0, 3:] - alone[0]).abs().max() > 0.1, "padding no longer matters: see the guard"


def test_a_model_without_a_tokenizer_is_not_guarded(story, monkeypatch):
    """Nothing says what padding is."""
    host = tlb.get_host(story)
    tokens, _ = padded(story, 0)
    monkeypatch.setattr(type(story.tokenizer), "pad_token_id", None, raising=False)
    host.read(tokens, ())
