"""What people do to one running container from afar: commands, copies, its processes, pause, attach."""
