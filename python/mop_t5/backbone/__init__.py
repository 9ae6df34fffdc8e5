"""Load, build, describe and check frozen T5 backbones and their tokenizers."""
