"""The settings of a miniature zoo by themselves: their defaults."""

import dataclasses

from configs import zoo_miniature
from probex_jax.zoo.miniature import Settings


def test_the_defaults_are_those_of_the_config():
    assert dataclasses.asdict(Settings()) == zoo_miniature.get_config().to_dict()
