"""Words and bounds of the protocol, apart from `protocol` so that the supervisor loads no dataclasses."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 4 << 20
MAX_EXEC_OUTPUT_BYTES = 1 << 20

OP_CREATE = "create"
OP_START = "start"
OP_RUN = "run"
OP_KILL = "kill"
OP_DELETE = "delete"
OP_STATE = "state"
OP_LIST = "list"
OP_EXEC = "exec"
OP_EXEC_SIGNAL = "exec-signal"
OP_PROCESSES = "processes"
OP_STATS = "stats"
OP_UPDATE = "update"
OP_PAUSE = "pause"
OP_RESUME = "resume"
OP_SUBSCRIBE = "subscribe"
OP_VERSION = "version"
OP_SHUTDOWN = "shutdown"

STATUS_CREATING = "creating"
STATUS_CREATED = "created"
STATUS_RUNNING = "running"
STATUS_PAUSED = "paused"
STATUS_EXITED = "exited"

EVENT_EXIT = "exit"
EVENT_OOM = "oom"
EVENT_EXEC_STARTED = "exec-started"
