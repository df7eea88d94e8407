import { answer, type Answer, invalid, refuse } from "#common/domain/answer.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { type AdapterFiles, importAdapter } from "#common/graph/adapter.js";
import { parseModelConfig } from "#common/graph/config.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import { viewBytes } from "#common/tensor/flat.js";
import { TrainingSpec } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { Model } from "#proto/shoal/v1/model.js";
import { encodeAdapter } from "./adapter-template.js";
import { readVector, wholeWeights } from "./model-export.js";
import { violation } from "./model-import.js";

/**
 * The Model that an adapter's files make beside a stored model. If that one is itself an adapter, it is folded into its base
 * first. Blobs are stored, the Model is not.
 */
export async function modelOfAdapter(
  name: string,
  base: Model,
  files: AdapterFiles,
  blobs: BlobStore,
): Promise<Answer<Model>> {
  const baseName = base.metadata?.name ?? "";
  const parsed = parseModelConfig(base.config);
  const weights = await readVector(blobs, base.weights);
  const whole = parsed.ok && weights && (await wholeWeights(base, parsed.config, weights, blobs));
  if (!parsed.ok || whole === undefined || whole === false) {
    return refuse("FAILED_PRECONDITION", `the model "${baseName}" is not stored whole any more: import it again`);
  }
  const imported = importAdapter(parsed.config, files);
  if (!imported.ok) {
    const found = imported.violations.map(({ field, value, description }) => violation(field, value, description));
    return invalid(...found);
  }
  const wholeRef: BlobRef | undefined = base.base === undefined ? base.weights : await blobs.put(viewBytes(whole));
  const { lora } = imported;
  const training = TrainingSpec.fromPartial({
    mode: "lora",
    lora: { ...lora, targets: [...lora.targets] },
    base: "float32",
    recompute: "auto",
  });
  return answer({
    apiVersion: API_VERSION,
    kind: "Model",
    metadata: newMeta(name),
    family: base.family,
    config: base.config,
    tokenizer: base.tokenizer,
    weights: await blobs.put(viewBytes(imported.weights)),
    parameters: imported.weights.length,
    origin: { job: "", round: 0 },
    template: base.template,
    base: { model: baseName, weights: wholeRef, training, adapter: await blobs.put(encodeAdapter(imported.template)) },
  });
}
