import { parseDocument } from "yaml";
import { answer, type Answer, invalid, refuse } from "#common/domain/answer.js";
import { decodeDataset } from "#common/domain/manifest.js";
import { cutPage, parsePage } from "#common/domain/pages.js";
import { API_VERSION, isResourceName, nameViolations, newMeta } from "#common/domain/resources.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { Kind, ResourceOf, ResourceStore } from "#common/ports/resource-store.js";
import type { Log } from "#common/ports/log.js";
import { Turns } from "#common/runtime/turns.js";
import { viewBytes } from "#common/tensor/flat.js";
import type { TokenizerSpec } from "#proto/shoal/v1/job.js";
import type { Dataset, Model } from "#proto/shoal/v1/model.js";
import type {
  ApplyDatasetRequest,
  ApplyDatasetResponse,
  ExportRequest,
  ExportResponse,
  GetModelRequest,
  GetModelResponse,
  ImportRequest,
  ImportResponse,
  ListDatasetsRequest,
  ListDatasetsResponse,
  ListModelsRequest,
  ListModelsResponse,
} from "#proto/shoal/v1/model_service.js";
import { modelOfAdapter } from "./adapter-import.js";
import { encodeFolder } from "./folder-template.js";
import { exportModel } from "./model-export.js";
import { type ImportedModel, ImportReader } from "./model-import.js";

export interface ModelPorts {
  readonly store: ResourceStore;
  readonly blobs: BlobStore;
  readonly log: Log;
}

const PAGES = { max: 1000, fallback: 100 };
const MAX_ATTEMPTS = 16;
/** Imports that may be under way at once; each may hold a whole model. */
const MAX_IMPORTS = 4;
const MAX_MANIFEST_CHARS = 256 * 1024;

const nameOf = (resource: { metadata?: { name: string } | undefined }): string => resource.metadata?.name ?? "";

/** ModelService without gRPC: models come in and go out as Hugging Face folders; datasets get passports. */
export class ModelApi {
  /** Reading and writing whole models: their vectors and files are in memory several times meanwhile. */
  private readonly turns = new Turns();
  private imports = 0;

  constructor(private readonly ports: ModelPorts) {}

  /** Takes the messages of an import one by one and stores the model; the first wrong message ends it. */
  async import(requests: AsyncIterable<ImportRequest>): Promise<Answer<ImportResponse>> {
    if (this.imports >= MAX_IMPORTS) {
      return refuse("RESOURCE_EXHAUSTED", `${MAX_IMPORTS} imports are under way: try again when one of them has ended`);
    }
    this.imports++;
    try {
      return await this.receive(requests);
    } finally {
      this.imports--;
    }
  }

  private async receive(requests: AsyncIterable<ImportRequest>): Promise<Answer<ImportResponse>> {
    const reader = new ImportReader();
    for await (const request of requests) {
      const hadName = reader.name !== "";
      const violation = reader.accept(request);
      if (violation !== undefined) return invalid(violation);
      // Told before the weights are sent, not after.
      if (hadName) continue;
      if ((await this.ports.store.get("Model", reader.name)) !== undefined) return nameTaken(reader.name);
      if (reader.base !== "" && (await this.ports.store.get("Model", reader.base)) === undefined) {
        return noModel(reader.base);
      }
    }
    return this.turns.take(() => this.finishImport(reader));
  }

  private async finishImport(reader: ImportReader): Promise<Answer<ImportResponse>> {
    const read = await (reader.base === "" ? this.readModel(reader) : this.readAdapter(reader));
    if (!read.ok) return read;
    const created = await this.ports.store.create("Model", read.value);
    if (!created.ok) return nameTaken(reader.name);
    this.ports.log.info("a model was imported", { model: reader.name, parameters: read.value.parameters });
    return answer({ model: created.resource });
  }

  private async readModel(reader: ImportReader): Promise<Answer<Model>> {
    const verdict = reader.finish();
    return verdict.ok ? answer(await this.toModel(verdict.model)) : invalid(...verdict.violations);
  }

  private async readAdapter(reader: ImportReader): Promise<Answer<Model>> {
    const verdict = reader.finishAdapter();
    if (!verdict.ok) return invalid(...verdict.violations);
    const base = await this.ports.store.get("Model", reader.base);
    return base === undefined
      ? noModel(reader.base)
      : modelOfAdapter(reader.name, base, verdict.files, this.ports.blobs);
  }

  private async toModel(imported: ImportedModel): Promise<Model> {
    const { blobs } = this.ports;
    return {
      apiVersion: API_VERSION,
      kind: "Model",
      metadata: newMeta(imported.name),
      family: imported.family,
      config: imported.huggingFaceConfig,
      tokenizer: await this.toTokenizer(imported.tokenizer),
      weights: await blobs.put(viewBytes(imported.weights)),
      parameters: imported.weights.length,
      origin: { job: "", round: 0 },
      template: await blobs.put(encodeFolder(imported.folder)),
      base: undefined,
    };
  }

  private async toTokenizer(tokenizer: ImportedModel["tokenizer"]): Promise<TokenizerSpec> {
    switch (tokenizer.kind) {
      case "bytes":
        return { kind: "bytes", chars: "", blob: undefined };
      case "chars":
        return { kind: "chars", chars: tokenizer.chars, blob: undefined };
      case "huggingface":
        return { kind: "huggingface", chars: "", blob: await this.ports.blobs.put(tokenizer.json) };
    }
  }

  /** The model's files, piece by piece. */
  async export(request: ExportRequest): Promise<Answer<Iterable<ExportResponse>>> {
    const { name } = request;
    if (!isResourceName(name)) return invalid(...nameViolations("name", name));
    const model = await this.ports.store.get("Model", name);
    if (model === undefined) return noModel(name);
    return this.turns.take(() => exportModel(model, request, this.ports.blobs));
  }

  async listModels(request: ListModelsRequest): Promise<Answer<ListModelsResponse>> {
    const page = await this.page("Model", request.pageSize, request.pageToken);
    return page.ok ? answer({ models: page.value.items, nextPageToken: page.value.nextPageToken }) : page;
  }

  async getModel({ name }: GetModelRequest): Promise<Answer<GetModelResponse>> {
    if (!isResourceName(name)) return invalid(...nameViolations("name", name));
    const model = await this.ports.store.get("Model", name);
    return model === undefined ? noModel(name) : answer({ model });
  }

  async listDatasets(request: ListDatasetsRequest): Promise<Answer<ListDatasetsResponse>> {
    const page = await this.page("Dataset", request.pageSize, request.pageToken);
    return page.ok ? answer({ datasets: page.value.items, nextPageToken: page.value.nextPageToken }) : page;
  }

  /** Creates or replaces a passport; the same manifest again changes nothing. */
  async applyDataset({ manifest }: ApplyDatasetRequest): Promise<Answer<ApplyDatasetResponse>> {
    const document = parseManifest(manifest);
    if (!document.ok) return document;
    const decoded = decodeDataset(document.value);
    if (!decoded.ok) return invalid(...decoded.violations);
    const wanted = decoded.value;
    const name = nameOf(wanted);
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      const stored = await this.ports.store.get("Dataset", name);
      const next = stored === undefined ? withMeta(wanted) : replaced(stored, wanted);
      if (next === undefined) return answer({ dataset: stored });
      const { store } = this.ports;
      const written = await (stored === undefined ? store.create("Dataset", next) : store.update("Dataset", next));
      if (written.ok) return answer({ dataset: written.resource });
    }
    return refuse("ABORTED", `the dataset "${name}" is being changed by others: try again`);
  }

  private async page<K extends Kind>(
    kind: K,
    pageSize: number,
    pageToken: string,
  ): Promise<Answer<{ items: ResourceOf[K][]; nextPageToken: string }>> {
    const parsed = parsePage(pageSize, pageToken, kind, PAGES);
    if (!parsed.ok) return invalid(...parsed.violations);
    const { items } = await this.ports.store.list(kind);
    return answer(cutPage(items, nameOf, parsed.page, kind));
  }
}

const noModel = (name: string): Answer<never> =>
  refuse("NOT_FOUND", `no model is named "${name.slice(0, 64)}": list models to see their names`);
const nameTaken = (name: string): Answer<never> =>
  refuse("ALREADY_EXISTS", `a model named "${name}" exists: import it under another name`);

/** Both parsers, YAML's and JSON's, are one: JSON is YAML. */
function parseManifest(manifest: string): Answer<unknown> {
  const wrong = (description: string): Answer<never> => invalid({ field: "manifest", value: "", description });
  if (manifest.length > MAX_MANIFEST_CHARS) return wrong(`must have at most ${MAX_MANIFEST_CHARS} characters`);
  const document = parseDocument(manifest);
  const [error] = document.errors;
  if (error !== undefined) return wrong(`is neither YAML nor JSON: ${error.message.split("\n")[0] ?? ""}`);
  try {
    return answer(document.toJS({ maxAliasCount: 100 }) as unknown);
  } catch {
    return wrong("expands its aliases too often: write them out");
  }
}

function withMeta(dataset: Dataset): Dataset {
  const { name = "", labels = {}, annotations = {} } = dataset.metadata ?? {};
  return { ...dataset, metadata: { ...newMeta(name, labels), annotations } };
}

/** The stored dataset with the wanted content; undefined if it has it. */
function replaced(stored: Dataset, wanted: Dataset): Dataset | undefined {
  const { labels = {}, annotations = {} } = wanted.metadata ?? {};
  const meta = stored.metadata ?? newMeta(nameOf(wanted));
  const sameSpec = JSON.stringify(stored.spec) === JSON.stringify(wanted.spec);
  const sameMeta = JSON.stringify([meta.labels, meta.annotations]) === JSON.stringify([labels, annotations]);
  if (sameSpec && sameMeta) return undefined;
  const generation = sameSpec ? meta.generation : meta.generation + 1;
  return { ...stored, spec: wanted.spec, metadata: { ...meta, labels, annotations, generation } };
}
