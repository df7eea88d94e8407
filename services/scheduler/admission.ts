import type { FrozenBase, TrainingJob } from "#proto/shoal/v1/job.js";
import type { Model } from "#proto/shoal/v1/model.js";
import { checkAgainstModel } from "#common/domain/manifest.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { deriveSeed } from "#common/domain/seed.js";
import { toHuggingFaceConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { configOf, factsOf, readConfig } from "./model-reading.js";
import { frozenBeside, startFrom, startOn } from "./starting-model.js";

/** Which job, of all that ever had its name, a model belongs to. */
const JOB_UID = "shoal.dev/job-uid";

const MAX_NAME = 63;
const KEPT_UID_CHARS = 8;

/** The model to start from; or why there is none, and whether that may change without a new manifest. */
export type Admission =
  | { ok: true; model: Model; frozen: FrozenBase | undefined }
  | { ok: false; final: boolean; reason: string; message: string };

const later = (reason: string, message: string): Admission => ({ ok: false, final: false, reason, message });
const never = (reason: string, message: string): Admission => ({ ok: false, final: true, reason, message });

interface World {
  store: ResourceStore;
  blobs: BlobStore;
}

function modelMeta(job: TrainingJob): Model["metadata"] {
  const name = job.metadata?.name ?? "";
  return { ...newMeta(name, { job: name }), annotations: { [JOB_UID]: job.metadata?.uid ?? "" } };
}

/** What training starts from, beside what the model says. */
function originOf(job: TrainingJob, model: string): Parameters<typeof startOn>[2] {
  return { model, training: job.spec?.training, seed: deriveSeed(job.spec?.seed ?? 0, "adapters") };
}

async function admitBase(job: TrainingJob, base: string, { store, blobs }: World): Promise<Admission> {
  const found = await store.get("Model", base);
  if (found?.weights === undefined) {
    return later("BaseMissing", `waiting for the model "${base}": import it, or name another as spec.model.base`);
  }
  const gone = `the weights of the model "${base}" are not stored any more: import it again`;
  if ((await blobs.touch(found.weights.digest)) === undefined) return later("BaseMissing", gone);
  const config = configOf(found);
  const misfits = checkAgainstModel(job, factsOf(config));
  if (misfits.length > 0) {
    const why = misfits.map(({ field, value, description }) => `${field} ${value} ${description}`).join("; ");
    return never("ModelMismatch", `${why}; apply the job under another name for the model "${base}"`);
  }
  const start = await startFrom(found, config, originOf(job, base), blobs);
  if (start === undefined) return later("BaseMissing", gone);
  const { frozen, ...ofModel } = start;
  const origin = { job: job.metadata?.name ?? "", round: 0 };
  return { ok: true, model: { ...found, ...ofModel, metadata: modelMeta(job), origin }, frozen };
}

async function admitNew(job: TrainingJob, { blobs }: World): Promise<Admission> {
  const { family = "", config = {}, tokenizer } = job.spec?.model ?? {};
  const parsed = readConfig(family, config);
  if (!parsed.ok) {
    const why = parsed.violations
      .map(({ field, description }) => `spec.model.config.${field} ${description}`)
      .join("; ");
    return never("ModelInvalid", why);
  }
  const whole = initWeights(parsed.config, deriveSeed(job.spec?.seed ?? 0, "weights"));
  const { frozen, ...ofModel } = await startOn(parsed.config, whole, originOf(job, ""), blobs);
  return {
    ok: true,
    frozen,
    model: {
      apiVersion: API_VERSION,
      kind: "Model",
      metadata: modelMeta(job),
      family,
      config: toHuggingFaceConfig(parsed.config),
      tokenizer,
      origin: { job: job.metadata?.name ?? "", round: 0 },
      template: undefined,
      ...ofModel,
    },
  };
}

/**
 * Goes on from the Model that the job itself published before its status said so: its base may have got other weights
 * since, and what devices train on must be what the Model says.
 */
async function admitPublished(model: Model, { blobs }: World): Promise<Admission> {
  const name = model.metadata?.name ?? "";
  const gone = later(
    "BaseMissing",
    `the weights that the model "${name}" began with are not stored any more: delete the job and the model, and apply it again`,
  );
  if ((await blobs.touch(model.weights?.digest ?? "")) === undefined) return gone;
  if (model.base === undefined) return { ok: true, model, frozen: undefined };
  const frozen = await frozenBeside(configOf(model), model.base, blobs);
  return frozen === undefined ? gone : { ok: true, model, frozen };
}

const jobUid = (model: Model | undefined): string => model?.metadata?.annotations[JOB_UID] ?? "";

/** Whether the job itself published the model, and not another one that had its name before. */
const isOwn = (job: TrainingJob, model: Model): boolean => jobUid(model) === job.metadata?.uid;

/** Name under which the model of a deleted job is kept when a new job takes its name: the uid tells the jobs apart. */
export function keptName(model: Model): string {
  const uid = (jobUid(model) || (model.metadata?.uid ?? "")).replace(/[^a-z0-9]/g, "").slice(0, KEPT_UID_CHARS);
  return `${(model.metadata?.name ?? "").slice(0, MAX_NAME - KEPT_UID_CHARS - 1).replace(/-+$/, "")}-${uid}`;
}

/** Copies the model of a deleted job aside, once; false if the name is taken by another model. */
async function keepAside(model: Model, store: ResourceStore): Promise<boolean> {
  const { labels = {}, annotations = {} } = model.metadata ?? {};
  const copy = { ...model, metadata: { ...newMeta(keptName(model), labels), annotations } };
  if ((await store.create("Model", copy)).ok) return true;
  return jobUid(await store.get("Model", keptName(model))) === jobUid(model);
}

/**
 * Whether a job can begin, and with which model. Fresh weights come from the job's seed alone, so two replicas that
 * admit the same job store the same bytes.
 */
export async function admit(job: TrainingJob, world: World): Promise<Admission> {
  const { store, blobs } = world;
  const name = job.metadata?.name ?? "";
  const taken = await store.get("Model", name);
  if (taken !== undefined && taken.origin?.job !== name) {
    return later(
      "ModelNameTaken",
      `a model named "${name}" exists that this job did not make: delete it, or apply the job under another name`,
    );
  }
  const kept = taken === undefined || isOwn(job, taken) ? undefined : await store.get("Model", keptName(taken));
  if (kept !== undefined && jobUid(kept) !== jobUid(taken)) {
    return later(
      "ModelNameTaken",
      `the model "${name}" was trained by a deleted job of this name, and the name to keep it under, "${kept.metadata?.name ?? ""}", is taken: apply the job under another name`,
    );
  }
  const { dataset = "", purpose = "" } = job.spec?.data ?? {};
  const allowed = (await store.get("Dataset", dataset))?.spec?.purposes ?? [];
  if (allowed.length > 0 && !allowed.includes(purpose)) {
    return later(
      "PurposeRefused",
      `the dataset "${dataset}" is not for the purpose "${purpose}", only for ${allowed.join(", ")}: ask its steward`,
    );
  }
  const vocabulary = job.spec?.model?.tokenizer?.blob;
  if (vocabulary !== undefined && (await blobs.touch(vocabulary.digest)) === undefined) {
    return later("TokenizerMissing", `waiting for the tokenizer ${vocabulary.digest}: upload its tokenizer.json`);
  }
  if (taken !== undefined && isOwn(job, taken)) return admitPublished(taken, world);
  const base = job.spec?.model?.base ?? "";
  return base === "" ? admitNew(job, world) : admitBase(job, base, world);
}

const isSameStart = (a: Model, b: Model): boolean =>
  a.weights?.digest === b.weights?.digest && a.base?.weights?.digest === b.base?.weights?.digest;

/**
 * Makes the Model named like the job hold these weights, unless it holds those of a later round of the same job already.
 * What a deleted job of the same name trained is kept under `keptName` first. Idempotent; a lost race is false, also one
 * against a replica that began on other weights.
 */
export async function publishModel(job: TrainingJob, model: Model, store: ResourceStore): Promise<boolean> {
  const name = job.metadata?.name ?? "";
  const stored = await store.get("Model", name);
  if (stored === undefined) return (await store.create("Model", model)).ok;
  const isSameJob = isOwn(job, stored);
  const ahead = (model.origin?.round ?? 0) - (stored.origin?.round ?? 0);
  if (isSameJob && ahead <= 0) return ahead < 0 || isSameStart(stored, model);
  if (stored.metadata === undefined || model.metadata === undefined) return false;
  if (!isSameJob && !(await keepAside(stored, store))) return false;
  const { annotations, labels } = model.metadata;
  const metadata = { ...stored.metadata, annotations, labels };
  return (await store.update("Model", { ...model, metadata })).ok;
}
