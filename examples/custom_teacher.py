"""A teacher of one's own is one method: it reads a view and gives a digit."""

from ovd_gym import Score, Teacher, View


class ShowYourWork(Teacher):
    """Rewards a student for calling a tool before it answers."""

    def score(self, view: View) -> Score:
        """Judge one step, or the whole attempt."""
        called = [step.tool for step in view.steps if step.tool not in (None, "answer")]
        return Score.of(9 if called else 1, rationale=f"tools called: {called}")


if __name__ == "__main__":
    from ovd_gym import train

    settings = {"steps": 2, "rollout.tasks_per_step": 2, "rollout.group_size": 4, "evaluation": None}
    print(train("examples/demo.yaml", teacher=ShowYourWork(), settings=settings).path)
