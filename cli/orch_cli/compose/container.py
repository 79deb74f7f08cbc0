"""A service's container: everything that decides how the program of a task runs."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from typing import Final

from orch_cli.compose.devices import read_devices
from orch_cli.compose.dotenv import MAX_BYTES, EnvFileError, parse_env_file, parse_raw_env_file
from orch_cli.compose.files import read_config_references, read_mounts, read_secret_references
from orch_cli.compose.nodes import ListNode, MapNode, Mark, ScalarNode, describe
from orch_cli.compose.project import Project, read_file
from orch_cli.compose.report import nearest
from orch_cli.compose.short_forms import parse_extra_host, parse_host_address
from orch_cli.compose.units import split_command
from orch_cli.compose.view import View, variable_hint
from orch_proto.specs_pb2 import ContainerSpec
from orch_proto.types_pb2 import HealthConfig, HostEntry, Privileges, Ulimit

#: The node's own bound is the same (orch_runtime.config.seccomp_profile).
MAX_PROFILE_BYTES: Final = 128 << 10
CAPABILITIES: Final = frozenset(
    [
        "AUDIT_CONTROL",
        "AUDIT_READ",
        "AUDIT_WRITE",
        "BLOCK_SUSPEND",
        "BPF",
        "CHECKPOINT_RESTORE",
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "IPC_LOCK",
        "IPC_OWNER",
        "KILL",
        "LEASE",
        "LINUX_IMMUTABLE",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "MKNOD",
        "NET_ADMIN",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_RAW",
        "PERFMON",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_CHROOT",
        "SYS_MODULE",
        "SYS_NICE",
        "SYS_PACCT",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "SYSLOG",
        "WAKE_ALARM",
    ]
)
ULIMITS: Final = frozenset(
    [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
_SYSCTL = re.compile(r"net\..+|kernel\.(?:shm\w+|msg\w+|sem)|fs\.mqueue\..+")
_HOSTNAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9_])?")
_PLACEHOLDER = re.compile(r"\{\{.*\.(?:Node|Service|Task)\b.*\}\}")
_ENV_NAME = re.compile(r"[^=\0]+")


def read_container(service: View, image: str, project: Project) -> ContainerSpec:
    """The container of a service.

    Args:
        service: the service's mapping.
        image: its image, as written or as built.
        project: what it refers to.
    """
    stop_grace_ms = service.duration_ms("stop_grace_period")
    own = service.view("x-orch")
    spec = ContainerSpec(
        image=image,
        labels=project.labels(_container_labels(service, project)),
        oci_annotations=service.label_pairs("annotations"),
        env=_environment(service, project),
        working_dir=_absolute(service, "working_dir"),
        user=service.text("user") or "",
        groups=_groups(service),
        hostname=_hostname(service),
        domainname=service.text("domainname") or "",
        read_only_root=service.boolean("read_only") or False,
        init=service.boolean("init") or False,
        stop_signal=_stop_signal(service),
        mounts=read_mounts(service, project),
        secrets=read_secret_references(service, project),
        configs=read_config_references(service, project),
        hosts=_hosts(service),
        cap_add=_capabilities(service, "cap_add"),
        cap_drop=_capabilities(service, "cap_drop"),
        sysctls=_sysctls(service),
        ulimits=_ulimits(service),
        pull_policy=_pull_policy(service),
        privileges=_privileges(service, project),
        devices=read_devices(service),
    )
    if stop_grace_ms is not None:
        spec.stop_grace_ms = stop_grace_ms
    if (stop_delay_ms := own.duration_ms("stop_delay")) is not None:
        spec.stop_delay_ms = stop_delay_ms
    if (score := service.integer("oom_score_adj", -1000, 1000)) is not None:
        spec.oom_score_adj = score
    if (shm_bytes := service.size_bytes("shm_size")) is not None:
        spec.shm_size_bytes = shm_bytes
    if (health := read_healthcheck(service.view("healthcheck"))) is not None:
        spec.healthcheck.CopyFrom(health)
    if service.text("network_mode") == "host":
        spec.namespaces.network = "host"
    _commands(service, spec)
    _dns(service, spec)
    _check_no_terminal(service)
    _check_placeholders(service, spec)
    return spec


def _check_placeholders(service: View, spec: ContainerSpec) -> None:
    sources = [mount.source for mount in spec.mounts]
    for key, values in (("hostname", [spec.hostname]), ("environment", spec.env), ("volumes", sources)):
        for value in values:
            if _PLACEHOLDER.search(value):
                what = "placeholders such as {{.Task.Slot}} are not supported yet"
                service.error(key, what, f"{value[:60]!r} holds one", "remove it")


def _check_no_terminal(service: View) -> None:
    for key, what in (("tty", "a terminal"), ("stdin_open", "an open standard input")):
        if service.boolean(key):
            service.error(key, f"{what} is not supported yet", "tasks read from /dev/null", f"remove {key}")


def _groups(service: View) -> list[str]:
    """Further groups by number: names would have to be looked up in the image, which the node does not do yet."""
    groups = service.unique_words("group_add")
    for group in groups:
        if not group.isdecimal():
            why = "groups are given by their numbers"
            service.error("group_add", f"{group!r}: names of groups are not supported yet", why, "write the number")
    return groups


def _commands(service: View, spec: ContainerSpec) -> None:
    entrypoint = _command(service, "entrypoint")
    if entrypoint is not None:
        spec.entrypoint.extend(entrypoint)
        spec.entrypoint_set = True
    args = _command(service, "command")
    if args is not None:
        spec.args.extend(args)
        spec.args_set = True


def _command(service: View, key: str) -> list[str] | None:
    """Words of a command; None: the image's; empty: none."""
    node = service.get(key)
    if isinstance(node, ListNode):
        words = []
        for index, item in enumerate(node.items):
            if isinstance(item, ScalarNode) and isinstance(item.value, str):
                words.append(item.text)
            else:
                service.report.error(
                    item.mark,
                    f"{service.where(key)}[{index}]",
                    "the words of a command are text",
                    f"this is {describe(item)}",
                    "put it in quotes",
                )
        return words
    if not isinstance(node, ScalarNode):
        return None
    if not isinstance(node.value, str):
        service.error(key, "a command is text or a list of texts", f"this is {describe(node)}", "put it in quotes")
        return None
    try:
        return split_command(node.text)
    except ValueError as error:
        service.error(key, f"{node.text!r} is no command", str(error), "close the quote, or write a list")
        return None


# ---- environment and labels --------------------------------------------------------------------------


def _environment(service: View, project: Project) -> list[str]:
    """Env files first, then ``environment``; sorted, so that the order in the file never causes an update."""
    values: dict[str, str | None] = {}
    for node, path in service.items("env_file"):
        values.update(
            _env_file(View(node, path, project.report) if isinstance(node, MapNode) else node, path, service, project)
        )
    values.update(service.pairs("environment"))
    result = {}
    for name, value in values.items():
        if not _ENV_NAME.fullmatch(name) or "\0" in (value or ""):
            service.error("environment", f"{name!r} is no name of a variable", "names are not empty and hold no =")
            continue
        known = project.variables.get(name) if value is None else value
        if known is not None:
            result[name] = known
    return [f"{name}={result[name]}" for name in sorted(result)]


def _env_file(  # noqa: PLR0911 - each way in which a file cannot be used ends here
    entry: View | ScalarNode | object, path: str, service: View, project: Project
) -> dict[str, str | None]:
    required, raw = True, False
    mark: Mark
    if isinstance(entry, View):
        text = entry.text("path")
        if text is None:
            if not entry.has("path"):
                entry.error("path", "path is missing", "an env file needs one", "add path:")
            return {}
        required = entry.boolean("required") is not False
        raw = entry.choice("format", ("raw",)) == "raw"
        mark = entry.mark("path")
    elif isinstance(entry, ScalarNode):
        text, mark = entry.text, entry.mark
        if not text:
            project.report.error(mark, path, "the path is empty", "", variable_hint(entry))
            return {}
    else:
        return {}
    full = project.path(text)
    try:
        data = project.read_file(full, MAX_BYTES)
    except FileNotFoundError:
        if required:
            hint = "create it, or write {path: …, required: false}"
            project.report.error(mark, path, f"the env file {full} is not there", "", hint)
        return {}
    except OSError as error:
        project.report.error(mark, path, f"cannot read {full}", error.strerror or str(error))
        return {}
    if len(data) > MAX_BYTES:
        project.report.error(mark, path, f"the env file {full} is too large", f"the limit is {MAX_BYTES} bytes")
        return {}
    try:
        content = data.decode("utf-8")
        return parse_raw_env_file(content, project.variables) if raw else parse_env_file(content, project.variables)
    except EnvFileError as error:
        project.report.error(Mark(full, error.line), service.where("env_file"), error.what, "", error.hint)
    except UnicodeDecodeError:
        project.report.error(mark, path, f"the env file {full} is no UTF-8 text")
    return {}


def _container_labels(service: View, project: Project) -> dict[str, str]:
    labels: dict[str, str] = {}
    for node, path in service.items("label_file"):
        if isinstance(node, ScalarNode):
            data = read_file(service, "label_file", project.path(node.text), project, MAX_BYTES)
            if data is not None:
                try:
                    read = parse_env_file(data.decode("utf-8"), project.variables)
                except (EnvFileError, UnicodeDecodeError) as error:
                    project.report.error(node.mark, path, f"the label file {node.text} cannot be read", str(error))
                    continue
                labels.update({name: value or "" for name, value in read.items()})
    return {**labels, **service.label_pairs("labels")}


# ---- single attributes -------------------------------------------------------------------------------


def _absolute(service: View, key: str) -> str:
    text = service.text(key)
    if text is not None and not text.startswith("/"):
        service.error(key, f"{text!r} is no absolute path", "it is a path in the container", f"write /{text}")
        return ""
    return text or ""


def _hostname(service: View) -> str:
    text = service.text("hostname")
    if text is not None and not _HOSTNAME.fullmatch(text) and not _PLACEHOLDER.search(text):
        service.error("hostname", f"{text!r} cannot be a host name", "at most 63 letters, digits, -, _ and .")
    return text or ""


def _stop_signal(service: View) -> str:
    text = service.text("stop_signal")
    if text is None:
        return ""
    if text.isdigit() and 1 <= int(text) <= 64:
        return text
    name = text.upper() if text.upper().startswith("SIG") else "SIG" + text.upper()
    known = set(signal.Signals.__members__)
    if name in known or re.fullmatch(r"SIGRTM(?:IN\+\d+|AX-\d+)", name):
        return name
    service.error("stop_signal", f"{text!r} is no signal", "signals are SIGTERM, SIGINT, …", nearest(name, known))
    return ""


def _capabilities(service: View, key: str) -> list[str]:
    result = []
    for word in service.unique_words(key):
        name = word.upper().removeprefix("CAP_")
        if name != "ALL" and name not in CAPABILITIES:
            service.error(key, f"{word!r} is no capability", "Linux does not know it", nearest(name, CAPABILITIES))
        result.append(name)
    return list(dict.fromkeys(result))


def _sysctls(service: View) -> dict[str, str]:
    result = {}
    for name, value in service.pairs("sysctls").items():
        if not _SYSCTL.fullmatch(name) or value is None:
            why = "it has no value" if value is None else "it belongs to the node, not to a namespace of the task"
            service.error(
                "sysctls",
                f"{name!r} cannot be set",
                why,
                "allowed: net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*",
            )
            continue
        result[name] = value
    return result


def _ulimits(service: View) -> list[Ulimit]:
    result = []
    table = service.view("ulimits")
    for name, node in sorted(table.node.entries.items()):
        if name not in ULIMITS:
            table.error(name, f"{name!r} is no resource limit", "Linux does not know it", nearest(name, ULIMITS))
        elif isinstance(node, MapNode):
            pair = table.view(name)
            soft, hard = pair.integer("soft", -1), pair.integer("hard", -1)
            if soft is None or hard is None:
                table.error(name, "soft and hard are both needed", "", "write one number, or both")
                continue
            if hard != -1 and (soft == -1 or soft > hard):
                table.error(name, "the soft limit is above the hard one", f"{soft} > {hard}")
            result.append(Ulimit(name=name, soft=soft, hard=hard))
        elif (value := table.integer(name, -1)) is not None:
            result.append(Ulimit(name=name, soft=value, hard=value))
    return result


def _pull_policy(service: View) -> str:
    text = service.text("pull_policy")
    if text in (None, "always", "missing", "if_not_present", "never", "build"):
        return text or ""
    assert text is not None
    if text in ("newer", "refresh", "daily", "weekly") or text.startswith("every_"):
        service.warn("pull_policy", f"{text!r} has no effect", "images are looked up at each deploy, never in between")
        return text
    known = ("always", "missing", "if_not_present", "never", "build", "daily", "weekly")
    service.error("pull_policy", f"{text!r} is not known", f"known: {', '.join(known)}", nearest(text, known))
    return ""


def _privileges(service: View, project: Project) -> Privileges | None:
    """What ``privileged`` and ``security_opt`` ask for."""
    result = Privileges(privileged=service.boolean("privileged") or False)
    for word in service.unique_words("security_opt"):
        name, _, value = word.replace("=", ":", 1).partition(":")
        if name == "no-new-privileges":
            if value not in ("", "true", "false"):
                service.error("security_opt", f"{word!r} cannot be read", "no-new-privileges takes true or false")
            result.allow_new_privileges = value == "false"
        elif name in ("apparmor", "label", "systempaths"):
            service.warn("security_opt", f"{word!r} has no effect", "orch sets no such profile")
        elif name == "seccomp" and value == "unconfined":
            result.seccomp = "unconfined"
        elif name == "seccomp":
            result.seccomp = _seccomp_profile(service, value, project)
        else:
            known = ("no-new-privileges", "seccomp", "apparmor", "label", "systempaths")
            service.error("security_opt", f"{word!r} is not known", f"known: {', '.join(known)}", nearest(name, known))
    return result if result.ByteSize() else None


def _seccomp_profile(service: View, name: str, project: Project) -> str:
    """The text of a profile, without its blanks; what is wrong in its rules is told by the node."""
    full = project.path(name) if name else ""
    try:
        data = project.read_file(full, MAX_PROFILE_BYTES) if full else b""
    except OSError as error:
        service.error("security_opt", f"cannot read the seccomp profile {full}", error.strerror or str(error))
        return ""
    hint = "name a file in Docker's format, or unconfined"
    if len(data) > MAX_PROFILE_BYTES:
        service.error("security_opt", f"{full} is too large", f"the limit is {MAX_PROFILE_BYTES} bytes")
        return ""
    try:
        profile = json.loads(data)
    except (ValueError, RecursionError) as error:
        service.error("security_opt", f"{full or 'an empty name'} is no seccomp profile", f"no JSON: {error}", hint)
        return ""
    if not isinstance(profile, dict) or not isinstance(profile.get("defaultAction"), str):
        service.error("security_opt", f"{full} is no seccomp profile", "it has no defaultAction", hint)
        return ""
    return json.dumps(profile, separators=(",", ":"))


def _hosts(service: View) -> list[HostEntry]:
    result = []
    node = service.get("extra_hosts")
    if isinstance(node, MapNode):
        table = service.view("extra_hosts")
        for name in node.entries:
            for item, _ in table.items(name):
                if isinstance(item, ScalarNode):
                    try:
                        result.append(HostEntry(hostname=name, address=parse_host_address(item.text)))
                    except ValueError as error:
                        table.error(name, str(error))
        return result
    for item, path in service.items("extra_hosts"):
        if isinstance(item, ScalarNode):
            try:
                name, address = parse_extra_host(item.text)
                result.append(HostEntry(hostname=name, address=address))
            except ValueError as error:
                service.report.error(item.mark, path, str(error), "", variable_hint(item))
    return result


def _dns(service: View, spec: ContainerSpec) -> None:
    spec.dns.search.extend(service.unique_words("dns_search"))
    spec.dns.options.extend(service.unique_words("dns_opt"))
    if not spec.dns.ByteSize():
        spec.ClearField("dns")


def read_healthcheck(view: View) -> HealthConfig | None:
    """The health check; None when the image's is to be used."""
    if not view:
        return None
    disabled = view.boolean("disable")
    test = _health_test(view)
    if disabled and test not in ([], ["NONE"]):
        view.error("disable", "a test is given too", "disable switches the check off", "remove test, or disable")
    config = HealthConfig(test=["NONE"] if disabled else test)
    for key in ("interval", "timeout", "start_period", "start_interval"):
        minimum = 1 if key in ("interval", "timeout", "start_interval") else 0
        value = view.duration_ms(key, minimum)
        if value is not None:
            setattr(config, f"{key}_ms", value)
    retries = view.integer("retries", 1, 1_000_000)
    if retries is not None:
        config.retries = retries
    return config


def _health_test(view: View) -> list[str]:
    node = view.get("test")
    if isinstance(node, ScalarNode):
        text = view.text("test")
        return [] if text is None else ["NONE"] if text == "NONE" else ["CMD-SHELL", text]
    words = view.words("test")
    if isinstance(node, ListNode) and words:
        if words[0] not in ("CMD", "CMD-SHELL", "NONE"):
            view.error("test", f"a list begins with CMD, CMD-SHELL or NONE, not {words[0]!r}", "", "put CMD before it")
        elif words[0] == "CMD-SHELL" and len(words) != 2:
            view.error("test", "CMD-SHELL takes one text", f"{len(words) - 1} are given", "use CMD for a list of words")
        elif words[0] == "CMD" and len(words) < 2:
            view.error("test", "CMD needs a command", "nothing stands behind it")
    return words


def read_log_options(view: View) -> tuple[str, Mapping[str, str]] | None:
    """Driver and options of ``logging``; None: the cluster's default."""
    if not view:
        return None
    driver = view.text("driver") or "json-file"
    if driver not in ("json-file", "local", "none"):
        view.warn(
            "driver", f"the log driver {driver!r} is not supported", "json-file is used, orch logs shows the output"
        )
        return "json-file", {}
    options = {}
    table = view.view("options")
    for name, value in view.label_pairs("options").items():
        if name == "max-size":
            size = table.size_bytes(name, 1)
            if size is not None:
                options[name] = str(size)
        elif name == "max-file":
            count = table.integer(name, 1, 1000)
            if count is not None:
                options[name] = str(count)
        else:
            table.warn(name, "has no effect", f"{value[:30]!r} is ignored, known are max-size and max-file")
    return driver, options
