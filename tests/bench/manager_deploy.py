"""What deploying costs the manager: a real process over its socket and disk, with an agent whose programs run at once.

Run: python tests/bench/manager_deploy.py [REPLICAS ...]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from orch_proto import control_pb2 as control
from orch_proto.objects_pb2 import Task
from simulation.wire_agent import ManagerProcess, WireAgent, web_stack

FAILURES = 20


async def all_running(agent: WireAgent, count: int) -> None:
    """Waits until the manager knows that all run."""
    while True:
        info = await agent.control.ClusterInfo(control.ClusterInfoRequest())
        if info.tasks_by_state["running"] == count:
            return
        await asyncio.sleep(0.005)


def _replaced(agent: WireAgent, victim: Task) -> bool:
    same = (task for task in agent.tasks.values() if task.slot == victim.slot and task.id != victim.id)
    return any(task.desired_state == 512 for task in same)


async def measure(replicas: int) -> None:
    """Deploys, replaces tasks that fail, removes; prints what each took."""
    with tempfile.TemporaryDirectory() as folder:
        manager = ManagerProcess(Path(folder))
        await manager.start()
        agent = WireAgent(manager.socket)
        serving = asyncio.create_task(agent.serve())
        idle_kib, cpu_s, started = manager.pss_kib(), manager.cpu_s(), time.perf_counter()
        await agent.control.ApplyStack(control.ApplyStackRequest(spec=web_stack(replicas)))
        await all_running(agent, replicas)
        print(
            f"{replicas} replicas: deployed in {time.perf_counter() - started:.2f} s, "
            f"manager CPU {manager.cpu_s() - cpu_s:.2f} s, memory {idle_kib // 1024} -> {manager.pss_kib() // 1024} MiB"
        )
        healing = []
        tasks = await agent.until(replicas)
        for victim in tasks[: min(FAILURES, replicas)]:
            started = time.perf_counter()
            await agent.say((victim.id, 704))
            while not _replaced(agent, victim):
                agent.told.clear()
                await agent.told.wait()
            healing.append((time.perf_counter() - started) * 1000)
        healing.sort()
        median_ms = healing[len(healing) // 2]
        print(f"  failure told -> replacement assigned: median {median_ms:.1f} ms, worst {healing[-1]:.1f}")
        started = time.perf_counter()
        await agent.control.RemoveStack(control.RemoveStackRequest(name="shop"))
        while (await agent.control.ClusterInfo(control.ClusterInfoRequest())).stacks:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.005)
        print(f"  removed in {time.perf_counter() - started:.2f} s, manager CPU in all {manager.cpu_s():.2f} s")
        serving.cancel()
        await agent.close()
        await manager.stop()


async def main() -> None:
    """Each number of replicas with a manager of its own."""
    for replicas in [int(each) for each in sys.argv[1:]] or [10, 100]:
        await measure(replicas)


if __name__ == "__main__":
    asyncio.run(main())
