"""Make a backbone folder of a published T5-pegasus checkpoint: `mop-t5 convert`."""

from mop_t5.backbone.pegasus import convert_checkpoint


def convert(checkpoint: str, output: str, vocabulary: str | None = None, specials: str = "cls_sep") -> None:
    """Make a backbone folder of a published T5-pegasus checkpoint, with its tokenizer.

      mop-t5 convert --checkpoint chinese_t5_pegasus_base --output models/t5-pegasus-base

    Args:
        checkpoint: folder with config.json, vocab.txt and the weights: pytorch_model.bin, or TensorFlow's model.ckpt
            (which needs tensorflow to be installed).
        output: folder for the backbone. It must be new or empty.
        vocabulary: vocab.txt, if it is not in the checkpoint's folder.
        specials: special tokens around a text. "cls_sep", as in the training of the published weights: [CLS] x [SEP],
            and the decoder starts from [CLS]. "sep": no [CLS] before a source. "eos": x </s>, and the decoder starts
            from padding.
    """
    made = convert_checkpoint(checkpoint, output, vocabulary, specials)
    print(
        f"Written to {output}: {made.parameters:,} parameters from the {made.layout} layout, a vocabulary of "
        f"{made.vocabulary:,} tokens. Left out: {', '.join(made.left_out) or 'nothing'}."
    )
