import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Fleet } from "../fleet/fleet.js";
import type { Cluster } from "./cluster.js";
import type { Fault, KindName } from "./faults.js";
import type { Mounts } from "./mounts.js";
import type { Impairment, Network } from "./network.js";

/** What a run has to strike at. */
export interface Field {
  readonly fleet: Fleet;
  readonly network: Network | undefined;
  readonly mounts: Mounts | undefined;
  readonly cluster: Cluster | undefined;
  /** Folder of the files that move processes' clocks. */
  readonly clocks: string;
}

/** A fault that has struck: what holds it, until `heal` is called. */
export interface Struck {
  /** What it struck, for the progress line. */
  readonly target: string;
  /** Undefined for what heals by itself. */
  readonly heal?: () => Promise<void> | void;
}

const SERVICES = ["aggregator", "scheduler", "registry", "telemetry"] as const;
const CLUSTER_WHOLE_MS = 30_000;

export function signalPid(pid: number | undefined, signal: NodeJS.Signals): boolean {
  if (pid === undefined || pid <= 1) return false;
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    return false;
  }
}

const pick = <T>(items: readonly T[], index: number): T | undefined => items[index % Math.max(1, items.length)];

const deviceOf = (field: Field, fault: Fault): string => pick([...field.fleet.devices.keys()], fault.index) ?? "";

/** Pids by name of the units that are called so, or so and a number. */
function unitsOf({ fleet }: Field, names: readonly string[]): [string, number][] {
  return Object.entries(fleet.context().pids).filter(([unit]) =>
    names.some((name) => unit === name || new RegExp(`^${name}-\\d+$`).test(unit)),
  );
}

/** SIGKILLs every process of the run and brings all of it up again on the same directories. */
async function killEverything({ fleet }: Field): Promise<Struck> {
  const context = fleet.context();
  signalPid(fleet.upPid, "SIGKILL");
  for (const pid of Object.values(context.pids)) signalPid(pid, "SIGKILL");
  for (const { process: agent } of fleet.devices.values()) signalPid(agent.pid, "SIGKILL");
  await fleet.up().catch(() => fleet.up());
  for (const name of fleet.devices.keys()) fleet.restartDevice(name);
  return { target: "everything" };
}

function killUnit(field: Field, fault: Fault, names: readonly string[]): Struck | undefined {
  const [name, pid] = pick(unitsOf(field, names), fault.index) ?? [];
  return signalPid(pid, "SIGKILL") ? { target: name ?? "" } : undefined;
}

/** One server at a time: the cluster is whole before, so that a majority is left. */
async function killNats(field: Field, fault: Fault): Promise<Struck | undefined> {
  const { cluster } = field;
  if (cluster === undefined) return killUnit(field, fault, ["nats"]);
  if (!(await cluster.whole(CLUSTER_WHOLE_MS))) console.log("the cluster is not whole; striking all the same");
  if (fault.kind === "nats") return killUnit(field, fault, ["nats"]);
  const leader = await cluster.leader(fault.index);
  return leader === undefined ? undefined : killUnit(field, fault, [leader]);
}

function killAgent({ fleet }: Field, name: string): Struck | undefined {
  const agent = fleet.devices.get(name)?.process;
  if (agent?.signalCode !== null || !agent.kill("SIGKILL")) return undefined;
  return { target: name, heal: () => fleet.restartDevice(name) };
}

function freeze(target: string, pid: number | undefined): Struck | undefined {
  if (!signalPid(pid, "SIGSTOP")) return undefined;
  return { target, heal: () => void signalPid(pid, "SIGCONT") };
}

function impair({ network }: Field, device: string, how: Impairment): Struck | undefined {
  if (network === undefined) return undefined;
  network.impair(device, how);
  return { target: device, heal: () => network.repair(device, how) };
}

function fill({ mounts }: Field, folder: string, target: string): Struck | undefined {
  if (mounts === undefined) return undefined;
  mounts.fill(folder);
  return { target: `${target}'s disk`, heal: () => mounts.free(folder) };
}

function moveClock({ clocks }: Field, target: string, jumpMs: number): Struck {
  mkdirSync(clocks, { recursive: true });
  writeFileSync(join(clocks, target), String(jumpMs));
  const hours = (jumpMs / 3_600_000).toFixed(1);
  return { target: `${target}'s clock by ${hours} h`, heal: () => rmSync(join(clocks, target), { force: true }) };
}

/** Does what the fault says; undefined if there was nothing to strike at that moment. */
export async function strike(field: Field, fault: Fault): Promise<Struck | undefined> {
  const { kind } = fault;
  const device = deviceOf(field, fault);
  const { dir } = field.fleet.options;
  switch (kind) {
    case "everything":
      return killEverything(field);
    case "agent":
      return killAgent(field, device);
    case "nats":
    case "nats-leader":
      return killNats(field, fault);
    case "aggregator":
    case "scheduler":
    case "registry":
    case "telemetry":
    case "redis":
      return killUnit(field, fault, [kind]);
    case "freeze-agent":
      return freeze(device, field.fleet.devices.get(device)?.process.pid);
    case "freeze-service": {
      const [service = "", pid] = pick(unitsOf(field, SERVICES), fault.index) ?? [];
      return freeze(service, pid);
    }
    case "link-down":
    case "silence":
    case "loss":
    case "slow":
      return impair(field, device, kind);
    case "disk-agent":
      return fill(field, join(dir, `state-${device}`), device);
    case "disk-nats": {
      const [server = ""] = pick(unitsOf(field, ["nats"]), fault.index) ?? [];
      return server === "" ? undefined : fill(field, join(dir, server), server);
    }
    case "clock-agent":
      return moveClock(field, device, fault.jumpMs);
    case "clock-service": {
      const [service = ""] = pick(unitsOf(field, SERVICES), fault.index) ?? [];
      return service === "" ? undefined : moveClock(field, service, fault.jumpMs);
    }
  }
}

/** Faults that would undo each other's healing on the same device. */
const GROUPS: Readonly<Partial<Record<KindName, string>>> = {
  "link-down": "link",
  silence: "link",
  loss: "link",
  slow: "link",
  "freeze-agent": "agent",
  agent: "agent",
};

/** What the fault holds: "everything", or a group of faults and a target; undefined for nothing. */
export function resourceOf(fault: Fault, devices: number): string | undefined {
  if (fault.kind === "everything") return "everything";
  if (fault.holdMs === 0) return undefined;
  const group = GROUPS[fault.kind];
  return group === undefined ? fault.kind : `${group} ${fault.index % devices}`;
}

/** Strikes as soon as there is something to strike at, so that every fault is one. */
export async function strikeOnce(field: Field, fault: Fault): Promise<Struck | undefined> {
  for (let attempt = 0; attempt < 60; attempt++) {
    const struck = await strike(field, fault);
    if (struck !== undefined) return struck;
    await sleep(250);
  }
  return undefined;
}
