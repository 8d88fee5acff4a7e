"""The control plane: workspaces, models, pipelines, and what of them is deployed."""
