"""One task: its configuration and files, its health, and the controller that walks it through its states."""
