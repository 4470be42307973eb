"""A small tokenizer trained on one's own text, so that its common words are one token each.

Byte-level BPE, as in GPT-2: any text can be written, and none is unknown. A space is put before
the text's first word, and so a word is one token wherever it stands.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

BEGINNING, END = "<s>", "</s>"
N_BYTES = 256


def train_tokenizer(texts: Iterable[str], d_vocab: int = 2048) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with `d_vocab` tokens, <s> (put first) and </s> among them.

    The same texts in the same order give the same tokenizer.

    Raises:
        ValueError: a vocabulary that does not hold every byte, or texts that are too few to fill
            it.
    """
    special = [BEGINNING, END]
    if d_vocab < N_BYTES + len(special):
        raise ValueError(
            f"`d_vocab` is {d_vocab}, but the bytes and {' '.join(special)} alone are "
            f"{N_BYTES + len(special)} tokens: give more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Strip(content=" ", left=1, right=0)]
    )
    trainer = BpeTrainer(
        vocab_size=d_vocab,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < d_vocab:
        raise ValueError(
            f"the texts hold pairs for {tokenizer.get_vocab_size()} tokens, fewer than `d_vocab` "
            f"= {d_vocab}: give more text, or ask for fewer tokens"
        )
    start = tokenizer.token_to_id(BEGINNING)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGINNING} $A", special_tokens=[(BEGINNING, start)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGINNING, eos_token=END, model_max_length=10**9
    )
