"""The node daemon: session, worker, task controllers, images, volumes, health."""
