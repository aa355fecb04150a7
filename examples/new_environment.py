"""A new tool environment: a stock list that only a tool can see."""

import gymnasium as gym

from ovd_gym import Task, ToolEnv, ToolError, tool


class Warehouse(ToolEnv):
    """Typed methods are the tools; their signatures and docstrings are what the student is told."""

    stock = {"bolts": 120, "nuts": 80}

    @tool
    def count(self, item: str) -> int:
        """Count an item in stock."""
        if item not in self.stock:
            raise ToolError(f"no {item} here, only {', '.join(self.stock)}")
        return self.stock[item]

    def grade(self, task: Task, answer: str) -> float:
        """What the final answer is worth, from 0 to 1."""
        return float(answer == task.answers[0])


tasks = [Task(id="1", question="How many bolts are there?", answers=("120",))]
gym.register("Warehouse-v0", f"{__name__}:Warehouse", kwargs={"tasks": tasks})

env = gym.make("Warehouse-v0", action_format="line")
print(env.reset(seed=0)[0])
for action in ("count: screws", "count: bolts", "answer: 120"):
    observation, reward, terminated, truncated, info = env.step(action)
    print(f"{action!r} -> {observation!r}, reward {reward}")
