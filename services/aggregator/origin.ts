import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Model } from "#proto/shoal/v1/model.js";
import { deriveSeed } from "#common/domain/seed.js";
import { parseModelConfig, type ModelConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import { startTrained, variantOf } from "#common/graph/training.js";
import { viewBytes, viewFloats } from "#common/tensor/flat.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { broken, judged, unverifiable, verified, type Finding } from "./lineage.js";

/** What is known of where a job began. */
export interface OriginFacts {
  job: TrainingJob;
  /** Digest of the weights its first round starts from. */
  start: string;
  /** The Model that the job names as its base, as it is now. */
  base: Model | undefined;
  /** The job's own Model, whose config its adapters follow. */
  model: Model | undefined;
  /** The whole model beside the trained vector, if its blob is there. */
  whole: Uint8Array | undefined;
}

const seedOf = (job: TrainingJob, purpose: string): number => deriveSeed(job.spec?.seed ?? 0, purpose);

function configOf(family: string, config: Readonly<Record<string, unknown>> | undefined): ModelConfig | undefined {
  const parsed = parseModelConfig({ ...config, model_type: family });
  return parsed.ok ? parsed.config : undefined;
}

/** A new model is drawn again from the job's seed. */
function checkNew({ job, start }: OriginFacts): Finding {
  const { family = "", config } = job.spec?.model ?? {};
  const parsed = configOf(family, config);
  if (parsed === undefined) return broken("origin", "the job's model configuration cannot be read");
  const whole = initWeights(parsed, seedOf(job, "weights"));
  const faults: string[] = [];
  const wholeDigest = sha256Digest(viewBytes(whole));
  const kept = job.status?.baseWeights?.digest ?? "";
  if (kept === "") {
    if (wholeDigest !== start) faults.push(`the seed gives ${wholeDigest}, and the first round starts from ${start}`);
  } else {
    const trained = startTrained(parsed, variantOf(job.spec?.training), whole, seedOf(job, "adapters"));
    const trainedDigest = sha256Digest(viewBytes(trained));
    if (wholeDigest !== kept)
      faults.push(`the seed gives ${wholeDigest} for the whole model, and the job kept ${kept}`);
    if (trainedDigest !== start)
      faults.push(`the seed gives ${trainedDigest}, and the first round starts from ${start}`);
  }
  return judged("origin", faults, "a new model, drawn again from the job's seed");
}

/** A base may have got other weights since; what cannot be told then is whether the job began on what it was. */
function checkBase({ job, start, base, model, whole }: OriginFacts): Finding {
  const name = job.spec?.model?.base ?? "";
  const kept = job.status?.baseWeights?.digest ?? "";
  const now = base?.weights?.digest ?? "";
  if (now === start) return verified("origin", `the weights of the model "${name}"`);
  const moved = `the model "${name}" is gone or has other weights by now`;
  if (kept === "" || model === undefined) return unverifiable("origin", moved);
  if (now !== kept && base?.base?.weights?.digest !== kept) return unverifiable("origin", moved);
  if (base?.base !== undefined) {
    return unverifiable(
      "origin",
      `the model "${name}" has adapters of its own and goes on from other values than they have now`,
    );
  }
  const config = configOf(model.family, model.config);
  if (config === undefined) return broken("origin", "the configuration of the job's model cannot be read");
  if (whole === undefined) return unverifiable("origin", `the whole model ${kept} is not stored any more`);
  const trained = startTrained(config, variantOf(job.spec?.training), viewFloats(whole), seedOf(job, "adapters"));
  const digest = sha256Digest(viewBytes(trained));
  const faults = digest === start ? [] : [`its base and seed give ${digest}, and the first round starts from ${start}`];
  return judged("origin", faults, `what is trained of the model "${name}", drawn again from the job's seed`);
}

/** Whether the first round started from what the job names: its base model, or its seed. Pure, and as much work as admission. */
export function checkOrigin(facts: OriginFacts): Finding {
  const isNew = (facts.job.spec?.model?.base ?? "") === "";
  return isNew ? checkNew(facts) : checkBase(facts);
}
