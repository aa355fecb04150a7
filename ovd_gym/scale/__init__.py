"""Past one process: workers of a Ray cluster that play and judge, and learners that share the weights between them."""
