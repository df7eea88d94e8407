import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import test from "ava";
import { InferenceSession } from "onnxruntime-node";
import { importAdapter } from "#common/graph/adapter.js";
import { importFolder } from "#common/graph/folder.js";
import type { Io } from "#services/cli/io.js";
import { runProgram } from "#services/cli/program.js";
import { Fleet, unary } from "../fleet/fleet.js";

const base = resolve("../shared/models/stories260K");
const text = resolve("../shared/data/tinyshakespeare/input.txt");
const absent = !(existsSync(base) && existsSync(text)) && process.env["CI"] === undefined;
const shared = absent ? test.serial.skip : test.serial;
const title = (what: string): string => `${what} (needs ../shared${absent ? ", which is absent here" : ""})`;

const DEVICES = 2;
const SHARE_CHARS = 16_000;
const SCENES = 8;
const root = mkdtempSync(join(tmpdir(), "shoal-adapter-"));
let fleet: Fleet | undefined;

/** A command line of `shoal`, without a process of its own. */
async function shoal(...args: readonly string[]): Promise<string> {
  let [out, err] = ["", ""];
  const io: Io = {
    out: (piece) => (out += piece),
    err: (piece) => (err += piece),
    terminal: false,
    width: 100,
    env: {},
    readStdin: () => Promise.resolve(""),
    nowMs: () => Date.now(),
  };
  const code = await runProgram(args, io, new AbortController().signal);
  if (code !== 0) throw new Error(`shoal ${args.join(" ")} ended with ${code}: ${err}`);
  return out;
}

/** Shakespeare's text in parts, each in several documents, one folder a device. */
function writeShares(): string[] {
  const play = readFileSync(text, "utf8");
  return Array.from({ length: DEVICES }, (_, device) => {
    const folder = join(root, `data-${device}`);
    mkdirSync(folder);
    for (let scene = 0; scene < SCENES; scene++) {
      const from = device * SHARE_CHARS + (scene * SHARE_CHARS) / SCENES;
      writeFileSync(join(folder, `${scene}.txt`), play.slice(from, from + SHARE_CHARS / SCENES));
    }
    return folder;
  });
}

const manifest = (rounds: number): unknown => ({
  apiVersion: "shoal.dev/v1alpha1",
  kind: "TrainingJob",
  metadata: { name: "bard" },
  spec: {
    model: { base: "stories" },
    data: { dataset: "plays", seqLen: 64 },
    training: { mode: "lora", lora: { rank: 8, alpha: 16 }, base: "int8", recompute: "always" },
    rounds,
    cohort: { min: DEVICES },
    local: {
      steps: 20,
      stepPolicy: "fixed",
      batchSize: 4,
      accumulate: 2,
      packing: true,
      proximalMu: 0.001,
      optimizer: { learningRate: 0.005, schedule: { warmupSteps: 2 } },
    },
    strategy: { name: "fedavg" },
  },
});

const filesOf = (folder: string): Map<string, Uint8Array> =>
  new Map(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name))]));

test.after.always(async () => {
  await fleet?.stop();
  rmSync(root, { recursive: true, force: true });
});

shared(title("a stored model gets adapters from two devices, over its base in int8, and its loss falls"), async (t) => {
  const dir = join(root, "shoal");
  fleet = await Fleet.start({ dir, env: { SHOAL_HEARTBEAT_MS: "500" } });
  const token = await fleet.token();
  writeShares().forEach((dataDir, i) => fleet?.startDevice({ name: `device-${i}`, dataset: "plays", dataDir }, token));
  await shoal("import", "stories", base, "--context", dir);
  await shoal("export", "stories", join(root, "copy"), "--context", dir);
  const copy = filesOf(join(root, "copy"));
  t.deepEqual([...copy.keys()].sort(), ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
  for (const [name, bytes] of copy) t.true(readFileSync(join(base, name)).equals(bytes), name);

  await fleet.waitForDevices(DEVICES);
  await t.throwsAsync(fleet.apply(JSON.stringify(manifest(0))), { message: /spec\.rounds/ });
  await fleet.apply(JSON.stringify(manifest(2)));
  const job = await fleet.waitForJob("bard", 300_000);
  t.is(job.status?.phase, "Completed", fleet.lastWords());
  const rounds = await fleet.withJobs((jobs) =>
    unary(jobs, jobs.listRounds.bind(jobs), { job: "bard", pageSize: 100, pageToken: "" }),
  );
  const losses = rounds.rounds.map(({ result }) => result?.evalLoss ?? NaN);
  t.is(losses.length, 3);
  t.true((losses.at(-1) ?? NaN) < (losses[0] ?? NaN) - 0.3, `held-out losses ${losses.join(" ")}`);
  const { values = 0, sizeBytes = 0 } = rounds.rounds[0]?.result?.folded[0]?.manifest ?? {};
  t.is(values, job.status?.parameters ?? NaN);
  t.true(sizeBytes < 60_000, `${sizeBytes} bytes an update, of a model of a megabyte`);
});

shared(title("the adapters are exported for peft and merged, and text is made and judged with them"), async (t) => {
  const dir = join(root, "shoal");
  const [adapter, merged] = [join(root, "adapter"), join(root, "merged")];
  await shoal("export", "bard", adapter, "--adapter", "--context", dir);
  await shoal("export", "bard", merged, "--merged", "--context", dir);
  const whole = importFolder(filesOf(merged));
  if (!whole.ok) return t.fail(JSON.stringify(whole.violations));
  const read = importAdapter(whole.config, {
    "adapter_config.json": readFileSync(join(adapter, "adapter_config.json")),
    "adapter_model.safetensors": readFileSync(join(adapter, "adapter_model.safetensors")),
  });
  t.true(read.ok && read.lora.rank === 8 && read.weights.some((x) => x !== 0));

  await shoal("import", "bard-again", adapter, "--base", "stories", "--context", dir);
  await shoal("export", "bard-again", join(root, "again"), "--merged", "--context", dir);
  const [once, twice] = [filesOf(merged), filesOf(join(root, "again"))];
  t.deepEqual([...twice.keys()].sort(), [...once.keys()].sort());
  for (const [name, bytes] of once) t.true(Buffer.from(bytes).equals(twice.get(name) ?? Buffer.alloc(0)), name);

  await shoal("export", "bard", join(root, "onnx"), "--onnx", "--seq-len", "16", "--context", dir);
  const graph = readFileSync(join(root, "onnx", "model.onnx"));
  const logits = (await InferenceSession.create(graph)).outputMetadata[0];
  t.deepEqual(logits?.isTensor === true && logits.shape, [1, 16, 512]);

  const play = join(root, "held-out.txt");
  writeFileSync(play, readFileSync(text, "utf8").slice(500_000, 505_000));
  const judged = async (model: string): Promise<number> =>
    (
      JSON.parse(await shoal("eval", model, "--text", play, "--context", dir, "--context-tokens", "64", "--json")) as {
        loss: number;
      }
    ).loss;
  const [before, after] = [await judged("stories"), await judged("bard")];
  t.true(after < before - 0.3, `${after} after ${before}`);
  t.is(await judged(merged), after);
  const said = await shoal(
    "generate",
    "bard",
    "--prompt",
    "ROMEO:",
    "--max-tokens",
    "40",
    "--seed",
    "3",
    "--context",
    dir,
  );
  t.true(said.startsWith("ROMEO:") && said.length > 40, said);
});
