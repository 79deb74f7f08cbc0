"""Whole files into stacks."""

from __future__ import annotations

import pytest

from orch_proto.types_pb2 import (
    DEPENDENCY_CONDITION_HEALTHY,
    MOUNT_TYPE_BIND,
    MOUNT_TYPE_TMPFS,
    MOUNT_TYPE_VOLUME,
    RESTART_CONDITION_ANY,
    RESTART_CONDITION_NONE,
    RESTART_CONDITION_ON_FAILURE,
)
from unit.compose.loading import container, load, problems, service, service_problems


def test_names_and_labels_are_those_of_a_docker_stack() -> None:
    """Objects are <stack>_<key> with docker's labels; a service is on the default network under its own name."""
    spec = load("services: {web: {image: 'web:1'}}").spec
    web = spec.services[0]
    assert web.annotations.name == "shop_web"
    assert dict(web.annotations.labels) == {"com.docker.stack.namespace": "shop", "com.docker.stack.image": "web:1"}
    assert web.task.container.labels["com.docker.stack.namespace"] == "shop"
    assert [(item.target, list(item.aliases)) for item in web.task.networks] == [("shop_default", ["web"])]
    assert [item.annotations.name for item in spec.networks] == ["shop_default"]


def test_the_same_file_gives_the_same_stack() -> None:
    """The order of keys in a file changes nothing in the stack."""
    first = load("services: {a: {image: x, environment: {B: 1, A: 2}}, b: {image: y}}").spec
    second = load("services: {b: {image: y}, a: {environment: [A=2, B=1], image: x}}").spec
    assert first == second


def test_only_used_networks_and_volumes_are_made() -> None:
    """Networks and volumes that no service uses are left out; external ones are named apart."""
    text = """
services: {web: {image: x, networks: {front: {aliases: [w]}, ext: }, volumes: ['data:/d', 'old:/o']}}
networks:
  front: {driver_opts: {mtu: 1400}, ipam: {config: [{subnet: 10.9.0.0/24}]}}
  unused:
  ext: {external: true, name: real}
volumes: {data: , other: , old: {external: true}}
"""
    spec = load(text).spec
    assert [(item.annotations.name, item.mtu) for item in spec.networks] == [("shop_front", 1400)]
    assert list(spec.external_networks) == ["real"]
    assert [item.annotations.name for item in spec.volumes] == ["shop_data"]
    assert [mount.source for mount in spec.services[0].task.container.mounts] == ["shop_data", "old"]


def test_every_problem_is_told_at_once() -> None:
    """All problems of a file come together, each with its line and attribute."""
    found = problems(
        "services:\n  web:\n    image: x\n    deploi: {}\n    gpus: all\n    environment: {A: [1]}\n"
        "  db:\n    imag: y\n"
    )
    assert [item.split(";")[0] for item in found] == [
        "a.yml:4: services.web.deploi: the key is unknown",
        "a.yml:5: services.web.gpus: not supported yet",
        "a.yml:6: services.web.environment.A: a single value is needed",
        "a.yml:8: services.db.imag: the key is unknown",
    ]
    assert 'did you mean "deploy"?' in found[0]
    assert 'did you mean "image"?' in found[3]


@pytest.mark.parametrize(
    "text",
    [
        "extends: {service: a}",
        "device_cgroup_rules: [x]",
        "network_mode: none",
        "network_mode: container:x",
        "pid: host",
        "deploy: {mode: global}",
        "deploy: {mode: replicated-job}",
        "post_start: [{command: x}]",
        "gpus: all",
        "volumes_from: [x]",
        "deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}",
        "hostname: '{{.Node.Hostname}}'",
    ],
)
def test_what_orch_does_not_do_is_refused(text: str) -> None:
    """An attribute of Compose that orch does not carry out is an error with file and line, never silence."""
    found = service_problems(text)
    assert len(found) == 1
    assert found[0].startswith("a.yml:4: services.web")
    assert "not supported" in found[0] or "cannot" in found[0]


@pytest.mark.parametrize(
    "text",
    [
        "ports: ['80:80', '80:81']",
        "volumes: ['/a:/x', '/b:/x/']",
        "volumes: ['nope:/x']",
        "volumes: ['vol/sub:/d']",
        "networks: [nope]",
        "secrets: [nope]",
        "deploy: {replicas: -1}",
        "deploy: {replicas: many}",
        "deploy: {update_config: {order: fast}}",
        "deploy: {update_config: {max_failure_ratio: 2}}",
        "deploy: {resources: {limits: {memory: 1M}}}",
        "deploy: {resources: {limits: {memory: 8M}, reservations: {memory: 9M}}}",
        "mem_limit: 64M\ndeploy: {resources: {limits: {memory: 65M}}}",
        "healthcheck: {test: [curl, x]}",
        "healthcheck: {interval: 10}",
        "stop_signal: SIGFOO",
        "cap_add: [NET_ADMN]",
        "sysctls: {vm.swappiness: 1}",
        "command: [1]",
        "working_dir: x",
        "environment: [=x]",
        "deploy: {endpoint_mode: dnsrr}\nports: ['80:80']",
        "deploy: {placement: {constraints: [node.role=manager]}}",
        "env_file: missing.env",
        "networks: {default: {ipv4_address: 10.0.0.5}}",
        "restart: sometimes",
        "restart: on-failure:x",
        "ulimits: {nofile: {soft: 2, hard: 1}}",
        "depends_on: [nope]",
        "tmpfs: ['/t:sise=1m']",
        "init: maybe",
        "extra_hosts: [a]",
        "dns: [10.1.1.1]",
        "tty: true",
        "stdin_open: true",
        "group_add: [audio]",
        "networks: {default: {interface_name: lan0}}",
        "oom_score_adj: 2000",
        "image: ''",
        "hostname: true",
        "profiles: []\ndeploy: {restart_policy: {condition: often}}",
        "pull_policy: sometimes",
        "volumes: [{type: bind, target: /x}]",
        "volumes: [{type: tmpfs, target: /x, volume: {nocopy: true}}]",
    ],
)
def test_wrong_values_are_refused_with_their_place(text: str) -> None:
    """A value that cannot be carried out is refused before anything is sent, with file, line and attribute."""
    found = service_problems(text)
    assert len(found) == 1, found
    assert found[0].startswith(("a.yml:3: services.web", "a.yml:4: services.web", "a.yml:5: services.web"))


def test_commands_and_entrypoints() -> None:
    """Text is split into words, an empty list empties the image's CMD, null keeps it."""
    assert list(container("command: sh -c 'a b'").args) == ["sh", "-c", "a b"]
    empty = container("command: []\nentrypoint: [/x]")
    assert (empty.args_set, list(empty.args), empty.entrypoint_set, list(empty.entrypoint)) == (True, [], True, ["/x"])
    assert not container("command:").args_set


def test_environment_files_come_first_and_are_sorted() -> None:
    """Env files come in order, the environment wins, values stay as written, bare names take the client's."""
    spec = container(
        "env_file: [a.env, {path: b.env, required: false}, {path: c.env, format: raw}]\n"
        "environment: {Z: 1.10, A: yes, T: true, N: 0440, GONE: , HERE: }",
        files={"a.env": "A=file\nB='q'\n", "c.env": "C='q'\n"},
        env={"HERE": "1"},
    )
    assert list(spec.env) == ["A=yes", "B=q", "C='q'", "HERE=1", "N=0440", "T=true", "Z=1.10"]


def test_mounts() -> None:
    """Named, anonymous, bound (relative to the file, ~ from HOME) and tmpfs mounts, short and long."""
    text = """
services:
  web:
    image: x
    volumes:
      - data:/data:ro
      - /anon
      - ./here:/here
      - ~/home:/home
      - {type: tmpfs, target: /t, tmpfs: {size: 1m, mode: "1777"}}
      - {type: bind, source: /h, target: /b, bind: {propagation: rslave, create_host_path: true}}
    tmpfs: /run:size=64k,mode=700,noexec
volumes: {data: }
"""
    mounts = list(load(text, env={"HOME": "/home/me"}).spec.services[0].task.container.mounts)
    assert [(mount.type, mount.source, mount.target) for mount in mounts] == [
        (MOUNT_TYPE_VOLUME, "shop_data", "/data"),
        (MOUNT_TYPE_VOLUME, "", "/anon"),
        (MOUNT_TYPE_BIND, "/stack/here", "/here"),
        (MOUNT_TYPE_BIND, "/home/me/home", "/home"),
        (MOUNT_TYPE_TMPFS, "", "/t"),
        (MOUNT_TYPE_BIND, "/h", "/b"),
        (MOUNT_TYPE_TMPFS, "", "/run"),
    ]
    assert mounts[0].read_only
    assert (mounts[4].tmpfs.size_bytes, mounts[4].tmpfs.mode) == (1024 * 1024, 0o1777)
    assert mounts[5].bind.create_host_path
    assert (mounts[6].tmpfs.size_bytes, mounts[6].tmpfs.mode, list(mounts[6].tmpfs.options)) == (
        65536,
        0o700,
        ["noexec"],
    )


def test_secrets_and_configs() -> None:
    """Secrets come from files, variables or the cluster; configs also from text; modes are octal."""
    text = """
services:
  web:
    image: x
    secrets: [s1, {source: s2, target: /abs, mode: 0400, uid: "5"}, s3]
    configs: [{source: c1, target: etc/c, mode: "0440"}]
secrets: {s1: {file: ./s.txt}, s2: {environment: TOKEN}, s3: {external: true}}
configs: {c1: {content: "hi $NAME"}}
"""
    spec = load(text, files={"s.txt": "top"}, env={"TOKEN": "t", "NAME": "you"}).spec
    assert [(item.annotations.name, item.data) for item in spec.secrets] == [("shop_s1", b"top"), ("shop_s2", b"t")]
    assert list(spec.external_secrets) == ["s3"]
    assert spec.configs[0].data == b"hi you"
    own = spec.services[0].task.container
    assert [(item.secret_name, item.file.path, item.file.mode, item.file.uid) for item in own.secrets] == [
        ("shop_s1", "s1", 0, ""),
        ("shop_s2", "/abs", 0o400, "5"),
        ("s3", "s3", 0, ""),
    ]
    assert (own.configs[0].file.path, own.configs[0].file.mode) == ("etc/c", 0o440)


def test_restart_words_of_all_ages() -> None:
    """``restart`` and ``restart_policy`` give one policy; words of Compose are read as Swarm's."""
    assert service("restart: no").task.restart.condition == RESTART_CONDITION_NONE
    assert service("restart: unless-stopped").task.restart.condition == RESTART_CONDITION_ANY
    old = service("restart: on-failure:3").task.restart
    assert (old.condition, old.max_attempts) == (RESTART_CONDITION_ON_FAILURE, 3)
    new = service("restart: always\ndeploy: {restart_policy: {condition: none, delay: 0s}}").task.restart
    assert (new.condition, new.delay_ms, new.HasField("delay_ms")) == (RESTART_CONDITION_NONE, 0, True)


def test_resources_from_old_and_new_attributes() -> None:
    """Limits and reservations come from deploy.resources or the older attributes alike."""
    new = service(
        "deploy: {resources: {limits: {cpus: '0.5', memory: 64M, pids: 5}, reservations: {memory: 32M}}}"
    ).task.resources
    old = service("cpus: 0.5\nmem_limit: 64M\npids_limit: 5\nmem_reservation: 32M").task.resources
    assert new == old
    assert (new.limits.nano_cpus, new.limits.memory_bytes, new.limits.pids) == (500_000_000, 64 * 1024 * 1024, 5)


def test_dependencies_are_carried_and_warned_about() -> None:
    """``depends_on`` is kept in both forms, and a warning says that the order is not enforced."""
    loaded = load(
        "services: {a: {image: x, depends_on: {b: {condition: service_healthy}}},"
        " b: {image: y, healthcheck: {test: x}}}"
    )
    assert [(item.service, item.condition) for item in loaded.spec.services[0].depends_on] == [
        ("shop_b", DEPENDENCY_CONDITION_HEALTHY)
    ]
    assert any("start order is not yet enforced" in str(item) for item in loaded.warnings)


def test_container_name_and_links_become_aliases() -> None:
    """Names that files use as host names keep resolving, with a warning."""
    loaded = load("services: {web: {image: x, links: ['db:database']}, db: {image: y, container_name: mydb}}")
    db = loaded.spec.services[0]
    assert list(db.task.networks[0].aliases) == ["db", "mydb", "database"]
    assert len(loaded.warnings) == 2


def test_profiles_leave_services_out_with_a_note() -> None:
    """A service whose profile is not active is left out, and a note says so; --profile takes it in."""
    text = "services: {web: {image: x}, debug: {image: y, profiles: [dev]}}"
    loaded = load(text)
    assert [item.annotations.name for item in loaded.spec.services] == ["shop_web"]
    assert any("left out: debug (dev)" in str(item) for item in loaded.warnings)
    assert len(load(text, profiles=frozenset({"dev"})).spec.services) == 2
    assert problems(text, profiles=frozenset({"nope"}))


def test_builds_name_their_image() -> None:
    """``build`` gives the image a name of the stack's unless ``image`` does."""
    loaded = load(
        "services: {a: {build: ./a}, b: {image: 'b:1', build: {context: ., args: [X, Y=1], dockerfile: docker/File}}}",
        env={"X": "x"},
    )
    first, second = loaded.builds
    assert (first.image, first.context) == ("shop_a:latest", "/stack/a")
    assert (second.image, second.dockerfile, dict(second.args)) == ("b:1", "docker/File", {"X": "x", "Y": "1"})
    assert loaded.spec.services[0].task.container.image == "shop_a:latest"
    assert "outside the context" in problems("services: {a: {build: {context: a, dockerfile: ../File}}}")[0]


def test_the_stacks_name_comes_from_the_line_the_file_or_the_folder() -> None:
    """The command line's name wins over the file's, that over the folder's; a bad name is refused."""
    assert load("name: file\nservices: {a: {image: x}}", stack="line").spec.name == "line"
    assert load("name: ${N}\nservices: {a: {image: x}}", stack="", env={"N": "file"}).spec.name == "file"
    assert load("services: {a: {image: x}}", stack="").spec.name == "stack"
    assert "cannot name a stack" in problems("services: {a: {image: x}}", stack="A b")[0]


def test_files_without_services_say_so() -> None:
    """A file of the oldest form, an empty one and one without services are told apart."""
    assert "old form" in problems("web: {image: x}")[0]
    assert "empty" in problems("# nothing")[0]
    assert "services" in problems("services: {}")[0]
