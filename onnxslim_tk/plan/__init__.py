"""What is to be done to a model: proposals, recipes, budgets and the policy that chooses."""
