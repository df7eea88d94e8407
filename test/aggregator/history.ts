import { TrainingJob } from "#proto/shoal/v1/job.js";
import { Model } from "#proto/shoal/v1/model.js";
import type { RoundResult } from "#proto/shoal/v1/round.js";
import { newMeta } from "#common/domain/resources.js";
import { deriveSeed } from "#common/domain/seed.js";
import { parseModelConfig, toHuggingFaceConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import type { Kind, ResourceOf } from "#common/ports/resource-store.js";
import {
  commit,
  createWorld,
  DEVICES,
  draw,
  freeze,
  JOB,
  openRound,
  reconcile,
  resultOf,
  setPhase,
  upload,
  type World,
  type WorldOptions,
} from "./world.js";

const ROUNDS = 4;
export const SEED = 7;

const parsed = parseModelConfig({ family: "gpt2", vocabSize: 9, contextLength: 4, layers: 1, heads: 1, width: 4 });
if (!parsed.ok) throw new Error("the test's model cannot be built");
export const { config } = parsed;
/** First weights of the job, from its seed. */
export const whole = initWeights(config, deriveSeed(SEED, "weights"));

/** Changes a stored resource by compare-and-set, as whoever wants to forge it. */
export async function forge<K extends Kind>(
  world: World,
  kind: K,
  name: string,
  change: (stored: ResourceOf[K]) => ResourceOf[K],
): Promise<void> {
  const stored = (await world.store.get(kind, name)) as ResourceOf[K];
  await world.store.update(kind, change(stored));
}

async function playRound(world: World, number: number, evaluators: readonly string[] = []): Promise<RoundResult> {
  const { weights } = (await world.store.get("Round", `${JOB}-${number}`))?.spec?.task ?? {};
  for (const [i, device] of DEVICES.entries()) {
    const delta = draw(world.base.length, 10 * number + i);
    const manifest = await upload(world, device, delta, 10 - i, number);
    const honest = { ...manifest, baseDigest: weights?.digest ?? "" };
    if (!evaluators.includes(device)) await commit(world, honest, device, number);
  }
  await reconcile(world, number);
  await freeze(world, undefined, number);
  await reconcile(world, number);
  await setPhase(world, "Completed", number);
  await reconcile(world, number);
  return (await resultOf(world, number)) as RoundResult;
}

/** A finished job of four rounds over a new model, of which the log retains two. */
export async function play(options: WorldOptions = {}): Promise<World> {
  const world = await createWorld({ base: whole, retainRounds: 2, ...options });
  let last = await playRound(world, 1);
  for (let number = 2; number <= ROUNDS; number++) {
    await openRound(world, number, { ...options, start: last });
    last = await playRound(world, number);
  }
  await forge(world, "TrainingJob", JOB, (job) =>
    TrainingJob.fromPartial({
      ...job,
      spec: { ...job.spec, seed: SEED, model: { family: "gpt2", config: toHuggingFaceConfig(config) } },
      status: { ...job.status, currentRound: ROUNDS, completedRounds: ROUNDS, weights: last.weights, model: JOB },
    }),
  );
  await world.store.create(
    "Model",
    Model.fromPartial({ metadata: newMeta(JOB), weights: last.weights, origin: { job: JOB, round: ROUNDS } }),
  );
  return world;
}
