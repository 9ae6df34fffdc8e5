"""Settings of the demo."""

from dataclasses import dataclass, field, replace

from mop_t5.checks import check_int
from mop_t5.training import TrainingConfig
from transformers import T5Config

_HEAD = 16  # many narrow heads learn to copy values in fewer steps than four wide heads
_SMALLEST = {"copying_steps": 0, "copies": 0, "backbone_steps": 1, "tuning_steps": 1, "batch_size": 1, "layers": 1}


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo. The defaults are for the synthetic corpus and two CPU cores.

    Args:
        output: folder for everything that is written.
        overwrite: empty the output folder first if it holds an earlier demo.
        dry_run: only print what would be done.
        corpus: a corpus folder to use instead of the synthetic corpus.
        short: few steps on few rows. This shows that everything runs, not what the methods can do.
        methods: the methods to tune, in the order of the table's columns.
        options: fields of the methods, such as {"mop": {"prefix_length": 20}}.
        copying_steps: steps in which the backbone first learns to repeat single turns of its dialogues. 0: none.
        copies: copies of each pair that the backbone is trained on, beside the pair itself. A copy has other values in
            place of the values that dialogue and summary share. 0: none.
        backbone_steps: steps in which the backbone is trained.
        backbone_rate: highest learning rate of these steps.
        tuning_steps: steps in which each method is tuned.
        tuning_rate: highest learning rate of these steps.
        batch_size: rows per step, everywhere.
        d_model: width of the backbone.
        layers: encoder layers of the backbone, and as many decoder layers.
        vocab_size: size of the vocabulary that is learnt from the training split.
        max_source: dialogue tokens kept.
        max_target: summary tokens kept and generated.
        seed: seed of everything that is random.
    """

    output: str = "runs/demo"
    overwrite: bool = False
    dry_run: bool = False
    corpus: str | None = None
    short: bool = False
    methods: list[str] = field(default_factory=lambda: ["mop", "prefix_tuning"])
    options: dict[str, dict] = field(
        default_factory=lambda: {
            "mop": {"prefix_length": 16, "d_mid": 64, "terms_down": 8, "terms_up": 8},
            "prefix_tuning": {"prefix_length": 16, "d_mid": 64},
        }
    )
    copying_steps: int = 0
    copies: int = 0
    backbone_steps: int = 1500
    backbone_rate: float = 2e-3
    tuning_steps: int = 300
    tuning_rate: float = 5e-3
    batch_size: int = 16
    d_model: int = 128
    layers: int = 2
    vocab_size: int = 1100
    max_source: int = 128
    max_target: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in _SMALLEST.items():
            check_int(name, getattr(self, name), minimum)
        if self.d_model < _HEAD or self.d_model % _HEAD:
            raise ValueError(f"d_model must be a multiple of {_HEAD}, the width of a head; got {self.d_model}.")

    def shortened(self) -> "DemoConfig":
        """Return the settings of the short form if `short` is set, otherwise these settings."""
        if not self.short:
            return self
        copying = min(10, self.copying_steps)
        return replace(self, copying_steps=copying, backbone_steps=30, tuning_steps=10, d_model=64)

    def backbone(self, vocab_size: int) -> T5Config:
        """Return the shape of the backbone. The ids of special tokens are T5's, as `train_tokenizer` has them."""
        return T5Config(
            vocab_size=vocab_size,
            d_model=self.d_model,
            d_ff=2 * self.d_model,
            d_kv=_HEAD,
            num_heads=self.d_model // _HEAD,
            num_layers=self.layers,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,  # few passes over the rows: the model learns too little, not too much
        )

    def training(self, steps: int, *, tunes: bool) -> TrainingConfig:
        """Return the settings of a training.

        Args:
            steps: Steps of the training.
            tunes: True if a method is tuned. Otherwise the whole backbone is trained.
        """
        return TrainingConfig(
            steps=steps,
            batch_size=self.batch_size,
            learning_rate=self.tuning_rate if tunes else self.backbone_rate,
            warmup_steps=min(100, steps // 10),
            beta2=0.98,
            temperature=2.0 if tunes else 1.0,
            batching="mixed",
            max_source=self.max_source,
            max_target=self.max_target,
            log_every=max(1, steps // 60),
            seed=self.seed,
        )
