"""What people and scripts read: tables, templates, durations, sizes, JSON."""
