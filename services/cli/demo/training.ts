import { setTimeout as sleep } from "node:timers/promises";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import { call, type Clients } from "../calls.js";
import { CliError } from "../exit.js";
import { listDevices, listRounds } from "../lists.js";
import type { LiveArea } from "../output/progress.js";
import { deviceBars, roundLine } from "./display.js";
import type { DemoDevice, Fleet } from "./fleet.js";
import { reportRound, type RoundReport } from "./report.js";
import { DEMO, demoManifest } from "./settings.js";

const LOOK_MS = 250;
const HOUR_MS = 3_600_000;

/** What federated training came to. */
export interface Federated {
  readonly rounds: readonly RoundReport[];
  readonly parameters: number;
  /** From the submission to completion. */
  readonly seconds: number;
  /** Held-out loss in the evaluation round at the end, as the devices measured it. */
  readonly fleetLoss: number | null;
}

/** A join token for all devices. */
export async function enrol({ fleet }: Clients, devices: number): Promise<string> {
  const request = { ttlMs: HOUR_MS, uses: devices, deviceLabels: { from: "demo" } };
  return (await call(fleet.issueJoinToken.bind(fleet), request)).token;
}

interface Run {
  readonly clients: Clients;
  readonly fleet: Fleet;
  readonly live: LiveArea;
  readonly devices: readonly DemoDevice[];
  readonly options: { readonly rounds: number; readonly seed: number };
  readonly signal: AbortSignal;
}

async function submit({ clients, devices, options }: Run): Promise<void> {
  const { jobs } = clients;
  const value = demoManifest(devices.length, options.rounds, options.seed);
  await call(jobs.apply.bind(jobs), { source: { $case: "manifest", value }, dryRun: false });
}

async function currentJob({ jobs }: Clients): Promise<TrainingJob> {
  const { job } = await call(jobs.get.bind(jobs), { name: DEMO.job });
  if (job === undefined) throw new CliError(`job ${DEMO.job} is not there`);
  return job;
}

async function failure({ jobs }: Clients, phase: string): Promise<CliError> {
  const { explanation } = await call(jobs.explain.bind(jobs), { name: DEMO.job });
  return new CliError(`the job ended ${phase}: ${explanation.join(" ")}`);
}

/**
 * Submits the job and follows it to its end: a line per round, a bar per device.
 * @throws CliError if the job fails or no agent is left
 */
export async function trainFederated(run: Run): Promise<Federated> {
  const { clients, fleet, live, devices, options, signal } = run;
  const speeds = new Map(devices.map(({ name, speed }) => [name, speed.name]));
  const startMs = Date.now();
  await submit(run);
  let told = 0;
  while (!signal.aborted) {
    const job = await currentJob(clients);
    const all = await listRounds(clients, DEMO.job);
    const rounds = all.filter(({ round }) => round?.spec?.evaluationOnly !== true).flatMap((r) => reportRound(r) ?? []);
    for (const round of rounds.slice(told)) live.log(roundLine(round, options.rounds));
    told = rounds.length;
    const phase = job.status?.phase ?? "Pending";
    if (phase === "Completed") {
      live.show([]);
      const seconds = (Date.now() - startMs) / 1000;
      const last = all.find(({ round }) => round?.spec?.evaluationOnly === true)?.result?.evalLoss;
      return { rounds, parameters: job.status?.parameters ?? 0, seconds, fleetLoss: last ?? null };
    }
    if (phase === "Failed" || phase === "Cancelled") throw await failure(clients, phase);
    if (fleet.ended().length === devices.length)
      throw new CliError("all agents have ended: run with --keep and see their logs");
    live.show(deviceBars(await listDevices(clients), speeds));
    await sleep(LOOK_MS);
  }
  throw new CliError("interrupted");
}
