"""mop-t5 demo."""

from mop_lab.demo.demo import DemoConfig, run_demo


def demo(config: DemoConfig) -> None:
    """Train a small T5 from scratch, freeze it, tune it by each method, and compare: a few minutes on two CPU cores.

    The default corpus is synthetic. The backbone is trained on one half of the training pairs, without the scenario.
    The methods are trained on the other half.

      mop-t5 demo
      mop-t5 demo --corpus DIR --output runs/mine --vocab_size 4000 --max_source 256
      mop-t5 demo --short --output runs/short

    Args:
        config: the settings.
    """
    run_demo(config)
