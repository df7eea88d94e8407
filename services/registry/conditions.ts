import type { Observation } from "#common/domain/condition.js";
import type { DatasetFacts, DeviceFacts } from "#proto/shoal/v1/device.js";

/** A fact about the device itself, whatever the generation of its spec. */
export type Finding = Omit<Observation, "generation">;

/** Clock differences up to this are harmless: they are within what a network delays a heartbeat. */
export const MAX_SKEW_MS = 30_000;

const UNITS = [
  { name: "days", ms: 86_400_000 },
  { name: "hours", ms: 3_600_000 },
  { name: "minutes", ms: 60_000 },
] as const;

function duration(ms: number): string {
  const unit = UNITS.find((candidate) => ms >= candidate.ms);
  return unit === undefined ? `${Math.round(ms / 1000)} seconds` : `${Math.round(ms / unit.ms)} ${unit.name}`;
}

/** Whether the device can be given work at all. `problems` are the absurd facts that were put right. */
export function observeReady(facts: DeviceFacts, problems: readonly string[]): Finding {
  const not = (reason: string, message: string): Finding => ({ type: "Ready", status: false, reason, message });
  if (problems.length > 0) {
    return not("AbsurdFacts", `${problems.join("; ")}: repair the agent's configuration or calibrate again`);
  }
  if (facts.gflops === 0) return not("NotCalibrated", "the agent has not measured its speed yet: wait for calibration");
  if (facts.memoryBytes === 0) return not("NoMemory", "the agent offers no memory: raise its memory limit");
  return { type: "Ready", status: true, reason: "Heartbeat", message: "" };
}

/** Whether a site's gateway can fold: it needs neither text nor speed. */
export function observeGateway(site: string, problems: readonly string[]): Finding {
  if (problems.length === 0) return { type: "Ready", status: true, reason: "Heartbeat", message: `gateway of ${site}` };
  return { type: "Ready", status: false, reason: "AbsurdFacts", message: problems.join("; ") };
}

/** Whether the device's clock agrees with the registry's. Nothing depends on it: deadlines are in the registry's time. */
export function observeClock(deviceMs: number, skewMs: number): Finding {
  const type = "ClockInSync";
  if (!(deviceMs > 0)) {
    const message = "the device sent no time: set its clock (timedatectl set-ntp true)";
    return { type, status: undefined, reason: "NoClock", message };
  }
  if (Math.abs(skewMs) <= MAX_SKEW_MS) return { type, status: true, reason: "InSync", message: "" };
  const direction = skewMs > 0 ? "ahead of" : "behind";
  const message =
    `the device's clock is ${duration(Math.abs(skewMs))} ${direction} the registry's: synchronise it ` +
    "(timedatectl set-ntp true); it goes on working, because deadlines are in the registry's time";
  return { type, status: false, reason: "ClockSkewed", message };
}

/** Whether the device offers text that can be used. */
export function observeData(datasets: readonly DatasetFacts[]): Finding {
  const type = "DataReady";
  if (datasets.length === 0) {
    const message = "the device offers no dataset: start the agent with a folder of .txt or .jsonl files";
    return { type, status: false, reason: "NoData", message };
  }
  const broken = datasets.filter((dataset) => dataset.problem !== "");
  const message = broken.map((dataset) => `${dataset.name}: ${dataset.problem}`).join("; ");
  if (broken.length === datasets.length) return { type, status: false, reason: "DataUnusable", message };
  return { type, status: true, reason: broken.length === 0 ? "DataUsable" : "DataPartlyUsable", message };
}
