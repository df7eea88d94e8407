import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeAddresses } from "../fleet/addresses.js";
import { Fleet, unary } from "../fleet/fleet.js";
import { type BenchResult, report } from "./report.js";
import { SlowLink } from "./slow-link.js";

const DEVICES = 2;
/** 1 Mbit/s either way for every device. */
const LINK_BYTES_PER_SECOND = 125_000;
/** Share of the full speed at which devices train, so that steps take about as long as the link. */
const THROTTLE = 0.25;
const LOCAL_STEPS = 16;
const FRAGMENTS = 4;
const OVERLAPS = [0, 8, 12];
const MOST_LOSS_RATIO = 1.02;
/** Of which the first fetches everything and the last ones overlap nothing. */
const EDGE_ROUNDS = 2;

function manifest(name: string, rounds: number, overlapSteps: number): string {
  return JSON.stringify({
    apiVersion: "shoal.dev/v1alpha1",
    kind: "TrainingJob",
    metadata: { name },
    spec: {
      model: {
        family: "gpt2",
        config: { vocab_size: 256, n_positions: 32, n_layer: FRAGMENTS, n_head: 2, n_embd: 64 },
        tokenizer: { kind: "bytes" },
      },
      data: { dataset: "sotu", purpose: "research", seqLen: 32, heldOutFraction: 0.1 },
      rounds,
      cohort: { min: DEVICES, target: DEVICES },
      local: { steps: LOCAL_STEPS, stepPolicy: "fixed", batchSize: 8, optimizer: { learningRate: 2e-3 } },
      strategy: { name: "streamingDiloco", fragments: FRAGMENTS, overlapSteps },
      codec: { name: "int8", errorFeedback: true, down: "int8" },
      evaluation: { everyRounds: 0, finalRound: true },
      roundDeadlineMs: 600_000,
      seed: 11,
    },
  });
}

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1] ?? NaN;

interface Run {
  /** From the plan of one round to that of the next. */
  roundMs: number;
  /** Nats per token on text that the devices hold out. */
  loss: number;
}

async function run(fleet: Fleet, rounds: number, overlapSteps: number): Promise<Run> {
  const name = `overlap-${overlapSteps}`;
  await fleet.apply(manifest(name, rounds, overlapSteps));
  const ended = await fleet.waitForJob(name, 1_200_000);
  if (ended.status?.phase !== "Completed") throw new Error(`the job is ${ended.status?.phase ?? "gone"}`);
  const { rounds: listed } = await fleet.withJobs((jobs) =>
    unary(jobs, jobs.listRounds.bind(jobs), { job: name, pageSize: 1000, pageToken: "" }),
  );
  const planned = listed.map(({ round }) => round?.status?.plannedAtMs ?? NaN).slice(EDGE_ROUNDS - 1, rounds - 1);
  const spans = planned.slice(1).map((at, i) => at - (planned[i] ?? NaN));
  return { roundMs: median(spans), loss: listed.at(-1)?.result?.evalLoss ?? NaN };
}

/**
 * What Streaming DiLoCo's overlap saves where the link is slow, in a whole system of real processes: the time of a round and the
 * held-out loss at equal steps, with and without local steps taken while a fragment travels. Updates are int8 both ways.
 */
export async function overlap(options: { json?: string | undefined; quick: boolean; strict: boolean }): Promise<void> {
  const rounds = options.quick ? 8 : 32;
  const results: BenchResult[] = [];
  const root = mkdtempSync(join(tmpdir(), "shoal-overlap-"));
  const link = await SlowLink.open(LINK_BYTES_PER_SECOND);
  let fleet: Fleet | undefined;
  try {
    fleet = await Fleet.start({ dir: join(root, "shoal"), env: { SHOAL_PUBLIC_NATS_URLS: link.url } });
    link.target = fleet.context().natsUrl;
    const token = await fleet.token();
    for (const [i, dataDir] of writeAddresses(join(root, "data"), DEVICES, 4).entries()) {
      fleet.startDevice({ name: `device-${i + 1}`, dataset: "sotu", dataDir, throttle: THROTTLE }, token);
    }
    await fleet.waitForDevices(DEVICES);
    let plain: Run | undefined;
    for (const steps of OVERLAPS) {
      const { roundMs, loss } = await run(fleet, rounds, steps);
      plain ??= { roundMs, loss };
      const of = `overlap ${steps} of ${LOCAL_STEPS}`;
      results.push({ case: of, metric: "round_ms", value: roundMs, unit: "ms", ratio: roundMs / plain.roundMs });
      const most = MOST_LOSS_RATIO * plain.loss;
      results.push({
        case: of,
        metric: "held_out_loss",
        value: loss,
        unit: "nats/token",
        ratio: loss / plain.loss,
        most,
      });
    }
  } finally {
    await fleet?.stop();
    await link.close();
    rmSync(root, { recursive: true, force: true });
  }
  report("overlap", results, options.json, options.strict);
}
