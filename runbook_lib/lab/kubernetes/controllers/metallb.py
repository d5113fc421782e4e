"""MetalLB: Services of type LoadBalancer get an address of a pool while its controller runs."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from .client import Key, Object
from .context import Context
from .processes import Process, Program
from .reconcile import reconcile

SERVICES = "/api/v1/services"
POOLS = "/apis/metallb.io/v1beta1/ipaddresspools"
WISH = ("metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs")
WANTED_POOL = ("metallb.io/address-pool", "metallb.universe.tf/address-pool")
GIVEN_POOL = "metallb.io/ip-allocated-from-pool"


def addresses(pool: Object) -> Iterator[str]:
    """Every address of a pool, in order."""
    for text in pool["spec"].get("addresses") or ():
        first, dash, last = text.partition("-")
        if dash:
            begin, end = (int(ipaddress.ip_address(part.strip())) for part in (first, last))
            yield from (str(ipaddress.ip_address(number)) for number in range(begin, min(end, begin + 4095) + 1))
        else:
            network = ipaddress.ip_network(text.strip(), strict=False)
            yield from (str(address) for _, address in zip(range(4096), network, strict=False))


def choose(service: Object, pools: Iterable[Object], taken: set[str]) -> tuple[str, str, str]:
    """(address, pool, why none): a wish is granted or refused, else the first free address of a pool is taken."""
    notes = service["metadata"].get("annotations") or {}
    wish = next((notes[key] for key in WISH if key in notes), service["spec"].get("loadBalancerIP", ""))
    named = next((notes[key] for key in WANTED_POOL if key in notes), "")
    rows = sorted(pools, key=lambda pool: str(pool["metadata"]["name"]))
    if wish:
        for pool in rows:
            if wish in set(addresses(pool)):
                busy = (
                    f'Failed to allocate IP for "{_name(service)}": can\'t change sharing key for "{_name(service)}", '
                )
                return (
                    (wish, pool["metadata"]["name"], "")
                    if wish not in taken
                    else ("", "", f"{busy}address also in use")
                )
        return "", "", f'Failed to allocate IP for "{_name(service)}": ["{wish}"] is not allowed in config'
    for pool in rows:
        if (named and pool["metadata"]["name"] != named) or (not named and pool["spec"].get("autoAssign") is False):
            continue
        for address in addresses(pool):
            if address not in taken:
                return address, pool["metadata"]["name"], ""
    if named and not any(pool["metadata"]["name"] == named for pool in rows):
        return "", "", f'Failed to allocate IP for "{_name(service)}": unknown pool "{named}"'
    return "", "", f'Failed to allocate IP for "{_name(service)}": no available IPs'


def _name(service: Object) -> str:
    return f"{service['metadata']['namespace']}/{service['metadata']['name']}"


def given(service: Object) -> str:
    """The address a service has from a load balancer, or nothing."""
    rows = (service.get("status", {}).get("loadBalancer") or {}).get("ingress") or ()
    return str(rows[0].get("ip", "")) if rows else ""


async def run(context: Context, process: Process) -> None:
    """Gives and takes addresses until cancelled."""
    services, pools = context.cache(SERVICES), context.cache(POOLS)
    told: dict[Key, str] = {}

    async def work(key: Key, service: Object | None) -> float | None:
        if service is None or "deletionTimestamp" in service["metadata"]:
            told.pop(key, None)
            return None
        spec = service["spec"]
        path = f"/api/v1/namespaces/{key[0]}/services/{key[1]}"
        have, mine = given(service), GIVEN_POOL in (service["metadata"].get("annotations") or {})
        if spec.get("type") != "LoadBalancer" or spec.get("loadBalancerClass"):
            if have and mine:
                answer = await context.client.patch(f"{path}/status", {"status": {"loadBalancer": {"ingress": None}}})
                await services.caught_up(answer)
            return None
        if have or not pools.known:
            return None
        taken = {given(other) for other in services.items.values()} - {""}
        address, pool, problem = choose(service, pools.items.values(), taken)
        about = {"apiVersion": "v1", "kind": "Service", **service}
        if problem:
            if told.get(key) != problem:
                told[key] = problem
                await context.event(about, "AllocationFailed", problem, kind="Warning", component="metallb-controller")
                process.write(
                    f'{{"caller":"service.go","error":"{problem}","level":"error","msg":"IP allocation failed"}}'
                )
            return 30.0
        told.pop(key, None)
        await context.client.patch(path, {"metadata": {"annotations": {GIVEN_POOL: pool}}})
        status = {"status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}}
        await services.caught_up(await context.client.patch(f"{path}/status", status))
        await context.event(about, "IPAllocated", f'Assigned IP ["{address}"]', component="metallb-controller")
        process.write(
            f'{{"event":"ipAllocated","ip":["{address}"],"level":"info","msg":"IP address assigned by controller"}}'
        )
        return None

    def every(_: Object) -> list[Key]:
        return [key for key, item in services.items.items() if item["spec"].get("type") == "LoadBalancer"]

    # One worker: two services at once must not get the same address.
    await reconcile(context, services, work, also=[(pools, every)], workers=1)


PROGRAMS = (Program("metallb/controller", run),)
