import { answer, type Answer, invalid, refuse } from "#common/domain/answer.js";
import { exportAdapter } from "#common/graph/adapter.js";
import { exportCheckpoint } from "#common/graph/checkpoint.js";
import { type ModelConfig, parseModelConfig, toHuggingFaceConfig } from "#common/graph/config.js";
import { exportFolder } from "#common/graph/folder.js";
import { exportInferenceGraph } from "#common/graph/inference-export.js";
import { mergeTrained, variantOf } from "#common/graph/training.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import { viewFloats } from "#common/tensor/flat.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { Model } from "#proto/shoal/v1/model.js";
import type { ExportRequest, ExportResponse } from "#proto/shoal/v1/model_service.js";
import { decodeAdapter } from "./adapter-template.js";
import { decodeFolder } from "./folder-template.js";
import { SHOAL_TOKENIZER, TOKENIZER } from "#common/domain/model-files.js";

/** What a model can be written as. */
const FORMS = ["merged", "adapter", "onnx"];
/** Tokens of an ONNX file's sequence where nobody says, if the context is longer. */
const ONNX_SEQ_LEN = 512;
/** Bytes of a file in one message. */
const PIECE_BYTES = 512 * 1024;

type Files = ReadonlyMap<string, Uint8Array>;

const nameOf = (model: Model): string => model.metadata?.name ?? "";
const gone = (what: string, model: Model): Answer<never> =>
  refuse("FAILED_PRECONDITION", `the ${what} of "${nameOf(model)}" is not stored any more`);

/**
 * A model's files, piece by piece. The whole model comes in the form of the folder it was imported from, untouched
 * weights as the very bytes; adapters alone as the peft library keeps them; an ONNX file for inference has all in it.
 */
export async function exportModel(
  model: Model,
  { form, seqLen }: Pick<ExportRequest, "form" | "seqLen">,
  blobs: BlobStore,
): Promise<Answer<Iterable<ExportResponse>>> {
  if (form !== "" && !FORMS.includes(form)) {
    return invalid({ field: "form", value: form.slice(0, 64), description: `must be ${FORMS.join(", ")} or empty` });
  }
  const parsed = parseModelConfig(model.config);
  if (!parsed.ok) {
    return refuse("FAILED_PRECONDITION", `the configuration of "${nameOf(model)}" cannot be built any more`);
  }
  const weights = await readVector(blobs, model.weights);
  if (weights === undefined) return gone("weights", model);
  if (form === "adapter") return adapterFiles(model, parsed.config, weights, blobs);
  const whole = await wholeWeights(model, parsed.config, weights, blobs);
  if (whole === undefined) return gone("base", model);
  const files =
    form === "onnx"
      ? await onnxFiles(model, parsed.config, whole, seqLen, blobs)
      : await folderFiles(model, parsed.config, whole, blobs);
  return files.ok ? answer(toPieces(files.value)) : files;
}

/** A flat fp32 vector; undefined if it is not stored. */
export async function readVector(blobs: BlobStore, ref: BlobRef | undefined): Promise<Float32Array | undefined> {
  const bytes = await blobs.get(ref?.digest ?? "");
  return bytes && viewFloats(bytes);
}

/** All weights of a model, the trained part in its base; undefined if the base is gone. */
export async function wholeWeights(
  { base }: Model,
  config: ModelConfig,
  weights: Float32Array,
  blobs: BlobStore,
): Promise<Float32Array | undefined> {
  if (base === undefined) return weights;
  const whole = await readVector(blobs, base.weights);
  return whole && mergeTrained(config, variantOf(base.training), whole, weights);
}

async function adapterFiles(
  model: Model,
  config: ModelConfig,
  weights: Float32Array,
  blobs: BlobStore,
): Promise<Answer<Iterable<ExportResponse>>> {
  const { lora, trained } = variantOf(model.base?.training);
  const name = nameOf(model);
  if (lora === undefined) {
    return refuse("FAILED_PRECONDITION", `the model "${name}" is no adapter: export it without --adapter`);
  }
  if (trained !== undefined) {
    const why = `the model "${name}" has trained tensors of its base beside its adapters`;
    return refuse("FAILED_PRECONDITION", `${why}: export it merged`);
  }
  if (model.base?.adapter !== undefined) {
    const bytes = await blobs.get(model.base.adapter.digest);
    const template = bytes && decodeAdapter(bytes);
    if (template === undefined) return gone("imported form", model);
    return answer(toPieces(new Map(Object.entries(exportAdapter(config, lora, weights, template)))));
  }
  const files = exportAdapter(config, lora, weights);
  const adapterConfig: unknown = JSON.parse(new TextDecoder().decode(files["adapter_config.json"]));
  const named = { base_model_name_or_path: model.base?.model ?? "", ...(adapterConfig as object) };
  const encoded = new TextEncoder().encode(`${JSON.stringify(named, null, 2)}\n`);
  return answer(toPieces(new Map([...Object.entries(files), ["adapter_config.json", encoded]])));
}

async function onnxFiles(
  model: Model,
  config: ModelConfig,
  weights: Float32Array,
  wanted: number,
  blobs: BlobStore,
): Promise<Answer<Files>> {
  const { contextLength } = config;
  const seqLen = wanted === 0 ? Math.min(contextLength, ONNX_SEQ_LEN) : wanted;
  if (!Number.isInteger(seqLen) || seqLen < 1 || seqLen > contextLength) {
    return invalid({
      field: "seq_len",
      value: String(wanted),
      description: `must be from 1 to ${contextLength}, or 0`,
    });
  }
  const tokenizer = await tokenizerFile(model, blobs);
  if (tokenizer === undefined) return gone("tokenizer", model);
  const { model: graph, data } = exportInferenceGraph(config, weights, { seqLen });
  const fields = new TextEncoder().encode(`${JSON.stringify(toHuggingFaceConfig(config), null, 2)}\n`);
  const files: [string, Uint8Array][] = [["config.json", fields], ...tokenizer, ["model.onnx", graph]];
  return answer(new Map(data === undefined ? files : [...files, [data.name, data.bytes]]));
}

async function folderFiles(
  model: Model,
  config: ModelConfig,
  weights: Float32Array,
  blobs: BlobStore,
): Promise<Answer<Files>> {
  const tokenizer = await tokenizerFile(model, blobs);
  if (tokenizer === undefined) return gone("tokenizer", model);
  if (model.template === undefined) {
    return answer(new Map([...Object.entries(exportCheckpoint(config, weights)), ...tokenizer]));
  }
  const bytes = await blobs.get(model.template.digest);
  const folder = bytes && decodeFolder(bytes);
  if (folder === undefined) return gone("imported form", model);
  const files = exportFolder(config, weights, folder.template);
  return answer(new Map([...files, ...tokenizer, ...folder.companions]));
}

/** tokenizer.json; for a model that was never imported else a small file that describes its tokenizer. */
async function tokenizerFile(model: Model, blobs: BlobStore): Promise<Map<string, Uint8Array> | undefined> {
  const spec = model.tokenizer;
  if (spec?.kind === "huggingface") {
    const json = await blobs.get(spec.blob?.digest ?? "");
    return json && new Map([[TOKENIZER, json]]);
  }
  if (model.template !== undefined) return new Map();
  const description = spec?.kind === "chars" ? { kind: "chars", chars: spec.chars } : { kind: "bytes" };
  return new Map([[SHOAL_TOKENIZER, new TextEncoder().encode(`${JSON.stringify(description, null, 2)}\n`)]]);
}

function* toPieces(files: Files): Generator<ExportResponse> {
  for (const [fileName, bytes] of files) {
    for (let offset = 0; offset < bytes.length; offset += PIECE_BYTES) {
      const part = bytes.subarray(offset, offset + PIECE_BYTES);
      const data = Buffer.from(part.buffer, part.byteOffset, part.byteLength);
      yield { piece: { fileName, fileSizeBytes: bytes.length, data } };
    }
  }
}
