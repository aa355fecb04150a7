"""A fictional world, made from a seed: pages to search and read, and questions that memory cannot answer."""

from ovd_gym.envs.web_search.world.schema import RELATIONS, Entity, Fact
from ovd_gym.envs.web_search.world.world import World

__all__ = ["RELATIONS", "Entity", "Fact", "World"]
