"""The whole job, stage by stage: recipe, plan, runner, report."""
