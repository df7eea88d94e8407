import { availableParallelism } from "node:os";
import { formatLoss } from "../output/format.js";
import { formatBar, type LiveArea } from "../output/progress.js";
import { runBaselines } from "./baselines.js";
import type { BaselineLine, BaselinePlan } from "./baseline-plan.js";
import type { DemoDevice } from "./fleet.js";
import type { FinalReport } from "./report.js";

const BAR_CELLS = 24;
const CENTRALISED = "centralised";
const FEDERATED = "federated";
const INITIAL = "initial";

export interface ComparisonInput {
  readonly devices: readonly DemoDevice[];
  /** Local steps each device did in the federated job. */
  readonly steps: ReadonlyMap<string, number>;
  /** Folder of the federated model. */
  readonly checkpoint: string;
  readonly seed: number;
  readonly fleetLoss: number | null;
  readonly live: LiveArea;
  readonly signal: AbortSignal;
}

/**
 * The plans of two processes that have about the same work: one trains in one place with all steps, the other one model
 * per device with that device's steps.
 */
export function planBaselines(
  folders: Readonly<Record<string, string>>,
  steps: ReadonlyMap<string, number>,
  checkpoint: string,
  seed: number,
  cores: number,
): { centralised: BaselinePlan; alone: BaselinePlan } {
  const threads = Math.max(1, Math.floor(cores / 2));
  const total = [...steps.values()].reduce((sum, n) => sum + n, 0);
  const shared = { seed, threads, folders: { ...folders } };
  return {
    centralised: {
      ...shared,
      runs: [{ name: CENTRALISED, devices: Object.keys(folders), steps: total }],
      checkpoints: {},
      initial: false,
    },
    alone: {
      ...shared,
      runs: [...steps].map(([device, n]) => ({ name: `alone/${device}`, devices: [device], steps: n })),
      checkpoints: { [FEDERATED]: checkpoint },
      initial: true,
    },
  };
}

/** Draws both processes' progress; a line for each loss. */
function progressOf(live: LiveArea): (line: BaselineLine) => void {
  const running = new Map<string, string>();
  return (line) => {
    if (line.kind === "loss") {
      running.delete(line.name);
      live.log(`${line.name.padEnd(28)} held-out ${formatLoss(line.loss)}`);
    } else {
      const bar = formatBar(line.step, line.steps, BAR_CELLS);
      running.set(
        line.name,
        `  ${line.name.padEnd(28)} ${bar} ${line.step}/${line.steps}  loss ${formatLoss(line.loss)}`,
      );
    }
    live.show([...running.values()]);
  };
}

function lossOf(losses: ReadonlyMap<string, number>, name: string): number {
  const loss = losses.get(name);
  if (loss === undefined) throw new Error(`the baselines gave no loss for ${name}`);
  return loss;
}

/** Trains and evaluates everything the federated model is compared with, on the same held-out text. */
export async function measureBaselines(input: ComparisonInput): Promise<FinalReport> {
  const folders = Object.fromEntries(input.devices.map(({ name, dataDir }) => [name, dataDir]));
  const plans = planBaselines(folders, input.steps, input.checkpoint, input.seed, availableParallelism());
  const onLine = progressOf(input.live);
  // One that fails ends the other.
  const failed = new AbortController();
  const signal = AbortSignal.any([input.signal, failed.signal]);
  const run = (plan: BaselinePlan): Promise<Map<string, number>> =>
    runBaselines(plan, onLine, signal).catch((error: unknown) => {
      failed.abort();
      throw error;
    });
  const [central, alone] = await Promise.all([run(plans.centralised), run(plans.alone)]);
  input.live.show([]);
  const devices = [...input.steps].map(([device, steps]) => ({
    device,
    steps,
    loss: lossOf(alone, `alone/${device}`),
  }));
  const losses = devices.map(({ loss }) => loss);
  return {
    federatedLoss: lossOf(alone, FEDERATED),
    fleetLoss: input.fleetLoss,
    initialLoss: lossOf(alone, INITIAL),
    localOnlyLoss: {
      best: Math.min(...losses),
      mean: losses.reduce((sum, loss) => sum + loss, 0) / losses.length,
      devices,
    },
    centralisedLoss: lossOf(central, CENTRALISED),
    centralisedSteps: plans.centralised.runs[0]?.steps ?? 0,
  };
}
