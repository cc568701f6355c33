"""How an image is run: one Deployment, and its projections for Docker, Podman, compose and systemd."""
