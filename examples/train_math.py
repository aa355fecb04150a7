"""Two training steps of the demo's student, from Python instead of the command line."""

from ovd_gym import train

run = train(
    "examples/demo.yaml",
    settings={"steps": 2, "rollout.tasks_per_step": 2, "rollout.group_size": 4, "evaluation": None},
)
print(run.path, *run.outputs, sep="\n")
