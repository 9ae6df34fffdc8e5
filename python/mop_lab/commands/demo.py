"""mop-t5 demo."""

from mop_lab.demo.demo import DemoConfig, run_demo


def demo(config: DemoConfig) -> None:
    """Train a small T5 from nothing, freeze it, tune it by each method, and compare: a few minutes on two CPU cores.

    The corpus is a synthetic one unless --corpus names another. The backbone is trained on half of the training pairs
    without the scenario, the methods on the other half.

      mop-t5 demo
      mop-t5 demo --corpus DIR --output runs/mine --vocab_size 4000 --max_source 256
      mop-t5 demo --short --output runs/short
    """
    run_demo(config)
