import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, cpus, tmpdir, totalmem } from "node:os";
import { join, resolve } from "node:path";
import { exportCheckpoint } from "#common/graph/checkpoint.js";
import { deriveSeed } from "#common/domain/seed.js";
import { parseModelConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import { connectClients, type Clients } from "../calls.js";
import { generateFromFolder } from "../generation.js";
import { exportModel } from "../folders.js";
import { LiveArea } from "../output/progress.js";
import type { Shell } from "../shell.js";
import { startControlPlane, type ControlPlane } from "../supervisor/control-plane.js";
import { readAddresses } from "./addresses.js";
import { measureBaselines } from "./comparison.js";
import { shardTable } from "./display.js";
import { Fleet, writeShards, type DemoDevice } from "./fleet.js";
import { reportBytes, stepsByDevice, type DemoReport } from "./report.js";
import { DEMO } from "./settings.js";
import { splitAddresses } from "./shards.js";
import { enrol, trainFederated, type Federated } from "./training.js";

export interface DemoOptions {
  readonly devices: number;
  readonly rounds: number;
  readonly seed: number;
  /** Folder for the trained model; it stays. */
  readonly checkpoint: string;
  /** Keep the control plane's and the devices' folders. */
  readonly keep: boolean;
}

const PROMPT = "The people of the United States ";
const SAMPLE = { prompt: PROMPT, tokens: 160, temperature: 0.7, topK: 20, threads: 1 } as const;
/** Beats come often, so that the bars move. */
const HEARTBEAT_MS = "500";

async function sample(folder: string, seed: number): Promise<string> {
  let text = "";
  for await (const piece of generateFromFolder(folder, { ...SAMPLE, seed })) text += piece;
  return text;
}

/** A checkpoint of fresh weights, for the sample before training. */
function writeInitial(folder: string, seed: number): void {
  const parsed = parseModelConfig({ family: "gpt2", ...DEMO.model });
  if (!parsed.ok) throw new Error(`the demo's model cannot be built: ${JSON.stringify(parsed.violations)}`);
  mkdirSync(folder, { recursive: true });
  const files = exportCheckpoint(parsed.config, initWeights(parsed.config, deriveSeed(seed, "weights")));
  for (const [name, bytes] of Object.entries(files)) writeFileSync(join(folder, name), bytes as Uint8Array);
}

interface Stage {
  readonly shell: Shell;
  readonly options: DemoOptions;
  readonly root: string;
  readonly devices: readonly DemoDevice[];
  readonly live: LiveArea;
}

/** Runs the fleet and the job, and brings the model out; everything it started has ended when it returns. */
async function federate(stage: Stage, plane: ControlPlane): Promise<Federated> {
  const { shell, options, root, devices, live } = stage;
  const clients: Clients = connectClients(plane.context);
  const fleet = new Fleet(devices, join(root, "devices"));
  try {
    await fleet.start(await enrol(clients, devices.length), clients, shell.signal);
    live.log(`${devices.length} devices are ready: training ${options.rounds} rounds`);
    const federated = await trainFederated({ clients, fleet, live, devices, options, signal: shell.signal });
    await exportModel(clients, DEMO.job, options.checkpoint);
    return federated;
  } finally {
    await fleet.stop();
    clients.close();
  }
}

async function runFederated(stage: Stage): Promise<Federated> {
  const plane = await startControlPlane({
    dir: join(stage.root, "control-plane"),
    replicas: 1,
    natsHost: "127.0.0.1",
    natsNodes: 1,
    path: stage.shell.io.env["PATH"] ?? "",
    settings: { SHOAL_HEARTBEAT_MS: HEARTBEAT_MS, SHOAL_LOG_LEVEL: stage.shell.io.env["SHOAL_LOG_LEVEL"] ?? "info" },
    signal: stage.shell.signal,
    say: (line) => stage.live.log(line),
  });
  try {
    return await federate(stage, plane);
  } finally {
    await plane.stop();
  }
}

async function runStages(stage: Stage, startedMs: number): Promise<DemoReport> {
  const { options, root, devices, shell, live } = stage;
  const initialFolder = join(root, "initial");
  writeInitial(initialFolder, options.seed);
  const before = await sample(initialFolder, options.seed);
  const federated = await runFederated(stage);
  live.log("measuring what the same steps give without federation");
  const baselinesStartMs = shell.io.nowMs();
  const final = await measureBaselines({
    devices,
    steps: stepsByDevice(federated.rounds),
    checkpoint: options.checkpoint,
    seed: options.seed,
    fleetLoss: federated.fleetLoss,
    live,
    signal: shell.signal,
  });
  const nowMs = shell.io.nowMs();
  return {
    name: "demo",
    machine: {
      cpu: cpus()[0]?.model ?? "unknown",
      cores: availableParallelism(),
      memoryBytes: totalmem(),
      node: process.versions.node,
    },
    options: { devices: options.devices, rounds: options.rounds, seed: options.seed },
    parameters: federated.parameters,
    seconds: {
      federated: federated.seconds,
      baselines: (nowMs - baselinesStartMs) / 1000,
      total: (nowMs - startedMs) / 1000,
    },
    final,
    bytes: reportBytes(federated.rounds, federated.parameters),
    rounds: federated.rounds,
    samples: { prompt: PROMPT, before, after: await sample(options.checkpoint, options.seed) },
    checkpoint: resolve(options.checkpoint),
  };
}

/**
 * The whole demo: private shards, control plane, agents, federated training, and the same steps without federation.
 * Its folder is removed at the end unless it is to be kept.
 */
export async function runDemo(shell: Shell, options: DemoOptions): Promise<DemoReport> {
  const { io } = shell;
  const startedMs = io.nowMs();
  const shards = splitAddresses(readAddresses(), options.devices, options.seed);
  const root = mkdtempSync(join(tmpdir(), "shoal-demo-"));
  try {
    const devices = writeShards(shards, join(root, "devices"));
    const live = new LiveArea((text) => io.err(text), io.terminal, io.width);
    live.log(shardTable(shards, devices).trimEnd());
    return await runStages({ shell, options, root, devices, live }, startedMs);
  } finally {
    if (options.keep) io.err(`kept: ${root}\n`);
    else rmSync(root, { recursive: true, force: true });
  }
}
