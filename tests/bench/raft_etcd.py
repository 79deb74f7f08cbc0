"""How fast three members commit, beside etcd in the same run.

Usage: python tests/bench/raft_etcd.py [--rounds N] [--seconds S] [--failovers N] [--folder FOLDER]

Three members of each, separate processes on loopback, mutual TLS between them, values of 480 bytes, synced writes. The
rounds of the two are interleaved; each figure is the median of the rounds. orch's proposals are made in the leader's
process, as its own loops make them; etcd's come from `h2load`, a client in C that costs less than etcd's own, over one
TLS connection to the leader. Needs `etcd`, `etcdctl` and `h2load` (apt: etcd-server, etcd-client, nghttp2-client).
"""

import argparse
import asyncio
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orch_raft.engine import Member
from orch_raft.storage import found_cluster, prepare_joiner
from unit.trust.servers import TestCluster, store_with

MEMBERS = (1, 2, 3)
WRITERS = (1, 16, 256)
VALUE_BYTES = 480
TIMEOUT_S = 30.0
REQUIRED = {1: 0.9, 16: 2.5, 256: 5.0}


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Orch:
    """Three members of orch's consensus."""

    def __init__(self, folder: Path, heartbeat_ms: int, election_ms: int) -> None:
        self._folder = folder
        self._timers = (heartbeat_ms, election_ms)
        self._ports = {raft_id: free_port() for raft_id in MEMBERS}
        self.processes: dict[int, Process] = {}
        self._lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1000)
        self._readers: dict[int, asyncio.Task[None]] = {}
        self.leader = 1

    async def start(self) -> None:
        """Found the cluster and let the others join."""
        authority = TestCluster()
        for raft_id in MEMBERS:
            store_with(self._folder / f"identity-{raft_id}", authority.manager(f"node-{raft_id}"))
        found_cluster(self._folder / "raft-1", Member(1, "node-1", f"127.0.0.1:{self._ports[1]}"))
        await self.run(1)
        await self.wait("leads")
        for raft_id in MEMBERS[1:]:
            prepare_joiner(self._folder / f"raft-{raft_id}", raft_id)
            await self.run(raft_id)
            self.tell(1, add=raft_id, address=f"127.0.0.1:{self._ports[raft_id]}")
            await self.wait("added")

    async def run(self, raft_id: int) -> None:
        """Start a member's process."""
        script = Path(__file__).with_name("raft_member.py")
        arguments = [str(self._folder), str(raft_id), str(self._ports[raft_id]), *map(str, self._timers)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), *arguments, stdin=PIPE, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        self.processes[raft_id] = process
        self._readers[raft_id] = asyncio.create_task(self._read(process))
        await self.wait("started")

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            await self._lines.put(json.loads(line))

    def tell(self, raft_id: int, **what: object) -> None:
        """Give a member a command."""
        stdin = self.processes[raft_id].stdin
        assert stdin is not None
        stdin.write(json.dumps(what).encode() + b"\n")

    async def wait(self, key: str) -> dict[str, Any]:
        """The next line with a key."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                line = await self._lines.get()
                if "leads" in line:
                    self.leader = line["leads"]
                if key in line:
                    return line

    async def load(self, writers: int, seconds: float) -> tuple[float, float, float]:
        """Rate, median and 99th percentile in ms."""
        self.tell(self.leader, load=writers, seconds=seconds)
        line = await self.wait("per_s")
        return line["per_s"], line["p50_ms"], line["p99_ms"]

    async def fail_over(self) -> float:
        """Kill the leader; seconds until the next one has committed an entry."""
        killed = self.leader
        process = self.processes[killed]
        at_s = time.monotonic()
        process.send_signal(signal.SIGKILL)
        line = await self.wait("leads")
        await process.wait()
        await self.run(killed)
        await asyncio.sleep(1.0)
        return float(line["at_s"]) - at_s

    async def stop(self) -> None:
        """End all."""
        for process in self.processes.values():
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes.values():
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
        await asyncio.gather(*self._readers.values())


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def put_request() -> bytes:
    """An etcdserverpb.PutRequest."""
    key, value = b"bench", os.urandom(VALUE_BYTES)
    return b"\x0a" + _varint(len(key)) + key + b"\x12" + _varint(len(value)) + value


def make_etcd_certificates(folder: Path) -> None:
    """A root, and one certificate for servers and clients: etcd asks for the address in it."""
    now = datetime.now(UTC)
    day = timedelta(days=1)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])

    def builder(key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench" if ca else "member")])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )

    root = builder(keys[0], ca=True).sign(keys[0], hashes.SHA256())
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    member = (
        builder(keys[1], ca=False)
        .add_extension(usages, critical=False)
        .add_extension(addresses, critical=False)
        .sign(keys[0], hashes.SHA256())
    )
    (folder / "root.crt").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    (folder / "member.crt").write_bytes(member.public_bytes(serialization.Encoding.PEM))
    (folder / "member.key").write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


class Etcd:
    """Three members of etcd."""

    def __init__(self, folder: Path, heartbeat_ms: int, election_ms: int) -> None:
        self._folder = folder
        self._timers = [f"--heartbeat-interval={heartbeat_ms}", f"--election-timeout={election_ms}"]
        self._client_ports = {number: free_port() for number in MEMBERS}
        self._peer_ports = {number: free_port() for number in MEMBERS}
        self.processes: dict[int, Process] = {}
        self.leader = 1
        self._channels: dict[int, grpc.aio.Channel] = {}
        make_etcd_certificates(folder)
        (folder / "put").write_bytes(b"\0" + len(put_request()).to_bytes(4, "big") + put_request())

    async def start(self) -> None:
        """Start all, wait for a leader."""
        for number in MEMBERS:
            await self.run(number)
        await self.find_leader()

    async def run(self, number: int) -> None:
        """Start a member's process."""
        client, peer = (f"https://127.0.0.1:{ports[number]}" for ports in (self._client_ports, self._peer_ports))
        cluster = ",".join(f"m{each}=https://127.0.0.1:{port}" for each, port in self._peer_ports.items())
        tls = {"cert-file": "member.crt", "key-file": "member.key"}
        peer_tls = {**tls, "trusted-ca-file": "root.crt"}
        self.processes[number] = await asyncio.create_subprocess_exec(
            "etcd",
            f"--name=m{number}",
            f"--data-dir={self._folder / f'm{number}'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={cluster}",
            "--initial-cluster-token=bench",
            "--logger=zap",
            "--log-level=error",
            "--pre-vote=true",
            *self._timers,
            *(f"--{option}={self._folder / file}" for option, file in tls.items()),
            *(f"--peer-{option}={self._folder / file}" for option, file in peer_tls.items()),
            "--peer-client-cert-auth",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def find_leader(self) -> None:
        """Ask until all say who leads."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                endpoints = ",".join(f"https://127.0.0.1:{port}" for port in self._client_ports.values())
                process = await asyncio.create_subprocess_exec(
                    "etcdctl",
                    f"--endpoints={endpoints}",
                    f"--cacert={self._folder / 'root.crt'}",
                    "endpoint",
                    "status",
                    "-w=json",
                    env={**os.environ, "ETCDCTL_API": "3"},
                    stdout=PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                )
                output, _ = await process.communicate()
                statuses = json.loads(output or b"[]")
                for status in statuses if len(statuses) == len(MEMBERS) else ():
                    if status["Status"]["leader"] == status["Status"]["header"]["member_id"]:
                        port = int(status["Endpoint"].rsplit(":", 1)[1])
                        self.leader = next(each for each, known in self._client_ports.items() if known == port)
                        return
                await asyncio.sleep(0.1)

    async def load(self, writers: int, seconds: float) -> tuple[float, float, float]:
        """Rate, mean (twice: h2load tells no percentiles) in ms."""
        process = await asyncio.create_subprocess_exec(
            *("h2load", f"-D{round(seconds * 1000)}ms", "--warm-up-time=300ms", "-c1", "-t1", f"-m{writers}"),
            *("-d", str(self._folder / "put"), "-H", "content-type: application/grpc", "-H", "te: trailers"),
            f"https://127.0.0.1:{self._client_ports[self.leader]}/etcdserverpb.KV/Put",
            stdout=PIPE,
        )
        output = (await process.communicate())[0].decode()
        rate = re.search(r"finished in [\d.]+s?m?s?, ([\d.]+) req/s", output)
        failed = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", output)
        assert rate is not None, output
        assert failed is not None, output
        assert failed[2] == failed[3] == "0", output
        mean_ms = writers / float(rate[1]) * 1000
        return float(rate[1]), mean_ms, mean_ms

    def _put(self, number: int, timeout_s: float) -> Any:
        if number not in self._channels:
            credentials = grpc.ssl_channel_credentials((self._folder / "root.crt").read_bytes())
            address = f"127.0.0.1:{self._client_ports[number]}"
            self._channels[number] = grpc.aio.secure_channel(address, credentials)
        return self._channels[number].unary_unary("/etcdserverpb.KV/Put")(put_request(), timeout=timeout_s)

    async def fail_over(self) -> float:
        """Kill the leader; seconds until a survivor has committed an entry."""
        killed = self.leader
        survivors = [number for number in MEMBERS if number != killed]
        for number in survivors:
            await self._put(number, TIMEOUT_S)
        at_s = time.monotonic()
        self.processes[killed].send_signal(signal.SIGKILL)
        done = asyncio.Event()

        async def try_until_done(number: int) -> None:
            while not done.is_set():
                try:
                    # A write that came before the election is lost for etcd's client: many, each with a short patience.
                    await self._put(number, 0.05)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.005)
                else:
                    done.set()

        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(try_until_done(number) for number in survivors))
        elapsed_s = time.monotonic() - at_s
        await self.processes[killed].wait()
        await self.run(killed)
        await self.find_leader()
        await asyncio.sleep(1.0)
        return elapsed_s

    async def stop(self) -> None:
        """End all."""
        for channel in self._channels.values():
            await channel.close()
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            await process.wait()


async def compare_rates(folder: Path, rounds: int, seconds: float) -> None:
    """Rates at 1, 16 and 256 in flight."""
    orch, etcd = await both(folder, 100, 1000)
    figures: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    try:
        for _ in range(rounds):
            for writers in WRITERS:
                for name, system in (("orch", orch), ("etcd", etcd)):
                    figures.setdefault((name, writers), []).append(await system.load(writers, seconds))
                    await asyncio.sleep(0.2)
    finally:
        await orch.stop()
        await etcd.stop()
    print(
        f"{'in flight':>9} {'orch /s':>9} {'p50 ms':>7} {'p99 ms':>7} {'etcd /s':>9} {'mean ms':>8} "
        f"{'ratio':>6} {'wanted':>7}"
    )
    for writers in WRITERS:
        ours, theirs = (
            [statistics.median(each[column] for each in figures[name, writers]) for column in range(3)]
            for name in ("orch", "etcd")
        )
        print(
            f"{writers:9} {ours[0]:9.0f} {ours[1]:7.2f} {ours[2]:7.2f} {theirs[0]:9.0f} {theirs[1]:8.2f} "
            f"{ours[0] / theirs[0]:6.2f} {REQUIRED[writers]:7.1f}"
        )


async def both(folder: Path, heartbeat_ms: int, election_ms: int) -> tuple[Orch, Etcd]:
    """Start both."""
    for name in ("orch", "etcd"):
        (folder / name).mkdir(parents=True)
    orch = Orch(folder / "orch", heartbeat_ms, election_ms)
    etcd = Etcd(folder / "etcd", heartbeat_ms, election_ms)
    await orch.start()
    await etcd.start()
    return orch, etcd


async def compare_failovers(folder: Path, trials: int) -> None:
    """From kill -9 of the leader to the first entry that the next one has committed, at equal timers."""
    orch, etcd = await both(folder, 100, 1000)
    times_s: dict[str, list[float]] = {"orch": [], "etcd": []}
    try:
        for _ in range(trials):
            times_s["orch"].append(await orch.fail_over())
            times_s["etcd"].append(await etcd.fail_over())
    finally:
        await orch.stop()
        await etcd.stop()
    for name, found_s in times_s.items():
        print(
            f"failover {name}: min {min(found_s):.2f} median {statistics.median(found_s):.2f} max {max(found_s):.2f} s"
        )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; the disk there is what is measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--failovers", type=int, default=0, help="also kill the leaders so many times")
    arguments = parser.parse_args()
    for tool in ("etcd", "etcdctl", "h2load"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is missing: apt-get install etcd-server etcd-client nghttp2-client")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        if arguments.rounds:
            asyncio.run(compare_rates(Path(name) / "rates", arguments.rounds, arguments.seconds))
        if arguments.failovers:
            asyncio.run(compare_failovers(Path(name) / "failovers", arguments.failovers))


if __name__ == "__main__":
    main()
