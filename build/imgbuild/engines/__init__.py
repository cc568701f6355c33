"""What builds and runs containers: Docker with BuildKit first, Podman second."""
