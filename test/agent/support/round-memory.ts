import { execFile } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import type { ModelConfig } from "#common/graph/config.js";
import { fragmentsOf } from "#common/graph/fragments.js";
import { freezeBase } from "#common/graph/frozen.js";
import { initVariant, initWeights } from "#common/graph/init.js";
import { variantOf } from "#common/graph/training.js";
import { variantLayout } from "#common/graph/variant.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { viewBytes } from "#common/tensor/flat.js";
import { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import { TrainingJob, TrainingJobSpec } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import { GraphLibrary } from "#services/scheduler/graph-library.js";
import { draftRound } from "#services/scheduler/round-draft.js";

const program = fileURLToPath(new URL("round-process.js", import.meta.url));
const STEPS = 2;
/** The first begins with nothing; the second with what that one left. */
const ROUNDS = [1, 2];

/** A job of two rounds over the spec's parts that matter here, which are as in a manifest. */
export function jobOf(
  fields: Readonly<Record<"strategy" | "codec" | "local" | "training" | "data", object>>,
): TrainingJob {
  const spec = TrainingJobSpec.fromJSON({ rounds: ROUNDS.length, evaluation: { everyRounds: 1 }, ...fields });
  return TrainingJob.fromPartial({ metadata: { name: "job", uid: "uid" }, spec });
}

/** Stores a model for the job, as the scheduler does. */
async function storeModel(
  job: TrainingJob,
  config: ModelConfig,
  put: (bytes: Uint8Array) => Promise<BlobRef>,
): Promise<TrainingJob> {
  const base = initWeights(config, 1);
  const variant = variantOf(job.spec?.training);
  const trainsAll = Object.keys(variant).length === 0;
  const weights = trainsAll ? base : initVariant(config, variant, 1);
  // Its own weights stand for the common control variate, of a job that has one.
  const ref = await put(viewBytes(weights));
  const status = { parameters: weights.length, weights: ref, outerState: ref };
  if (trainsAll) return TrainingJob.fromPartial({ ...job, status });
  const { plain, scales, packed } = freezeBase(config, variant, base);
  const blob = await put(Buffer.concat([viewBytes(plain), viewBytes(scales), packed]));
  const sizes = { floatValues: plain.length, scaleValues: scales.length, packedBytes: packed.length };
  return TrainingJob.fromPartial({ ...job, status: { ...status, frozen: { blob, ...sizes } } });
}

/** The rounds of a job as a device is given them. */
async function draftTasks(
  job: TrainingJob,
  config: ModelConfig,
  put: (bytes: Uint8Array) => Promise<BlobRef>,
): Promise<AssignedTask[]> {
  const { spec } = job;
  if (spec === undefined) throw new TypeError("a job without a spec");
  const blobs = new MemoryBlobStore();
  const library = new GraphLibrary(blobs);
  const shape = { batch: spec.local?.batchSize ?? 0, seqLen: spec.data?.seqLen ?? 0 };
  const [trainGraph, evalGraph] = await Promise.all(
    [await library.train(config, spec, false), await library.evaluation(config, shape, spec.training)].map(
      async ({ digest }) => put((await blobs.get(digest)) ?? new Uint8Array()),
    ),
  );
  const count = spec.strategy?.fragments ?? 0;
  const layout = variantLayout(config, variantOf(spec.training)).trainable;
  const fragments = count > 0 ? fragmentsOf(layout, count).map((ranges) => ({ ranges })) : [];
  const model = { family: config.family, tokenizer: { kind: "bytes", chars: "", blob: undefined } };
  return ROUNDS.map((number) => {
    const task = draftRound(job, model, { number, evaluationOnly: false }, evalGraph, fragments).spec?.task;
    const assignment = { device: "device", localSteps: STEPS, batchSize: shape.batch, seed: number, trainGraph };
    return AssignedTask.fromPartial({ task: { ...task, cohortSize: 2 }, assignment });
  });
}

/**
 * Peak memory of an agent's process that carries out two rounds of a job, bytes: fetched, trained, spooled and sent.
 * @param folder an empty one
 */
export async function measureRounds(
  job: TrainingJob,
  config: ModelConfig,
  threads: number,
  folder: string,
): Promise<number> {
  for (const name of ["blobs", "data"]) await mkdir(`${folder}/${name}`);
  await writeFile(`${folder}/data/a.txt`, "the shoal swims as one, each fish by itself. ".repeat(60));
  const put = async (bytes: Uint8Array): Promise<BlobRef> => {
    const ref = { digest: sha256Digest(bytes), sizeBytes: bytes.length };
    await writeFile(`${folder}/blobs/${ref.digest}`, bytes);
    return ref;
  };
  const tasks = await draftTasks(await storeModel(job, config, put), config, put);
  await writeFile(`${folder}/tasks.json`, JSON.stringify(tasks.map((task) => AssignedTask.toJSON(task))));
  const { stdout } = await promisify(execFile)(process.execPath, [program, folder, String(threads)]);
  return Number(stdout);
}
